"""The KL certificate (design 2.5): `KL(r || p) <= E[-log Z_hat]`, both sides exact by full enumeration, and its
estimate from runs."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from smc_bridge.certificate import certify
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.smc.resampling import RESAMPLERS
from smc_bridge.smc.weights import EssBelow, never
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
        KERNELS[kernel], eos=eos, particles=particles, lanes=lanes, w=w, resampler=RESAMPLERS[resampler](),
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
            promised, distance = certify([-bound]).tv, oracle.total_variation(found.output, law)
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


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_covers_at_its_level(level: float) -> None:
    """On normal data the coverage is exact, so the count of covering intervals is binomial."""
    trials, runs, mean = 3000, 8, 0.3
    data = -np.random.default_rng(0).normal(mean, 0.2, size=(trials, runs))
    covered = sum(c.low <= mean <= c.high for c in (certify(list(row), level=level) for row in data))
    low, high = stats.binom.ppf([FAILURE / 2, 1 - FAILURE / 2], trials, level)
    assert low <= covered <= high, f"{covered} of {trials} intervals cover, expected {low} to {high}"


def test_the_certificate_is_the_mean_with_students_interval() -> None:
    values = [-0.1, -0.5, 0.2, -0.3]
    found = certify(values, log_z=0.25, level=0.9)
    shifted = 0.25 - np.array(values)
    half = stats.t.ppf(0.95, 3) * shifted.std(ddof=1) / 2
    assert found.kl == pytest.approx(shifted.mean(), abs=1e-15)
    assert (found.low, found.high) == (pytest.approx(shifted.mean() - half), pytest.approx(shifted.mean() + half))
    assert found.tv == pytest.approx(math.sqrt(shifted.mean() / 2))
    assert (found.runs, found.level) == (4, 0.9)


def test_one_run_has_no_interval_and_a_dead_run_no_bound() -> None:
    one = certify([-0.2])
    assert (one.kl, one.low, one.high) == (0.2, -math.inf, math.inf)
    assert "one term of the mean" in str(one)
    dead = certify([-0.2, -math.inf])
    assert (dead.kl, dead.tv) == (math.inf, 1.0)
    assert certify([0.5]).tv == 0.0


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [([], {}, "at least one number"), ([math.nan], {}, "no NaN"), ([0.0], {"level": 1.0}, "level = 1.0"),
     ([0.0], {"level": 0.0}, "level = 0.0")],
)
def test_bad_input_is_refused(values: list[float], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certify(values, **options)
