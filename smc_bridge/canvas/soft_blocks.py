"""Runs of places that a small AR network fills, given the marginals of the run (CoDiLA, arXiv 2603.20216).

After a forward a run of consecutive masked places is chosen by the entropies H_i of the model's own marginals, and its
tokens are drawn from left to right by the network (`smc_bridge.models.learned.codila`), each given those before it:

    static    the block of B places with the least mean H, among the first block that is not full and `reach` behind it
    dynamic   the longest run of at most B places whose mean H is at most tau, the surest of several; without any of
              two places the one of greatest probability
    stopped   from the first masked place on, at most B places, as long as the entropy of the network's own conditional,
              given the tokens that were drawn before, is at most tau; the first place in any case

A run of one place is drawn from the model's own marginal. To *verify* is to decode candidates greedily first: at places
where the network's likeliest token is not the model's, `doubt` nats are added to H. Static and dynamic runs are decided
from the marginals alone, before anything is drawn. The third schedule is ours: what the network can tell is coherent
goes on, and a place that takes the diffusion model itself, such as a digit of a result, begins the next run. Where it
ends is a function of the past.

Shapes: R rows, T places that the model was shown, B places of a run, A alphabet, n runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from smc_bridge.canvas.rules import Commit, Look, foremost
from smc_bridge.models.arguments import real_between, said, whole_number
from smc_bridge.models.learned.codila import SoftAR
from smc_bridge.models.protocols import MASKED
from smc_bridge.proposals.soft_blocks import places_of
from smc_bridge.sampling import entropy, inverse_cdf

#: How runs are chosen.
Schedule = Literal["static", "dynamic", "stopped"]


@dataclass(frozen=True)
class SoftRuns:
    """Fill a run of places per forward by a small AR network (module docstring).

    Attributes:
        head: the network.
        schedule: how a run is chosen.
        block: B, places of a run, at most.
        reach: blocks behind the first that is not full, among which a run is chosen; 0 for that one alone.
        threshold: tau, greatest mean entropy of a run of several places under the dynamic schedule, and greatest
            entropy of a further place under the stopped one, nats.
        doubt: nats for a place where network and model disagree; 0 does not ask the network.
    Raises:
        ValueError: one of them is something else, or the network knows fewer places.
    """

    head: SoftAR = field(repr=False)
    schedule: Schedule = "static"
    block: int = 4
    reach: int = 10
    threshold: float = 0.2
    doubt: float = 0.0
    before_sampling: ClassVar[bool] = True
    looks_back: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule = {said(self.schedule)}: give one of {', '.join(get_args(Schedule))}")
        set_once: Any = object.__setattr__  # the class is frozen
        set_once(self, "block", places_of(self.head, self.block))
        set_once(self, "reach", whole_number("reach", self.reach, least=0, remedy="give a whole number of blocks"))
        for name in ("threshold", "doubt"):
            value = real_between(name, getattr(self, name), 0.0, 1e6, remedy="give at least 0 nats")
            set_once(self, name, float(value))
        if self.doubt and self.schedule == "stopped":
            raise ValueError(f"doubt = {said(self.doubt)} with schedule = stopped, which asks anyhow: leave it out")

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        if self.schedule == "stopped":
            return self._ahead(look)
        dynamic = self.schedule == "dynamic"
        place = torch.arange(look.open.shape[1], device=look.open.device)
        first = look.open.to(torch.uint8).argmax(1, keepdim=True)
        begin = first if dynamic else first // self.block * self.block
        near = look.open & (place < begin + (self.reach + 1) * self.block)
        start = place if dynamic else place[:: self.block]  # [S]
        inside = (start[:, None] + torch.arange(self.block, device=place.device)).clamp_max(len(place) - 1)
        there = start[:, None] + torch.arange(self.block, device=place.device) < len(place)
        fills = near[:, inside] & there  # [R, S, B]
        nats = entropy(look.log_q_plain).double().clamp_min(0.0)[:, inside]
        if self.doubt:
            nats = nats + self.doubt * self._disagree(look, fills, inside)
        if dynamic:
            return self._longest(look, near, fills, nats)
        mean = (nats * fills).sum(2) / fills.sum(2)
        chosen = mean.where(fills.any(2), torch.inf).argmin(1, keepdim=True)
        return Commit(near & (place // self.block == chosen))

    def fill(self, look: Look, commit: Commit, uniform: Tensor, law: Callable[[Tensor], Tensor]) -> Tensor:
        """Tokens of the places of the runs, `[R, T]` (`CommitRule`)."""
        drawn = torch.full_like(look.canvas, MASKED)
        rows = torch.arange(len(drawn), device=drawn.device)
        first = commit.places.to(torch.uint8).argmax(1)
        drawn[rows, first] = inverse_cdf(look.log_q[rows, first], uniform[rows, first])
        rows = (commit.places.sum(1) > 1).nonzero().flatten()
        if rows.numel():
            filled = commit.places[rows]
            first = filled.to(torch.uint8).argmax(1)
            place = first[:, None] + torch.arange(self.block, device=rows.device)
            inside = place.clamp_max(filled.shape[1] - 1)
            last = filled.shape[1] - filled.flip(1).to(torch.uint8).argmax(1, keepdim=True)
            there = place < last
            given = torch.where(filled.gather(1, inside), -1, look.canvas[rows].gather(1, inside))
            points = uniform[rows].gather(1, inside)
            goes_on = torch.ones_like(there[:, 0])

            def choose(j: int, logits: Tensor, own: Tensor) -> Tensor:
                """Drawn, as far as the run goes on."""
                if j and self.schedule == "stopped":
                    allowed = logits.masked_fill(own == -torch.inf, -torch.inf)
                    goes_on.logical_and_(entropy(allowed.log_softmax(-1)) <= self.threshold)
                return torch.where(goes_on, inverse_cdf(law(logits), points[:, j]), MASKED)

            tokens = self._decode(look.log_q_plain[rows[:, None], inside], there, given, choose)
            run, column = (there & (given < 0)).nonzero(as_tuple=True)
            drawn[rows[run], inside[run, column]] = tokens[run, column]
        return drawn

    def _ahead(self, look: Look) -> Commit:
        """The first masked places without a gap, at most B, in case that all of them are filled."""
        place = torch.arange(look.open.shape[1], device=look.open.device)
        first = look.open.to(torch.uint8).argmax(1, keepdim=True)
        before = (look.open | (place < first)).to(torch.uint8).cumprod(1).bool()
        return Commit(look.open & before & (place < first + self.block))

    def _longest(self, look: Look, near: Tensor, fills: Tensor, nats: Tensor) -> Commit:
        """The longest run that is sure enough, or else the surest place."""
        many = torch.arange(1, self.block + 1, device=near.device)
        whole = fills.to(torch.uint8).cumprod(2).bool()
        mean = nats.cumsum(2) / many
        long = torch.where(whole & (mean <= self.threshold), many, 0).amax(2)  # [R, S]
        own = mean.gather(2, (long - 1).clamp_min(0)[..., None])[..., 0]
        best = own.where((long > 1) & (long == long.amax(1, keepdim=True)), torch.inf).argmin(1, keepdim=True)
        place = torch.arange(near.shape[1], device=near.device)
        run = (place >= best) & (place < best + long.gather(1, best))
        surest = foremost(look.log_q_plain.amax(-1), near, 1)
        return Commit(torch.where(long.amax(1, keepdim=True) > 1, run, surest))

    def _disagree(self, look: Look, fills: Tensor, inside: Tensor) -> Tensor:
        """Where the network's greedy tokens of candidates are not the model's, bool `[R, S, B]`."""
        row, start = fills.any(2).nonzero(as_tuple=True)
        log_pi, there = look.log_q_plain[row[:, None], inside[start]], fills[row, start]
        likeliest = log_pi.argmax(-1)
        given = torch.where(there, -1, look.canvas[row[:, None], inside[start]])
        tokens = self._decode(
            log_pi, there | (given >= 0), given,
            lambda _, logits, own: logits.masked_fill(own == -torch.inf, -torch.inf).argmax(-1),
        )
        found = torch.zeros_like(fills)
        found[row, start] = there & (tokens != likeliest)
        return found

    def _decode(
        self, log_pi: Tensor, there: Tensor, given: Tensor, choose: Callable[[int, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Tokens of runs, `[n, B]`, those that are given and others as they are chosen.

        Args:
            log_pi: marginals, `[n, B, A]`.
            there: places of each run, bool `[n, B]`.
            given: a token, or a negative number where one is chosen, `[n, B]`.
            choose: from place, logits `[n, A]` and marginals `[n, A]` to tokens `[n]`.
        """
        known = torch.where(torch.arange(log_pi.shape[-1], device=log_pi.device) == given[..., None], 0.0, -torch.inf)
        log_pi = torch.where((given >= 0)[..., None], known.to(log_pi.dtype), log_pi)
        logits, memory = self.head.read(log_pi, there)
        tokens = given.clone()
        for j in range(log_pi.shape[1]):
            if j:
                logits, memory = self.head.follow(memory, tokens[:, j - 1].clamp_min(0), j, log_pi[:, j])
            asked = there[:, j] & (given[:, j] < 0)
            logits = torch.where(asked[:, None], logits, 0.0)  # elsewhere any token will do
            tokens[:, j] = torch.where(asked, choose(j, logits, log_pi[:, j]), given[:, j])
        return tokens
