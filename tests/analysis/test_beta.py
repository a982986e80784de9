"""`beta_of` finds the beta of a wanted divergence, and tells the divergence that one particle has at it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from smc_bridge import Clamp, smc
from smc_bridge.analysis import beta_of
from smc_bridge.analysis.beta import LEAST, MOST, POWERS, _costs, _where
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.testing import TabularPair, tabular_pair
from tests.oracle import intermediates as oracle

PAIR = tabular_pair()


def found(**options: Any) -> Any:
    prompts = [[]] * 30
    return beta_of(PAIR, prompts, **{"kl": 0.008, "seed": range(30), "max_new_tokens": 3, **options})


def test_more_divergence_is_a_greater_beta_and_the_same_call_the_same_answer() -> None:
    few, many = found(kl=0.002), found(kl=0.012)
    assert 1 < few.beta < many.beta
    assert found(kl=0.002) == few


def test_a_beta_lies_in_the_grid_that_it_was_read_from() -> None:
    """Logarithms are rounded: of a cost just inside an end, the beta would lie outside."""
    grid = np.unique(np.clip(1e6**POWERS, LEAST, MOST))
    curve = np.linspace(0.01, 0.02, grid.size)
    for wanted in (np.nextafter(curve[0], 1), np.nextafter(curve[-1], 0), *np.linspace(0.01, 0.02, 50)):
        assert grid[0] <= _where(float(wanted), curve, grid) <= grid[-1]


def test_few_rounds_tell_that_they_were_too_few() -> None:
    calibrated = found(rounds=1, tolerance=1e-6)
    assert (calibrated.reached, calibrated.rounds, calibrated.beta) == (False, 1, 8.0)
    assert "not as near as the tolerance asks" in str(calibrated)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kl": 0.0}, "kl = 0.0: give nats per token"), ({"kl": 5.0}, "kl = 5: no beta costs as much on these prompts"),
        ({"tolerance": 1.0}, "tolerance = 1.0"), ({"rounds": 0}, "rounds = 0"),
        ({"particles": 4}, "particles is an option: beta_of calibrates one particle"),
        ({"kl": 1e-20, "rounds": 60}, r"kl = 1e-20: 1 \+ 1e-06 is the least beta and costs .* give more"),
        ({"temperatur": 1.0}, "temperatur is no option of smc: did you mean temperature"),
        ({"beta": 2.0}, "beta is an option"), ({"temperature": -1.0}, "temperature = -1.0"),
        ({"proposal": "chain"}, "proposal = PrefixFilled: beta_of reads the laws of a DLMProposal; leave it out"),
        ({"level": 2.0}, "level = 2.0"),
    ],
)
def test_bad_arguments_are_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        found(**options)
    assert "\n" not in str(caught.value)


def test_one_prompt_has_no_interval() -> None:
    with pytest.raises(ValueError, match="prompts has 1 entries"):
        beta_of(PAIR, [[]], kl=0.01)
    with pytest.raises(ValueError, match="prompts = 5: give a list of lists of token ids"):
        beta_of(PAIR, 5, kl=0.01)  # type: ignore[arg-type]


class Enumerated:
    """Two tokens out of three, where every token has a forward of its own and KL(p || pi) is another number."""

    FIRST, SECOND = ((0.9, 0.09, 0.01),), ((0.05, 0.05, 0.9), (0.2, 0.7, 0.1), (0.01, 0.01, 0.98))

    def __init__(self) -> None:
        tables = [torch.tensor(rows, dtype=torch.float64) for rows in (self.FIRST, self.SECOND)]
        ar = TabularAR(tables, eos_id=None)
        self.pair = TabularPair(TabularDLM(ar, noise=2.5, seed=3), ar)

    def laws(self, prefix: list[int], beta: float) -> tuple[Any, Any]:
        """The bridge and the target of the next token."""
        tokens = torch.tensor([prefix], dtype=torch.long).reshape(1, len(prefix))
        length, row = torch.tensor([len(prefix)]), torch.tensor([0])
        q = self.pair.dlm.session(tokens, length).score(row, torch.tensor([[MASKED]]))[0, 0].softmax(-1).numpy()
        p = np.array(self.SECOND[prefix[0]] if prefix else self.FIRST[0])
        return oracle.clamp(q, p, beta), p

    def cost(self, beta: float) -> float:
        """The divergence of a particle's sequence, nats per token."""
        pi, p = self.laws([], beta)
        rest = sum(pi[x] * oracle.kl(*self.laws([x], beta)) for x in range(3))
        return float(oracle.kl(pi, p) + rest) / 2


def test_what_it_finds_costs_what_was_wanted() -> None:
    """Held against enumeration; a false alarm has a probability of 1e-4, as far as the interval is right."""
    exact, kl = Enumerated(), 0.05
    calibrated = beta_of(
        exact.pair, [[]] * 200, kl=kl, seed=range(200), max_new_tokens=2, window=1, lookahead=1, level=0.9999,
    )
    assert calibrated.reached
    assert abs(calibrated.kl.value - kl) <= 0.05 * kl
    true = exact.cost(calibrated.beta)
    assert calibrated.kl.low < true < calibrated.kl.high, (calibrated, true)
    assert calibrated.kl.high - calibrated.kl.low < 0.5 * kl
    half, twice = (exact.cost(calibrated.beta**power) for power in (0.5, 2.0))
    assert not calibrated.kl.low < half < calibrated.kl.high
    assert not calibrated.kl.low < twice < calibrated.kl.high


def test_what_is_estimated_is_the_divergence_of_pi_from_p() -> None:
    """Held to enumeration along every run."""
    exact = Enumerated()
    sampler, grid = smc(exact.pair, 1, intermediate=Clamp(8.0), window=1, lookahead=1), np.array([2.0, 8.0])
    runs = sampler.run([[]] * 60, seed=range(60), max_new_tokens=2)
    met = [[exact.laws(prefix, 8.0) for prefix in ([], run.sequences[0][:1])] for run in runs]
    wanted = np.array([sum(oracle.kl(pi, p) for pi, p in laws) for laws in met])
    reverse = np.array([sum(oracle.kl(p, pi) for pi, p in laws) for laws in met])
    costs = _costs(sampler, runs, grid, 2)[:, 1]
    assert np.abs(costs - wanted).max() < 1e-9
    assert np.unique(wanted.round(6)).size > 1
    assert np.abs(costs - reverse).min() > 0.02, f"KL(pi || p) {wanted}, KL(p || pi) {reverse}"


def test_a_run_that_was_not_drawn_from_the_laws_that_are_read_is_refused() -> None:
    """Else a beta would be calibrated to another program, silently."""
    made, other = (smc(PAIR, 1, intermediate=Clamp(beta)) for beta in (8.0, 1.1))
    run = max(made.run([[]] * 20, seed=range(20), max_new_tokens=3), key=lambda each: abs(each.log_evidence))
    with pytest.raises(ValueError, match=r"block 0 earned .* the sampler's laws give"):
        _costs(other, [run], np.array([1.1]), 3)
