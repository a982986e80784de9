"""Checks that are gathered: one read for all, and the message of the first that fails."""

from __future__ import annotations

import pytest
import torch

from smc_bridge.models.checks import gathered, refuse

YES, NO = torch.tensor([[False, False], [True, False]]), torch.zeros(3, dtype=torch.bool)


def test_outside_of_a_block_a_check_is_read_at_once() -> None:
    refuse(NO, lambda at: "nothing")
    with pytest.raises(ValueError, match=r"^bad at \(1, 0\)$"):
        refuse(YES, lambda at: f"bad at {at}")


def ask(*bad: torch.Tensor, then: Exception | None = None) -> list[int]:
    """Ask about each in a block, answered `number i`; returns how many questions were asked before any was read."""
    asked = []
    with gathered():
        for i, question in enumerate(bad):
            refuse(question, lambda at, i=i: f"number {i}")  # type: ignore[misc]
            asked.append(i)
        if then is not None:
            raise then
    return asked


def test_inside_of_a_block_all_is_asked_and_the_first_that_fails_is_told() -> None:
    assert ask(NO, NO) == [0, 1]
    with pytest.raises(ValueError, match=r"^number 1$"):
        ask(NO, YES, YES)


def test_a_flag_that_was_read_is_not_read_again() -> None:
    with gathered() as checks:
        refuse(YES, lambda at: "told")
        flag = checks.flag(NO.device)
        with pytest.raises(ValueError, match=r"^told$"):
            checks.settle(bool(flag))
        assert not bool(checks.flag(NO.device))


def test_a_failing_check_is_told_in_the_place_of_the_error_that_it_led_to() -> None:
    with pytest.raises(ValueError, match=r"^number 0$"):
        ask(YES, then=IndexError("what it led to"))
    with pytest.raises(IndexError):
        ask(NO, then=IndexError("of its own"))
    with pytest.raises(ValueError, match=r"^at once$"):  # the blocks are left
        refuse(YES, lambda at: "at once")
