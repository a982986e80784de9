"""Particles over the denoising steps of a canvas: N canvases of a prompt that carry weights and are resampled.

    log w_n <- log w_n + log G(x_s^n)      after a step, by a potential G of what the canvas has become
    ancestors ~ resampler(w)               every `every` steps, where the trigger says so; weights reset to their mean

(Singhal et al. 2025, arXiv 2501.06848; Del Moral's Feynman-Kac flow of a masked diffusion model.) Of whatever
potentials with product e^(V(path)), `E[Z_hat sum_n W_n f(x_n)] = E_q[e^V f]`: the weighted canvases are properly
weighted for the diffusion model's own law tilted by e^V, `log Z` is kept, and resampling changes the variance alone.

A subclass gives the potentials (`weighed`). Weights are float64, and survivors are drawn on the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from smc_bridge.canvas.denoising import Denoiser
from smc_bridge.canvas.denoising_state import DenoisingState, Masked, Tilt
from smc_bridge.describe import describe
from smc_bridge.engine.resampling import Multinomial, Resampler, check_ancestors
from smc_bridge.engine.weights import Trigger, always, check_trigger, log_mean
from smc_bridge.models.arguments import whole_number


@dataclass
class Particles(Denoiser, ABC):
    """A denoiser whose canvases are weighed and resampled (module docstring).

    Attributes:
        every: denoising steps between two resamplings.
        resampler: draws the survivors.
        trigger: which prompts resample when they may.
    """

    every: int = 8
    resampler: Resampler = field(default_factory=Multinomial)
    trigger: Trigger = always

    def __post_init__(self) -> None:
        super().__post_init__()
        self.every = whole_number("every", self.every, remedy="resample every 1 step or more, a whole number")

    def settings(self) -> dict[str, Any]:
        """What shapes the draws, as plain data (`Denoiser.settings`)."""
        shown = {"resampler": describe(self.resampler), "trigger": describe(self.trigger)}
        return {**super().settings(), "every": self.every, **shown}

    def due(self, state: DenoisingState, seats: Sequence[int]) -> list[bool]:
        """Which seats may resample, after as many steps as their clocks say."""
        return [state.clock[seat] % self.every == 0 for seat in seats]

    @abstractmethod
    def weighed(
        self, state: DenoisingState, seats: Sequence[int], seen: Masked | None, due: Sequence[bool],
        over: Sequence[bool],
    ) -> DenoisingState:
        """The state with what a step adds to the weights of these seats.

        Args:
            seen: what a forward was run for in this step, None for nothing.
            due: which of the seats may resample now.
            over: which of the seats' canvases are all complete: their last potential.
        """

    def settled(self, state: DenoisingState, seats: Sequence[int], seen: Masked | None) -> DenoisingState:
        """Weigh, and resample where that is due (`Denoiser.settled`)."""
        over = self.complete(state, seats).all(1).tolist()
        due = [now and not last for now, last in zip(self.due(state, seats), over, strict=True)]
        state = self.weighed(state, seats, seen, due, over)
        some = [seat for seat, now in zip(seats, due, strict=True) if now]
        return self._resampled(state, some) if some and self.particles > 1 else state

    def _resampled(self, state: DenoisingState, seats: Sequence[int]) -> DenoisingState:
        """The state with survivors in those of the seats that the trigger names."""
        weights = state.tilt.log_weights[list(seats)]
        alive = (weights > -torch.inf).any(1)
        mixed = check_trigger(self.trigger, weights) & alive
        chosen = [seat for seat, now in zip(seats, mixed.tolist(), strict=True) if now]
        if not chosen:
            return state
        tilt = state.tilt.of(chosen)
        source = self.source(state, chosen, 1, of_places=False)
        ancestors = check_ancestors(self.resampler, tilt.log_weights, self.particles, source=source)
        kept = Tilt(*(part.gather(1, ancestors) for part in tilt))
        mean = log_mean(tilt.log_weights)[:, None].expand(-1, self.particles)
        rows = self.rows(state, chosen)
        first = rows.reshape(len(chosen), -1)[:, :1]
        parents = (first + ancestors.to(first.device)).flatten()
        return state._replace(
            canvas=state.canvas.index_copy(0, rows, state.canvas[parents]),
            reach=state.reach.index_copy(0, rows, state.reach[parents]),
            tilt=state.tilt.put(chosen, kept._replace(log_weights=mean.contiguous())),
        )

    def gained(self, state: DenoisingState, seats: Sequence[int], gain: Tensor) -> DenoisingState:
        """The state with log potentials `gain: [len(seats), N]` added to the weights, and remembered as spent."""
        own = state.tilt.of(seats)
        after = own._replace(log_weights=own.log_weights + gain, spent=own.spent + gain)
        return state._replace(tilt=state.tilt.put(seats, after))
