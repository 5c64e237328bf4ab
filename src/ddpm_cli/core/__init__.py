"""What everything stands on: files, pixels, random numbers, progress, processes. It knows nothing of diffusion."""
