"""The enumeration of kernel laws has power: kernels that are wrong in known ways are caught by it.

A mutant is caught when its enumerated law is not a randomised stopping time of pi (`stopping_defect`), all that
the importance weight needs, and also by the comparison with `log_density`.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.blocks import Move
from smc_bridge.distributions.intermediate import ProductOfExperts
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.methods.released import ReleasedProposal, ReleasedRejection
from smc_bridge.testing import assert_biased, assert_proper, kernel_density, tabular_pair
from smc_bridge.testing.mutants import KERNELS, EditedRejection, EndInAnyLane, NothingOnRefusal
from tests.oracle import laws
from tests.oracle.laws import Toy
from tests.smc_bridge.enumeration import enumerated_law, log_pi_along, log_q_of, table_of

#: A discrepancy that no round-off explains.
CAUGHT = 1e-3
#: Laws without zeros and with an end of sequence, and without one.
TOYS = [laws.random_toy(3, 2, seed=7, eos=2), laws.random_toy(2, 3, seed=3)]


class CutByFirstToken(EditedRejection):
    """Stops after the first token if it is 0: a legal rule, which depends on the past."""

    def cut(self, move: Move) -> Tensor:
        return torch.where(move.block[:, 0] == 0, 1, move.length)


#: Those that commit legal blocks, and break the law of a row on its own whether or not sequences end.
ALONE = [mutant for mutant in KERNELS if mutant not in (NothingOnRefusal, EndInAnyLane)]


def defect_and_gap(kernel: Kernel, toy: Toy) -> tuple[float, float]:
    """Distance from a stopping time of pi, and from the kernel's own `log_density`."""
    found = laws.blocks(enumerated_law(kernel, toy))
    width = toy.q.shape[0]
    every = [b for n in range(1, width + 1) for b in itertools.product(range(toy.size), repeat=n)]
    density = kernel_density(kernel, table_of(toy), every)
    gap = max(abs(found.get(b, 0.0) - d) for b, d in zip(every, density, strict=True))
    return laws.stopping_defect(found, toy), gap


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
@pytest.mark.parametrize("mutant", ALONE, ids=lambda m: m.__name__)
def test_mutant_kernel_is_caught(mutant: type[EditedRejection], toy: Toy) -> None:
    defect, gap = defect_and_gap(mutant(), toy)
    assert defect > CAUGHT, f"{mutant.__name__} passes the stopping identity: deviation {defect}"
    assert gap > CAUGHT, f"{mutant.__name__} passes the comparison with log_density: deviation {gap}"


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_harness_with_nothing_edited_is_exact(toy: Toy) -> None:
    """The mutants differ from the real kernel in their edit only."""
    defect, gap = defect_and_gap(EditedRejection(), toy)
    assert max(defect, gap) < 1e-12, f"deviations {defect}, {gap}"


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_stopping_early_by_the_past_is_not_called_a_mutant(toy: Toy) -> None:
    """The stopping identity refuses what is wrong, not what is different."""
    defect, gap = defect_and_gap(CutByFirstToken(), toy)
    assert defect < 1e-12, f"a legal stopping rule deviates by {defect}"
    assert gap > CAUGHT, f"its law is another one than Rejection's, yet the gap is {gap}"
    with pytest.raises(AssertionError, match="log_density gives block"):
        assert_proper(CutByFirstToken())
    with pytest.raises(AssertionError, match="no bias of CutByFirstToken"):
        assert_biased(CutByFirstToken())


@pytest.mark.parametrize("lanes", [1, 2])
def test_end_of_sequence_in_any_lane_is_caught(lanes: int) -> None:
    """Condition C8: the released rule forces the first token of every lane when one of them drafted the end."""
    toy = laws.random_toy(3, 2, seed=7, eos=2)
    defect = laws.stopping_defect(laws.blocks(enumerated_law(ReleasedRejection(lanes), toy)), toy)
    assert defect > CAUGHT, f"deviation {defect}"


@pytest.mark.parametrize("kernel", [ReleasedRejection(2), EndInAnyLane()], ids=lambda k: type(k).__name__)
def test_rows_that_are_coupled_are_caught(kernel: Kernel) -> None:
    with pytest.raises(AssertionError, match=r"two rows commit .* independent ones"):
        assert_proper(kernel)


def test_a_kernel_that_commits_nothing_is_caught() -> None:
    """Condition C7."""
    with pytest.raises(AssertionError, match="commits 0 tokens"):
        assert_proper(NothingOnRefusal())
    assert_biased(NothingOnRefusal())


def released_draft(top_p: float) -> Sampler:
    """A program that differs from a proper one in nothing but the released draft."""
    pair = tabular_pair(3, 2, seed=5, eos=False)
    proposal = ReleasedProposal(pair.dlm, lookahead=2, draft_top_p=top_p)
    return Sampler(proposal, ARTarget(pair.ar), ProductOfExperts(0.5), window=2, particles=2)


def test_truncated_draft_of_the_released_code_is_caught() -> None:
    """Condition C4: top-p shapes the draft and not the ratio. Without an end of sequence nothing else differs."""
    assert_biased(released_draft(0.6))
    assert_proper(released_draft(1.0))
    toy = laws.random_toy(3, 2, seed=5)
    harmless = laws.stopping_defect(laws.blocks(enumerated_law(ReleasedRejection(1), toy)), toy)
    assert harmless < 1e-12, f"without truncation and end of sequence it is token-level rejection, yet {harmless}"


def test_released_kernel_is_labelled_and_has_no_law() -> None:
    kernel, toy = ReleasedRejection(2), laws.random_toy(2, 2, seed=2)
    assert kernel.proper is False
    q, block = log_q_of(toy), torch.tensor([[0, 1]])
    with pytest.raises(TypeError, match=r"Rejection\(\)"):
        kernel.log_density(q, log_pi_along(toy, block), block, torch.tensor([2]))
    with pytest.raises(ValueError, match="lanes = 0"):
        ReleasedRejection(0)


def test_a_wrong_gumbel_joint_is_caught() -> None:
    """The maximal coupling has the same margins as the shared-noise one, and another diagonal."""
    rng = np.random.default_rng(1)
    q, pi = rng.dirichlet([1.0, 2.0, 3.0]), rng.dirichlet([3.0, 1.0, 1.0])
    shared, maximal = np.diag(laws.gumbel_joint(q, pi)), np.minimum(q, pi)
    assert np.abs(shared - maximal).max() > CAUGHT, f"diagonals {shared}, {maximal}"
