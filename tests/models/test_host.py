"""What the host knows of a tensor, and when it has to wait."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smc_bridge.models.host import known, listed, local, places, remember, remembered, sent


@pytest.fixture
def reads(monkeypatch):
    """Shapes of the tensors that were read from a device."""
    seen, read = [], torch.Tensor.cpu

    def cpu(self):
        seen.append(tuple(self.shape))
        return read(self)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    return seen


@pytest.mark.parametrize("numbers", [[1, 2], [[1.5], [2.0]], [True, False], np.zeros((0, 3), dtype=np.int64)], ids=str)
def test_what_was_sent_is_known_without_a_read(numbers, reads, device):
    with torch.inference_mode():
        tensor = sent(numbers, device)
    array = np.asarray(numbers)
    assert known(tensor).tolist() == array.tolist()
    assert tuple(tensor.shape) == array.shape
    assert reads == []
    assert tensor.tolist() == array.tolist()
    assert tensor.device.type == device.type


def test_what_was_computed_is_read(reads, device):
    tensor = sent([1, 2], device) + 1
    assert remembered(tensor) is None
    assert known(tensor).tolist() == [2, 3]
    assert reads == [(2,)]


def test_what_is_known_of_a_result_can_be_said(reads, device):
    tensor = remember(sent([1, 2], device) + 1, np.array([2, 3]))
    assert known(tensor).tolist() == [2, 3]
    assert reads == []


def test_several_tensors_are_read_together(reads, device):
    pair, none, three = (torch.arange(n, device=device) for n in (2, 0, 3))
    assert listed(pair, none, three[:, None], sent([7], device)) == [[0, 1], [], [[0], [1], [2]], [7]]
    assert reads == [(5,)]


def test_the_numbers_of_a_tensor_on_the_host_are_its_own_memory():
    tensor = torch.arange(3)
    local(tensor)[0] = 7
    assert tensor.tolist() == [7, 1, 2]


def test_places_are_counted_from_zero_in_every_mode(device):
    with torch.inference_mode():
        assert places(3, device).tolist() == [0, 1, 2]
    assert not places(3, device).is_inference()
    assert places(3, device) is places(3, device)
    assert [len(places(n, device)) for n in (0, 1, 9)] == [0, 1, 9]
