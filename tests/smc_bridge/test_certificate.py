"""The KL certificate (docs/theory, section 7): `KL(r || p) <= E[-log Z_hat]`, both sides exact by full enumeration, and
its estimate from runs."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from smc_bridge.certificate import Certificate, certify, kl_terms
from smc_bridge.distributions.intermediate import (
    Clamp,
    Defensive,
    Intermediate,
    Mixture,
    PowerMean,
    ProductOfExperts,
    Target,
)
from smc_bridge.engine.weights import EssBelow, never
from smc_bridge.kernels.importance import BalanceHeuristic, Lanes, OwnWeights
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.methods.released import ReleasedRejection
from smc_bridge.names import RESAMPLERS, named
from smc_bridge.pareto import tail_shape
from smc_bridge.result import Result
from tests.oracle import smc as oracle
from tests.smc_bridge.programs import KERNELS, TablePotential, program, target_law
from tests.smc_bridge.smc_enumeration import Enumeration, enumerate_program

TOLERANCE = 1e-12
LIMIT = 3
#: Probability that a statistical test of this suite fails by chance.
FAILURE = 1e-5


@functools.cache
def exact(
    kernel: str, particles: int, lanes: int, w: float, potential: bool = False, resampler: str = "systematic",
    eos: int | None = 1,
) -> tuple[Enumeration, oracle.Law, float]:
    """Enumeration, the target's law and Z."""
    sampler = program(
        KERNELS[kernel], eos=eos, particles=particles, lanes=lanes, w=w, resampler=named("resampler", resampler),
        trigger=EssBelow(0.9), potential=TablePotential(2, LIMIT) if potential else None,
        temperature=1.2)
    mass = target_law(sampler, LIMIT)
    z = sum(mass.values())
    return enumerate_program(sampler, LIMIT), {s: p / z for s, p in mass.items()}, z


def bound_and_kl(found: Enumeration, law: oracle.Law, z: float) -> tuple[float, float]:
    return math.log(z) - found.log_evidence, oracle.kl(found.output, law)


