"""Decoders side by side on the same prompts and seeds: `smc-bridge compare`, and the function behind it."""

from typing import TYPE_CHECKING

from smc_bridge.exports import on_demand

if TYPE_CHECKING:
    from smc_bridge.analysis.comparison.comparing import Comparison, compare, default_methods
    from smc_bridge.analysis.comparison.settings import Settings
    from smc_bridge.analysis.comparison.table import Row, render

__all__ = ["Comparison", "Row", "Settings", "compare", "default_methods", "render"]

if not TYPE_CHECKING:  # any attribute would be right for a type checker
    __getattr__, __dir__ = on_demand(__name__)
