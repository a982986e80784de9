"""What the host knows of a tensor without waiting for the device: numbers that were on the host before they were sent.

Indices, lengths and counts are made on the host and read on the device, and often on the host again by the next who is
handed them. `sent(array, device)` is the tensor, which remembers the array; `known(tensor)` gives it back, and reads
the tensor where nothing is remembered, which waits. Neither the array nor the tensor may be written to afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


def sent(array: Array, device: torch.device) -> Tensor:
    """The array as a tensor on the device, of equal shape and kind."""
    tensor = torch.from_numpy(array)
    # Not to block is safe: what is not pinned is taken before the call returns, and to block waits for the device.
    return remember(tensor if device.type == "cpu" else tensor.to(device, non_blocking=True), array)


def remember(tensor: Tensor, array: Array) -> Tensor:
    """The tensor, of which the host knows that it holds the numbers of `array`."""
    tensor.smc_bridge_host = array  # type: ignore[attr-defined]
    return tensor


def local(tensor: Tensor) -> Array:
    """The numbers of a tensor that lives on the host, which nobody waits for."""
    array: Array = np.from_dlpack(tensor)
    return array


def remembered(tensor: Tensor) -> Array | None:
    """The numbers of a tensor that was sent from here, None of another."""
    return getattr(tensor, "smc_bridge_host", None)


def known(tensor: Tensor) -> Array:
    """The numbers of a tensor; without waiting if they were sent from here."""
    array = remembered(tensor)
    return np.asarray(tensor.cpu().numpy()) if array is None else array
