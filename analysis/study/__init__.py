"""Cartesian experiments over methods, intermediates, N, K, w, V and seeds: `study`, and `smc-bridge study`."""

from typing import TYPE_CHECKING

from smc_bridge.exports import on_demand

if TYPE_CHECKING:
    from smc_bridge.analysis.study.config import Config, Prompts, Tabular
    from smc_bridge.analysis.study.frame import pool
    from smc_bridge.analysis.study.plan import Axes, Setting
    from smc_bridge.analysis.study.run import load_study, study

__all__ = ["Axes", "Config", "Prompts", "Setting", "Tabular", "load_study", "pool", "study"]

if not TYPE_CHECKING:  # any attribute would be right for a type checker
    __getattr__, __dir__ = on_demand(__name__)
