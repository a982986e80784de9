"""A decoder-only model without some of its attention and MLP sub-layers, which shares its weights.

    h <- h + attention_l(norm(h))     left out for l in the first set
    h <- h + mlp_l(norm(h))           left out for l in the second

What is left is a cheap causal model that mostly agrees with the whole (Draft & Verify: Zhang et al. 2023, arXiv
2309.08168). A sub-layer that is left out adds nothing to the residual stream. Nothing of the network is copied but the
tree of modules: parameters are the very tensors of the whole model, trained, moved or loaded with it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from smc_bridge.models.arguments import said
from smc_bridge.models.tabular_skips import check_layers

#: What the two sub-layers of a layer are called, by architecture.
ATTENTION, MLP = ("self_attn", "attn", "attention", "self_attention"), ("mlp", "feed_forward", "block_sparse_moe")


class NoAttention(torch.nn.Module):
    """In the place of an attention sub-layer: adds nothing, and keeps no keys and values."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Zeros like `hidden_states: [B, F, hidden]`, and no attention weights."""
        return torch.zeros_like(hidden_states), None


class NoMLP(torch.nn.Module):
    """In the place of an MLP sub-layer: adds nothing."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Zeros like `hidden_states: [B, F, hidden]`."""
        return torch.zeros_like(hidden_states)


def layers_of(model: Any) -> tuple[list[str], torch.nn.ModuleList] | None:
    """Where the list of layers of a decoder-only model stands, and the list; None if none is known.

    Known is a list in which every layer has one attention and one MLP sub-layer that go by names of `ATTENTION` and
    `MLP`.
    """
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) and all(_names(layer) for layer in module):
            return path.split("."), module
    return None


def _names(layer: torch.nn.Module) -> tuple[str, str] | None:
    """What the attention and the MLP sub-layer of a layer are called, if it has one of each."""
    parts = layer._modules
    found = [[name for name in names if parts.get(name) is not None] for names in (ATTENTION, MLP)]
    return (found[0][0], found[1][0]) if all(len(names) == 1 for names in found) else None


def without(model: Any, attention: Collection[int], mlp: Collection[int]) -> Any:
    """The network without these sub-layers, made of the model's own parameters.

    Args:
        model: a decoder-only transformers model.
        attention, mlp: layers, counted from 0, whose sub-layers of either kind are left out.
    Raises:
        ValueError: the model has no list of layers that is known here, there is no such layer, or no attention would be
            left.
    """
    found = layers_of(model)
    if found is None:
        raise ValueError(
            f"model = {type(model).__name__} has no list of layers with an attention and an MLP sub-layer each: give a "
            "decoder-only model of the Llama, Qwen, Mistral or GPT kind"
        )
    path, layers = found
    gone, dropped = check_layers("attention", attention, len(layers)), check_layers("mlp", mlp, len(layers))
    if len(gone) == len(layers):
        raise ValueError(f"attention = {said(sorted(gone))} leaves no attention: keep that of one layer at least")
    outer = _twin(model)
    holder = outer
    for name in path[:-1]:
        holder._modules[name] = _twin(holder._modules[name])
        holder = holder._modules[name]
    holder._modules[path[-1]] = torch.nn.ModuleList(
        _thinned(layer, index in gone, index in dropped) for index, layer in enumerate(layers)
    )
    return outer


def _twin(module: Any) -> Any:
    """A module with the same parameters, buffers and parts, whose parts can be replaced without touching the first."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin


def _thinned(layer: Any, gone: bool, dropped: bool) -> Any:
    """A layer without its attention, its MLP, both or none of them."""
    names = _names(layer)
    assert names is not None
    if not (gone or dropped):
        return layer
    twin = _twin(layer)
    for name, left_out, nothing in zip(names, (gone, dropped), (NoAttention, NoMLP), strict=True):
        if left_out:
            twin._modules[name] = nothing().train(layer.training)
    return twin
