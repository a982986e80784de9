"""Ranges of indices, made once: `places(n, device)` is `arange(n)`, to be read and never written to."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=1024)
def places(count: int, device: torch.device) -> Tensor:
    """`0 .. count - 1` on the device, `[count]`; shared by all who ask."""
    with torch.inference_mode(False):  # it outlives the caller's mode
        return torch.arange(count, device=device)
