"""Which causal models take a mask of our own over a cache of our own, and that mask in the form that they take.

A packed row's columns are not its positions, so a sliding window cannot be left to the model: it is laid over
*positions* here. transformers lets a 4-D float mask through unchanged; a model whose layers differ takes one for each
kind of layer. That this holds, that positions enter through `position_ids` alone and that nothing but keys and values
is cached was checked for the model types listed, and is assumed of no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smc_bridge.models.host import sent
from smc_bridge.models.huggingface import dit
from smc_bridge.models.huggingface.adapter import ADDITIVE_ATTENTION, additive_mask

#: Model types whose layers share one mask, which slides if `sliding_window` is set.
ONE_MASK = frozenset(
    {
        "biogpt", "cohere", "ernie4_5", "falcon", "gemma", "glm", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite",
        "helium", "llama", "mistral", "mixtral", "olmo", "olmo2", "opt", "phi", "phi3", "qwen3_moe", dit.MODEL_TYPE,
        "stablelm", "starcoder2", "xglm",
    }
)

#: Model types with `layer_types`, which take a mask for each kind of layer.
MASK_BY_KIND = frozenset({"gemma2", "gemma3_text", "qwen2", "qwen3", "smollm3"})

#: Rotary embeddings whose frequencies depend on the longest row of a forward, so that keys do not keep.
MOVING_ROTARY = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True)
class Attention:
    """What a model's layers see of the past.

    Attributes:
        kinds: kinds of layers, for models that take a mask for each; empty for models that take one.
        window: positions that a sliding layer sees, itself included, or None if no layer slides.
        dtype: of the mask.
    """

    kinds: tuple[str, ...]
    window: int | None
    dtype: torch.dtype

    def mask(
        self, cached: Sequence[int], base: int, seen: np.ndarray, position: np.ndarray, device: torch.device
    ) -> Tensor | dict[str, Tensor]:
        """The additive mask `[G, 1, F, base + F]` of a packed forward, in the form that the model takes: 0 where a
        token sees, else the least float (not `-inf`: a query that sees nothing then gives no NaN).

        Args:
            cached: valid columns of each row's prefix, G numbers.
            base: columns of the prefix.
            seen: what fresh tokens see of each other, `[G or 1, F, F]`.
            position: of the fresh tokens, `[G, F]`.
        """
        rows, fresh = position.shape
        if min(cached) == base:
            mask = torch.nn.functional.pad(additive_mask(sent(seen, device), self.dtype), (base, 0))
            mask = mask if mask.shape[0] == rows else mask.expand(rows, -1, -1, -1)
        else:
            held = sent(np.arange(base) < np.array(cached)[:, None, None], device).expand(-1, fresh, -1)
            whole = torch.cat([held, sent(seen, device).expand(rows, -1, -1)], dim=-1)
            mask = additive_mask(whole, self.dtype)
        sliding = mask
        if self.window is not None and position.max() >= self.window:
            key = np.concatenate([np.broadcast_to(np.arange(base), (rows, base)), position], axis=1)
            far = sent((position[:, :, None] - key[:, None, :] >= self.window)[:, None], device)
            sliding = mask.masked_fill(far, torch.finfo(self.dtype).min)
        if not self.kinds:
            return sliding
        return {kind: sliding if kind == "sliding_attention" else mask for kind in self.kinds}


def attention_of(model: Any) -> Attention | None:
    """How to mask `model` over a cache, or None if it is not known to take such a mask."""
    config = model.config
    if config._attn_implementation not in ADDITIVE_ATTENTION or _rotary_types(config) & MOVING_ROTARY:
        return None
    if getattr(config, "alibi", False):  # distances, which a model takes from a mask of the columns
        return None
    window = getattr(config, "sliding_window", None)
    if config.model_type in ONE_MASK:
        return Attention((), window, model.dtype)
    kinds = frozenset(getattr(config, "layer_types", None) or ())
    if config.model_type not in MASK_BY_KIND or not kinds <= {"full_attention", "sliding_attention"}:
        return None
    return Attention(tuple(sorted(kinds)), window if "sliding_attention" in kinds else None, model.dtype)


def _rotary_types(config: Any) -> set[str]:
    """Kinds of rotary embedding of all layers, as far as the configuration names any."""
    found: set[str] = set()
    for name in ("rope_parameters", "rope_scaling"):
        parameters = getattr(config, name, None) or {}
        for entry in (parameters, *parameters.values()):
            if isinstance(entry, dict):
                found.add(str(entry.get("rope_type", entry.get("type"))))
    return found
