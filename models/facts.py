"""What is known of a model once it is loaded, as plain data: how it is run, over which alphabet, and what it takes.

All of it is read off attributes; nothing is computed. Memory is counted by hand: weights as they are held, scores as
float32, and keys and values of a token, which a cache keeps for every token of every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from smc_bridge.models.arguments import ids_of
from smc_bridge.models.protocols import LanguageModel

#: Package of the code that checkpoints bring, as transformers imports it.
REMOTE = "transformers_modules"


@dataclass(frozen=True)
class Facts:
    """One model of a pair; None stands for what it does not tell, or does not have.

    Attributes:
        family: of models, by whose conventions it is run.
        route: whose code it is: "native" or "remote code".
        kind: its class.
        attention: what a place sees.
        block_size: tokens of a block, of block-causal models.
        output: which place an output is about.
        mask_id: id that stands for a masked position.
        eos_ids: ids that end a sequence.
        alphabet: A.
        banned: ids of the alphabet that are no text.
        positions: tokens that it reads, prompt included.
        cache: what its sessions keep.
        dtype, device: of its weights.
        parameters: numbers in its weights.
        weight_bytes: bytes of its weights and buffers.
        token_bytes: bytes of the keys and values of one token, in all layers.
    """

    family: str | None
    route: str | None
    kind: str
    attention: str | None
    block_size: int | None
    output: str
    mask_id: int | None
    eos_ids: tuple[int, ...]
    alphabet: int
    banned: int
    positions: int | None
    cache: str
    dtype: str | None
    device: str
    parameters: int | None
    weight_bytes: int | None
    token_bytes: int | None


def facts_of(model: LanguageModel, *, diffusion: bool) -> Facts:
    """What is known of a model of a pair: of the one that drafts (`diffusion`), or the target."""
    given: Any = model
    network: Any = getattr(model, "model", None)
    inner = getattr(network, "model", network) if type(network).__name__ == "Unpadded" else network
    config = None if inner is None else getattr(inner, "config", None)
    held = [] if network is None else [*network.parameters(), *network.buffers()]
    return Facts(
        family=getattr(given, "family", None) or getattr(config, "model_type", None),
        route=_route(inner),
        kind=type(model if inner is None else inner).__name__,
        attention=None if network is None else _attention(given, network, config, diffusion),
        block_size=getattr(given, "block_size", None),
        output="the next place" if not diffusion or getattr(given, "shift", False) else "its own place",
        mask_id=getattr(given, "mask_id", None),
        eos_ids=tuple(ids_of(model.eos_id)),
        alphabet=model.vocab_size,
        banned=len(set(model.banned_ids)),
        positions=model.max_length,
        cache=_cache(given, diffusion),
        dtype=None if network is None else str(network.dtype).removeprefix("torch."),
        device=str(model.device),
        parameters=None if network is None else sum(each.numel() for each in network.parameters()),
        weight_bytes=None if network is None else sum(each.numel() * each.element_size() for each in held),
        token_bytes=None if config is None else _token_bytes(config, network.dtype),
    )


def _route(network: Any) -> str | None:
    if network is None:
        return None
    return "remote code" if type(network).__module__.partition(".")[0] == REMOTE else "native"


def _attention(model: Any, network: Any, config: Any, diffusion: bool) -> str:
    """What a place sees, and by which implementation."""
    block = getattr(model, "block_size", None)
    sees = "causal" if not diffusion else "full" if block is None else f"blocks of {block} tokens"
    padded = ", rows of one length only" if type(network).__name__ == "Unpadded" else ""
    by = getattr(config, "_attn_implementation", None)
    return f"{sees}{padded}" + ("" if by is None else f" ({by})")


def _cache(model: Any, diffusion: bool) -> str:
    if not diffusion:
        return "none" if getattr(model, "attention", None) is None else "keys and values"
    kept = str(getattr(model, "cache", "none"))
    return f"{kept}, exact" if kept != "none" and getattr(model, "block_size", None) is not None else kept


def _token_bytes(config: Any, dtype: torch.dtype) -> int | None:
    """Bytes of the keys and values of a token, by what the configuration says of layers and heads."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers, heads, width = (
        getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    if not layers or not heads or not width:
        return None
    size = getattr(config, "head_dim", None) or width // heads
    pairs = getattr(config, "num_key_value_heads", None) or heads
    return int(layers * 2 * pairs * size * dtype.itemsize)
