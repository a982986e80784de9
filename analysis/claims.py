"""Whether a decoder samples what it claims: the law of its output on tables, held against laws known exactly.

The law of the output is `r(x) = E[sum_k W_k 1{x_k = x}]`, that of one sequence drawn by a run's own weights. It is
compared with the law that the method claims (`smc_bridge.analysis.claimed_law`), and with the AR law. A method that is
properly weighted claims less of its output: what is exact is the weighted measure `E[Z_hat sum_k W_k 1{x_k = x}]`, and
r is off by the bias that its KL bound bounds.

Programs are enumerated where that is cheap (`smc_bridge.testing.enumerate_sampler`). Of the others M runs are drawn.
The plug-in distance `TV_hat = 1/2 sum |r_hat - p|` of M draws over S cells counts noise as distance. Changing a draw
changes it by 1/M at most, and its mean lies between TV and TV plus that of r_hat from r, so by McDiarmid's inequality

    TV_hat - 1/2 sqrt((S - 1) / M) - e  <=  TV  <=  TV_hat + e,     e = sqrt(log(2 / (1 - level)) / (2 M)),

at any M. Whether it is noise at all is told by the floor: the quantile of `TV_hat` of as many draws of p itself.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from smc_bridge.analysis.claimed_law import POE, Measure, ar_law, claimed_law
from smc_bridge.analysis.laws import total_variation
from smc_bridge.decode import Decoder, decode
from smc_bridge.engine.sampler import Sampler
from smc_bridge.estimate import Estimate
from smc_bridge.models.protocols import ModelPair
from smc_bridge.names import DEFAULT_W
from smc_bridge.registry import Spelled, spelled
from smc_bridge.result import Forwards, Result
from smc_bridge.streams import Role, numpy_generator
from smc_bridge.testing.enumeration import NotEnumerableError
from smc_bridge.testing.program import enumerate_sampler
from smc_bridge.testing.tabular import tabular_pair

#: Outcomes of a program that are cheap to enumerate.
CHEAP = 20_000
#: Runs that count forwards where nothing else is drawn.
COUNTED = 500
#: Runs of one call, so that what a table lists for each row stays small.
CHUNK = 2_500
#: Samples of the exact law behind the floor.
FLOORS = 2_000
#: Confidence of the interval; and of the floor, which one exact method in a thousand is beyond.
LEVEL, FLOOR_LEVEL = 0.95, 0.999
#: Nats by which the diffusion model of the smallest table is off.
SMALL_NOISE = 0.9
_ROUND_OFF = 1e-9


@dataclass(frozen=True)
class Distance:
    """Total variation between the law of an output and another law.

    Attributes:
        tv: with its interval; of an enumeration both ends are the value.
        floor: distance that as many draws of the law itself seldom exceed; 0 of an enumeration.
    """

    tv: Estimate
    floor: float

    @property
    def within_noise(self) -> bool:
        """Whether draws of the law itself look like this."""
        return self.tv.value <= self.floor + _ROUND_OFF

    @property
    def enumerated(self) -> bool:
        """Whether there is no noise."""
        return self.floor == 0

    def text(self) -> str:
        """The distance with its interval, in brackets; or that it is 0, or noise."""
        if self.enumerated:
            return "0, enumerated" if self.within_noise else f"{self.tv.value:.3f}, enumerated"
        return f"{self.tv.value:.3f}, noise" if self.within_noise else self.tv.text(".3f")


@dataclass(frozen=True)
class Output:
    """The law of a decoder's output on tables.

    Attributes:
        law: of one sequence drawn from a run's weights; what dies without a sequence is the value None.
        results: runs that were drawn, for their costs, and for the law unless that was enumerated.
        enumerated: whether the law was.
    """

    law: Measure
    results: Sequence[Result]
    enumerated: bool

    @property
    def proper(self) -> bool:
        """Whether the runs say that they are properly weighted."""
        return all(result.proper for result in self.results)

    @property
    def forwards_per_token(self) -> float:
        """Forwards of both models by tokens."""
        total = Forwards.total([result.forwards for result in self.results])
        return (total.dlm_forwards + total.ar_forwards) / sum(result.tokens for result in self.results)

    def distance(self, measure: Measure, *, seed: int = 0) -> Distance:
        """Total variation between the output and a normalised measure; `seed` is of the floor's samples."""
        total = sum(measure.values())
        law = {x: mass / total for x, mass in measure.items()}
        found = total_variation(self.law, law)
        if self.enumerated:
            return Distance(Estimate(found, found, found, 1, "enumeration"), 0.0)
        runs = len(self.results)
        bias = 0.5 * math.sqrt(len(law) / runs)  # all that the law lacks is one more cell
        error = math.sqrt(math.log(2 / (1 - LEVEL)) / (2 * runs))
        low, high = max(0.0, found - bias - error), min(1.0, found + error)
        return Distance(Estimate(found, low, high, runs, "McDiarmid", level=LEVEL), noise_floor(law, runs, seed=seed))


def noise_floor(law: Measure, runs: int, *, level: float = FLOOR_LEVEL, seed: int = 0) -> float:
    """What the plug-in total variation of so many draws of a law from it stays below with probability `level`."""
    p: npt.NDArray[np.float64] = np.array([*law.values()])
    drawn = numpy_generator(Role.PERMUTATION, seed).multinomial(runs, p / p.sum(), size=FLOORS)
    return float(np.quantile(0.5 * np.abs(drawn / runs - p).sum(1), level))


