"""Learned parts of decoders: small networks beside a pair, and their files (`smc_bridge.models.training` trains them).

A network knows tensors alone: what it is used for stands with the proposal or the rule that reads it. Its class takes
plain keyword arguments and keeps them in `config`.
"""

from __future__ import annotations

#: Where the network of each part stands.
PARTS: dict[str, str] = {
    "columns": "smc_bridge.models.tables.columns:ColumnNetwork",
    "table_diffusion": "smc_bridge.models.tables.tabdiff:TabDiff",
}
#: How those are trained that are no part of the embedded pair.
TRAINED_BY: dict[str, str] = {
    "columns": "python -m smc_bridge.models.tables.train",
    "table_diffusion": "python -m smc_bridge.models.training.table_diffusion",
}
