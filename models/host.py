"""What tensors hold, on the host: read once each, or told by whoever knows it.

To read a tensor makes the host wait for its device, so lengths, rows and counts are kept here as lists beside the
tensors. A tensor that was read is not read again until it is written to, and one that was made of known values is not
read at all. Inference tensors do not tell whether they were written to: of these only what was told is known. The way
back, from the host to the device, waits for nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, MutableMapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

#: Of each tensor: its version when its values were known, and the values.
_KNOWN: MutableMapping[Tensor, tuple[int, list[Any]]] = WeakTensorKeyDictionary()


def told(tensor: Tensor, values: list[Any]) -> Tensor:
    """Return `tensor: [...]`, which holds `values` (`tensor.tolist()`), so that nobody has to read it.

    Neither is to be written to: of an inference tensor it would not be noticed.
    """
    _KNOWN[tensor] = _version(tensor), values
    return tensor


def known(tensor: Tensor) -> list[Any] | None:
    """What `tensor: [...]` holds, if that was told or read before; not to be written to."""
    found = _KNOWN.get(tensor)
    return found[1] if found is not None and found[0] == _version(tensor) else None


def listed(*tensors: Tensor) -> list[list[Any]]:
    """What tensors of one type hold, each `[...]` a nested list, not to be written to; at most one read for all."""
    found = {i: known(tensor) for i, tensor in enumerate(tensors)}
    unknown = [i for i, values in found.items() if values is None]
    if len(unknown) == 1:
        found[unknown[0]] = tensors[unknown[0]].tolist()
    elif unknown:
        parts = [tensors[i] if tensors[i].dim() == 1 else tensors[i].flatten() for i in unknown]
        flat = iter(torch.cat(parts).tolist())
        for i in unknown:
            found[i] = _nested(flat, tensors[i].shape)
    for i in unknown:
        if not tensors[i].is_inference():
            told(tensors[i], found[i] or [])
    return [values or [] for values in found.values()]


def _nested(flat: Iterator[Any], shape: Sequence[int]) -> list[Any]:
    """The next numbers of `flat` as nested lists of this shape."""
    if len(shape) == 1:
        return list(itertools.islice(flat, shape[0]))
    return [_nested(flat, shape[1:]) for _ in range(shape[0])]


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 for inference tensors."""
    return 0 if tensor.is_inference() else tensor._version


def sent(values: Any, device: torch.device) -> Tensor:
    """Numbers of the host, lists or an array `[...]`, as a tensor `[...]` on the device, without waiting for it."""
    tensor = torch.from_numpy(np.asarray(values))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def given(values: list[Any], device: torch.device) -> Tensor:
    """A LongTensor `[...]` of `values` on the device, which is known to hold them."""
    return told(sent(np.asarray(values, dtype=np.int64), device), values)


@lru_cache(maxsize=1024)
def counting(count: int, device: torch.device) -> Tensor:
    """`0 .. count - 1`, `[count]`, made once; not to be written to."""
    with torch.inference_mode(False):  # it outlives the caller's mode
        return _numbers(max(count - 1, 1).bit_length(), device)[:count]


@lru_cache(maxsize=64)
def _numbers(bits: int, device: torch.device) -> Tensor:
    """All numbers of so many bits."""
    return torch.arange(2**bits, device=device)
