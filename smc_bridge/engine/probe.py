"""What an intermediate must not look at, tried once on random laws when a `Sampler` is made.

The weights are right for every `pi_i(. | c, x_<i)` that is a function of the past. A user's `log_prob` gets the laws of
whole windows and all lanes, `[R, K, V, A]`, and nothing stops it from reading p beyond position i (which was computed
along the draft, so that it tells what was drafted at i), p along another lane's draft, or another particle; or from
returning something else when it is asked again. Each of these is tried: what must not matter is replaced by other
random laws, and the result must stay the same. Nor may `log p - log pi` exceed the bound that it says it has, nor may
it be anything but a target that is a point mass if it says that it keeps those.

It may read p before i and q everywhere: the marginals are known before a token is drafted. A probe can find a fault and
cannot prove that there is none: what it reads only now and then, or far away, is for `smc_bridge.check`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smc_bridge.distributions.intermediate import (
    Intermediate,
    checked_log_prob,
    experts_read,
    keeps_points,
    log_ratio_bound,
    of_package,
    per_lane,
    positionwise,
)
from smc_bridge.distributions.shaping import point_mass

#: Greatest difference of log-probabilities, nats, that is put down to round-off, at tokens within `DEEP` of the peak.
ROUND_OFF, DEEP = 1e-3, 12.0
#: Entries of the laws that are tried, and the positions of a window at most.
ENTRIES, WIDTH = 1 << 20, 8


def impurities(intermediate: Intermediate, *, lanes: int, window: int, size: int, device: torch.device) -> list[str]:
    """What the law of a user's intermediate depends on and must not, one reason each; empty for those of this package.

    Args:
        lanes, window, size: K, V and A of the sampler.
        device: of its laws.
    """
    if of_package(intermediate):
        return []
    trial = _Trial(intermediate, device)
    if trial.single:
        lanes = 1
    fits = max(2, min(window, WIDTH, ENTRIES // (2 * lanes * size)))
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        for width in dict.fromkeys((min(fits, window), window)):
            try:
                return [f"intermediate {type(intermediate).__name__} {what}" for what in trial.run(lanes, width, size)]
            except Exception:  # One made for whole windows is given one; one that fails there says so when it runs.
                continue
    return []


class _Trial:
    """Calls of one intermediate on laws `[2, K, V, A]` that share a part."""

    def __init__(self, intermediate: Intermediate, device: torch.device) -> None:
        self.intermediate, self.device = intermediate, device
        self.generator = torch.Generator().manual_seed(0)
        #: Whether it is called on single cells.
        self.single = positionwise(intermediate) and not per_lane(intermediate)

    def laws(self, *shape: int) -> Tensor:
        """Random laws with a likely token each, as models have them."""
        scores = 2.0 * torch.randn(shape, generator=self.generator)
        peak = torch.randint(shape[-1], (*shape[:-1], 1), generator=self.generator)
        return torch.log_softmax(scores.scatter_add(-1, peak, torch.full(peak.shape, 4.0)), -1).to(self.device)

    def run(self, lanes: int, width: int, size: int) -> list[str]:
        """What was found."""
        shape = (2, lanes, width, size)
        q, p = self.laws(*shape), self.laws(*shape)
        p[:, :, 0] = p[:, :1, 0]  # the first position is the same along every draft
        others = [self.laws(*shape) for _ in range(experts_read(self.intermediate))]
        for law in others:
            law[:, :, 0] = law[:, :1, 0]
        plain = self.call(q, p, *others)
        if differ(plain, self.call(q, p, *others)):
            return ["gives another law when it is asked again with the same arguments: it must be a pure function"]
        bound, ratio = log_ratio_bound(self.intermediate), float((p - plain).max())
        if ratio > bound + ROUND_OFF:
            return [f"says log_ratio_bound = {bound:g}, but log p - log pi is {ratio:.3g} at a token"]
        if keeps_points(self.intermediate):
            point = point_mass(p)
            elsewhere = torch.log_softmax(torch.where(point == 0.0, -math.inf, q), -1)
            if any(differ(point, self.call(law, point, *others)) for law in (q, elsewhere)):
                return ["says keeps_points = True, but it is not the target where that is a point mass"]
        if self.single:
            each = (law.reshape(-1, 1, 1, size) for law in (q, p, *others))
            if differ(plain.reshape(-1, 1, 1, size), self.call(*each)):
                return ["says positionwise = True, but its law depends on other positions, or on which one it is"]
            return []
        found = []
        later = torch.arange(width, device=self.device)
        for i in sorted({0, width // 2} - {width - 1}):
            changed = [torch.where(later[:, None] > i, self.laws(*shape), law) for law in (p, *others)]
            if differ(plain[:, :, : i + 1], self.call(q, *changed)[:, :, : i + 1]):
                found.append("reads log_p beyond the position that its law is for, which tells what was drafted there")
                break
        if lanes > 1 and width > 1:
            changed = [self.laws(*shape) for _ in (p, *others)]
            for other, law in zip(changed, (p, *others), strict=True):
                other[:, 0], other[:, :, 0] = law[:, 0], law[:, :, 0]
            if differ(plain[:, 0], self.call(q, *changed)[:, 0]):
                found.append("reads log_p along the drafts of other lanes")
        beside = self.call(*(torch.cat([law[:1], self.laws(*shape)[1:]]) for law in (q, p, *others)))
        alone = self.call(*(law[:1] for law in (q, p, *others)))
        if differ(plain[:1], beside[:1]) or differ(plain[:1], alone):
            found.append("reads the laws of other particles")
        return found

    def call(self, *laws: Tensor) -> Tensor:
        """The law, checked as in a run; arguments are copies, so that what it writes to is its own affair."""
        log_q, log_p, *others = (law.clone() for law in laws)
        return checked_log_prob(self.intermediate, log_q, log_p, *others).clone()


def differ(one: Tensor, other: Tensor) -> bool:
    """Whether two laws `[..., A]` differ by more than round-off at a token that is not all but impossible."""
    peak = torch.maximum(one, other).amax(-1, keepdim=True)
    likely = torch.maximum(one, other) > peak - DEEP
    gap = torch.where(likely & (one != other), (one - other).abs(), 0.0)
    return bool(((gap > ROUND_OFF) | (gap == math.inf)).any())
