"""Runs that are averaged, or held against each other, must be independent: equal draws are refused in every place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from scipy import stats

from smc_bridge.analysis import calibration
from smc_bridge.analysis.bias import bias_against_samples, delta_bias, jackknife_bias, run_bias
from smc_bridge.analysis.bounds import kl_certificate, kl_per_token
from smc_bridge.analysis.calibration import rank_test
from smc_bridge.analysis.comparison import Settings, compare
from smc_bridge.analysis.exact_law import oracle
from smc_bridge.analysis.export import to_datatree
from smc_bridge.analysis.law_bias import output_distance, output_distance_by_identity, run_distance, run_rms
from smc_bridge.analysis.laws import kl, output_law, total_variation, weighted_law
from smc_bridge.analysis.reverse import conditional_runs, reverse_certificate, reverse_per_token, symmetric_certificate
from smc_bridge.analysis.study.config import Tabular, TabularPoint
from smc_bridge.analysis.study.sources import tabular_pair
from smc_bridge.analysis.tables import summary
from smc_bridge.analysis.two_sample import mmd_test
from smc_bridge.engine.presets import smc
from smc_bridge.methods import poe_bridge as presets
from smc_bridge.methods.ar import ar_sampling
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.result import Result
from smc_bridge.tasks import Item
from tests.toys import ToyTask, toy_pair

LIMIT = 3


class Tables:
    """A tabular pair."""

    ar = TabularAR.random(3, LIMIT, seed=2, eos_id=1)
    dlm = TabularDLM(ar, noise=0.5)


SAMPLER = smc(Tables(), 2, w=0.5, window=2, lookahead=LIMIT)
EXACT = oracle(SAMPLER.target, max_new_tokens=LIMIT)


def runs(seeds: Sequence[int]) -> list[Result]:
    return SAMPLER.run([[]] * len(seeds), seed=seeds, max_new_tokens=LIMIT)


def length(value: Any) -> float:
    return float(len(value))


AVERAGES: dict[str, Callable[[list[Result]], Any]] = {
    "output_law": output_law,
    "weighted_law": weighted_law,
    "total_variation": lambda given: total_variation(given, EXACT),
    "kl": lambda given: kl(given, EXACT),
    "output_distance": lambda given: output_distance(given, EXACT),
    "output_distance_by_identity": lambda given: output_distance_by_identity(given, EXACT),
    "run_distance": lambda given: run_distance(given, EXACT),
    "run_rms": lambda given: run_rms(given, EXACT),
    "kl_certificate": kl_certificate,
    "kl_per_token": kl_per_token,
    "run_bias": lambda given: run_bias(given, length),
    "jackknife_bias": lambda given: jackknife_bias(given, length),
    "delta_bias": lambda given: delta_bias(given, length),
    "bias_against_samples": lambda given: bias_against_samples(given, samples(range(8)), length),
    "summary": summary, "to_datatree": to_datatree,
}


def samples(seeds: Sequence[int]) -> list[Result]:
    return ar_sampling(SAMPLER.target, [[]] * len(seeds), seed=seeds, max_new_tokens=LIMIT)


@pytest.mark.parametrize("name", AVERAGES)
def test_the_same_prompt_and_seed_twice_is_refused(name: str) -> None:
    average = AVERAGES[name]
    average(runs(range(6)))
    average([replace(run, settings={}) for run in runs(range(6))])
    again = r"^results\[5\] repeats prompt and seed of results\[2\] \(seed 2\).*: give every repetition its own seed"
    with pytest.raises(ValueError, match=again) as told:
        average([*runs(range(5)), *runs([2])])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("bound", [reverse_certificate, reverse_per_token])
def test_conditional_runs_twice_are_refused(bound: Callable[[list[Result]], Any]) -> None:
    found = conditional_runs(SAMPLER, [[]] * 3, seed=range(3), max_new_tokens=LIMIT)
    symmetric_certificate(runs(range(3)), found)  # of one seed, and independent all the same
    with pytest.raises(ValueError, match=r"results\[3\] repeats"):
        bound([*found, found[1]])


def test_samples_and_runs_of_one_seed_may_be_compared_and_two_samplers_may_not() -> None:
    results = runs(range(6))
    bias_against_samples(results, samples(range(6)), length)
    with pytest.raises(ValueError, match=r"exact\[2\] repeats prompt and seed of exact\[1\]"):
        bias_against_samples(results, [*samples([7, 8]), *samples([8])], length)
    exact = presets.speculative(Tables(), window=2, lookahead=LIMIT)
    bias_against_samples(results, exact.run([[]] * 2, seed=[6, 7], max_new_tokens=LIMIT), length)
    with pytest.raises(ValueError, match=r"exact\[1\] has prompt and seed of results\[4\] \(seed 4\).*other seeds"):
        bias_against_samples(results, exact.run([[]] * 2, seed=[6, 4], max_new_tokens=LIMIT), length)


def test_rank_tests_of_neighbouring_seeds_share_no_run() -> None:
    def seeds_of(seed: int) -> set[int]:
        used: list[int] = []

        def watched(target: Any, prompts: Any, *, seed: list[int], **options: Any) -> list[Result]:
            used.extend(seed)
            return ar_sampling(target, prompts, seed=seed, **options)

        with mock.patch.object(calibration, "ar_sampling", watched):
            rank_test(SAMPLER, [[]] * 10, length, steps=1, seed=seed, max_new_tokens=LIMIT)
        return set(used)

    every = [seeds_of(seed) for seed in (0, 2 * 7_919, 2**64, -1)]
    assert len(set.union(*every)) == sum(map(len, every)) == 40, "trials of different tests have seeds in common"


def test_permutations_take_any_whole_number_for_a_seed() -> None:
    left, right = ["aab", "abb", "bab", "abab"], ["bbb", "abba", "baa", "bb"]
    found = [mmd_test(left, right, permutations=40, seed=seed).p_value for seed in (-1, 0, 2**64, -1)]
    assert found[0] == found[3]
    assert len(set(found)) > 1


class Twice(ToyTask):
    """Every problem stands there twice."""

    def problems(self, n: int, offset: int = 0) -> list[Item]:
        own = super().problems(2)
        return [*own, *own][offset : offset + n]


@pytest.mark.filterwarnings("error:prompts")
def test_a_problem_that_repeats_is_decoded_afresh() -> None:
    """In batches of one it is in another cell than its first occurrence."""
    settings = Settings("toy", 4, ("smc-4",), temperature=1.0, w=0.7, batch=1)
    found = compare(settings, pair=toy_pair(), task=Twice())
    evidence = [z for cell in found.cells for z in cell["log_evidences"]]
    assert len(set(evidence)) == 4, f"log Z of two problems, twice: {evidence}"
    whole = compare(replace(settings, batch=4), pair=toy_pair(), task=Twice())
    again = [z for cell in whole.cells for z in cell["log_evidences"]]
    assert again == pytest.approx(evidence, abs=1e-12), "the batch matters"


def test_a_studys_noise_does_not_follow_its_tables() -> None:
    """Rank correlation (Spearman) of tables of the second token with the noise of the first prefix, 400 model seeds."""
    tables, noise = [], []
    for seed in range(400):
        pair = tabular_pair(TabularPoint(3, 2, seed, 1.0), Tabular())
        tables.append(pair.ar.tables[1][0].numpy())  # type: ignore[attr-defined]
        noise.append(pair.dlm._noise[0].flatten().numpy())  # type: ignore[attr-defined]
    found = stats.spearmanr(np.array(tables)[:, :2], np.array(noise))
    p_values = np.asarray(found.pvalue)[:2, 2:]
    assert p_values.min() * p_values.size > 1e-6, f"correlations {np.asarray(found.statistic)[:2, 2:].round(2)}"


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
def test_tables_refuse_seeds_that_their_generator_cannot_tell_apart(seed: int) -> None:
    for make in (lambda: TabularAR.random(2, 2, seed=seed), lambda: TabularDLM(Tables.ar, noise=0.1, seed=seed)):
        with pytest.raises(ValueError, match=f"^seed = {seed}: .*give a whole number from 0 to 4294967295$"):
            make()
