"""Dimple's confident decoding (arXiv 2505.16990): all that is certain, else the scheduled number."""

from __future__ import annotations

from typing import Literal, get_args

from smc_bridge.canvas.build import canvas_of
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.ranked import Ranked
from smc_bridge.canvas.scores import Score
from smc_bridge.canvas.thresholds import Confident
from smc_bridge.models.arguments import said
from smc_bridge.models.protocols import ModelPair
from smc_bridge.registry import method

#: Dimple's names of the orders that it falls back on.
Alg = Literal["random", "maskgit_plus", "topk_margin", "entropy"]
SCORES: dict[str, Score] = dict(zip(get_args(Alg), ("random", "probability", "margin", "entropy"), strict=True))


@method(
    "dimple", role="baseline", targets="DLM", proper=False, why="independent draws at several places",
    reference="arXiv 2505.16990", published="Dimple-7B: about a third of the response length in forwards",
    examples=("dimple", "dimple,sampled=true"),
)
def dimple(
    pair: ModelPair, *, threshold: float = 0.95, alg: Alg = "maskgit_plus", tokens: int = 1, sampled: bool = False,
    span: int | None = None, lookahead: int | None = 256, temperature: float = 1.0, top_p: float = 1.0,
    anchors: str = "", cut_at_end: bool = False,
) -> Canvas:
    """Confident decoding: all places above a threshold are filled, and where there is none the scheduled number.

    With c_i the top probability at place i in the untempered law: all open places with `c_i > 0.95`; if there is none,
    the surest by random, c_i, margin or `-H`, as many as bring the masks down to the next multiple of `tokens`, which
    is the published `int(n_mask (1 - s / t))` on a uniform grid. Anchors are its structure priors. Role: a biased
    baseline; places are chosen before sampling, so each token keeps its marginal as its density. Published is the
    *drawn* token's probability (`sampled`), which puts its law off its marginal. In the released code the threshold
    never fires under entropy, where it is held against -H; here it is always held against c_i.

    Args:
        pair: the models, of which the diffusion model decodes.
        threshold: of the probability.
        alg: order of the places otherwise.
        tokens: places per forward of the schedule.
        sampled: use the drawn token's probability, as published.
        span: consecutive places that are open at a time, none for all that are shown.
        lookahead: masked places per forward, none for the whole continuation.
        temperature: of the law that tokens are drawn from; 0 is greedy.
        top_p: of that law.
        anchors: tokens planted in the canvas, as place:text with | between them.
        cut_at_end: cut the canvas where the model foresees the end of its text, which changes the law (Learn2PD).
    Raises:
        ValueError: an argument out of range.
    """
    if alg not in SCORES:
        raise ValueError(f"alg = {said(alg)}: give one of {', '.join(SCORES)}")
    fallback = Ranked(SCORES[alg], tokens, sampled=sampled and alg == "maskgit_plus", aligned=True)
    return canvas_of(
        pair, Confident(threshold, fallback, sampled=sampled), name="dimple", span=span, lookahead=lookahead,
        temperature=temperature, top_p=top_p, anchors=anchors, cut_at_end=cut_at_end,
    )
