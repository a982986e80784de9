"""What tensors hold, on the host: read once each, or told by whoever made them of values that the host has.

To read a tensor makes the host wait for its device, so lengths, rows and counts are kept here as lists beside the
tensors: a tensor that two sessions are given is read for both, and one that was made of known values is not read at
all. The way back, from the host to the device, waits for nothing.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

#: Of each tensor that was read: its version then, and what it held.
_KNOWN: MutableMapping[Tensor, tuple[int, list[Any]]] = WeakTensorKeyDictionary()


def listed(tensor: Tensor) -> list[Any]:
    """`tensor.tolist()`, read from the device once until the tensor is written to; the list is not to be changed."""
    if tensor.is_inference():  # it does not count its versions
        return list(tensor.tolist())
    found = _KNOWN.get(tensor)
    if found is None or found[0] != tensor._version:
        found = _KNOWN[tensor] = tensor._version, tensor.tolist()
    return found[1]


def told(tensor: Tensor, values: list[Any]) -> Tensor:
    """Return `tensor`, which holds `values`, so that nobody has to read it."""
    if not tensor.is_inference():
        _KNOWN[tensor] = tensor._version, values
    return tensor


def sent(values: Any, device: torch.device) -> Tensor:
    """Numbers of the host, lists or an array `[...]`, as a tensor `[...]` on the device, without waiting for it."""
    tensor = torch.from_numpy(np.asarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def given(values: list[int], device: torch.device) -> Tensor:
    """A LongTensor `[n]` of `values` on the device, which is known to hold them."""
    return told(sent(np.asarray(values, dtype=np.int64), device), values)


def read_together(columns: list[Tensor]) -> list[list[list[int]]]:
    """What several LongTensors `[R, C]` hold, each of its own C, in one read."""
    rows = torch.cat(columns, dim=1).tolist() if len(columns) > 1 else columns[0].tolist()
    ends = np.cumsum([0, *(x.shape[1] for x in columns)]).tolist()
    return [[row[start:end] for row in rows] for start, end in zip(ends, ends[1:], strict=False)]


@lru_cache(maxsize=1024)
def counting(count: int, device: torch.device) -> Tensor:
    """`0 .. count - 1`, `[count]`, made once; not to be written to."""
    with torch.inference_mode(False):  # it outlives the caller's mode
        return _numbers(max(count - 1, 1).bit_length(), device)[:count]


@lru_cache(maxsize=64)
def _numbers(bits: int, device: torch.device) -> Tensor:
    """All numbers of so many bits."""
    return torch.arange(2**bits, device=device)