@pytest.mark.parametrize("potential", [False, True], ids=["no-potential", "potential"])
@pytest.mark.parametrize(("particles", "lanes"), [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (2, 2)])
@pytest.mark.parametrize("w", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("kernel", ["rejection", "block-verification", "gumbel", "tree-walk"])
def test_the_mean_of_minus_log_evidence_bounds_the_exact_divergence(
    kernel: str, w: float, particles: int, lanes: int, potential: bool
) -> None:
    bound, divergence = bound_and_kl(*exact(kernel, particles, lanes, w, potential))
    assert divergence <= bound + TOLERANCE, f"KL(r || p) = {divergence}, bound {bound}"
    assert divergence > 1e-4 or lanes * particles > 3, f"the law r is exact: KL {divergence}"


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_the_bound_holds_for_every_resampler(resampler: str) -> None:
    found, law, z = exact("accept-all", 3, 1, 1.0, resampler=resampler)
    bound, divergence = bound_and_kl(found, law, z)
    assert found.resampled > 0
    assert 0 < divergence <= bound + TOLERANCE, f"KL(r || p) = {divergence}, bound {bound}"


def test_pinsker_turns_the_bound_into_one_on_total_variation() -> None:
    for kernel in ("rejection", "accept-all"):
        for w in (0.3, 0.7):
            found, law, z = exact(kernel, 2, 1, w)
            bound, _ = bound_and_kl(found, law, z)
            promised = Certificate(bound, bound, bound, 2, "known", distinct=2).tv
            distance = oracle.total_variation(found.output, law)
            assert distance <= promised, f"total variation {distance}, Pinsker's bound {promised}"


@pytest.mark.parametrize("kind", ["particles", "lanes"])
@pytest.mark.parametrize("eos", [1, None])
def test_the_bound_and_the_divergence_shrink_with_more_draws(kind: str, eos: int | None) -> None:
    counts = [1, 2, 3, 4] if eos == 1 else [1, 2, 3]
    pairs = [
        bound_and_kl(*exact("accept-all", *((n, 1) if kind == "particles" else (1, n)), 1.0, eos=eos)) for n in counts
    ]
    for (bound, divergence), (next_bound, next_divergence) in itertools.pairwise(pairs):
        assert next_bound < bound, f"bounds {[b for b, _ in pairs]}"
        assert next_divergence < divergence, f"divergences {[d for _, d in pairs]}"


def test_without_resampling_one_particle_has_a_tight_bound() -> None:
    """One particle, one lane: r is the law of pi itself and the weight a function of the path, so with whole drafts the
    bound is the divergence."""
    sampler = program(
        KERNELS["accept-all"], particles=1, lanes=1, window=LIMIT, temperature=1.2, trigger=never)
    found, law = enumerate_program(sampler, LIMIT), target_law(sampler, LIMIT)
    bound, divergence = bound_and_kl(found, law, 1.0)
    assert abs(bound - divergence) < TOLERANCE, f"KL {divergence!r}, bound {bound!r}"


def test_the_interval_of_many_runs_covers_the_exact_bound() -> None:
    sampler = program(Rejection(), trigger=EssBelow(0.9), temperature=1.2, w=0.7)
    expected, _ = bound_and_kl(*exact("rejection", 2, 1, 0.7))
    results = sampler.run([[]] * 2000, seed=list(range(2000)), max_new_tokens=LIMIT)
    found = certify([r.log_evidence for r in results], level=1 - FAILURE)
    assert found.low <= expected <= found.high, f"exact {expected}, interval [{found.low}, {found.high}]"
    assert found.runs == 2000


def rare_evidence(rng: np.random.Generator, runs: int) -> np.ndarray:
    """Evidence of mean one: one run of twenty has lost three nats, the others differ by a few per cent."""
    rare = rng.random(runs) < 0.05
    ordinary = math.log((1 - 0.05 * math.exp(-3)) / 0.95)
    return np.asarray(np.where(rare, -3.0, ordinary) + rng.normal(-0.0008, 0.04, size=runs))


#: Its bound, `E[-log Z_hat]`.
RARE_BOUND = 0.0008 + 0.05 * 3 - 0.95 * math.log((1 - 0.05 * math.exp(-3)) / 0.95)


def test_upper_ends_on_skewed_terms_are_rarely_too_low() -> None:
    """At most 5 % of upper ends may be too low, where Student's of the plain terms are in 12 %; a count that 5 % exceed
    with probability 1e-5. The other end is too high no more often."""
    trials, runs = 600, 100
    rng = np.random.default_rng(0)
    data = [rare_evidence(rng, runs) for _ in range(trials)]
    found = [certify(list(row)) for row in data]
    student = sum(-row.mean() + stats.t.ppf(0.975, runs - 1) * stats.sem(row) < RARE_BOUND for row in data)
    above, below = sum(c.high < RARE_BOUND for c in found), sum(c.low > RARE_BOUND for c in found)
    most = stats.binom.ppf(1 - FAILURE, trials, 0.05)
    assert above <= most < student, f"{above} upper ends too low, at most {most}; Student's {student}"
    assert below <= most, f"{below} lower ends too high, at most {most}"


def test_upper_ends_hold_where_no_run_shows_the_weights_that_make_the_mean() -> None:
    """Log-normal evidence of 12.5 nats: its mean of 1 comes from values that no 200 runs show, so that the terms that
    rest on it are 1 nat too low and half of their upper ends miss."""
    trials, runs, sd = 60, 200, 5.0
    data = np.random.default_rng(5).normal(-sd * sd / 2, sd, (trials, runs))
    found = [certify(row) for row in data]
    above = sum(c.high < sd * sd / 2 for c in found)
    assert above <= stats.binom.ppf(1 - FAILURE, trials, 0.05), f"{above} of {trials} upper ends too low"
    assert kl_terms(data[0]).mean() == pytest.approx(-data[0].mean())
    assert all(0 <= c.low <= c.kl <= c.high for c in found)


def test_the_terms_have_the_mean_of_minus_log_evidence_and_are_never_negative() -> None:
    evidence = rare_evidence(np.random.default_rng(1), 200_000)
    terms = kl_terms(evidence)
    assert terms.min() >= 0
    assert abs(terms.mean() - RARE_BOUND) < 5 * terms.std() / math.sqrt(terms.size), terms.mean()
    assert kl_terms([1e-9, -1e-5]) == pytest.approx([5e-19, 5e-11], rel=1e-5), "cancellation"
    assert kl_terms([-math.inf, 800.0]).tolist() == [math.inf, math.inf]
    assert kl_terms([0.4, -0.1], log_z=0.25) == pytest.approx([-0.15, 0.35]), "with a potential they are the plain ones"


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40), st.sampled_from([0.5, 0.95, 1 - 1e-6]))
@settings(max_examples=60, deadline=None)
def test_no_bound_and_no_end_is_negative(evidence: list[float], level: float) -> None:
    found = certify(evidence, level=level)
    assert 0 <= found.low <= found.kl <= found.high, found
    assert "-" not in str(found).replace("k-hat", "").replace("bootstrap-t", "").replace("skewness -", "")


