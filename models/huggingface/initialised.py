"""Whether all parameters and buffers of a model hold numbers that they could have.

Weights are read from files; what a model's code computes when it is made (rotary frequencies, tables of cosines,
places) is often kept in buffers that are not saved. transformers 5 makes models without memory and fills in what it
knows: such buffers of a checkpoint's own code stay uninitialised. They then hold whatever was in memory, zeros or other
weights among it, and the model decodes, fluently and wrongly. So buffers with a known name are held against what they
must be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Types that are looked at; quantised ones hold no plain numbers.
PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
#: Absolute value that no weight, table or frequency has. A mask's constant may be less than minus this.
HUGE = 1e9

_WEIGHT_REMEDY = "copy the checkpoint's weights anew, or load it with a wider dtype"
_BUFFER_REMEDY = (
    "loading left unset what the checkpoint's own code computes when it is made: load it without trust_remote_code, or "
    "with the version of transformers that its configuration names"
)


def unsound(model: torch.nn.Module) -> str | None:
    """What of the parameters and buffers of `model` cannot be, and the remedy, in words; None if nothing."""
    # accelerate keeps what it has offloaded on the meta device, and puts it in place for the forward.
    offloaded = any(hasattr(module, "_hf_hook") for module in model.modules())
    for kind, remedy, named in (
        ("parameter", _WEIGHT_REMEDY, model.named_parameters()), ("buffer", _BUFFER_REMEDY, model.named_buffers()),
    ):
        for name, value in named:
            if value.is_meta:
                found = None if offloaded else "was never given a value (it is on the meta device)"
            else:
                found = _extreme(value, kind) or (_implausible(name, value) if kind == "buffer" else None)
            if found is not None:
                return f"its {kind} {name} {found}; {remedy}"
    return None


def _extreme(value: Any, kind: str) -> str | None:
    """Whether a value holds NaN, an infinity or a number that is out of all proportion."""
    value = value.to_local() if hasattr(value, "to_local") else value
    if type(value) not in (Tensor, torch.nn.Parameter) or value.dtype not in PLAIN or not value.numel():
        return None
    least, most = (float(x) for x in value.detach().aminmax())
    if least != least or most == torch.inf:
        return f"holds {'NaN' if least != least else 'inf'}"
    if most > HUGE or (least < -HUGE and not (kind == "buffer" and _is_mask(value))):
        return f"holds {most if most > HUGE else least:.2g}, as memory does that was never written"
    return None


def _is_mask(value: Tensor) -> bool:
    """Whether all that is far below 0 is one number, as in an additive mask."""
    low = value[value < -HUGE]
    return bool((low == low[0]).all())


def _implausible(name: str, value: Tensor) -> str | None:
    """Whether a buffer of a known name is not what all models have under it."""
    for ending, (fits, what) in KNOWN.items():
        if name.endswith(ending) and value.dim() and value.numel() and not fits(value.detach()):
            return f"is not {what}"
    return None


def _frequencies(value: Tensor) -> bool:
    value = value.float()
    first = value[..., 0]
    falling = value[..., 1:] <= value[..., :-1]
    return bool(((first > 0) & (first <= 1 + 1e-3)).all() & falling.all() & (value >= 0).all())


def _places(value: Tensor) -> bool:
    return bool((value.diff(dim=-1) == 1).all())


def _cosines(value: Tensor) -> bool:
    first = value.reshape(-1, value.shape[-1])[0].float()
    return bool((first > 0).all() & (first == first[0]).all())


def _sines(value: Tensor) -> bool:
    return not bool(value.reshape(-1, value.shape[-1])[0].any())


#: What buffers of these names hold in every model: last part of the name -> test, and what it asks for.
KNOWN: dict[str, tuple[Callable[[Tensor], bool], str]] = {
    "inv_freq": (_frequencies, "a falling row of rotary frequencies from at most 1"),
    "position_ids": (_places, "a row of consecutive places"),
    "cos_cached": (_cosines, "a table of cosines that begins with the angle 0"),
    "sin_cached": (_sines, "a table of sines that begins with the angle 0"),
}
