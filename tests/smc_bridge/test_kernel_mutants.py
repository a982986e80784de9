"""The enumeration of kernel laws has power: kernels that are wrong in known ways are caught by it.

A mutant is caught when its enumerated law is not a randomised stopping time of pi (`stopping_defect`), all that
the importance weight needs, and also by the comparison with `log_density`.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.kernels.protocol import Horizon, Move, at_tokens, row_at, truncate
from smc_bridge.kernels.rejection import Rejection, commit_correction, log_residual
from smc_bridge.methods.released import ReleasedRejection
from smc_bridge.randomness import Randomness, as_source
from tests.oracle import laws
from tests.oracle.laws import Block, Toy
from tests.smc_bridge.enumeration import (
    committed_block,
    enumerated_law,
    horizon_of,
    log_pi_along,
    log_q_of,
    moved,
    outcomes,
)

#: A discrepancy that no round-off explains.
CAUGHT = 1e-3
#: Laws without zeros and with an end of sequence, and without one.
TOYS = [laws.random_toy(3, 2, seed=7, eos=2), laws.random_toy(2, 3, seed=3)]


class SharpenedDraft(Rejection):
    """Draws the draft at temperature 1/2, and scores it with the raw q (C4 broken)."""

    def draft(self, q: Tensor, *, generator: Randomness) -> Tensor:
        return super().draft(torch.log_softmax(2 * q, -1), generator=generator)


class EditedRejection(Rejection):
    """Rejection with its two choices exposed: the acceptance exponent and the correction."""

    exponent = 1.0

    def correction(self, q: Tensor, pi: Tensor) -> Tensor:
        return log_residual(pi, q)

    def __call__(
        self, q: Tensor, pi: Tensor, draft: Tensor, *, generator: Randomness, horizon: Horizon | None = None
    ) -> Move:
        assert horizon is not None
        source = as_source(generator, draft.shape[0])
        ratio = (at_tokens(pi, draft) - at_tokens(q, draft)).clamp_max(0.0)
        accept = source.bernoulli((self.exponent * ratio).exp())
        end = horizon.end(draft)
        accepted = torch.minimum(accept.long().cumprod(-1).sum(-1), end)
        residual = self.correction(row_at(q, accepted), row_at(pi, accepted))
        return commit_correction(draft, accepted, end, residual, source=source)


class CorrectionFromTarget(EditedRejection):
    """Corrects from pi instead of the residual."""

    def correction(self, q: Tensor, pi: Tensor) -> Tensor:
        return pi


class LenientAcceptance(EditedRejection):
    """Accepts with `min(1, pi / q) ** 0.9`."""

    exponent = 0.9


class Cut(Rejection):
    """Rejection whose block is cut to one token when a rule says so."""

    def cut(self, move: Move) -> Tensor:
        raise AssertionError("a mutant says when")

    def __call__(
        self, q: Tensor, pi: Tensor, draft: Tensor, *, generator: Randomness, horizon: Horizon | None = None
    ) -> Move:
        move = super().__call__(q, pi, draft, generator=generator, horizon=horizon)
        length = torch.where(self.cut(move), 1, move.length)
        return Move(truncate(move.block, length), length, torch.minimum(move.accepted, length))


class CutByLaterToken(Cut):
    """Stops after the first token if the second one is 0 (C1 broken: the decision looks ahead)."""

    def cut(self, move: Move) -> Tensor:
        return (move.length > 1) & (move.block[:, min(1, move.block.shape[1] - 1)] == 0)


class CutByFirstToken(Cut):
    """Stops after the first token if it is 0: a legal rule, which depends on the past."""

    def cut(self, move: Move) -> Tensor:
        return move.block[:, 0] == 0


def defect_and_gap(kernel: Rejection, toy: Toy) -> tuple[float, float]:
    """Distance from a stopping time of pi, and from the kernel's own `log_density`."""
    found = laws.blocks(enumerated_law(kernel, toy))
    width = toy.q.shape[0]
    every = [b for n in range(1, width + 1) for b in itertools.product(range(toy.size), repeat=n)]
    block = torch.tensor([[*b, *[-1] * (width - len(b))] for b in every])
    density = kernel.log_density(
        log_q_of(toy, len(every)), log_pi_along(toy, block), block, torch.tensor([len(b) for b in every]),
        horizon=horizon_of(toy, len(every)),
    ).exp()
    gap = max(abs(found.get(b, 0.0) - d) for b, d in zip(every, density.tolist(), strict=True))
    return laws.stopping_defect(found, toy), gap


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
@pytest.mark.parametrize(
    "mutant", [SharpenedDraft, CorrectionFromTarget, LenientAcceptance, CutByLaterToken], ids=lambda m: m.__name__
)
def test_mutant_kernel_is_caught(mutant: type[Rejection], toy: Toy) -> None:
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


def released_lane_law(kernel: ReleasedRejection, toy: Toy) -> dict[Block, float]:
    """Law of lane 0's block when all lanes are drawn together."""
    law: dict[Block, float] = defaultdict(float)
    for probability, move in outcomes(lambda source: moved(kernel, toy, source, rows=kernel.lanes)):
        law[committed_block(move)[0]] += probability
    assert abs(math.fsum(law.values()) - 1.0) < 1e-12
    return dict(law)


@pytest.mark.parametrize("lanes", [1, 2])
def test_end_of_sequence_in_any_lane_is_caught(lanes: int) -> None:
    """Condition C8: the released rule forces the first token of every lane when one of them drafted the end."""
    toy = laws.random_toy(3, 2, seed=7, eos=2)
    defect = laws.stopping_defect(released_lane_law(ReleasedRejection(lanes, top_p=1.0), toy), toy)
    assert defect > CAUGHT, f"deviation {defect}"


def test_truncated_draft_of_the_released_code_is_caught() -> None:
    """Condition C4: top-p shapes the draft and not the ratio. Without an end of sequence nothing else differs."""
    toy = laws.random_toy(3, 2, seed=5)
    defect = laws.stopping_defect(released_lane_law(ReleasedRejection(1, top_p=0.6), toy), toy)
    assert defect > CAUGHT, f"deviation {defect}"
    harmless = laws.stopping_defect(released_lane_law(ReleasedRejection(1, top_p=1.0), toy), toy)
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
