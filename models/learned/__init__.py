"""Learned parts of decoders: small networks beside a pair, and their files (`smc_bridge.models.training` trains them).

A network knows tensors alone: what it is used for stands with the proposal or the rule that reads it. Its class takes
plain keyword arguments and keeps them in `config`.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

#: Where the network of each part stands.
PARTS: dict[str, str] = {
    "adjust": "smc_bridge.models.learned.adjust:Refiner",
    "markov": "smc_bridge.models.learned.markov:MarkovHead",
    "selector": "smc_bridge.models.learned.selector:SelectorHead",
    "confidence_filter": "smc_bridge.models.learned.confidence_filter:ConfidenceFilter",
    "codila": "smc_bridge.models.learned.codila:SoftAR",
    "columns": "smc_bridge.models.tables.columns:ColumnNetwork",
    "table_diffusion": "smc_bridge.models.tables.tabdiff:TabDiff",
}
#: How those are trained that are no part of the embedded pair.
TRAINED_BY: dict[str, str] = {
    "columns": "python -m smc_bridge.models.training.table_pair",
    "table_diffusion": "python -m smc_bridge.models.training.table_diffusion",
}


def untrained(name: str, model: Any) -> Any:
    """An untrained network of that name for a diffusion model: `untrained(model)` of its class."""
    return resolve_name(PARTS[name]).untrained(model)
