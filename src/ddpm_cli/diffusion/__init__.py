"""The paper: schedule, forward and reverse process, variational bound, samplers. Pure functions of arrays."""
