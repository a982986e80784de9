"""Where the weights of a model are put, and in what type: `dtype`, `device`, `device_map` and `tp_plan` mean what they
mean in transformers. With a `device_map` accelerate spreads the layers over the devices and moves what passes between
them; with `tp_plan="auto"` (under `torchrun`) transformers splits every layer over the processes, and each process runs
the whole program: all see the same logits and, with the same seed, draw the same tokens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from typing import Any

import torch

from smc_bridge.models.arguments import check_text, said
from smc_bridge.models.checkpoints import Checkpoint, reason
from smc_bridge.models.extras import install

DTYPES = {
    name: dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for name in (str(dtype).removeprefix("torch."), dtype)
}

#: Device maps by name.
MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
#: Options of `Placement.options` with which transformers places the weights.
SPREAD = ("device_map", "distributed_config", "tp_plan")


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A type of weights by name; None is passed through.

    Raises:
        ValueError: it is no floating-point type.
    """
    if dtype is None:
        return None
    if not isinstance(dtype, str | torch.dtype) or dtype not in DTYPES:
        names = [name for name in DTYPES if isinstance(name, str)]
        raise ValueError(f"dtype = {said(dtype)}: use one of {', '.join(names)}")
    return DTYPES[dtype]


def as_device(device: torch.device | str | None, argument: str = "device") -> torch.device:
    """The device that an argument names; by default a CUDA device if there is one, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"{argument} = {str(device)!r}: is not there ({reason(error)}); use 'cpu', or leave it out"
        ) from error
    if found.type == "meta":
        raise ValueError(
            f"{argument} = {str(device)!r}: holds no numbers, so nothing is scored there; use 'cpu', or leave it out"
        )
    return found


@dataclass(frozen=True)
class Placement:
    """Type and place of the weights.

    Attributes:
        dtype: of the weights, or None for that of the checkpoint.
        device: of the whole model; not used with a device map or a tensor-parallel plan.
        device_map: as in transformers: "auto", or module -> device.
        tp_plan: as in transformers: "auto", or module -> style.
        attn_implementation: as in transformers, or None for the quickest that the model takes.
        quantization_config: as in transformers, or None.
    """

    dtype: torch.dtype | None
    device: torch.device
    device_map: str | Mapping[str, Any] | None = None
    tp_plan: str | Mapping[str, str] | None = None
    attn_implementation: str | None = None
    quantization_config: Any = None

    def __post_init__(self) -> None:
        """Refuse what excludes each other or cannot run here."""
        if self.device_map is not None and self.tp_plan is not None:
            raise ValueError("device_map and tp_plan exclude each other: give one of them")
        if isinstance(self.device_map, str) and self.device_map not in MAPS:
            as_device(self.device_map, "device_map")  # all of it there
        if self.device_map is not None and util.find_spec("accelerate") is None:
            raise ValueError(f"device_map = {self.device_map!r}: needs the package accelerate; {install('devices')}")
        if self.attn_implementation is not None:
            check_text("attn_implementation", self.attn_implementation)
        if self.quantization_config is not None:
            self._check_quantization()
        if self.tp_plan is not None and "WORLD_SIZE" not in os.environ:
            raise ValueError(
                f"tp_plan = {self.tp_plan!r}: needs one process per device; start the program with torchrun"
            )

    def _check_quantization(self) -> None:
        given = self.quantization_config
        if not isinstance(given, Mapping) and not hasattr(given, "quant_method"):
            raise ValueError(
                f"quantization_config = {said(given)}: give one of transformers' configurations of quantisation, or "
                "its entries"
            )
        if util.find_spec("accelerate") is None:
            raise ValueError(f"quantization_config: needs the package accelerate; {install('devices')}")

    @classmethod
    def of(
        cls,
        dtype: torch.dtype | str | None,
        device: torch.device | str | None,
        device_map: str | Mapping[str, Any] | None,
        tp_plan: str | Mapping[str, str] | None,
        attn_implementation: str | None = None,
        quantization_config: Any = None,
    ) -> Placement:
        """A placement as a user names it (see `as_dtype` and `as_device`).

        Raises:
            ValueError: there is no such type or device, or what is given excludes each other.
        """
        if device is not None and (device_map is not None or tp_plan is not None):
            by = "device_map" if device_map is not None else "tp_plan"
            raise ValueError(f"device = {str(device)!r} with {by}: {by} places the weights; leave device out")
        return cls(
            as_dtype(dtype), as_device(device), device_map, tp_plan, attn_implementation, quantization_config
        )

    def options(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`; with `device_map` or `distributed_config` it places the weights."""
        found: dict[str, Any] = {"dtype": "auto" if self.dtype is None else self.dtype}
        if self.quantization_config is not None:
            found["quantization_config"] = self.quantization_config
        if self.device_map is not None:
            found["device_map"] = self.device_map
        elif self.tp_plan is None and (self.quantization_config or checkpoint.config.get("quantization_config")):
            found["device_map"] = {"": self.device}  # what is quantised cannot be moved afterwards
        if self.tp_plan is not None:
            try:
                from transformers.distributed import DistributedConfig

                found["distributed_config"] = DistributedConfig(tp_plan=self.tp_plan)
            except (ImportError, TypeError):  # transformers 4
                found["tp_plan"] = self.tp_plan
        return found


#: What is said once for both models of a pair, or of each by itself.
PLACES = ("device", "device_map", "tp_plan")
HUB = ("revision", "token")
OPTIONS = ("dtype", "torch_dtype", *PLACES, "attn_implementation", "quantization_config", *HUB)


def options_of(
    common: Mapping[str, Any], own: Mapping[str, Any] | None = None, *, argument: str = "dlm_kwargs"
) -> tuple[Placement, dict[str, Any]]:
    """How one model is loaded: where its weights are put, and `revision` and `token` for the hub.

    Args:
        common: any of `OPTIONS`, None for what is not given.
        own: of this model alone, which go before the common ones.
        argument: what gave them, for messages.
    Raises:
        ValueError: an option is unknown, excludes another, or cannot be.
    """
    if own is not None and not isinstance(own, Mapping):
        raise ValueError(f"{argument} = {said(own)}: give a mapping of options as {{'dtype': 'bfloat16'}}")
    unknown = sorted(map(str, set(own or ()) - set(OPTIONS)))
    if unknown:
        raise ValueError(f"{argument} has {unknown[0]!r}: use any of {', '.join(OPTIONS)}")
    mine = {name: value for name, value in (own or {}).items() if value is not None}
    over = set(mine) | ({"dtype", "torch_dtype"} if {"dtype", "torch_dtype"} & set(mine) else set())
    over |= set(PLACES) if set(PLACES) & set(mine) else set()
    found = {name: value for name, value in common.items() if value is not None and name not in over} | mine
    if "dtype" in found and "torch_dtype" in found:
        raise ValueError(
            f"torch_dtype = {said(found['torch_dtype'])} with dtype: they are one option under two names; give one"
        )
    dtype = found.get("dtype", found.get("torch_dtype"))
    hub = {name: found[name] for name in HUB if name in found}
    if "revision" in hub:
        check_text("revision", hub["revision"])
    if "token" in hub and not isinstance(hub["token"], str | bool):
        raise ValueError("token: give a text, or True for the one that is logged in")
    placement = Placement.of(
        dtype, *(found.get(name) for name in (*PLACES, "attn_implementation", "quantization_config"))
    )
    return placement, hub
