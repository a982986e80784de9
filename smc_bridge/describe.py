"""The parameters of a decoder as plain data, so that a saved result says how it was made."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch

from smc_bridge.models.protocols import LanguageModel

#: Entries of a tensor or list that are written out; of longer ones only the size.
SHOWN = 64


def describe(value: Any) -> Any:
    """Plain data for JSON: numbers and texts as they are, lists for tensors and sequences, `Name(field=..)` for others.

    An object is described by its class and its public attributes; a function by its name.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.numel() <= SHOWN else f"tensor{list(value.shape)}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [describe(item) for item in value] if len(value) <= SHOWN else f"{len(value)} entries"
    if is_dataclass(value) and not isinstance(value, type):
        attributes = {item.name: getattr(value, item.name) for item in fields(value)}
    elif callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    else:
        attributes = {name: item for name, item in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    inside = ", ".join(f"{name}={describe(item)}" for name, item in attributes.items())
    return f"{type(value).__name__}({inside})"


def copied(value: Any) -> Any:
    """The same plain data, of which each holder may change its own."""
    if isinstance(value, dict):
        return {name: copied(item) for name, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def name_of(model: LanguageModel) -> str:
    """What the model calls itself (`name`), else its class."""
    return str(getattr(model, "name", type(model).__name__))


def number(value: Any) -> str:
    """A number, or a list of them, for a line of text."""
    if isinstance(value, list):
        return f"[{', '.join(map(number, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
