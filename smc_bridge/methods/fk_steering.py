"""FK steering (Singhal et al. 2025, arXiv 2501.06848) with the autoregressive model's log-probability as the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from smc_bridge.canvas.denoising_state import DenoisingState, Masked
from smc_bridge.canvas.particles import Particles
from smc_bridge.canvas.state import extent
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.presets import check_pair
from smc_bridge.engine.resampling import Resampler
from smc_bridge.engine.weights import Trigger
from smc_bridge.models.arguments import real_between, said, whole_number
from smc_bridge.models.caches import recomputing
from smc_bridge.models.ends import ends_of
from smc_bridge.models.protocols import ModelPair
from smc_bridge.names import named
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.registry import method

#: What is made of rewards on the way.
Potential = Literal["diff", "max", "add"]
#: Least reward on the way, nats: a potential must not exclude a canvas whose end is still open.
FLOOR = -1e6


@dataclass
class Steered(Particles):
    """Particles that are steered by what the AR model says of the ends that their canvases may come to.

    Attributes:
        potential: see `fk_steering`.
        exponent: lambda.
        samples: x_0 drawn for a reward on the way; 0 for the likeliest tokens alone.
    """

    potential: Potential = "diff"
    exponent: float = 1.0
    samples: int = 4

    why: ClassVar[str] = "weighted for the diffusion model's own law times p^lambda, not for the AR law"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.potential not in get_args(Potential):
            raise ValueError(f"potential = {said(self.potential)}: give one of {', '.join(get_args(Potential))}")
        remedy = "give a number from 0.001 to 1000, 1 for the AR law itself"
        real_between("exponent", self.exponent, 1e-3, 1e3, remedy=remedy)
        remedy = "draw at least 1, a whole number, or 0 for the likeliest tokens"
        self.samples = whole_number("samples", self.samples, least=0, remedy=remedy)

    def settings(self) -> dict[str, Any]:
        """What shapes the draws, as plain data (`Denoiser.settings`)."""
        own = {name: getattr(self, name) for name in ("potential", "exponent", "samples")}
        return {**super().settings(), **own}

    def wanted(self, state: DenoisingState, rows: Tensor) -> Tensor:
        """Rows before a resampling: their rewards are of ends drawn from the forward's laws (`Denoiser.wanted`)."""
        seats = (rows // self.particles).tolist()
        due = [(state.clock[seat] + 1) % self.every == 0 for seat in seats]
        return torch.tensor(due, dtype=torch.bool, device=rows.device)

    def weighed(
        self, state: DenoisingState, seats: Sequence[int], seen: Masked | None, due: Sequence[bool],
        over: Sequence[bool],
    ) -> DenoisingState:
        """Potentials of seats that may resample, and the last ones (`Particles.weighed`)."""
        some = [seat for seat, now, last in zip(seats, due, over, strict=True) if now or last]
        if not some:
            return state
        state, reward = self._rewards(state, some, seen)
        last = torch.tensor([now for seat, now in zip(seats, over, strict=True) if seat in some])[:, None]
        tilt = state.tilt.of(some)
        before = tilt.running.nan_to_num(nan=-torch.inf if self.potential == "max" else 0.0)
        mid = reward.clamp_min(FLOOR)
        running = torch.maximum(before, mid) if self.potential == "max" else before + mid
        on_the_way = self.exponent * (mid if self.potential == "diff" else running)
        spent = tilt.spent if self.potential == "diff" else torch.zeros_like(tilt.spent)
        gain = torch.where(last, self.exponent * reward - tilt.spent, on_the_way - spent)
        state = state._replace(tilt=state.tilt.put(some, tilt._replace(running=running)))
        return self.gained(state, some, gain)

    def _rewards(
        self, state: DenoisingState, seats: Sequence[int], seen: Masked | None
    ) -> tuple[DenoisingState, Tensor]:
        """`log 1/m sum_j p(x_0^j)` of every canvas of some seats, `[len(seats), N]` nats; AR forwards are counted.

        Of a complete canvas it is known for good once it was asked for.
        """
        rows, reward = self.rows(state, seats), state.tilt.of(seats).reward.clone()
        filled, whole = extent(state.canvas[rows], ends_of(self.proposal.model.eos_id))
        known = (~reward.isnan()).flatten().to(rows.device)
        still = ~whole & (filled < state.reach[rows])  # there is something left to draw
        for asked in (~known & ~still, ~known & still):
            index, flat = rows[asked], asked.reshape(reward.shape).cpu()
            if not index.numel():
                continue
            drafts, length = state.canvas[index][:, None], filled[asked]
            if bool(still[asked].any()):
                assert seen is not None
                drafts, length = self._drafts(state, index, seen), state.reach[index]
            state, judged = self.asked(state, index, drafts, length)
            reward[flat] = (judged.total.logsumexp(-1) - math.log(drafts.shape[1])).cpu()
        kept = torch.where(whole.reshape(reward.shape).cpu(), reward, torch.nan)
        return state._replace(tilt=state.tilt.put(seats, state.tilt.of(seats)._replace(reward=kept))), reward

    def _drafts(self, state: DenoisingState, index: Tensor, seen: Masked) -> Tensor:
        """Ends x_0 of canvases `index: [B]`, `[B, m, W]`: what is filled, and draws of the rest by the last forward."""
        mine = seen.of(torch.searchsorted(seen.rows, index))
        now = state.canvas[index][:, : mine.shown.shape[1]]
        still = mine.open & (now < 0)
        if not self.samples:
            drafts = mine.log_q.argmax(-1)[:, None]
        else:
            source = self.of_rows(state, index)
            drafts = torch.stack([mine.drawn(source, still) for _ in range(self.samples)], 1)
        return torch.where(still[:, None], drafts, now[:, None])


@method(
    "fk-steering", role="baseline", targets="DLM x AR^lambda", proper=False,
    reference="arXiv 2501.06848", why="the tilted law, not the AR law",
    examples=("fk-steering,lookahead=4,steps=4,every=4",),
    published="settings on MDLM: k = 4, lambda = 10, every 20 steps, 4 x_0 a reward; its rewards are of other models",
)
def fk_steering(
    pair: ModelPair, *, particles: int = 4, potential: Potential = "diff", exponent: float = 1.0, samples: int = 4,
    steps: int = 32, every: int = 8, resampler: Resampler | str = "multinomial", trigger: Trigger | str = "always",
    lookahead: int = 256, temperature: float = 1.0, top_p: float = 1.0,
) -> Steered:
    """Denoising with N particles that are steered to what the AR model finds likely.

    Every s denoising steps the reward of a canvas is `r = log 1/m sum_j p(x_0^j)` over ends `x_0^j ~ q(. | x_t)`, and a
    particle is weighed by a potential: diff `e^(lambda (r_t - r_before))`, max `e^(lambda max r)`, add
    `e^(lambda sum r)`. The last potential divides by those before, so that their product is `p(x)^lambda` of what came
    out: weights are carried, log Z is kept, and the particles are properly weighted for the diffusion model's own law
    times `p^lambda`, whatever the potential. That is not the AR law, for which it is a baseline. Changed: rewards start
    at none (the released class starts them at 0, above every log-probability, which turns max off), the last potential
    reads the last reward, and what came out is not resampled.

    Args:
        particles: N.
        potential: diff, max or add.
        exponent: lambda, of p in the law, a number from 0.001 to 1000; the authors' 10 is for other rewards.
        samples: m, ends drawn for a reward, 0 for the likeliest tokens.
        steps: T, for the places that are denoised together.
        every: s, denoising steps between two resamplings.
        resampler: how survivors are drawn.
        trigger: when particles are resampled, always after s steps unless it is given.
        lookahead: M, places that are denoised together.
        temperature: of both models' laws.
        top_p: of the AR law.
    """
    check_pair(pair)
    return Steered(
        DLMProposal(recomputing(pair.dlm), temperature=temperature, lookahead=lookahead),
        ARTarget(pair.ar, temperature=temperature, top_p=top_p), steps, particles, "fk-steering",
        getattr(pair, "decode", None), every, named("resampler", resampler), named("trigger", trigger), potential,
        exponent, samples,
    )
