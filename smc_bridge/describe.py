"""The parameters of a decoder as plain data, so that a saved result says how it was made."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch

from smc_bridge.display import block
from smc_bridge.distributions.intermediate import log_ratio_bound
from smc_bridge.distributions.law import Law
from smc_bridge.models.protocols import LanguageModel

if TYPE_CHECKING:
    from smc_bridge.engine.sampler import Sampler

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


def name_of(model: LanguageModel) -> str:
    """What the model calls itself (`name`), else its class."""
    return str(getattr(model, "name", type(model).__name__))


def law_settings(law: Law) -> dict[str, Any]:
    """Temperature and truncation."""
    return {"temperature": law.temperature, "top_p": law.top_p, "top_k": law.top_k}


def sampler_settings(sampler: Sampler, *, max_new_tokens: int) -> dict[str, Any]:
    """Everything that shapes the draws of a run besides prompt and seed."""
    proposal, target = sampler.proposal, sampler.target
    temperatures = proposal.lane_temperatures
    bound, notes = log_ratio_bound(sampler.intermediate), sampler.notes()
    return {
        "method": sampler.name,
        "particles": sampler.particles,
        "lanes": sampler.lanes,
        "window": sampler.window,
        "lookahead": proposal.lookahead,
        "intermediate": _shown(sampler.intermediate),
        "log_ratio_bound": bound if math.isfinite(bound) else None,
        "kernel": describe(sampler.kernel),
        "weight": describe(sampler.weight),
        "exact": sampler.exact,
        "resampler": describe(sampler.resampler),
        "trigger": describe(sampler.trigger),
        "target": {**law_settings(target.law), "potential": describe(target.potential)},
        "proposal": {
            **law_settings(proposal.law), **({} if temperatures is None else {"temperature": list(temperatures)}),
        },
        "pair": sampler.pair,
        "models": {"dlm": name_of(proposal.model), "ar": name_of(target.model)},
        "max_new_tokens": max_new_tokens,
        **({"notes": notes} if notes else {}),
    }


def sampler_text(sampler: Sampler) -> str:
    """A few lines: sizes, whether it is proper, and its parts."""
    found = sampler_settings(sampler, max_new_tokens=0)
    laws = {
        name: ", ".join(f"{key} {_number(value)}" for key, value in found[name].items() if value is not None)
        for name in ("proposal", "target")
    }
    reasons = sampler.why_improper()
    return block(
        f"Sampler {sampler.name!r}: N = {sampler.particles}, K = {sampler.lanes}, V = {sampler.window}, "
        f"M = {found['lookahead']}, {'not proper: ' + '; '.join(reasons) if reasons else 'properly weighted'}",
        (
            f"proposal      {found['models']['dlm']}: {laws['proposal']}",
            f"target        {found['models']['ar']}: {laws['target']}",
            f"intermediate  {found['intermediate']}",
            f"kernel        {found['kernel']}, {found['weight']}",
            f"resampling    {found['resampler']}, {found['trigger']}",
        ),
    )


def _number(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shown(value: object) -> Any:
    """An object's own text where it has one, for it says more than its attributes."""
    return describe(value) if type(value).__repr__ is object.__repr__ else repr(value)
