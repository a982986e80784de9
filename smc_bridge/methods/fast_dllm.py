"""Fast-dLLM (arXiv 2505.22618): the usual practical decoder, by a threshold or a factor of confidence."""

from __future__ import annotations

from smc_bridge.canvas.build import canvas_of
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.rules import CommitRule
from smc_bridge.canvas.thresholds import Factor, Threshold
from smc_bridge.models.arguments import said
from smc_bridge.models.protocols import ModelPair
from smc_bridge.registry import method


@method(
    "fast-dllm", role="baseline", targets="DLM", proper=False, why="independent draws at several places",
    reference="arXiv 2505.22618", published="8 to 11x over LLaDA-8B's own decoder, with prefix or dual cache",
    examples=("fast-dllm", "fast-dllm,factor=1"),
)
def fast_dllm(
    pair: ModelPair, *, threshold: float | None = None, factor: float | None = None, sampled: bool = False,
    span: int | None = 32, lookahead: int | None = 256, temperature: float = 1.0, anchors: str = "",
    cut_at_end: bool = False,
) -> Canvas:
    """Confidence-aware parallel decoding: all places above a threshold, or as many as a factor allows, per forward.

    With c_i the top probability at place i in the untempered law, in blocks of 32 places: all with `c_i >= theta`, or,
    given a factor f, the n surest, n the greatest with `c_(n) >= 1 - f / (n + 1)`; always the surest one. Role: a
    biased baseline; the places are chosen before sampling, so each token keeps its marginal as its density. The
    released code draws first and thresholds the drawn token's probability (`sampled`): the same at temperature 0, and
    off the marginals elsewhere. Its caches are policies of the model (`--dlm-cache`), not of this decoder.

    Args:
        pair: the models, of which the diffusion model decodes.
        threshold: theta, 0.9 unless a factor is given.
        factor: f, none for the threshold; 1 in the paper.
        sampled: use the drawn token's probability, as released.
        span: consecutive places that are open at a time, none for all that are shown.
        lookahead: masked places per forward, none for the whole continuation.
        temperature: of the law that tokens are drawn from; 0 is greedy.
        anchors: tokens planted in the canvas, as place:text with | between them.
        cut_at_end: cut the canvas where the model foresees the end of its text, which changes the law (Learn2PD).
    Raises:
        ValueError: an argument out of range, or both a threshold and a factor.
    """
    if factor is not None and threshold is not None:
        raise ValueError(f"threshold = {said(threshold)} with factor = {said(factor)}: give one of them")
    rule: CommitRule = Threshold(0.9 if threshold is None else threshold, sampled=sampled)
    if factor is not None:
        rule = Factor(factor, sampled=sampled)
    return canvas_of(
        pair, rule, name="fast-dllm", span=span, lookahead=lookahead, temperature=temperature, anchors=anchors,
        cut_at_end=cut_at_end,
    )