@pytest.mark.parametrize(("evidence", "bound"), [
    ([0.3, 0.3], math.exp(0.3) - 1.3), ([0.0] * 50, 0.0), ([-0.2] * 7, 0.2), ([1e-7 * i for i in range(5)], 3e-14),
])
def test_runs_without_spread_give_no_interval(evidence: list[float], bound: float) -> None:
    found = certify(evidence)
    assert found.kl == pytest.approx(bound, abs=1e-13)
    assert (found.low, found.high, found.tv, found.distinct) == (0.0, math.inf, 1.0, 1)
    assert f"all of {len(evidence)} runs (1 distinct value): no interval" in str(found)
    assert "TV" not in str(found)


def test_weights_of_one_are_exact_only_by_construction() -> None:
    found = certify([0.0, 0.0], exact=True)
    assert (found.kl, found.low, found.high, found.tv) == (0.0, 0.0, 0.0, 0.0)
    assert "by construction" in str(found)
    with pytest.raises(ValueError, match=r"exact = True with log Z = 0\.1 nats off 0"):
        certify([0.0, 0.1], exact=True)
    round_off = np.random.default_rng(0).normal(-2e-5, 1e-6, 50)
    assert certify(round_off, exact=True).high == 0.0


class Tilted(Target):
    """Another law than that of its base, which is the target."""

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return torch.log_softmax(0.5 * log_p, -1)


class Doubled(OwnWeights):
    """Other weights than those of its base."""

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        return super().__call__(lanes, kernel=kernel, intermediate=intermediate) + math.log(2.0)


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ({"intermediate": Target()}, True), ({"w": 0.0}, True), ({"intermediate": Mixture(0.0)}, True),
        ({"intermediate": PowerMean(0.5, 0.0)}, True), ({"intermediate": Mixture(0.1)}, False), ({"w": 1e-9}, False),
        ({"intermediate": Clamp(1.0)}, True), ({"intermediate": Clamp(2.0)}, False),
        ({"intermediate": ProductOfExperts(0.0, 1.5)}, False), ({"intermediate": Target(), "lanes": 3}, True),
        ({"intermediate": Defensive(Target(), 0.3)}, True), ({"intermediate": Tilted()}, False),
        ({"intermediate": ProductOfExperts(0.0, [1.0, 1.0]), "lanes": 2}, True),
        ({"intermediate": ProductOfExperts(0.0, [1.0, 2.0]), "lanes": 2}, False),
        ({"intermediate": Target(), "weight": BalanceHeuristic(), "lanes": 2}, True),
        ({"intermediate": Target(), "weight": Doubled()}, False),
        ({"intermediate": Target(), "potential": TablePotential(2, LIMIT)}, False),
        ({"intermediate": Target(), "kernel": ReleasedRejection(1)}, False),
    ],
)
def test_a_program_knows_whether_its_weights_are_one(options: dict[str, Any], exact: bool) -> None:
    sampler = program(**{"kernel": Rejection(), "eos": 1, **options})
    assert sampler.exact == exact
    (run,) = sampler.run([[]], max_new_tokens=LIMIT)
    assert run.exact == exact
    assert Result.from_dict(run.to_dict()).exact == exact
    if exact:
        assert run.certificate().high == 0.0
    elif sampler.proper and sampler.target.potential is None:
        assert run.certificate().high == math.inf


