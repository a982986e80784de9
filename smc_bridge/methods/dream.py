"""Dream's own decoder (arXiv 2508.15487): so many places per forward, in one of four orders."""

from __future__ import annotations

from typing import Literal, get_args

from smc_bridge.canvas.build import canvas_of
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.ranked import Ranked
from smc_bridge.canvas.scores import Score
from smc_bridge.models.arguments import said
from smc_bridge.models.protocols import ModelPair
from smc_bridge.registry import method

#: Dream's names of the orders.
Alg = Literal["origin", "maskgit_plus", "topk_margin", "entropy"]
SCORES: dict[str, Score] = dict(zip(get_args(Alg), ("random", "probability", "margin", "entropy"), strict=True))


@method(
    "dream", role="baseline", targets="DLM", proper=False, why="independent draws at several places",
    reference="arXiv 2508.15487", examples=("dream,tokens=2", "dream,alg=origin"),
    published="Dream-7B, entropy, 2 tokens per step: GSM8K 72.0 at 26 tokens/s, HumanEval 47.6 (arXiv 2606.08048)",
)
def dream(
    pair: ModelPair, *, alg: Alg = "entropy", tokens: int = 1, alg_temp: float = 0.0, sampled: bool = False,
    span: int | None = None, lookahead: int | None = 256, temperature: float = 1.0, top_p: float = 1.0,
    anchors: str = "", cut_at_end: bool = False,
) -> Canvas:
    """Dream's decoder: a fixed number of places per forward, at random or the surest by one of three scores.

    All masks are open. Places are ranked by a random number (origin), the top probability (maskgit_plus), the margin
    `p_(1) - p_(2)` (topk_margin) or `-H` (entropy); with `alg_temp` by score / alg_temp plus Gumbel noise, that is
    drawn without replacement in proportion to exp(score / alg_temp). Role: a biased baseline; places are chosen before
    sampling, so each token keeps its marginal as its density. Scores are of the untempered law, and the released
    maskgit_plus is that of the drawn token (`sampled`); the released code also scores the tempered law.

    Args:
        pair: the models, of which the diffusion model decodes.
        alg: the order.
        tokens: places per forward.
        alg_temp: temperature of the noise on the score, 0 for none.
        sampled: rank by the drawn token's probability, of maskgit_plus.
        span: consecutive places that are open at a time, none for all that are shown.
        lookahead: masked places per forward, none for the whole continuation.
        temperature: of the law that tokens are drawn from; 0 is greedy.
        top_p: of that law.
        anchors: tokens planted in the canvas, as place:text with | between them.
        cut_at_end: cut the canvas where the model foresees the end of its text, which changes the law (Learn2PD).
    Raises:
        ValueError: an argument out of range, or one that the order does not read.
    """
    if alg not in SCORES:
        raise ValueError(f"alg = {said(alg)}: give one of {', '.join(SCORES)}")
    if sampled and alg != "maskgit_plus":
        raise ValueError(f"sampled = True with alg = {alg}, which reads no token: leave it out")
    if alg_temp and alg == "origin":
        raise ValueError(f"alg_temp = {said(alg_temp)} with alg = origin, which is noise already: leave it out")
    return canvas_of(
        pair, Ranked(SCORES[alg], tokens, alg_temp, sampled), name="dream", span=span, lookahead=lookahead,
        temperature=temperature, top_p=top_p, anchors=anchors, cut_at_end=cut_at_end,
    )
