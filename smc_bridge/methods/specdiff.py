"""Speculative diffusion decoding (SpecDiff, arXiv 2408.05636): a diffusion model drafts, the AR model checks.

Its exact form is a program of parts that stand elsewhere; what is here is what makes the naive form biased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.models.arguments import said, whole_number
from smc_bridge.models.protocols import ModelPair
from smc_bridge.proposals.chain import ChainState, PrefixFilled, cost_of, filled, with_source
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.randomness import Source
from smc_bridge.registry import method


@dataclass(frozen=True)
class RandomSteps(PrefixFilled):
    """Places unmasked in random order over T denoising steps, scored by their marginals at the step of their draw.

    These are not the conditionals of the draft from left to right, which a kernel takes them for: token i was drawn
    with some later tokens in view, and some earlier ones out of it. What its `along` says is the chain rule, which is
    no law of these drafts.

    Attributes:
        base: gives model, temperatures, truncation and lookahead.
        steps: T; the step of each place is uniform, as under a linear schedule.
    """

    steps: int = 2

    form = "marginals at random steps"
    proper = False

    def settings(self) -> dict[str, Any]:
        """What shapes its drafts, as plain data."""
        return {**super().settings(), "steps": self.steps}

    def draft(self, state: ChainState, asked: Asked, *, source: Source | None) -> Draft:
        """K drafts for each of B particles, `[B * K, V]`, by one forward per step at which a place is drawn
        (`Proposal.draft`)."""
        source, device = with_source(source), asked.rows.device
        total, canvas_width, width = self.widths(asked)
        flat = torch.full((total.numel(), asked.window, self.steps), -math.log(self.steps), dtype=torch.float64)
        step = source.categorical(flat.to(device))
        draw, place = source.categorical_stream(asked.window), torch.arange(asked.window, device=device)
        tokens = torch.zeros_like(step)
        canvas = filled(tokens, 0, canvas_width, max(asked.window, int(canvas_width.max())))
        scores, scored = torch.empty(0, device=device), list[torch.Tensor]()
        for t in range(self.steps):
            now = (step == t) & (place < width[:, None])
            rows = now.any(1).nonzero().flatten()
            if not rows.numel():
                continue
            columns = int(canvas_width[rows].max())
            fresh = state.session.score(total[rows], canvas[rows, :columns])
            scored.append(total[rows])
            scores = scores if scores.numel() else fresh.new_zeros(*tokens.shape, fresh.shape[-1])
            for i in range(min(asked.window, columns)):
                own = now[rows, i].nonzero().flatten()
                if not own.numel():
                    continue
                lane = rows[own]
                scores[lane, i] = fresh[own, i]
                law = self.law(fresh[own, i : i + 1], asked, lane)
                tokens[lane, i] = draw(law, lane, torch.full_like(lane, i)[:, None]).flatten()
                canvas[lane, i] = tokens[lane, i]
        everyone = torch.arange(total.numel(), device=device)
        return Draft(tokens, self.law(scores, asked, everyone), width, cost_of(state.session, scored, state.particles))


@method(
    "specdiff", role="exact", targets="AR", proper=True, reference="arXiv 2408.05636", rest=smc,
    without=(
        "particles", "lanes", "w", "beta", "lookahead", "intermediate", "nodes", "weight", "resampler", "trigger",
        "potential", "proposal", "reuse", "places", "entropy", "head", "slot", "at_once", "costs", "experts",
    ),
    examples=("specdiff", "specdiff,steps=2", "specdiff,steps=2,form=naive"),
    published="MDLM drafts: up to 7.2x over the AR model, 1.75x over speculative decoding (abstract)",
)
def specdiff(
    pair: ModelPair, *, window: int = 8, steps: int = 1, form: Literal["exact", "naive"] = "exact", bonus: bool = True,
    name: str = "specdiff", **options: Any,
) -> Sampler:
    """The diffusion model drafts gamma tokens in T denoising steps, the AR model checks them in one forward.

    Left to right `y_i` is accepted with probability `min(1, p(y_i | y_<i) / q(y_i))`, the first refusal is corrected by
    a draw from `(p - q)_+`; a draft that was accepted whole is followed by one more token, drawn from p.

    Role: an exact sampler of the AR law. With T = 1, q is the marginal, which is the conditional of a factorised draft.
    With T > 1 the draft is drawn from left to right, `ceil(gamma / T)` places per step, so that q at the step where a
    token is drawn is its conditional given the draft before it: a chain with a tractable density. All else is as in
    `smc`.

    Changed: the naive form unmasks places in random order and puts their marginals at that step in the place of the
    conditionals. It is biased, a labelled baseline: its law is off the AR law wherever places depend on each other.

    Args:
        window: gamma, places drafted at once.
        steps: T, denoising steps of a draft, at most gamma.
        form: exact, or naive for steps in random order.
        bonus: whether a draft accepted whole is followed by one more token of the target.
    Raises:
        ValueError: more steps than places, or the naive form with one step, which is exact.
    """
    gamma, several = whole_number("window", window), whole_number("steps", steps)
    if several > gamma:
        raise ValueError(f"steps = {several} with window = {gamma}: give at most one step per place")
    if form not in ("exact", "naive"):
        raise ValueError(f"form = {said(form)}: give exact or naive")
    if form == "naive" and several == 1:
        raise ValueError("form = naive with steps = 1, which is exact: leave it out, or give 2 steps or more")
    chain: dict[str, Any] = {} if several == 1 else {"proposal": "chain", "places": -(-gamma // several)}
    sampler = smc(
        pair, 1, window=gamma, lookahead=gamma, intermediate="target", bonus=bonus, name=name, **chain, **options
    )
    if form == "exact":
        return sampler
    proposal: Any = sampler.proposal
    return replace(sampler, proposal=RandomSteps(proposal.base, steps=several))
