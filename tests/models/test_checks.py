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


def test_inside_of_a_block_the_first_that_fails_is_told_when_it_ends() -> None:
    reached = False
    with pytest.raises(ValueError, match=r"^first$"), gathered():
        refuse(NO, lambda at: "none")
        refuse(YES, lambda at: "first")
        refuse(YES, lambda at: "second")
        reached = True
    assert reached


def test_a_flag_that_was_read_is_not_read_again() -> None:
    with gathered() as checks:
        refuse(NO, lambda at: "none")
        checks.settle(bool(checks.flag(NO.device)))
        assert not bool(checks.flag(NO.device))


def test_a_failing_check_is_told_in_the_place_of_the_error_that_it_led_to() -> None:
    with pytest.raises(ValueError, match=r"^the reason$"), gathered():
        refuse(YES, lambda at: "the reason")
        raise IndexError("what it led to")
    with pytest.raises(IndexError), gathered():
        refuse(NO, lambda at: "none")
        raise IndexError("of its own")
    with pytest.raises(ValueError, match=r"^at once$"):  # the blocks are left
        refuse(YES, lambda at: "at once")
