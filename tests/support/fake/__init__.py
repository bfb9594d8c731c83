"""A stand-in for the pool with faults on demand, for trying the rigs themselves."""
