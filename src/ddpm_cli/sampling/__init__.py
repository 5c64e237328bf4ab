"""Sampling: the settings, the chains that make images, where they start, and how a PNG records them."""