def test_statistics_of_the_terms_are_told() -> None:
    evidence = rare_evidence(np.random.default_rng(2), 200)
    found, terms = certify(list(evidence)), kl_terms(evidence)
    assert found.skew == pytest.approx(stats.skew(terms))
    assert found.share == pytest.approx(np.sort(terms)[-20:].sum() / terms.sum())
    assert found.k_hat == tail_shape(terms)
    assert (found.runs, found.distinct) == (200, 200)
    for text in ("200 runs, 200 distinct values", f"the largest tenth carry {found.share:.0%}",
                 f"skewness {found.skew:.1f}", "k-hat"):
        assert text in str(found)
    repeated = certify([-0.1, -0.2, -0.4] * 10)
    assert repeated.distinct == 3
    assert "30 runs, 3 distinct values" in str(repeated), "one prompt and seed again and again are no independent runs"


def test_intervals_that_were_measured_to_be_poor_carry_a_warning() -> None:
    rng = np.random.default_rng(3)
    assert any("fewer than 100" in text for text in certify(list(rare_evidence(rng, 30))).warnings)
    heavy = certify([*rng.normal(-0.005, 0.1, size=400), -9.0, -7.0, -8.0])
    assert any("k-hat" in text for text in heavy.warnings), heavy
    assert "may be too low" in str(heavy)
    pareto = certify(list(-rng.pareto(0.8, size=1000)))
    assert any("k-hat" in text for text in pareto.warnings)
    assert certify(list(rng.normal(-0.02, 0.2, size=500))).warnings == []


def test_the_same_numbers_give_the_same_certificate() -> None:
    evidence = list(rare_evidence(np.random.default_rng(4), 60))
    found, backwards = certify(evidence), certify(evidence[::-1])
    assert str(found) == str(certify(evidence))
    assert (found.low, found.high) == pytest.approx((backwards.low, backwards.high), rel=1e-12)


def test_one_run_has_no_interval_and_a_dead_run_no_bound() -> None:
    one = certify([-0.2])
    assert one.kl == pytest.approx(math.exp(-0.2) - 0.8)
    assert (one.low, one.high, one.tv) == (0.0, math.inf, 1.0)
    assert "one term of the mean" in str(one)
    dead = certify([-0.2, -math.inf])
    assert (dead.kl, dead.high, dead.tv) == (math.inf, math.inf, 1.0)
    assert "evidence of one of 2 runs is zero" in str(dead)


def test_with_a_potential_terms_are_signed() -> None:
    values = [-0.1, -0.5, 0.2, -0.3, 0.1, 0.3]
    found = certify(values, log_z=0.0, level=0.9)
    assert found.kl == pytest.approx(-np.mean(values), abs=1e-15)
    assert found.low < 0 < found.high
    assert math.isnan(found.share)
    assert certify([0.1], log_z=0.0).low == -math.inf


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [([], {}, "at least one number"), ([math.nan], {}, "no NaN"), ([0.0], {"level": 1.0}, "level = 1.0"),
     ([0.0], {"level": 0.0}, "level = 0.0")],
)
def test_bad_input_is_refused(values: list[float], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certify(values, **options)
