"""Decoders side by side on the same prompts and seeds: `smc-bridge compare`, and the function behind it."""

from analysis.comparison.compare import Comparison, compare
from analysis.comparison.methods import DEFAULT_METHODS
from analysis.comparison.settings import Settings
from analysis.comparison.table import Row, render

__all__ = ["DEFAULT_METHODS", "Comparison", "Row", "Settings", "compare", "render"]
