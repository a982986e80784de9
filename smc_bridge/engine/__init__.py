"""The engine: the sequential Monte Carlo program, its parts as functions, resampling and weights."""
