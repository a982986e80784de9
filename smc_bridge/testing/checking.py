"""`check`: whether a sampler is properly weighted, tried on models that are tables, and which part is to blame if not.

The parts of the sampler (intermediate, kernel, weight rule, resampler, trigger, potential, temperatures) are put on a
small tabular pair, where the target is known, and the real engine runs on every outcome of its randomness. The claim
is Theorem 2 of docs/theory.md, `E[Z_hat sum_k W_k 1{x_k = s}] = p(s) phi(s)` for every sequence s. It is an identity,
so a program that breaks it by any amount is found. Where a part draws continuous variables, or outcomes are too many,
weighted runs are compared with the exact law instead, and small faults may pass.

What a table cannot show is not tried: logits of -inf of the real model, what float32 does to it, features that it has
and a table has not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from smc_bridge.engine.sampler import Sampler
from smc_bridge.models.arguments import confidence, said, whole_number
from smc_bridge.testing.enumeration import NotEnumerableError
from smc_bridge.testing.finding import ROUND_OFF
from smc_bridge.testing.frontier import SequenceLaw
from smc_bridge.testing.parts import kernel_fault, proposal_fault, resampler_fault
from smc_bridge.testing.program import enumerate_sampler
from smc_bridge.testing.seat import WORLDS, Seated, World, crowds, rules, seat, trusted
from smc_bridge.testing.statistics import detectable, mean_test
from smc_bridge.testing.tabular import exact_law


class Worst(NamedTuple):
    """The sequence at which a program is furthest from its target.

    Attributes:
        sequence: its token ids, s.
        found: `E[Z_hat sum_k W_k 1{x_k = s}]`, exact or estimated.
        expected: `p(s) phi(s)`.
    """

    sequence: tuple[int, ...]
    found: float
    expected: float

    @property
    def gap(self) -> float:
        """How far the two are apart, `|found - expected|`."""
        return abs(self.found - self.expected)

    def __str__(self) -> str:
        return f"sequence {self.sequence} has {self.found:.9g}, must have {self.expected:.9g}"


@dataclass(frozen=True)
class Check:
    """The verdict of `check` on a sampler.

    Attributes:
        proper: whether the claim holds, and no part contradicts what it says of itself.
        gap: greatest `|E[Z_hat sum_k W_k 1{x_k = s}] - p(s) phi(s)|` over sequences; an estimate unless enumerated.
        evidence: `E[Z_hat]` over its true value, likewise.
        how: "enumeration", or "Monte Carlo".
        outcomes: that were enumerated, or runs.
        p_value: of the runs, None if enumerated.
        part: the first part that breaks it, an attribute of the sampler ("potential": of its target); None if proper,
            or if no single part does.
        reasons: what is known about it, one line each.
        worst: the sequence with the greatest gap, with the two numbers.
        detectable: gap that the runs would have found with probability 0.99, None if enumerated.
    """

    proper: bool
    gap: float
    evidence: float
    how: str
    outcomes: int
    p_value: float | None = None
    part: str | None = None
    reasons: list[str] = field(default_factory=list)
    worst: Worst | None = None
    detectable: float | None = None

    def __str__(self) -> str:
        by = f"{self.how} ({self.outcomes:,} {'outcomes' if self.p_value is None else 'runs'}"
        by += ")" if self.p_value is None else f", p = {self.p_value:.2g})"
        verdict = "proper" if self.proper else "not proper"
        head = f"{verdict}: gap {self.gap:.2g} by {by}, E[Z] / Z = {self.evidence:.4f}"
        blame = "" if self.proper else f"; first part that breaks it: {self.part or 'no single one'}"
        where = [] if self.proper or self.worst is None else [str(self.worst)]
        return "\n  ".join([head + blame, *where, *self.reasons])


#: Compares a program with the exact law: a verdict on it alone, `part` and `reasons` left open.
_Compare = Callable[[Seated], Check]


def check(sampler: Sampler, *, runs: int = 2_000, level: float = 1e-4) -> Check:
    """Whether `E[Z_hat sum_k W_k f(x_k)] = E_p[f]` holds for this very sampler, on a tabular pair where p is known.

    Its parts are put on a small table, or stay on its own pair if that is tabular, with at most two particles, and one
    where it has several lanes (then two of one lane as well). All randomness is enumerated where there are at most
    10**5 outcomes (10**6 on the smallest table), else `runs` weighted runs are compared with the exact law (Hotelling's
    chi-square, pooled cells), which needs weights that are not heavy-tailed. A kernel's `log_density` is compared with
    the law of its moves, a resampler's mean offspring numbers with the weights, the laws of a chain's drafts with those
    that it gives along them.

    Args:
        sampler: any; its models are not run unless they are tables.
        runs: of the Monte Carlo comparison.
        level: probability with which a proper program is refused by a comparison of draws; enumeration makes no error.
    Returns:
        the gap (0 to round-off if enumerated), how it was found, and, if it is not proper, the first part that breaks
        it: the one that makes the program right when a trusted part stands in its place.
    Raises:
        ValueError: a part cannot run on a table, for it reads features that a tabular model does not have or expects
            another alphabet; or an argument out of range.
    Example:
        >>> from smc_bridge import Mixture, released, smc
        >>> from smc_bridge.testing import tabular_pair
        >>> check(smc(tabular_pair(), particles=2, intermediate=Mixture(0.4))).proper
        True
        >>> check(released(tabular_pair(), lanes=2)).part
        'kernel'
    """
    runs, level = whole_number("runs", runs), confidence(level)
    if not isinstance(sampler, Sampler):
        raise ValueError(f"sampler = {said(sampler)}: give a Sampler, as smc(pair) makes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is told there stands in the result
            return _checked(sampler, runs, level)
    except (RuntimeError, IndexError, TypeError, AttributeError, KeyError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"a part of the sampler does not run on a table of a few tokens ({type(error).__name__}: {line}): give a "
            "sampler on a tabular pair that it runs on, smc_bridge.testing.tabular_pair(size)"
        ) from error


def _along(sampler: Sampler) -> str | None:
    """See `proposal_fault`, on a table."""
    one = seat(sampler, WORLDS[0], particles=1, lanes=sampler.lanes)
    return proposal_fault(one.sampler.proposal, lanes=sampler.lanes, limit=one.limit)


def _checked(sampler: Sampler, runs: int, level: float) -> Check:
    known = sampler.faults()
    for name, fault in (
        ("kernel", kernel_fault(sampler.kernel, level=level) if sampler.kernel.proper else None),
        ("resampler", resampler_fault(sampler.resampler, level=level) if sampler.resampler.proper else None),
        ("proposal", _along(sampler)),
    ):
        known += [(name, fault)] if fault else []
    compare, found = _compared(sampler, runs, level)
    seated, worst = max(found, key=lambda pair: (not pair[1].proper, pair[1].gap))
    part = known[0][0] if known else None
    reasons = [reason for _, reason in known]
    if not worst.proper:
        part = next((name for name, other in trusted(seated) if _right(compare, other)), part)
        if not reasons:
            few = seated.sampler.run([[]] * 64, seed=range(64), max_new_tokens=seated.limit)
            reasons = list(dict.fromkeys(reason for run in few for reason in run.reasons))
    outcomes = sum(one.outcomes for _, one in found)
    return replace(worst, proper=worst.proper and not known, outcomes=outcomes, part=part, reasons=reasons)


def _right(compare: _Compare, one: Seated) -> bool:
    """Whether this program is right, as far as can be told."""
    try:
        return compare(one).proper
    except NotEnumerableError:
        return False


def _compared(sampler: Sampler, runs: int, level: float) -> tuple[_Compare, list[tuple[Seated, Check]]]:
    """By enumeration on the first world where that can be, or else by runs: the comparison, and all of them."""
    for world in WORLDS:
        def enumerated(one: Seated, most: int = world.outcomes) -> Check:
            found = enumerate_sampler(one.sampler, one.limit, most=most)
            worst, evidence = _gap(found.proper, exact_law(one.sampler.target, one.limit))
            return Check(worst.gap < ROUND_OFF, worst.gap, evidence, "enumeration", found.outcomes, worst=worst)

        try:
            return enumerated, [(one, enumerated(one)) for one in _all(sampler, world)]
        except NotEnumerableError:
            continue

    def sampled(one: Seated) -> Check:
        return _sampled(one, runs, level)

    one = seat(sampler, WORLDS[0], particles=sampler.particles, lanes=sampler.lanes)
    return sampled, [(one, sampled(one))]


def _all(sampler: Sampler, world: World) -> list[Seated]:
    seated = [seat(sampler, world, particles=n, lanes=k) for n, k in crowds(sampler)]
    return [Seated(rule, one.limit) for one in seated for rule in rules(one.sampler)]


def _gap(found: SequenceLaw, expected: SequenceLaw) -> tuple[Worst, float]:
    """Where the difference is greatest, and the ratio of the totals."""
    every = [Worst(s, found.get(s, 0.0), expected.get(s, 0.0)) for s in sorted({*found, *expected})]
    total = sum(expected.values())
    worst = max(every, key=lambda one: one.gap)
    return worst, sum(found.values()) / total if total else math.nan


def _sampled(one: Seated, runs: int, level: float) -> Check:
    """Means of `Z_hat sum_k W_k 1{x_k = s}` over runs against the exact law."""
    law = exact_law(one.sampler.target, one.limit)
    place = {s: i for i, s in enumerate(law)}
    values = np.zeros((runs, len(law)))
    results = one.sampler.run([[]] * runs, seed=range(runs), max_new_tokens=one.limit)
    for row, result in zip(values, results, strict=True):
        for sequence, log_weight in zip(result.sequences, result.log_weights, strict=True):
            if log_weight == -math.inf:  # where the target has no mass, the law has no place
                continue
            row[place[tuple(sequence)]] += math.exp(log_weight) / len(result.sequences)
    expected = np.array(list(law.values()))
    p_value = mean_test(values, expected)
    worst, evidence = _gap(dict(zip(law, values.mean(0).tolist(), strict=True)), law)
    least = detectable(float(values.std(0).max()), runs, max(1, len(law) - 1), level)
    return Check(
        p_value >= level, worst.gap, evidence, "Monte Carlo", runs, p_value, worst=worst, detectable=least
    )
