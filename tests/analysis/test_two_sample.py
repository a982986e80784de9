"""Two-sample tests: they keep their level where the laws agree, and find the released decoder's bias."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from smc_bridge.analysis.exact_law import oracle
from smc_bridge.analysis.features import ngrams, spectrum_kernel
from smc_bridge.analysis.two_sample import chi_square_test, goodness_of_fit, mmd_test
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.presets import smc
from smc_bridge.methods import poe_bridge as presets
from smc_bridge.methods.released import released
from smc_bridge.models.tabular import TabularAR, TabularDLM

#: Probability that a test of this file fails by chance.
FAILURE = 1e-6
LIMIT = 4


class Tables:
    """A tabular pair with a perturbed proposal."""

    ar = TabularAR.random(3, LIMIT, seed=5, eos_id=None)
    dlm = TabularDLM(ar, noise=0.6)


@functools.cache
def draws(name: str, count: int, first: int = 0) -> list[tuple[int, ...]]:
    """One draw from the weights of each of `count` independent runs."""
    make = {"speculative": presets.speculative, "released": released, "smc": smc}[name]
    options = {"particles": 64} if name == "smc" else {}
    sampler = make(Tables(), window=LIMIT, lookahead=LIMIT, **options)  # type: ignore[operator]
    seeds = list(range(first, first + count))
    return [r.sample(seed=0) for r in sampler.run([[]] * count, seed=seeds, max_new_tokens=LIMIT)]


@functools.cache
def exact_law() -> dict[tuple[int, ...], float]:
    return oracle(ARTarget(Tables.ar), max_new_tokens=LIMIT).posterior()


def test_speculative_decoding_fits_the_exact_law() -> None:
    found = goodness_of_fit(draws("speculative", 2000), exact_law())
    assert found.p_value > FAILURE, found


def test_smc_with_many_particles_fits_the_exact_law() -> None:
    found = goodness_of_fit(draws("smc", 1000), exact_law())
    assert found.p_value > FAILURE, found


def test_the_released_decoder_does_not_fit_the_exact_law() -> None:
    """Its total variation to the target is above 0.3 here, so that 500 draws give a p-value below 1e-6 in any case:
    the non-centrality is at least 4 n TV^2 = 180 on at most 80 degrees of freedom (power above 0.9999)."""
    law = exact_law()
    values = draws("released", 500)
    distance = 0.5 * sum(abs(values.count(x) / 500 - p) for x, p in law.items())
    assert distance > 0.3, distance
    found = goodness_of_fit(values, law)
    assert found.p_value < FAILURE, found


@pytest.mark.parametrize("test", [chi_square_test, mmd_test], ids=["chi-square", "MMD"])
def test_two_samples_of_one_law_pass_and_the_released_decoder_fails(test: object) -> None:
    """Level and power: `same` is one fixed pair of samples. For `other` the total variation is about 0.47, so the
    chi-square's non-centrality is at least `4 TV^2 n m / (n + m)` = 176 on at most 80 degrees of freedom, which a test
    at 1e-3 misses with probability below 1e-4. The MMD has no closed form; its p-value here is the least possible."""
    same = test(draws("speculative", 400), draws("speculative", 400, first=400))  # type: ignore[operator]
    other = test(draws("speculative", 400), draws("released", 400))  # type: ignore[operator]
    assert same.p_value > 1e-3, same
    assert other.p_value <= 1e-3, other  # 999 permutations cannot give less


def test_p_values_are_uniform_under_the_null() -> None:
    """200 pairs of samples of one law: the mean of uniform p-values has a standard error of 0.02."""
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.ones(6))

    def sample(count: int) -> list[tuple[int, ...]]:
        return [tuple(map(int, rng.choice(6, p=law, size=2))) for _ in range(count)]

    p_mmd = [mmd_test(sample(20), sample(30), permutations=99, seed=i).p_value for i in range(200)]
    p_chi = [chi_square_test(sample(200), sample(300)).p_value for _ in range(200)]
    for name, values in (("MMD", p_mmd), ("chi-square", p_chi)):
        assert 0.4 < np.mean(values) < 0.6, (name, np.mean(values))
        assert np.mean(np.array(values) < 0.05) < 0.13, (name, np.mean(np.array(values) < 0.05))


def test_mmd_is_the_unbiased_estimate_of_gretton() -> None:
    rng = np.random.default_rng(1)
    left = [tuple(map(int, rng.integers(0, 3, size=4))) for _ in range(5)]
    right = [tuple(map(int, rng.integers(0, 4, size=5))) for _ in range(7)]
    gram = spectrum_kernel([*left, *right])
    a, b, c = gram[:5, :5], gram[5:, 5:], gram[:5, 5:]
    expected = (a.sum() - np.trace(a)) / 20 + (b.sum() - np.trace(b)) / 42 - 2 * c.mean()
    assert mmd_test(left, right, permutations=1).statistic == pytest.approx(expected, abs=1e-12)


def test_spectrum_kernel_counts_shared_ngrams() -> None:
    assert ngrams("ab", 2)["a", "b"] == 1
    assert ngrams("aa", 1)["a",] == 2
    gram = spectrum_kernel(["the cat", "the cat", "a dog", "the car"])
    assert np.diag(gram) == pytest.approx(1.0)
    assert gram[0, 1] == pytest.approx(1.0)
    assert gram[0, 3] > gram[0, 2]
    assert np.linalg.eigvalsh(gram).min() > -1e-9


def test_a_value_that_the_law_excludes_is_impossible() -> None:
    assert goodness_of_fit([0, 1, 2], {0: 0.5, 1: 0.5}).p_value == 0.0


def test_what_cannot_be_tested_is_refused() -> None:
    with pytest.raises(ValueError, match="draw more"):
        goodness_of_fit([0, 1], {0: 0.5, 1: 0.5})
    with pytest.raises(ValueError, match="use mmd_test"):
        chi_square_test(["a", "b"], ["c", "d"])
    with pytest.raises(ValueError, match="at least 2"):
        mmd_test(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="n = 0"):
        spectrum_kernel(["a"], n=0)
    with pytest.raises(ValueError, match=r"kernel has shape \(2, 2\)"):
        mmd_test(["a", "b"], ["c", "d"], kernel=np.eye(2))
    with pytest.raises(ValueError, match="kernel has 16 entries that are not finite"):
        mmd_test(["a", "b"], ["c", "d"], kernel=np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match="give tuples or texts"):
        goodness_of_fit([[0], [1]], {(0,): 0.5, (1,): 0.5})  # type: ignore[list-item]


def test_a_scale_of_the_kernel_changes_no_p_value() -> None:
    left, right = ["a", "b", "ab", "ba"], ["b", "ab", "bb", "a"]
    gram = spectrum_kernel([*left, *right])
    wanted = mmd_test(left, right, kernel=gram, permutations=99).p_value
    for scale in (1e-9, 1e9):
        assert mmd_test(left, right, kernel=scale * gram, permutations=99).p_value == wanted
