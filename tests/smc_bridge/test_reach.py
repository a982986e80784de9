"""Near the end of the AR model's positions: nothing is scored past them, and the draws stay the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.blocks import Move
from smc_bridge.engine.reach import groups_in_reach
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.models.tabular import TabularCausalSession
from tests.smc_bridge.reference_loop import Settings
from tests.smc_bridge.test_engine_loop import KERNELS, engine

NEW = 6


@pytest.fixture
def strict() -> Iterator[None]:
    """Sessions that refuse to score past the model's `max_length`."""
    score = TabularCausalSession.score

    def scored(self: TabularCausalSession, rows: Tensor, drafts: Tensor) -> Tensor:
        longest = int(self.length[rows].max()) + drafts.shape[1]
        assert longest <= self.model.max_length, f"rows reach {longest}"  # type: ignore[attr-defined]
        return score(self, rows, drafts)

    with mock.patch.object(TabularCausalSession, "score", scored):
        yield


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "tree-walk"])
def test_a_run_up_to_the_last_position_draws_what_an_unlimited_one_draws(kernel: str, strict: None) -> None:
    settings = Settings(kernel, "systematic", 0.8, particles=3, temperatures=(0.7, 1.5), window=4, lookahead=5)
    prompts = [[0], [1, 2], [2]]

    def run(limit: int) -> list[Any]:
        sampler = engine(settings, None)
        sampler.target.model.max_length = limit  # type: ignore[attr-defined]
        return [
            (r.sequences, r.log_weights, list(r.trace))
            for r in sampler.run(prompts, seed=[4, 5, 6], max_new_tokens=NEW)
        ]

    assert run(2 + NEW) == run(99)


def test_groups_hold_everybody_once_and_are_no_wider_than_their_room() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        room = torch.randint(1, 9, (7,), generator=generator)
        window = torch.minimum(room, torch.randint(1, 6, (7,), generator=generator))
        groups = groups_in_reach(window.numpy(), room.numpy(), int(window.max()))
        assert sorted(np.concatenate(groups).tolist()) == list(range(7))
        assert all(int(window[g].max()) <= int(room[g].min()) for g in groups)
    assert len(groups_in_reach(np.array([3, 3]), np.array([3, 9]), 3)) == 1


class Overreaching(Rejection):
    """A user's kernel that gets its lengths wrong."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, *arguments: Any, **options: Any) -> Move:
        move = super().__call__(*arguments, **options)
        return move._replace(length=torch.full_like(move.length, self.length))


@pytest.mark.parametrize("length", [0, 9])
def test_a_kernel_that_commits_nothing_or_too_much_is_refused(length: int) -> None:
    sampler = replace(engine(Settings("rejection", trigger=0.8, window=2), 1), kernel=Overreaching(length))
    with pytest.raises(ValueError, match=rf"Overreaching committed {length} tokens in row 0: commit from 1 to"):
        sampler.run([[0]], max_new_tokens=NEW)
