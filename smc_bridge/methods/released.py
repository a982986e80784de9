"""The released decoder of PoE-Bridge, as a labelled baseline: none of its parts is proper.

The released code differs from the paper's text in four ways, one class each or a line in one: top-p shapes
the draft but not the acceptance ratio; a draft of any lane that holds an end of sequence forces the first token of all
lanes (condition C8 broken); the score is the *length-mean of raw-logit differences* AR - DLM instead of the sum of
`log p - log pi`; the survivor is the argmax of the score, and no weight is carried. Its total variation to the AR law
grows with the number of lanes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move, prefix_sum
from smc_bridge.distributions.intermediate import Intermediate, ProductOfExperts
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.logits import truncated
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.presets import check_pair, codec, lane_exponents, lane_temperatures
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import always
from smc_bridge.kernels.importance import Lanes
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import accepted_tokens, commit_residual
from smc_bridge.models.arguments import whole_number
from smc_bridge.models.ends import is_end
from smc_bridge.models.protocols import ModelPair
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import Randomness, Source, as_source
from smc_bridge.registry import method


class ReleasedProposal(DLMProposal):
    """Drafts from marginals cut by top-p, while q, which the acceptance ratio reads, is the uncut law.

    Args:
        draft_top_p: truncation of the draft only.
        others: of `DLMProposal`.
    """

    def __init__(self, *arguments: Any, draft_top_p: float = 0.95, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.draft_shaping = Shaping(top_p=draft_top_p)

    def drawn(self, q: Law, source: Source) -> Tensor:
        """Tokens of the draft from the truncated marginals, `[R, V]`; `q` stays as it is."""
        return source.categorical(truncated(q, self.draft_shaping))


class ReleasedRejection(Kernel):
    """Token-level rejection with the released code's end-of-sequence rule, which couples lanes: none has a law of its
    own.

    Args:
        lanes: K; consecutive rows are the lanes of one particle.
    """

    proper = False

    def __init__(self, lanes: int = 1) -> None:
        self.lanes = whole_number("lanes", lanes)

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        """See `Kernel.__call__`."""
        q, tokens = draft.q, draft.tokens
        source, end = as_source(source, q.rows, device=q.device), horizon.end(tokens)
        forced: Tensor | None = None
        if horizon.ends:
            inside = torch.arange(tokens.shape[1], device=tokens.device) < horizon.window[:, None]
            drafted = (is_end(tokens, horizon.ends) & inside).any(-1).reshape(-1, self.lanes).any(-1)
            forced = drafted.repeat_interleave(self.lanes)
        accepted = accepted_tokens(q, pi, tokens, end=end, source=source, forced=forced)
        return commit_residual(q, pi, tokens, accepted, end, source=source)


class ReleasedScore:
    """Length-mean of raw-logit differences AR - DLM at the committed tokens; not a weight of anything."""

    proper, lanewise = False, True

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        """See `WeightRule.__call__`."""
        block, length = lanes.move.block, lanes.move.length
        difference = lanes.p.logits(block).double() - lanes.q.logits(block).double()
        return prefix_sum(difference, length) / length


class Argmax:
    """Every survivor is the candidate of greatest weight: a selection rule that is not unbiased."""

    proper = False

    def __call__(self, log_weights: Tensor, count: int, *, source: Randomness) -> Tensor:
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
        max_logit_bytes: cap of the AR model's logits of one call, bytes; more calls are made instead.
        compile: run the arithmetic of laws through `torch.compile`.
    """
    check_pair(pair)
    own = lane_temperatures(lanes)
    exponent = lane_exponents(w, temperature, own)
    return Sampler(
        proposal=ReleasedProposal(pair.dlm, temperature=own, lookahead=lookahead, draft_top_p=top_p),
        target=ARTarget(pair.ar, temperature=temperature), intermediate=ProductOfExperts(w, exponent),
        kernel=ReleasedRejection(lanes), weight=ReleasedScore(), resampler=Argmax(), trigger=always,
        particles=1, lanes=lanes, window=window, name=name, max_logit_bytes=max_logit_bytes, compile=compile,
        **codec(pair),
    )
