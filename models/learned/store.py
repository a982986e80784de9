"""Weights of a learned part: one safetensors file, which says of what network they are.

The metadata of the file holds the part's name, the arguments that its network is made with, and facts of its training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from smc_bridge.models.arguments import said
from smc_bridge.models.learned import PARTS, TRAINED_BY

#: What a network is made of: the keyword arguments of its class.
Config = Mapping[str, int | float | str]


def save(module: nn.Module, path: str | os.PathLike[str], *, kind: str, facts: Mapping[str, Any]) -> None:
    """Write a part as float16; the file appears whole or not at all.

    Args:
        module: the network; its `config` holds what its class is made with.
        path: of the file.
        kind: name of the part (`PARTS`).
        facts: of its training, for whoever reads the file.
    Raises:
        ValueError: the path is a folder, or a weight is beyond float16.
    """
    from safetensors.torch import save_file

    target = Path(path)
    if target.is_dir():
        raise ValueError(f"path = {os.fspath(path)!r} is a folder: give the path of a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    weights = {name: x.detach().to("cpu", torch.float16).contiguous() for name, x in module.state_dict().items()}
    if not all(bool(x.isfinite().all()) for x in weights.values() if x.is_floating_point()):
        raise ValueError(f"weights of {kind} are not finite in float16: train it with a smaller rate")
    metadata = {"kind": kind, "config": json.dumps(module.config), "facts": json.dumps(dict(facts))}
    try:
        save_file(weights, fresh, metadata=metadata)
        fresh.chmod(0o644)  # the writer of safetensors makes files that only their owner can read
        os.replace(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], *, kind: str) -> nn.Module:
    """The network of a file, in float32 and for evaluation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, of another part, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if Path(path).is_dir():
        raise ValueError(f"{kind} = {os.fspath(path)!r} is a folder: give the path of a file")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{kind} = {os.fspath(path)!r}: no such file; train one: {command(kind)}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{kind} = {os.fspath(path)!r} is no safetensors file: train one: {command(kind)}") from error
    if metadata.get("kind") != kind:
        raise ValueError(
            f"{kind} = {os.fspath(path)!r} holds {said(metadata.get('kind'))}: give a file of {command(kind)}"
        )
    try:
        module: nn.Module = resolve_name(PARTS[kind])(**json.loads(metadata["config"]))
        module.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{kind} = {os.fspath(path)!r} is damaged: its weights are not those of its own config; train one: "
            f"{command(kind)}"
        ) from error
    if not all(bool(x.isfinite().all()) for x in weights.values()):
        raise ValueError(f"{kind} = {os.fspath(path)!r} has weights that are not finite: train one: {command(kind)}")
    return module.eval().requires_grad_(False)


def facts_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the file of a part says of its training."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads((file.metadata() or {})["facts"])
    return found


def command(kind: str) -> str:
    """How a part is trained."""
    return TRAINED_BY.get(kind, f"python -m smc_bridge.models.training {kind} --out FILE")
