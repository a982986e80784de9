"""Recorded results of every decoder, kernel, resampler and intermediate, which no change of structure may alter."""
