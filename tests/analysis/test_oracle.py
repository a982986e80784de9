"""The oracle against a plain loop over all token strings, and the distances between laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.analysis import kl, oracle, output_law, total_variation, weighted_law
from smc_bridge.distributions.target import ARTarget
from smc_bridge.models.tabular import TabularAR
from smc_bridge.prefix import Prefix
from smc_bridge.result import Result
from tests.analysis.helpers import INF, make_result

AR = TabularAR.random(3, 5, seed=11, eos_id=1)


def _conditional(prefix: tuple[int, ...], temperature: float, top_p: float) -> np.ndarray:
    """Tempered, truncated conditional straight from the table."""
    row = 0
    for token in prefix:
        row = 3 * row + token
    p = AR.tables[len(prefix)][row].numpy() ** (1 / temperature)
    p = p / p.sum()
    kept, mass = np.zeros(3), 0.0
    for token in sorted(range(3), key=lambda a: -p[a]):
        if mass < top_p:
            kept[token] = p[token]
        mass += p[token]
    return kept / kept.sum()


def _brute_force(
    prompt: tuple[int, ...], limit: int, temperature: float = 1.0, top_p: float = 1.0
) -> dict[tuple[int, ...], float]:
    """Every string of up to `limit` tokens that ends with the end of sequence, or is as long as the limit."""
    law = {}
    for length in range(1, limit + 1):
        for string in itertools.product(range(3), repeat=length):
            if 1 in string[:-1] or (length < limit and string[-1] != 1):
                continue
            p = math.prod(_conditional(prompt + string[:i], temperature, top_p)[string[i]] for i in range(length))
            if p > 0:
                law[string] = p
    return law


def _assert_same_law(found: Result, expected: dict[tuple[int, ...], float]) -> None:
    posterior = found.posterior()
    assert set(posterior) == set(expected)
    for string, p in expected.items():
        assert posterior[string] == pytest.approx(p, rel=1e-11)


@pytest.mark.parametrize("prompt", [(), (2, 0)])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.4, 1.0), (1.7, 0.8)])
def test_law_equals_brute_force(prompt: tuple[int, ...], temperature: float, top_p: float) -> None:
    target = ARTarget(AR, temperature=temperature, top_p=top_p)
    found = oracle(target, prompt, max_new_tokens=3)
    _assert_same_law(found, _brute_force(prompt, 3, temperature, top_p))
    assert found.log_evidence == pytest.approx(0.0, abs=1e-12)
    assert found.prompt == list(prompt)


class EvenZeros:
    """Terminal potential: 3 for an even number of zeros, 0.5 otherwise, and 0 without any token 2."""

    def __call__(self, prefix: Prefix) -> Tensor:
        zeros = (prefix.tokens == 0).sum(-1)
        value = torch.where(zeros % 2 == 0, 3.0, 0.5).double().log()
        value = torch.where((prefix.tokens == 2).any(-1), value, -INF)
        return torch.where(prefix.done, value, 0.0)


def test_potential_gives_the_exact_evidence_and_law() -> None:
    found = oracle(ARTarget(AR, potential=EvenZeros()), max_new_tokens=3)
    mass = {
        x: p * (3.0 if x.count(0) % 2 == 0 else 0.5) * (2 in x) for x, p in _brute_force((), 3).items()
    }
    z = sum(mass.values())
    assert found.log_evidence == pytest.approx(math.log(z), abs=1e-12)
    assert found.has_potential
    for x, p in found.posterior().items():
        assert p == pytest.approx(mass[x] / z, abs=1e-14)


def test_expectation_is_exact() -> None:
    found = oracle(ARTarget(AR), max_new_tokens=4)
    expected = sum(p * len(x) for x, p in _brute_force((), 4).items())
    assert found.expectation(len) == pytest.approx(expected, rel=1e-12)


def test_banned_tokens_never_occur() -> None:
    found = oracle(ARTarget(AR, banned_ids=[2]), max_new_tokens=3)
    assert all(2 not in sequence for sequence in found.sequences)
    assert found.weights.sum() == pytest.approx(1.0)


def test_what_cannot_be_listed_is_refused() -> None:
    with pytest.raises(ValueError, match="max_new_tokens = 0"):
        oracle(ARTarget(AR), max_new_tokens=0)
    wide = TabularAR.random(20, 3, seed=0)
    with pytest.raises(ValueError, match="more than 65536"):
        oracle(ARTarget(wide), max_new_tokens=4)


def test_laws_of_runs_by_hand() -> None:
    """Run one: weights 1 and 3 on (0) and (1); run two: weights 1 and 1 on (1) and (2)."""
    runs = [
        make_result([0.0, math.log(3.0)], sequences=[[0], [1]]), make_result([0.0, 0.0], sequences=[[1], [2]]),
        make_result([-INF, -INF], sequences=[[5], [6]]),
    ]
    assert output_law(runs[:2]) == pytest.approx({(0,): 0.125, (1,): 0.625, (2,): 0.25})
    assert weighted_law(runs) == pytest.approx({(0,): 0.5 / 3, (1,): 2 / 3, (2,): 0.5 / 3})
    assert weighted_law(runs, log_z=math.log(2.0))[(0,)] == pytest.approx(0.25 / 3)


def test_distances_by_hand() -> None:
    r, p = {(0,): 0.5, (1,): 0.5}, {(0,): 0.2, (1,): 0.3, (2,): 0.5}
    assert total_variation(r, p) == pytest.approx(0.5)
    assert kl(r, p) == pytest.approx(0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.3))
    assert kl(p, r) == INF
    exact = make_result([math.log(3 * x) for x in p.values()], sequences=[list(x) for x in p])
    run = make_result([0.0, 0.0], sequences=[[0], [1]])
    assert total_variation(run, exact) == pytest.approx(0.5)
    assert total_variation(exact, exact) == kl(exact, exact) == 0.0