def output_of(decoder: Decoder[Any], limit: int, *, runs: int, seed: int = 0, cheap: int = CHEAP) -> Output:
    """The law of a decoder's output after the empty prompt: enumerated where it is a program and that is cheap.

    Args:
        decoder: on tables.
        limit: greatest length of a sequence.
        runs: that are drawn where it is not enumerated.
        seed: the runs have this one and those that follow.
        cheap: outcomes that an enumeration may have; 0 draws in any case.
    """
    if isinstance(decoder, Sampler) and cheap:
        with suppress(NotEnumerableError):
            found = enumerate_sampler(decoder, limit, most=cheap)
            law: dict[Hashable, float] = dict(found.output.items())
            if found.dead:
                law[None] = found.dead
            return Output(law, _drawn(decoder, limit, min(runs, COUNTED), seed), True)
    results, rng = _drawn(decoder, limit, runs, seed), numpy_generator(Role.SAMPLE, seed)
    drawn: dict[Hashable, float] = {}
    for result, at in zip(results, rng.random(runs), strict=True):
        x = tuple(result.sequences[_index(result, at)]) if result.alive else None
        drawn[x] = drawn.get(x, 0.0) + 1.0 / runs
    return Output(drawn, results, False)


def _index(result: Result, at: float) -> int:
    """The particle that a uniform number draws by weight."""
    if len(result.sequences) == 1:
        return 0
    steps = np.cumsum(result.weights)
    return int(np.searchsorted(steps, at * steps[-1], side="right"))


def _drawn(decoder: Decoder[Any], limit: int, runs: int, seed: int) -> list[Result]:
    """Independent runs after the empty prompt, many at once."""
    found: list[Result] = []
    for start in range(0, runs, CHUNK):
        seeds = range(seed + start, seed + min(start + CHUNK, runs))
        found += decode(decoder, [()] * len(seeds), seed=seeds, max_new_tokens=limit)
    return found


@torch.inference_mode()
def weighted_gap(text: str, *, w: float = DEFAULT_W, most: int = 40_000) -> float | None:
    """How far the weighted measure of a method is from what it claims, at the sequence where it is farthest.

    The program is enumerated on the smallest table, two tokens two deep, with four particles at most: weights with a
    heavy tail cannot be told from wrong ones by draws.

    Args:
        text: the method as it is spelled.
        w: where the spelling does not say it.
        most: outcomes that an enumeration may have.
    Returns:
        the greatest `|E[Z_hat sum_k W_k 1{x_k = x}] - p(x)|`; None of a method that is no program, says that it is not
        proper, has too many outcomes, or claims a product, for which a program has no weights.
    """
    pair, method, depth = tabular_pair(2, 2, noise=SMALL_NOISE), spelled(text), 2
    decoder = _made(method, pair, depth, depth, 1.0, w)
    measure = None if method.method.targets == POE else claimed_law(method, pair, depth, w=w)
    if measure is None or not isinstance(decoder, Sampler) or not decoder.proper:
        return None
    with suppress(NotEnumerableError):
        few = replace(decoder, particles=min(decoder.particles, 4))
        found: Measure = dict(enumerate_sampler(few, depth, most=most).proper.items())
        return max(abs(found.get(x, 0.0) - measure.get(x, 0.0)) for x in {*found, *measure})
    return None


@dataclass(frozen=True)
class Judgement:
    """What a method claims, and what it draws.

    Attributes:
        claim: distance of its output from the law that it claims; None where that has no law here.
        ar: distance of its output from the AR law.
        forwards: of both models, by tokens.
        proper: whether its results say that they are properly weighted.
    """

    claim: Distance | None
    ar: Distance
    forwards: float
    proper: bool


def judge(
    text: str, pair: ModelPair, limit: int, *, runs: int = 20_000, seed: int = 0, temperature: float = 1.0,
    w: float = DEFAULT_W, cheap: int = CHEAP,
) -> Judgement:
    """Hold a method's output on tables against the law that it claims, and against the AR law.

    Args:
        text: the method as it is spelled.
        pair: tables, as of `smc_bridge.testing.tabular_pair`.
        limit: greatest length of a sequence; V and M unless the spelling says others.
        runs, seed, cheap: see `output_of`.
        temperature, w: of all laws, where the spelling does not say them.
    Raises:
        ValueError: the method cannot run on this pair; or anything else that it raises there.
    """
    method = spelled(text)
    measure = claimed_law(method, pair, limit, temperature=temperature, w=w)

    def output(size: int) -> Output:
        return output_of(_made(method, pair, limit, size, temperature, w), limit, runs=runs, seed=seed, cheap=cheap)

    found = output(limit)
    law = ar_law(pair, limit, temperature)
    claim = None
    if measure is not None:
        claim = (output(1) if method.method.targets == POE else found).distance(measure, seed=seed)
    return Judgement(claim, found.distance(law, seed=seed), found.forwards_per_token, found.proper)


def _made(method: Spelled, pair: ModelPair, limit: int, size: int, temperature: float, w: float) -> Decoder[Any]:
    """The decoder with V = M = `size`."""
    return method.make(pair, temperature=temperature, w=w, window=size, lookahead=size, max_new_tokens=limit)
