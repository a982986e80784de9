"""Which weights of a model its checkpoint lacked, for models whose own code reports nothing when it loads them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def unmatched(model: Any, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Compare a loaded model's parameters with the names in its checkpoint.

    Names are compared as transformers loads them: with or without the prefix of the model's body, after the renaming
    that the model asks for. A parameter that is tied to one that is there is there too.

    Args:
        model: a transformers model.
        names: of the weights in the checkpoint.
    Returns:
        parameters that the checkpoint lacks, and weights that the model has no place for, each sorted.
    """
    renaming = dict(getattr(model, "_checkpoint_conversion_mapping", None) or {})
    renaming |= {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}
    prefix = f"{model.base_model_prefix}." if getattr(model, "base_model_prefix", "") else ""

    def plain(name: str) -> str:
        for pattern, replacement in renaming.items():
            name = re.sub(pattern, replacement, name)
        return name.removeprefix(prefix)

    held = {plain(name): name for name in names}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    there = {id(value) for name, value in parameters.items() if name.removeprefix(prefix) in held}
    # Where layers are put elsewhere, tied weights may be objects of their own: the model names those.
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    tied_to_known = {name for name, source in tied.items() if source.removeprefix(prefix) in held}
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    missing = [
        name for name, value in parameters.items()
        if id(value) not in there and name not in tied_to_known and not any(p.search(name) for p in ignored)
    ]
    known = {name.removeprefix(prefix) for name in (*parameters, *dict(model.named_buffers()))}
    return sorted(missing), sorted(original for name, original in held.items() if name not in known)
