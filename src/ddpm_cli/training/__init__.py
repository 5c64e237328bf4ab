"""Training (Algorithm 1): presets, the plan of a run, memory and time, the loop, the run folder."""
