"""Conditional SMC by full enumeration: if the retained sequence is an exact draw from the target, then everything else
is an exact draw from the extended target. So `E[1 / Z_hat] = 1 / Z`, a new draw from the final weights again has the
target's law, and `KL(p || r) <= E[log Z_hat]` bounds the output of the unconditional program from the other side.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from smc_bridge.engine.resampling import Multinomial, Systematic
from smc_bridge.engine.weights import EssBelow, always, never
from smc_bridge.kernels.importance import BalanceHeuristic
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.methods.released import Argmax
from tests.oracle import smc as oracle
from tests.smc_bridge.programs import KERNELS, TablePotential, program, target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program

TOLERANCE = 1e-12
LIMIT = 3
TRIGGERS = {"always": always, "ess": EssBelow(0.95), "never": never}
POTENTIALS = {"no-potential": None, "potential": TablePotential(2, LIMIT)}


@pytest.mark.parametrize(
    ("kernel", "trigger", "lanes", "potential", "eos"),
    [(k, t, 1, p, None if k == "tree-walk" else 1) for k in KERNELS for t in TRIGGERS for p in POTENTIALS]
    + [(k, t, 2, "potential", 1) for k in ("tree-walk", "accept-all") for t in TRIGGERS]
    + [("rejection", "always", 2, "potential", 1)]
    + [(k, "ess", 1, "no-potential", 1 if k == "tree-walk" else None) for k in KERNELS],
)
def test_an_exact_retained_draw_makes_everything_an_exact_draw(
    kernel: str, trigger: str, lanes: int, potential: str, eos: int | None
) -> None:
    parts: dict[str, Any] = {"trigger": TRIGGERS[trigger], "lanes": lanes, "potential": POTENTIALS[potential]}
    sampler = program(KERNELS[kernel], eos=eos, resampler=Multinomial(), **parts)
    mass = target_law(sampler, LIMIT)
    z = sum(mass.values())
    law = {s: p / z for s, p in mass.items()}
    conditional, plain = enumerate_program(sampler, LIMIT, retained=law), enumerate_program(sampler, LIMIT)

    found, expected = conditional.inverse_evidence, 1.0 / z
    assert abs(found - expected) < TOLERANCE, f"E[1 / Z_hat] = {found!r}, expected {expected!r}"

    first = conditional.retained_first
    assert abs(first - 1.0) < TOLERANCE, f"the retained sequence is particle 0 with probability {first!r}"

    gap, message = worst(conditional.output, law)
    assert gap < TOLERANCE, f"the target is not invariant: {message}"

    bound, exact = conditional.log_evidence - math.log(z), oracle.kl(law, plain.output)
    assert exact <= bound + TOLERANCE, f"KL(p || r) = {exact}, bound {bound}"
    assert bound > 1e-4, f"the bound {bound} is trivial"


def test_a_retained_sequence_of_another_law_is_noticed() -> None:
    sampler = program(Rejection(), trigger=always, resampler=Multinomial())
    law = target_law(sampler, LIMIT)
    wrong = {s: 1.0 / len(law) for s in law}
    found = enumerate_program(sampler, LIMIT, retained=wrong)
    assert abs(found.inverse_evidence - 1.0) > 1e-3, f"E[1 / Z_hat] = {found.inverse_evidence}"
    gap, message = worst(found.output, law)
    assert gap > 1e-3, message


def test_the_retained_sequence_is_particle_zero_on_the_random_path() -> None:
    sampler = program(Rejection(), lanes=2, particles=3, trigger=EssBelow(0.9), resampler=Systematic())
    retained = [[1], [0, 1], [0, 0, 0], [0, 0, 1]] * 10
    results = sampler.run([[]] * 40, seed=list(range(40)), max_new_tokens=LIMIT, retained=retained)
    assert [r.sequences[0] for r in results] == retained


REFUSED: dict[str, tuple[dict[str, Any], list[list[int]], str]] = {
    "too-many": ({}, [[1], [1]], "retained has 2 sequences for 1 prompts"),
    "empty": ({}, [[]], r"retained\[0\] has 0 tokens"),
    "not-whole": ({}, [[0, 0]], r"retained\[0\] has 2 tokens"),
    "too-long": ({}, [[0, 0, 0, 1]], r"retained\[0\] has 4 tokens"),
    "goes-on-after-the-end": ({}, [[1, 0, 1]], r"retained\[0\] goes on after the end of sequence"),
    "improper": ({"resampler": Argmax()}, [[1]], "retained needs a proper program"),
    "balance-heuristic": ({"weight": BalanceHeuristic(), "lanes": 2}, [[1]], "own weights: use OwnWeights"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_retained_sequences_that_make_no_sense_are_refused(case: str) -> None:
    parts, retained, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        program(Rejection(), **parts).run([[]], max_new_tokens=LIMIT, retained=retained)
