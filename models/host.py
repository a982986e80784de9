"""What the host knows of a tensor without waiting for the device: numbers that were on the host before they were sent.

Rows, lengths, counts and blocks are made on the host and read on the device, and often on the host again by the next
who is handed them. `sent(numbers, device)` is the tensor, which remembers them; `known(tensor)` gives them back, and
reads a tensor that remembers nothing, which waits. Neither the numbers nor the tensor may be written to afterwards: of
a tensor it would be noticed, but not in inference mode.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
#: Whole numbers: rows, lengths, counts, tokens.
Index = npt.NDArray[np.int64]


def sent(numbers: Any, device: torch.device) -> Tensor:
    """Numbers of the host, an array or lists, as a tensor on the device, of equal shape and kind."""
    array = np.asarray(numbers)
    tensor = torch.from_numpy(array)
    # Not to block is safe: what is not pinned is taken before the call returns. To block would wait for the device.
    return remember(tensor if device.type == "cpu" else tensor.to(device, non_blocking=True), array)


def remember(tensor: Tensor, array: Array) -> Tensor:
    """The tensor, of which the host knows that it holds the numbers of `array`."""
    tensor.smc_bridge_host = array, _version(tensor)  # type: ignore[attr-defined]
    return tensor


def remembered(tensor: Tensor) -> Array | None:
    """The numbers of a tensor that was sent from here, None of another, or if it was seen to be written to since."""
    found = getattr(tensor, "smc_bridge_host", None)
    return None if found is None or found[1] != _version(tensor) else found[0]


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; of inference tensors that is not known."""
    return 0 if tensor.is_inference() else tensor._version


def known(tensor: Tensor) -> Array:
    """The numbers of a tensor; without waiting if they were sent from here."""
    array = remembered(tensor)
    return np.asarray(tensor.detach().cpu().numpy()) if array is None else array


def arrays(*tensors: Tensor) -> list[Array]:
    """What tensors of one type hold, not to be written to; at most one read for all that is not known."""
    found = [remembered(tensor) for tensor in tensors]
    unknown = [i for i, array in enumerate(found) if array is None]
    if len(unknown) == 1:
        found[unknown[0]] = known(tensors[unknown[0]])
    elif unknown:
        read = known(torch.cat([tensors[i].reshape(-1) for i in unknown]))
        ends = np.cumsum([tensors[i].numel() for i in unknown])
        for i, part in zip(unknown, np.split(read, ends[:-1]), strict=True):
            found[i] = part.reshape(tensors[i].shape)
    return [array for array in found if array is not None]


def listed(*tensors: Tensor) -> list[list[Any]]:
    """What tensors of one type hold, each as nested lists; at most one read for all that is not known."""
    return [array.tolist() for array in arrays(*tensors)]


def local(tensor: Tensor) -> Array:
    """The numbers of a tensor that lives on the host, which nobody waits for."""
    array: Array = np.from_dlpack(tensor.detach() if tensor.requires_grad else tensor)
    return array


@lru_cache(maxsize=1024)
def places(count: int, device: torch.device) -> Tensor:
    """`0 .. count - 1` on the device, `[count]`, made once; not to be written to."""
    with torch.inference_mode(False):  # it outlives the caller's mode
        return torch.arange(count, device=device)
