"""Every way to break the program is caught by the full enumeration: `test_full_enumeration` has power.

Each mutant changes one thing (docs/theory, section 6, conditions C1 to C8). The same enumeration and the same oracle
that find a gap below 1e-12 for the program must find one above 1e-3 for some sequence. Mutants of the kernels are in
the kernel tests; the released decoder, which is many at once, is in `test_full_enumeration`.
"""

from __future__ import annotations

from typing import Any

import pytest

from smc_bridge.engine.resampling import Systematic
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import EssBelow, always, never
from smc_bridge.kernels.importance import BalanceHeuristic
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.testing import ENGINE_MUTANTS, enumerate_sampler, mutants, mutated
from tests.smc_bridge.programs import TablePotential, program, target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program

LIMIT = 3
CAUGHT = 1e-3
POTENTIAL = TablePotential(2, LIMIT)


def gap_of(sampler: Sampler) -> tuple[float, str]:
    """Largest gap of the enumeration to the oracle."""
    return worst(enumerate_sampler(sampler, LIMIT).proper, target_law(sampler, LIMIT))


PLUG_INS: dict[str, dict[str, Any]] = {
    "argmax-selection": {"resampler": mutants.KeepsTheBest(), "trigger": always},
    "argmax-selection-below-an-ess": {"resampler": mutants.KeepsTheBest(), "trigger": EssBelow(0.95)},
    "skewed-resampler": {"resampler": mutants.Sharpened(), "trigger": always},
    "length-normalised-weight": {"weight": mutants.LengthNormalised(), "trigger": never},
    "weight-against-the-proposal": {"weight": mutants.AgainstProposal(), "trigger": never},
    "weight-without-the-last-token": {"weight": mutants.WithoutLastToken(), "trigger": always},
    "weight-against-the-first-lane": {"weight": mutants.AgainstFirstLane(), "lanes": 2, "trigger": always},
    "balance-heuristic-without-the-stops": {
        "weight": mutants.BalanceWithoutStops(), "lanes": 2, "trigger": always, "noise": 1.5,
        "temperature": [0.4, 2.5]},
}


@pytest.mark.parametrize("mutant", PLUG_INS)
def test_a_wrong_plug_in_is_caught(mutant: str) -> None:
    parts = {"resampler": Systematic(), **PLUG_INS[mutant]}
    gap, message = gap_of(program(Rejection(), **parts))
    assert gap > CAUGHT, f"{mutant} is not caught: {message}"


REDUCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "finished-particles-dropped": ("finished particles dropped", {"trigger": always}),
    "finished-particles-dropped-without-resampling": ("finished particles dropped", {"trigger": never}),
    "finished-particles-reweighted": ("finished particles reweighted", {"trigger": never}),
    "weights-not-reset": ("weights not reset", {"trigger": always}),
    "weights-reset-to-one": ("weights reset to one", {"trigger": always}),
    "weight-of-the-kept-lane": ("weight of the kept lane", {"trigger": never, "lanes": 2, "particles": 1}),
    "potential-forgotten": ("potential forgotten", {"trigger": always, "eos": None}),
    "potential-not-gathered": ("potential of another", {"trigger": always, "eos": None}),
}


@pytest.mark.parametrize("case", REDUCTIONS)
def test_a_wrong_reduction_is_caught(case: str) -> None:
    mutant, parts = REDUCTIONS[case]
    sampler = program(Rejection(), resampler=Systematic(), potential=POTENTIAL, **parts)
    with mutated(mutant):
        gap, message = gap_of(sampler)
    assert gap > CAUGHT, f"{case} is not caught: {message}"


def test_every_mutant_of_the_engine_is_tried() -> None:
    assert {mutant for mutant, _ in REDUCTIONS.values()} == set(ENGINE_MUTANTS)
    with pytest.raises(ValueError, match="name = 'none': give one of finished particles dropped"), mutated("none"):
        pass


@pytest.mark.parametrize(
    "parts",
    [{"trigger": always}, {"trigger": always, "lanes": 2},
     {"trigger": always, "lanes": 2, "weight": BalanceHeuristic()},
     {"trigger": EssBelow(0.95), "potential": POTENTIAL}, {"trigger": never, "lanes": 2, "potential": POTENTIAL}],
)
def test_the_program_itself_is_not_caught(parts: dict[str, Any]) -> None:
    sampler = program(Rejection(), resampler=Systematic(), **parts)
    gap, message = worst(enumerate_program(sampler, LIMIT).proper, target_law(sampler, LIMIT))
    assert gap < 1e-12, message


@pytest.mark.parametrize("parts", [
    {"trigger": always}, {"trigger": always, "lanes": 2}, {"trigger": EssBelow(0.95), "potential": POTENTIAL},
    {"trigger": never, "lanes": 2, "potential": POTENTIAL, "particles": 1},
])
def test_nor_is_it_by_the_enumeration_that_catches_mutants(parts: dict[str, Any]) -> None:
    gap, message = gap_of(program(Rejection(), resampler=Systematic(), **parts))
    assert gap < 1e-12, message
