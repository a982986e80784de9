"""Dynamic rules: as many places per forward as the model is sure of, by the probability c of their tokens.

    threshold   all with c >= theta, and always the surest           (Fast-dLLM, arXiv 2505.22618; SDAR, LLaDA2)
    factor      the n surest, n the greatest with c_(n) >= 1 - f / (n + 1), and always the surest       (Fast-dLLM)
    hierarchy   of every run of masks the surest if c > low, and all with c > theta; else the surest    (dInfer)
    confident   all with c > theta; else what another rule chooses   (Dimple, arXiv 2505.16990)

c is that of the likeliest token, known before sampling, or, as published where tokens are drawn, of the drawn one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from smc_bridge.canvas.ranked import Ranked
from smc_bridge.canvas.rules import Commit, CommitRule, Look, check_rule, foremost, is_noisy, looks_back
from smc_bridge.canvas.scores import probability
from smc_bridge.models.arguments import real_between, true_or_false

#: What a threshold can be.
SHARE = "give a probability in [0, 1]"


def _check(rule: Any, *names: str) -> None:
    """Let a frozen rule's probabilities be floats in [0, 1], and `sampled` a bool; ValueError otherwise."""
    for name in names:
        object.__setattr__(rule, name, float(real_between(name, getattr(rule, name), 0.0, 1.0, remedy=SHARE)))
    object.__setattr__(rule, "sampled", true_or_false("sampled", rule.sampled))


@dataclass(frozen=True)
class _Sure:
    """What the rules of this file share.

    Attributes:
        sampled: whether c is the drawn token's probability, which biases the law of what is committed.
    """

    sampled: bool = field(default=False, kw_only=True)

    looks_back = False

    @property
    def before_sampling(self) -> bool:
        """Whether it decides before tokens are drawn."""
        return not self.sampled

    def sure(self, look: Look) -> Tensor:
        """c of every place, `[R, T]`; below all where it is not open."""
        return probability(look, sampled=self.sampled).masked_fill(~look.open, -1.0)


@dataclass(frozen=True)
class Threshold(_Sure):
    """All places with `c >= threshold`, and always the surest.

    Attributes:
        threshold: theta.
    """

    threshold: float = 0.9

    def __post_init__(self) -> None:
        _check(self, "threshold")

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        sure = self.sure(look)
        return Commit(look.open & (sure >= self.threshold) | foremost(sure, look.open, 1))


@dataclass(frozen=True)
class Factor(_Sure):
    """The n surest places, n the greatest with `c_(n) >= 1 - factor / (n + 1)`, and always the surest.

    Attributes:
        factor: f.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        _check(self)
        value = real_between("factor", self.factor, 0.0, 1e6, remedy="give a number of at least 0")
        object.__setattr__(self, "factor", float(value))  # the class is frozen

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        sure = self.sure(look)
        ordered = sure.sort(1, descending=True).values
        n = torch.arange(1, sure.shape[1] + 1, device=sure.device)
        fits = (ordered >= 1.0 - self.factor / (n + 1)) & (ordered >= 0.0)
        return Commit(foremost(sure, look.open, (fits * n).amax(1).clamp_min(1)))


@dataclass(frozen=True)
class Hierarchy(_Sure):
    """Of every run of consecutive open places the surest if `c > low`, and all with `c > threshold`; else the surest.

    Attributes:
        threshold: theta.
        low: what the surest of a run must exceed.
    """

    threshold: float = 0.9
    low: float = 0.4

    def __post_init__(self) -> None:
        _check(self, "threshold", "low")

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        sure, shape = self.sure(look), look.open.shape
        before = torch.nn.functional.pad(look.open, (1, 0))[:, :-1]
        run = (look.open & ~before).cumsum(1)  # 1, 2, .. along the row; closed places share a number with a run
        most = sure.new_full((shape[0], shape[1] + 1), -1.0).scatter_reduce(1, run, sure, "amax")
        top = look.open & (sure == most.gather(1, run))
        place = torch.arange(shape[1], device=sure.device).expand(shape)
        first = place.new_full((shape[0], shape[1] + 1), shape[1]).scatter_reduce(
            1, run, torch.where(top, place, shape[1]), "amin"
        )
        best = top & (place == first.gather(1, run)) & (sure > self.low)
        places = best | look.open & (sure > self.threshold)
        return Commit(torch.where(places.any(1, keepdim=True), places, foremost(sure, look.open, 1)))


@dataclass(frozen=True)
class Confident(_Sure):
    """All places with `c > threshold`; where there is none, what `rule` chooses.

    Attributes:
        threshold: theta.
        rule: chooses otherwise.
    """

    threshold: float = 0.95
    rule: CommitRule = field(default_factory=Ranked)

    def __post_init__(self) -> None:
        _check(self, "threshold")
        check_rule("rule", self.rule)

    @property
    def before_sampling(self) -> bool:
        """Whether both decide before tokens are drawn."""
        return not self.sampled and self.rule.before_sampling

    @property
    def noisy(self) -> bool:
        """Whether `rule` reads noise."""
        return is_noisy(self.rule)

    @property
    def looks_back(self) -> bool:  # type: ignore[override]
        """Whether `rule` reads laws of places that are filled."""
        return looks_back(self.rule)

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        places = look.open & (self.sure(look) > self.threshold)
        otherwise = self.rule(look)
        return otherwise._replace(places=torch.where(places.any(1, keepdim=True), places, otherwise.places))
