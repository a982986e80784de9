"""Sequential Monte Carlo: weights, resampling, the engine."""
