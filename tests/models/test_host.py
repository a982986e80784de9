"""What tensors hold is read once, and only if nobody told it."""

from __future__ import annotations

import pytest
import torch

from smc_bridge.models.host import counting, given, known, listed, sent, told


@pytest.fixture
def reads(monkeypatch):
    """Shapes of the tensors that were read."""
    seen, read = [], torch.Tensor.tolist

    def tolist(self):
        seen.append(tuple(self.shape))
        return read(self)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    return seen


def test_a_tensor_is_read_once_until_it_is_written_to(reads, device):
    tensor = torch.tensor([1, 2], device=device)
    assert listed(tensor) == listed(tensor) == [[1, 2]]
    assert reads == [(2,)]
    tensor += 1
    assert listed(tensor) == [[2, 3]]
    assert len(reads) == 2


def test_several_tensors_are_read_together(reads, device):
    pair, none, three = (torch.arange(n, device=device) for n in (2, 0, 3))
    assert listed(pair, none, three[:, None]) == [[0, 1], [], [[0], [1], [2]]]
    assert reads == [(5,)]


def test_what_was_told_is_not_read(reads, device):
    with torch.inference_mode():
        assert listed(given([4, 5], device), told(sent([[6], [7]], device), [[6], [7]])) == [[4, 5], [[6], [7]]]
    assert reads == []


def test_inference_tensors_are_read_again_because_writing_to_them_is_not_noticed(device):
    with torch.inference_mode():
        tensor = torch.tensor([1, 2], device=device)
        assert listed(tensor) == [[1, 2]]
        assert known(tensor) is None
        tensor += 1
        assert listed(tensor) == [[2, 3]]


def test_numbers_are_counted_from_zero_in_every_mode(device):
    with torch.inference_mode():
        assert counting(3, device).tolist() == [0, 1, 2]
    assert not counting(3, device).is_inference()
    assert [len(counting(n, device)) for n in (0, 1, 2, 9)] == [0, 1, 2, 9]
