"""The confidence family: canvas decoders that differ in which places they fill after a forward, by name of the rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from smc_bridge.canvas.build import canvas_of
from smc_bridge.canvas.credit import Credit
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.entropy_bound import EntropyBound
from smc_bridge.canvas.ranked import Ranked
from smc_bridge.canvas.rules import CommitRule
from smc_bridge.canvas.second_thoughts import SecondThoughts
from smc_bridge.canvas.thresholds import Factor, Hierarchy, Threshold
from smc_bridge.models.arguments import said
from smc_bridge.models.protocols import ModelPair
from smc_bridge.registry import method

#: Rules by name.
Name = Literal["top-k", "threshold", "factor", "hierarchy", "margin", "entropy", "random", "entropy-bound"]


def _ranked(score: Any) -> Callable[..., Ranked]:
    return lambda **options: Ranked(score, **options)


#: What makes each rule, and the options that it reads.
RULES: dict[str, tuple[Callable[..., CommitRule], tuple[str, ...]]] = {
    "top-k": (_ranked("probability"), ("tokens", "alg_temp", "sampled")),
    "threshold": (Threshold, ("threshold", "sampled")),
    "factor": (Factor, ("factor", "sampled")),
    "hierarchy": (Hierarchy, ("threshold", "low", "sampled")),
    "margin": (_ranked("margin"), ("tokens", "alg_temp")),
    "entropy": (_ranked("entropy"), ("tokens", "alg_temp")),
    "random": (_ranked("random"), ("tokens",)),
    "entropy-bound": (EntropyBound, ("bound",)),
}


@method(
    "confidence", role="baseline", targets="DLM", proper=False, why="independent draws at several places",
    reference="arXiv 2502.09992, 2505.22618, 2505.24857",
    aliases={"low-confidence": {"rule": "top-k"}, "eb-sampler": {"rule": "entropy-bound"}},
    examples=("low-confidence", "eb-sampler"),
    published="LLaDA-8B, one token per step, length 1024: GSM8K 77.6 at 0.54 tokens/s; EB: DiffusionGemma's default",
)
def confidence(
    pair: ModelPair, *, rule: Name = "threshold", tokens: int | None = None, threshold: float | None = None,
    factor: float | None = None, low: float | None = None, bound: float | None = None, alg_temp: float | None = None,
    sampled: bool = False, remask: float = 0.0, edit: float | None = None, credit: float = 0.0,
    span: int | None = 32, lookahead: int | None = 256, temperature: float = 1.0, top_p: float = 1.0,
    anchors: str = "", cut_at_end: bool = False,
) -> Canvas:
    """The diffusion model under a rule of confidence: the places that it is sure of are filled after each forward.

    With c_i the top probability at place i in the untempered law: top-k fills the k greatest c_i; threshold all with
    `c_i >= theta`; factor the n surest, n the greatest with `c_(n) >= 1 - f / (n + 1)`; hierarchy the surest of every
    run of masks if `c_i > low`, and all with `c_i > theta`; each at least the surest one. margin and entropy rank by
    `p_(1) - p_(2)` and `-H`; random by nothing. entropy-bound goes by rising entropy while `sum H - own H <= gamma`.
    Role: biased baselines, since places filled together are drawn independently; but the places are chosen before
    sampling, so each token keeps its marginal as its density. Published decoders often rank by the *drawn* token's
    probability (`sampled`), which puts its law off its marginal; the two are one at temperature 0.

    Args:
        pair: the models, of which the diffusion model decodes.
        rule: which places are filled.
        tokens: places per forward, of top-k, margin, entropy and random; 1 unless given.
        threshold: theta, of threshold and hierarchy; 0.9 unless given.
        factor: f, of factor; 1 unless given.
        low: what the surest of a run must exceed, of hierarchy; 0.4 unless given.
        bound: gamma, nats, of entropy-bound; 0.1 unless given.
        alg_temp: temperature of Gumbel noise on the score, of top-k, margin and entropy; 0 unless given.
        sampled: rank by the drawn token's probability, as published, of top-k, threshold, factor and hierarchy.
        remask: tokens of a smaller probability in the present law are masked again, 0 for none; dInfer has 0.4.
        edit: a token gives way to another of a greater probability than this in the present law, none for never.
        credit: weight in the logits of what was likeliest in earlier forwards, 0 for none; dInfer has 0.7.
        span: consecutive places that are open at a time, none for all that are shown.
        lookahead: masked places per forward, none for the whole continuation.
        temperature: of the law that tokens are drawn from; 0 is greedy.
        top_p: of that law.
        anchors: tokens planted in the canvas, as place:text with | between them.
        cut_at_end: cut the canvas where the model foresees the end of its text, which changes the law (Learn2PD).
    Raises:
        ValueError: an argument out of range, or one that the rule does not read.
    """
    given = {
        "tokens": tokens, "threshold": threshold, "factor": factor, "low": low, "bound": bound, "alg_temp": alg_temp,
        "sampled": sampled or None,
    }
    if rule not in RULES:
        raise ValueError(f"rule = {said(rule)}: give one of {', '.join(RULES)}")
    make, reads = RULES[rule]
    for name, value in given.items():
        if value is not None and name not in reads:
            raise ValueError(f"{name} = {said(value)} with rule = {rule}, which has none: leave it out")
    chosen = make(**{name: value for name, value in given.items() if value is not None})
    if remask or edit is not None:
        chosen = SecondThoughts(chosen, remask, edit)
    return canvas_of(
        pair, chosen, name="confidence", span=span, lookahead=lookahead, temperature=temperature, top_p=top_p,
        anchors=anchors, credit=Credit(credit) if credit else None, cut_at_end=cut_at_end,
    )
