"""From a pair of models and a rule to a canvas decoder: the options that all methods of this kind share."""

from __future__ import annotations

from collections.abc import Mapping

from smc_bridge.canvas.anchors import read_anchors
from smc_bridge.canvas.credit import Credit
from smc_bridge.canvas.cut import CutAtEnd
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.rules import CommitRule
from smc_bridge.engine.presets import check_pair
from smc_bridge.models.arguments import true_or_false
from smc_bridge.models.caches import recomputing
from smc_bridge.models.ends import ends_of
from smc_bridge.models.protocols import ModelPair
from smc_bridge.proposals.mean_field import DLMProposal

#: A lookahead of more places than a continuation has.
WHOLE = 2**20


def canvas_of(
    pair: ModelPair, rule: CommitRule, *, name: str, span: int | None, lookahead: int | None, temperature: float,
    top_p: float = 1.0, anchors: str | Mapping[int, int] | None = None, credit: Credit | None = None,
    recompute: bool = False, cut_at_end: bool = False,
) -> Canvas:
    """The decoder of a pair's diffusion model under a rule.

    Args:
        span: consecutive places that are open at a time; None for all that are shown.
        lookahead: masked places per forward; None for the whole continuation.
        temperature, top_p: of the law that tokens are drawn from.
        anchors: see `read_anchors`.
        cut_at_end: whether the canvas is cut where the model foresees the end of its text (`CutAtEnd`).
        recompute: whether the model is taken without an approximate cache (`recomputing`).
    Raises:
        ValueError: an argument out of range.
    """
    check_pair(pair)
    places = WHOLE if lookahead is None else lookahead
    model = recomputing(pair.dlm) if recompute else pair.dlm
    proposal = DLMProposal(model, temperature=temperature, top_p=top_p, lookahead=places)
    if true_or_false("cut_at_end", cut_at_end):
        rule = CutAtEnd(rule, ends_of(model.eos_id))
    held = read_anchors(anchors, getattr(pair, "tokenizer", None))
    return Canvas(proposal, rule, span, name, getattr(pair, "decode", None), held, credit)
