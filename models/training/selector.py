"""The selector head of the embedded pair: the Markov head's data, loss and steps, with the features of each place.

See `smc_bridge.models.training.markov`; only the network is another (`smc_bridge.models.learned.selector`).
"""

from __future__ import annotations

from smc_bridge.models.learned.selector import SelectorHead
from smc_bridge.models.pair import Pair
from smc_bridge.models.training.fit import Trained, initialised
from smc_bridge.models.training.markov import STEPS, blocks_for, harvest, taught


def train(pair: Pair, *, seed: int = 0, steps: int | None = None, blocks: int | None = None) -> Trained:
    """Train a head of rank 64 for the embedded pair (module docstring); arguments and result as every training's.

    Args:
        pair: the embedded pair.
        seed: of initialisation, blocks and batches.
        steps: of the optimiser.
        blocks: that it is trained on; as few as the steps ask for, as a share of the recipe's, unless it is given.
    """
    steps = STEPS if steps is None else steps
    blocks = blocks_for(steps) if blocks is None else blocks
    data = harvest(pair, seed=seed, blocks=blocks)
    vocabulary, hidden = data.scores.shape[-1], data.hidden.shape[-1]
    head = initialised(lambda: SelectorHead(vocabulary=vocabulary, hidden=hidden), seed=seed)
    loss = taught(head, data, seed=seed, steps=steps, name="selector")
    return Trained(head, loss, {"seed": seed, "steps": steps, "blocks": blocks, "loss": loss})
