"""The released decoder of PoE-Bridge, as a labelled baseline: none of its parts is proper.

The released code differs from the paper's text in four ways, one class each or a line in one: top-p shapes
the draft but not the acceptance ratio; a draft of any lane that holds an end of sequence forces the first token of all
lanes (condition C8 broken); the score is the *length-mean of raw-logit differences* AR - DLM instead of the sum of
`log p - log pi`; the survivor is the argmax of the score, and no weight is carried. Its total variation to the AR law
grows with the number of lanes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smc_bridge.distributions.intermediate import Intermediate, ProductOfExperts
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.lazy import as_lazy
from smc_bridge.distributions.logits import truncated
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import always
from smc_bridge.kernels.importance import Lanes
from smc_bridge.kernels.protocol import Horizon, Kernel, Move, full_horizon
from smc_bridge.kernels.rejection import accepted_tokens, commit_residual
from smc_bridge.methods.poe_bridge import check_pair, codec, lane_exponents, lane_temperatures
from smc_bridge.models.arguments import whole_number
from smc_bridge.models.protocols import ModelPair
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.randomness import Randomness, as_source
from smc_bridge.registry import method


class ReleasedRejection:
    """Token-level rejection with the released code's draft and its end-of-sequence rule.

    Args:
        lanes: K; consecutive rows are the lanes of one particle, because the lanes are coupled.
        top_p: truncation of the draft only.
    """

    proper = False

    def __init__(self, lanes: int = 1, *, top_p: float = 0.95) -> None:
        self.lanes = whole_number("lanes", lanes)
        self.shape = Law(top_p=top_p)

    def draft(self, q: Tensor, *, generator: Randomness) -> Tensor:
        """Draw from the truncated proposal, `[R, V, A]` -> `[R, V]`; the acceptance ratio will not know."""
        shaped = truncated(as_lazy(q), self.shape)
        return as_source(generator, q.shape[0], device=q.device).categorical(shaped)

    def __call__(
        self, q: Tensor, pi: Tensor, draft: Tensor, *, generator: Randomness, horizon: Horizon | None = None
    ) -> Move:
        """See `DraftKernel.__call__`."""
        source = as_source(generator, draft.shape[0], device=draft.device)
        horizon = full_horizon(pi) if horizon is None else horizon
        end = horizon.end(draft)
        forced: Tensor | None = None
        if horizon.eos_id is not None:
            inside = torch.arange(draft.shape[1], device=draft.device) < horizon.window[:, None]
            drafted = ((draft == horizon.eos_id) & inside).any(-1).reshape(-1, self.lanes).any(-1)
            forced = drafted.repeat_interleave(self.lanes)
        accepted = accepted_tokens(q, pi, draft, end=end, source=source, forced=forced)
        return commit_residual(q, pi, draft, accepted, end, source=source)

    def log_stop(
        self, q: Tensor, pi: Tensor, block: Tensor, length: Tensor, *, horizon: Horizon | None = None
    ) -> Tensor:
        """There is none.

        Raises:
            TypeError: always: the lanes are coupled, so a lane has no stopping law of its own.
        """
        raise TypeError("ReleasedRejection couples its lanes and has no closed-form law: use Rejection()")

    def log_density(
        self, q: Tensor, pi: Tensor, block: Tensor, length: Tensor, *, horizon: Horizon | None = None
    ) -> Tensor:
        """There is none.

        Raises:
            TypeError: always, as `log_stop`.
        """
        return self.log_stop(q, pi, block, length, horizon=horizon)


class ReleasedScore:
    """Length-mean of raw-logit differences AR - DLM at the committed tokens; not a weight of anything."""

    proper = False

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """See `WeightRule.__call__`."""
        position = torch.arange(lanes.raw_p.shape[-1], device=lanes.raw_p.device)
        inside = position < lanes.move.length[..., None]
        difference = torch.where(inside, lanes.raw_p.double() - lanes.raw_q.double(), 0.0)
        return difference.sum(-1) / lanes.move.length


class Argmax:
    """Every survivor is the candidate of greatest weight: a selection rule that is not unbiased."""

    proper = False

    def __call__(self, log_weights: Tensor, count: int, *, generator: Randomness) -> Tensor:
        """See `Resampler.__call__`."""
        return log_weights.argmax(-1, keepdim=True).expand(*log_weights.shape[:-1], count)


@method(
    "released", role="baseline", targets="AR", proper=False, reference="code of arXiv 2606.08048",
    why="argmax, coupled lanes",
)
def released(
    pair: ModelPair, *, lanes: int = 4, w: float = 0.3, window: int = 32, lookahead: int = 256,
    temperature: float = 1.0, top_p: float = 0.95, name: str = "released", max_logit_bytes: int | None = None,
    compile: bool = False,
) -> Sampler:
    """The behaviour of the paper's released code. Not proper: a labelled baseline.

    Args:
        lanes: K, drafts at temperatures from 0.2 to 0.7.
        w: exponent of the DLM in the product of experts.
        window: V, tokens verified at once.
        lookahead: M, masked positions per forward of the DLM.
        temperature: of the target that it is compared with; it enters the product through the lanes' temperatures.
        top_p: truncation of the drafts only.
        max_logit_bytes: cap of the AR model's logits of one call, see `Sampler`.
        compile: run the arithmetic of laws through `torch.compile`.
    """
    check_pair(pair)
    own = lane_temperatures(lanes)
    exponent = lane_exponents(w, temperature, own)
    return Sampler(
        proposal=DLMProposal(pair.dlm, temperature=own, lookahead=lookahead),
        target=ARTarget(pair.ar, temperature=temperature), intermediate=ProductOfExperts(w, exponent),
        kernel=ReleasedRejection(lanes, top_p=top_p), weight=ReleasedScore(), resampler=Argmax(), trigger=always,
        particles=1, lanes=lanes, window=window, name=name, max_logit_bytes=max_logit_bytes, compile=compile,
        **codec(pair),
    )
