"""Decoders by name: one file for each published decoder or family."""
