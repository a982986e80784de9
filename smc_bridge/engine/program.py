"""`Program`: the parts of PoE-Bridge as a sequential Monte Carlo program, and what follows from them alone.

What is right or wrong about a program (`faults`), what is easily overlooked (`notes`) and how it is written down
(`settings`) depends on its parts only. `smc_bridge.engine.sampler` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smc_bridge.describe import describe, name_of, number
from smc_bridge.display import headed
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.intermediate import (
    Intermediate,
    ProductOfExperts,
    covered,
    dominates,
    is_target,
    keeps_points,
    log_ratio_bound,
    per_lane,
)
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.pace import Pace, Sizes
from smc_bridge.engine.probe import impurities
from smc_bridge.engine.resampling import Resampler, Systematic
from smc_bridge.engine.weights import EssBelow, Trigger
from smc_bridge.kernels.importance import OwnWeights, WeightRule
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.models.protocols import LanguageModel, within_block
from smc_bridge.plugins import foreign
from smc_bridge.proposals.protocol import Proposal, known_off_draft
from smc_bridge.warn import warn_caller

#: Bound of `log p - log pi` at a token, nats, from which on its weight may be missing from a thousand runs.
VISIBLE = math.log(1000.0)
#: The same from which on what pi has of a token without a draft is lost in the round-off of float32, where a refusal
#: has the probability `1 - pi / q`: a thousand of its units.
FAINT = -math.log(1000.0 * torch.finfo(torch.float32).eps)


@dataclass(repr=False)
class Program:
    """PoE-Bridge as a sequential Monte Carlo program.

    Attributes:
        proposal, target, intermediate: the three laws.
        kernel: moves a lane from the proposal to the intermediate.
        weight: the importance step from the intermediate to the target.
        resampler, trigger: how and when particles interact.
        particles: N, that survive a step.
        lanes: K, drafts of each particle.
        window: V, tokens verified at once.
        name: for tables.
        tokenize, detokenize: between a prompt's text and ids, and a continuation's ids and text; `detokenize` is given
            the ids before them too if it has an argument `prompt`.
        max_logit_bytes: cap of the AR model's logits of one call (K * V scores of A tokens per particle, or one per
            tree node): particles are scored in parts, at least one at a time, and each part is a forward of its own.
            None for no cap. The draws do not depend on it. The DLM's logits are not capped here: give its adapter
            its own `max_logit_bytes`.
        compile: run the arithmetic of laws through `torch.compile`.
        pair: name of the pair of models, for the settings of results.
        pace: chooses how far each step goes, within V, M and B, from costs and the past; None: always that far.
        experts: further causal models with their laws, that the intermediate reads beside q and p: each is asked where
            the target is, and its forwards are counted with the AR model's.
        bonus: whether a draft that was accepted whole, and behind which no law is known, is followed by one more token,
            drawn from the target at the next place of the same forward (Leviathan et al. 2023); there `pi = p`.
    """

    proposal: Proposal
    target: ARTarget
    intermediate: Intermediate = field(default_factory=ProductOfExperts)
    kernel: Kernel = field(default_factory=Rejection)
    weight: WeightRule = field(default_factory=OwnWeights)
    resampler: Resampler = field(default_factory=Systematic)
    trigger: Trigger = field(default_factory=EssBelow)
    particles: int = 1
    lanes: int = 1
    window: int = 32
    name: str = "smc"
    tokenize: Callable[[str], Sequence[int] | Tensor] | None = None
    detokenize: Callable[[list[int]], str] | None = None
    max_logit_bytes: int | None = None
    compile: bool = False
    pair: str | None = None
    pace: Pace | None = None
    experts: Sequence[ARTarget] = ()
    bonus: bool = False

    @property
    def models(self) -> dict[str, LanguageModel]:
        """The models by kind: "diffusion" (or what the proposal says that its own is), "autoregressive", and the
        further experts."""
        kind = getattr(self.proposal, "kind", "diffusion")
        further = {f"experts[{j}]": expert.model for j, expert in enumerate(self.experts)}
        return {kind: self.proposal.model, "autoregressive": self.target.model, **further}

    def why_improper(self) -> list[str]:
        """Reasons for which the weights are not proper, one line each; empty for a proper program."""
        return [reason for _, reason in self.faults()]

    def faults(self) -> list[tuple[str, str]]:
        """Parts for which the weights are not proper, by their names here, each with the reason in one line."""
        faults = [
            (part, f"{part} {type(value).__name__} is not proper")
            for part, value in (
                ("proposal", self.proposal), ("kernel", self.kernel), ("weight", self.weight),
                ("resampler", self.resampler),
            )
            if not getattr(value, "proper", True)  # a proposal need not say so
        ]
        faults += [("intermediate", reason) for reason in self.probed()]
        whole = [not (expert.shaping.truncates or expert.shaping.is_point) for expert in self.experts]
        if self.keeps_target:
            return faults
        for part, lacking in (("proposal", (self.proposal.covers, [True] * len(whole))), ("experts", (True, whole))):
            if not covered(self.intermediate, *lacking):
                name = part if part == "proposal" else f"law of experts[{whole.index(False)}]"
                reason = f"the {name} leaves out tokens that the target may draw"
                faults.append((part, f"{reason}: wrap the intermediate in Defensive"))
        if self.proposal.covers or not dominates(self.intermediate):
            return faults
        if (bound := log_ratio_bound(self.intermediate)) > FAINT:
            reason = f"of tokens that the proposal leaves out p / pi may reach e^{bound:.3g}, which round-off loses"
            faults.append(("intermediate", f"{reason}: give a smaller beta, or a larger eps"))
        return faults

    def notes(self) -> list[str]:
        """What is true of a proper program and easily overlooked, one line each; results carry it in their settings."""
        bound = log_ratio_bound(self.intermediate)
        if self.keeps_target or not VISIBLE < bound < math.inf:
            return []
        return [
            f"p / pi is bounded, but by e^{bound:.3g} at each token: so large a weight may be missing from all runs, "
            "and then Z is seen below 1; Defensive(..., eps) bounds it by 1 / eps"
        ]

    @property
    def proper(self) -> bool:
        """Whether `E[Z_hat sum W f] = E_p[f]` holds for this program."""
        return not self.why_improper()

    @property
    def exact(self) -> bool:
        """Whether every weight is one by construction: a proper program whose intermediate is its target.

        Weights that are one in all runs that were seen are no proof of it.
        """
        # A user's rule may weigh otherwise. The balance heuristic's lanes have one law here, which cancels.
        plain = self.weight.proper and not foreign(self.weight) and self.target.potential is None
        return plain and self.keeps_target and self.proper

    @property
    def keeps_target(self) -> bool:
        """Whether `pi = p` by construction: an intermediate that is the target, or one that keeps point masses where
        the target is nothing else (temperature 0)."""
        return keeps_points(self.intermediate) if self.target.shaping.is_point else is_target(self.intermediate)

    def probed(self) -> list[str]:
        """Reasons found in the intermediate by `impurities`, told as a warning when they are found: once for each
        object."""
        asked = (self.intermediate, self.lanes, self.window, self.target.model)
        known = self.__dict__.get("_probed")
        if known is None or any(one is not other for one, other in zip(known[0], asked, strict=True)):
            model = self.target.model
            reasons = impurities(
                self.intermediate, lanes=self.lanes, window=self.window, size=model.vocab_size, device=model.device
            )
            for reason in reasons:
                warn_caller(f"{reason}; results are marked as not proper")
            known = self.__dict__["_probed"] = (asked, reasons)
        return list(known[1])

    @property
    def walks(self) -> int:
        """How many consecutive lanes have one proposal and one intermediate."""
        alike = known_off_draft(self.proposal) and self.proposal.identical_lanes and not per_lane(self.intermediate)
        return self.lanes if alike else 1

    @property
    def places(self) -> int:
        """Tokens of a block at most: V, and the bonus token."""
        return self.window + self.bonus

    @property
    def sizes(self) -> Sizes:
        """What a pace reckons with."""
        lanes, proposal = self.particles * self.lanes, self.proposal
        rows = lanes // self.walks if self.kernel.reads_marginals else lanes
        block = within_block(proposal.model, np.array(0), np.array(proposal.lookahead))  # no draft is longer
        places = getattr(proposal, "places", 1)
        return Sizes(self.particles, lanes, rows, self.window, int(block), proposal.factorised, places)

    @property
    def chunks(self) -> Chunks:
        """How much of a law is computed at a time."""
        standard = Chunks(compile=self.compile)
        cap = self.max_logit_bytes
        return standard if cap is None else replace(standard, bytes=min(standard.bytes, cap))

    def settings(self, *, max_new_tokens: int) -> dict[str, Any]:
        """Everything that shapes the draws of a run besides prompt and seed."""
        bound, notes = log_ratio_bound(self.intermediate), self.notes()
        return {
            "method": self.name,
            "particles": self.particles,
            "lanes": self.lanes,
            "window": self.window,
            "lookahead": self.proposal.lookahead,
            **({} if self.pace is None else {"pace": self.pace.settings()}),
            **({"bonus": True} if self.bonus else {}),
            "intermediate": _shown(self.intermediate),
            "log_ratio_bound": bound if math.isfinite(bound) else None,
            "kernel": describe(self.kernel),
            "weight": describe(self.weight),
            "exact": self.exact,
            "resampler": describe(self.resampler),
            "trigger": describe(self.trigger),
            "target": {**self.target.shaping.settings(), "potential": describe(self.target.potential)},
            "proposal": self.proposal.settings(),
            **({"experts": [expert.shaping.settings() for expert in self.experts]} if self.experts else {}),
            "pair": self.pair,
            "models": {
                "dlm": name_of(self.proposal.model), "ar": name_of(self.target.model),
                **({"experts": [name_of(expert.model) for expert in self.experts]} if self.experts else {}),
            },
            "max_new_tokens": max_new_tokens,
            **({"notes": notes} if notes else {}),
        }

    def __repr__(self) -> str:
        found = self.settings(max_new_tokens=0)
        laws = {
            name: ", ".join(f"{key} {number(value)}" for key, value in found[name].items() if value is not None)
            for name in ("proposal", "target")
        }
        reasons = self.why_improper()
        pace = self.pace
        v, m = ("<=" if x else "=" for x in ((False, False) if pace is None else (pace.window, pace.lookahead)))
        return headed(
            f"{type(self).__name__} {self.name!r}: N = {self.particles}, K = {self.lanes}, V {v} {self.window}, "
            f"M {m} {found['lookahead']}, {'not proper: ' + '; '.join(reasons) if reasons else 'properly weighted'}",
            (
                f"proposal      {type(self.proposal).__name__} of {found['models']['dlm']}: {laws['proposal']}",
                f"target        {found['models']['ar']}: {laws['target']}",
                f"intermediate  {found['intermediate']}",
                f"kernel        {found['kernel']}, {found['weight']}",
                f"resampling    {found['resampler']}, {found['trigger']}",
            ),
        )


def _shown(value: object) -> Any:
    """An object's own text where it has one, for it says more than its attributes."""
    return describe(value) if type(value).__repr__ is object.__repr__ else repr(value)
