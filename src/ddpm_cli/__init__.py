"""Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel 2020)."""

__version__ = "0.1.0"
