"""Training of the learned parts: a recipe each, seeded, and the command that lists and runs them.

`python -m smc_bridge.models.training` lists them, `python -m smc_bridge.models.training NAME` trains one.
"""

from __future__ import annotations

#: What trains each part for the embedded pair: `train(pair, *, seed, steps=None) -> Trained` (`.fit`).
TRAININGS: dict[str, str] = {
    "adjust": "smc_bridge.models.training.adjust:train",
    "markov": "smc_bridge.models.training.markov:train",
    "selector": "smc_bridge.models.training.selector:train",
    "codila": "smc_bridge.models.training.codila:train",
    "confidence_filter": "smc_bridge.models.training.confidence_filter:train",
}
