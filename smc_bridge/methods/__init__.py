"""Decoders by name: one file for each published decoder or family."""

#: What commands and studies run unless they are told otherwise; properly weighted, and a program with steps.
DEFAULT = "smc"
