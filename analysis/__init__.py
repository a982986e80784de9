"""Diagnostics and experiments on what the sampler returns."""
