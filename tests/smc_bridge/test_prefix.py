"""`Prefix`: ragged rows, padding, end of sequence and length limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smc_bridge.models.ends import EosId, ends_of
from smc_bridge.prefix import PAD, Prefix


def three() -> Prefix:
    return Prefix.of([[3, 1], [], [2, 2, 0, 1]])


def extend(prefix: Prefix, block: list[list[int]], count: list[int], *, eos: EosId = None, limit: int = 9) -> (
    Prefix
):
    return prefix.extend(
        torch.tensor(block), torch.tensor(count), ends=ends_of(eos), limit=torch.full_like(prefix.length, limit)
    )


def test_lists_are_what_it_was_made_of(device: str) -> None:
    prefix = Prefix.of([[3, 1], [], [2, 2, 0, 1]], device=device)
    assert prefix.lists() == [[3, 1], [], [2, 2, 0, 1]]
    assert prefix.length.tolist() == [2, 0, 4]
    assert not prefix.done.any()
    assert prefix.tokens.device.type == device
    past = torch.arange(4) >= prefix.length.cpu()[:, None]
    assert (prefix.tokens.cpu()[past] == PAD).all(), "entries past the length are not padding"


def test_rows_are_selected_by_index_and_by_mask() -> None:
    prefix = three()
    assert prefix.select(torch.tensor([2, 0, 2])).lists() == [[2, 2, 0, 1], [3, 1], [2, 2, 0, 1]]
    assert prefix.select(torch.tensor([False, True, True])).lists() == [[], [2, 2, 0, 1]]


def test_every_row_grows_by_its_own_count() -> None:
    grown = extend(three(), [[5, 6, 7], [8, 9, 4], [1, 1, 1]], [1, 3, 0])
    assert grown.lists() == [[3, 1, 5], [8, 9, 4], [2, 2, 0, 1]]
    past = torch.arange(grown.tokens.shape[1]) >= grown.length[:, None]
    assert (grown.tokens[past] == PAD).all(), "entries past the length are not padding"


def test_extending_leaves_the_old_prefix_alone() -> None:
    prefix = three()
    extend(prefix, [[5], [8], [1]], [1, 1, 1])
    assert prefix.lists() == [[3, 1], [], [2, 2, 0, 1]]


def test_a_row_is_done_after_the_end_of_sequence_and_not_before() -> None:
    grown = extend(three(), [[5, 0], [0, 5], [5, 5]], [2, 2, 2], eos=0)
    assert grown.done.tolist() == [True, False, False], "only the last token ends a row"


def test_an_end_of_sequence_in_the_prompt_does_not_end_a_row() -> None:
    prefix = Prefix.of([[1, 0], [0]])
    grown = extend(prefix, [[5], [5]], [0, 1], eos=0)
    assert grown.done.tolist() == [False, False]


def test_tokens_past_the_count_do_not_count() -> None:
    grown = extend(three(), [[5, 0], [5, 0], [5, 0]], [1, 1, 1], eos=0)
    assert not grown.done.any()


def test_a_row_is_done_at_its_limit() -> None:
    grown = extend(three(), [[5], [5], [5]], [1, 1, 1], limit=5)
    assert grown.done.tolist() == [False, False, True]


def test_finished_rows_absorb() -> None:
    done = extend(three(), [[0], [5], [5]], [1, 1, 1], eos=0)
    later = extend(done, [[7], [7], [7]], [0, 1, 1], eos=0)
    assert later.done.tolist() == [True, False, False]
    assert later.lists() == [[3, 1, 0], [5, 7], [2, 2, 0, 1, 5, 7]]
    with pytest.raises(ValueError, match="absorbing"):
        extend(done, [[7], [7], [7]], [1, 0, 0], eos=0)


def test_passing_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="pass the limit"):
        extend(three(), [[1, 1], [1, 1], [1, 1]], [0, 0, 2], limit=5)


def test_a_count_outside_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="give 0 to 1"):
        extend(three(), [[1], [1], [1]], [0, 2, 0])


def test_no_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="sequences is empty"):
        Prefix.of([])


@pytest.mark.parametrize(
    "rows", [[0, 1, 2, 3, 4, 5], [5, 3, 1], [2, 2, 2], [4], [1, 0, 5, 1]], ids=str
)
def test_equal_sequences_share_a_representative(rows: list[int]) -> None:
    """Also sequences that differ in padding width only, and those that are prefixes of each other."""
    prefix = Prefix.of([[1, 2], [], [1, 2], [1, 2, 0], [1], []])
    first, group = prefix.unique(np.array(rows))
    lists = prefix.lists()
    assert [lists[int(first[g])] for g in group] == [lists[r] for r in rows]
    assert len(first) == len({tuple(lists[r]) for r in rows}), f"{len(first)} representatives of {rows}"
    for g, r in enumerate(first.tolist()):
        earliest = next(row for row in rows if lists[row] == lists[r])
        assert r == earliest, f"group {g} is represented by row {r}, its first row is {earliest}"


def test_rows_of_different_values_stay_apart() -> None:
    prefix = Prefix.of([[1, 2], [1, 2], [1, 2]])
    first, group = prefix.unique(np.arange(3), apart=np.array([7, 4, 7]))
    assert sorted(first.tolist()) == [0, 1]
    assert group[0] == group[2] != group[1]


def test_nothing_has_no_representatives() -> None:
    first, group = three().unique(np.zeros(0, dtype=np.int64))
    assert first.size == group.size == 0
