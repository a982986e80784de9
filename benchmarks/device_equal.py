"""Whether a program draws on a device what it draws on the CPU, up to round-off.

Draws are made of the models' scores and of uniforms that lie on the host, the same for every device. So a run on the
device is written down, calls and scores, and the same run is made on the CPU twice:

1. with the device's scores in the place of its own. It must make the same calls with the same arguments and commit the
   same tokens, with log weights within `WEIGHTS`: the program's arithmetic is the device's. Each score is compared with
   the one that the CPU's model gives for that very call: no further apart than `ROUND_OFF` places of the greatest
   logit, the bound that the lean forward is held to;
2. with its own scores. Prompts whose tokens are others here are *flips*: by 1 the same decisions from scores that
   differ by round-off, so one of them fell within it. They are counted, and are no fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.replay import Call, Tape, observe
from smc_bridge.decode import Decoder, decode
from smc_bridge.models.huggingface.lean import ROUND_OFF
from smc_bridge.models.pairs import Pair
from smc_bridge.result import Result

#: Difference of two log weights that is round-off, nats, by the type of the models: laws are float32 at least.
WEIGHTS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1e-3}
SCORES = ("score", "score_tree")


class ApartError(Exception):
    """The program on the CPU asked its models something else than the program on the device did."""


class Kept(Tape):
    """A tape that keeps the scores too, all of it on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[Tensor | None] = []

    def record(self, model: str, session: int, name: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Do `work(*arguments)` and write it down, result and all."""
        copies = tuple(each.detach().cpu().clone() for each in arguments)
        value = work(*arguments)
        self.calls.append(Call(model, session, name, copies, 0.0))
        # A step may use the memory of its scores.
        self.scores.append(value.detach().cpu().clone() if name in SCORES else None)
        return value


class Given(Tape):
    """Answers with the scores of another run, and compares them with the models' own.

    Args:
        kept: that run.
    Attributes:
        places: greatest difference of two scores, in places of the greatest logit of their forward.
    """

    def __init__(self, kept: Kept) -> None:
        super().__init__(keep=False)
        self.kept, self.at, self.places = kept, 0, 0.0

    def record(self, model: str, session: int, name: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """The scores that were kept of this call.

        Raises:
            ApartError: it is another call.
        """
        at, self.at = self.at, self.at + 1
        call = self.kept.calls[at] if at < len(self.kept.calls) else None
        if call is None or (call.model, call.session, call.name) != (model, session, name):
            was = "none" if call is None else f"{call.model}.{call.name}"
            raise ApartError(f"call {at} is {model}.{name}, and was {was}")
        if not all(map(torch.equal, call.arguments, arguments)):
            raise ApartError(f"call {at}, {model}.{name}, has other arguments")
        own, scores = work(*arguments), self.kept.scores[at]
        if scores is None:
            return own
        if scores.shape != own.shape or scores.dtype != own.dtype:
            raise ApartError(f"call {at}, {model}.{name}, gave {scores.dtype} {list(scores.shape)}")
        apart = torch.where(scores == own, 0.0, (scores - own).abs()).max() / own.nan_to_num(0.0, 0.0, 0.0).abs().max()
        self.places = max(self.places, math.inf if apart.isnan() else float(apart))
        return scores


class Equality(NamedTuple):
    """A program's run on a device beside the CPU's.

    Attributes:
        places: greatest difference of two scores, in places of the greatest logit; at most `allowed`.
        allowed: of the type of the weights.
        nats: greatest difference of two log weights, given the same scores; NaN if tokens are others.
        allowed_nats: likewise.
        apart: how the program differs given the same scores, or None.
        flips: prompts with other tokens where each device has its own scores.
        prompts, tokens: how many there were.
    """

    places: float
    allowed: float
    nats: float
    allowed_nats: float
    apart: str | None
    flips: int
    prompts: int
    tokens: int

    @property
    def equal(self) -> bool:
        """Whether the draws are equal up to round-off."""
        return self.apart is None and self.places <= self.allowed and self.nats <= self.allowed_nats


def equality(
    build: Callable[[Pair], Decoder[Any]], here: Pair, there: Pair, prompts: Sequence[Sequence[int]],
    *, dtype: torch.dtype, **limits: Any,
) -> Equality:
    """Run a program on both devices.

    Args:
        build: makes the program from a pair.
        here, there: the pair on the CPU and on the device, weights of type `dtype`.
        limits: further arguments of `decode`.
    """
    kept = Kept()
    found = decode(build(observe(there, kept)), prompts, **limits)
    given, apart, again = Given(kept), None, found
    try:
        again = decode(build(observe(here, given)), prompts, **limits)
    except ApartError as error:
        apart = str(error).splitlines()[0]
    if apart is None and [run.sequences for run in again] != [run.sequences for run in found]:
        apart = "other tokens from the same calls"
    own = decode(build(here), prompts, **limits)
    eps = torch.finfo(dtype).eps
    return Equality(
        given.places / eps, ROUND_OFF[dtype], _difference(found, again) if apart is None else float("nan"),
        WEIGHTS[dtype], apart, sum(a.sequences != b.sequences for a, b in zip(found, own, strict=True)), len(found),
        round(sum(run.tokens for run in found)),
    )


def _difference(runs: Sequence[Result], others: Sequence[Result]) -> float:
    """Greatest difference of two log weights, nats; two of `-inf` do not differ."""
    weights, other = ([weight for run in of for weight in run.log_weights] for of in (runs, others))
    return max((abs(a - b) for a, b in zip(weights, other, strict=True) if a != b), default=0.0)
