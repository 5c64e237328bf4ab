"""eps_theta: the U-Net of appendix B, and the adapter that makes it the maths' ``denoiser(x_t, t)``."""
