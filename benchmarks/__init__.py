"""Measurements of speed and size, each beside a peer and a physical limit in the same run. `make bench` runs them all.

Machines differ and are noisy, so what counts are the ratios within one run; `docs/benchmarks.md` is written from it.
"""
