"""Self-rewarding SMC (arXiv 2602.01849): particles of a diffusion model weighed by its own confidences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch

from smc_bridge.canvas.denoising_state import DenoisingState, Masked
from smc_bridge.canvas.particles import Particles
from smc_bridge.engine.presets import check_pair
from smc_bridge.engine.resampling import Resampler
from smc_bridge.engine.weights import Trigger
from smc_bridge.models.arguments import said
from smc_bridge.models.caches import recomputing
from smc_bridge.models.protocols import ModelPair
from smc_bridge.names import named
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.registry import method
from smc_bridge.result import Result

#: What is made of the particles in the end.
Final = Literal["argmax", "weights"]


@dataclass
class SelfRewarded(Particles):
    """Particles that are weighed by the probabilities of the tokens that they committed.

    Attributes:
        final: argmax keeps the particle of greatest weight alone, weights keeps all.
    """

    final: Final = "argmax"

    why: ClassVar[str] = "weighted for the diffusion model's own law times its confidences, not for the AR law"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.final not in get_args(Final):
            raise ValueError(f"final = {said(self.final)}: give one of {', '.join(get_args(Final))}")

    def settings(self) -> dict[str, Any]:
        """What shapes the draws, as plain data (`Denoiser.settings`)."""
        return {**super().settings(), "final": self.final}

    def weighed(
        self, state: DenoisingState, seats: Sequence[int], seen: Masked | None, due: Sequence[bool],
        over: Sequence[bool],
    ) -> DenoisingState:
        """The model's own log-probabilities of what this step has committed (`Particles.weighed`)."""
        if seen is None:
            return state
        tokens = state.canvas[seen.rows][:, : seen.shown.shape[1]].clamp_min(0)
        sure = seen.log_q_plain.gather(-1, tokens[..., None])[..., 0].double()
        earned = torch.where(seen.fill, sure, 0.0).sum(1)
        gain = torch.zeros(len(state.seats) * self.particles, dtype=torch.float64)
        gain[seen.rows.cpu()] = earned.cpu()
        return self.gained(state, seats, gain.reshape(-1, self.particles)[list(seats)])

    def result(self, state: DenoisingState, seat: int) -> Result:
        """See `Denoiser.result`; of the first particle of greatest weight alone under `final = argmax`."""
        found = super().result(state, seat)
        if self.final == "weights":
            return found
        best = found.log_weights.index(max(found.log_weights))
        texts = None if found.texts is None else [found.texts[best]]
        return replace(found, sequences=[found.sequences[best]], log_weights=[0.0], texts=texts)


@method(
    "self-rewarding-smc", role="baseline", targets="DLM^2", proper=False, reference="arXiv 2602.01849",
    why="weighed by the DLM's confidences", examples=("self-rewarding-smc,lookahead=4,steps=4",),
    published="settings: resampled per block where ESS < K / 2, final argmax (MDLM, BD3LM, LLaDA, Dream)",
)
def self_rewarding_smc(
    pair: ModelPair, *, particles: int = 4, final: Final = "argmax", steps: int = 32, every: int | None = None,
    resampler: Resampler | str = "multinomial", trigger: Trigger | str = "ess", lookahead: int = 32,
    temperature: float = 1.0,
) -> SelfRewarded:
    """Denoising with N particles that are weighed by the diffusion model's own confidences.

    A particle's weight is the product of the model's probabilities of the tokens that it committed, each at its own
    forward: `log w = sum_i log q_i(x_i | x_t)`. After every block of M places the particles are resampled if their ESS
    is below N / 2; in the end the particle of greatest weight is kept (`final=argmax`). Tokens drawn from q and weighed
    by q have, drawn by weight (`final=weights`, in the limit of many particles), the law `q(path)^2 / Z` over the
    tokens of a denoising path: a sharpened law of the diffusion model (`q_tau q` where it draws at a temperature tau,
    for confidences are the model's own). The AR model is not asked, and nothing here is weighted for it: a baseline.

    Args:
        particles: N.
        final: argmax for the particle of greatest weight alone, weights for all with their weights.
        steps: T, for the places of a block.
        every: denoising steps between two resamplings, as many as steps (once a block) unless it is given.
        resampler: how survivors are drawn.
        trigger: when particles are resampled, ess is an ESS below half.
        lookahead: M, places of a block.
        temperature: of the law that tokens are drawn from.
    """
    check_pair(pair)
    return SelfRewarded(
        DLMProposal(recomputing(pair.dlm), temperature=temperature, lookahead=lookahead), None, steps, particles,
        "self-rewarding-smc", getattr(pair, "decode", None), steps if every is None else every,
        named("resampler", resampler), named("trigger", trigger), final,
    )
