"""The selector drafter as a method: transitions that the features of each place choose, bridged to the AR law."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.models.protocols import ModelPair
from smc_bridge.registry import method


@method(
    "selector", role="weighted", targets="AR", proper=True, reference="DFlash 2", rest=smc,
    without=("proposal", "places", "entropy", "slot"),
    examples=("selector,w=0", "selector", "selector,kernel=tree,nodes=32"),
    published="the right token is the first at 85.4 % of places, among 16 at 99.5 %; accepted length about +21 %",
)
def selector(
    pair: ModelPair, *, particles: int = 1, head: str | os.PathLike[str] | nn.Module | None = None,
    name: str = "selector", **options: Any,
) -> Sampler:
    """One particle whose draft is a chain, `q_i(. | y_<i) ∝ exp((U_i + (A(y_{i-1}) * H(h_i) + G(h_i)) B) / tau)`.

    By one DLM forward, which gives logits `U_i` and features `h_i` of every place. As `markov`, the head adds what the
    token before says of the next one; here the features say which transitions hold at the place (`*` is elementwise),
    so that after a space there may come the digit of a sum at one place and a verb's object at another. The draft is
    drawn left to right without another forward, from conditionals in closed form, and every kernel takes it. Logits and
    features outlive a block that was accepted whole (elastic window); with `kernel=tree` a node's children are ranked
    given the node.

    Role: a non-factorised proposal of the program; with `w=0` an exact sampler of the AR law, else weighted.

    Changed: the published selector scores the 16 likeliest tokens of a place alone and has no `G`; here all tokens are
    scored, so that the law has mass wherever the DLM's has, and `G` lets the place speak for itself.

    Args:
        particles: N, that survive a step.
        head: a file of it, or the network; the pair's own unless it is given.
    """
    return smc(pair, particles, proposal="selector", head=head, name=name, **options)
