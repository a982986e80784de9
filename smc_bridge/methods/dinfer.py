"""dInfer's decoders: hierarchy, threshold and credit, with or without second thoughts."""

from __future__ import annotations

from typing import Literal

from smc_bridge.canvas.build import canvas_of
from smc_bridge.canvas.credit import Credit
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.rules import CommitRule
from smc_bridge.canvas.second_thoughts import SecondThoughts
from smc_bridge.canvas.thresholds import Hierarchy, Threshold
from smc_bridge.models.arguments import said
from smc_bridge.models.protocols import ModelPair
from smc_bridge.registry import method


@method(
    "dinfer", role="baseline", targets="DLM", proper=False, why="independent draws at several places",
    reference="github inclusionAI/dInfer", published="1,100 tokens/s on HumanEval, batch 1, LLaDA-MoE",
    examples=("dinfer", "dinfer,decoding=credit"),
)
def dinfer(
    pair: ModelPair, *, decoding: Literal["hierarchy", "threshold", "credit"] = "hierarchy", threshold: float = 0.9,
    low: float | None = None, remask: float = 0.0, span: int | None = 32, lookahead: int | None = 256,
    temperature: float = 1.0, anchors: str = "",
    cut_at_end: bool = False,
) -> Canvas:
    """dInfer's parallel decoders: one sure place of every run of masks, or a threshold on laws that remember.

    hierarchy fills the surest place of every run of consecutive masks if its top probability exceeds 0.4, and all
    above theta, else the surest: places far apart depend on each other less. credit first raises the logits of what
    was likeliest in earlier forwards, `l + 0.7 log(1 + C)` with `C <- 0.8 C + [likeliest] p^0.2`, and then applies the
    threshold; draws are of the raised law too. With `remask = 0.4` filled tokens of a smaller probability are masked
    again, at least one fewer than are filled in that forward (ours, so that the canvas fills). Role: biased baselines;
    without `remask` the places are chosen before sampling, so each token keeps its marginal as its density.

    Args:
        pair: the models, of which the diffusion model decodes.
        decoding: which decoder.
        threshold: theta.
        low: what the surest of a run must exceed, of hierarchy; 0.4 unless given.
        remask: tokens of a smaller probability in the present law are masked again, 0 for none.
        span: consecutive places that are open at a time, none for all that are shown.
        lookahead: masked places per forward, none for the whole continuation.
        temperature: of the law that tokens are drawn from; 0 is greedy.
        anchors: tokens planted in the canvas, as place:text with | between them.
        cut_at_end: cut the canvas where the model foresees the end of its text, which changes the law (Learn2PD).
    Raises:
        ValueError: an argument out of range, or one that the decoder does not read.
    """
    if decoding not in ("hierarchy", "threshold", "credit"):
        raise ValueError(f"decoding = {said(decoding)}: give one of hierarchy, threshold, credit")
    if low is not None and decoding != "hierarchy":
        raise ValueError(f"low = {said(low)} with decoding = {decoding}, which has none: leave it out")
    rule: CommitRule = Threshold(threshold)
    if decoding == "hierarchy":
        rule = Hierarchy(threshold, 0.4 if low is None else low)
    if remask:
        rule = SecondThoughts(rule, remask)
    return canvas_of(
        pair, rule, name="dinfer", span=span, lookahead=lookahead, temperature=temperature, anchors=anchors,
        credit=Credit() if decoding == "credit" else None, cut_at_end=cut_at_end,
    )
