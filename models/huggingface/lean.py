"""The forward of Llama-shaped models in few operations: the same weights, and logits that differ by round-off alone.

A forward over a small model spends much of its time on what transformers does around the products: RMS norms in six
operations, rotary embeddings in ten, copies of keys and values for every group of heads, calls of modules, look-ups in
configurations. Here a norm is one operation and a rotation three, and of the last layer only the keys and values are
computed at places whose logits are not wanted.

Nothing of a model is kept but references to its modules, so that weights may be loaded, moved or trained in between. A
model that is not ordinary (hooks, replaced modules or forwards, sliding windows, another attention than sdpa) is called
itself, and so is one whose logits differ here: see `lean`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicCache

from smc_bridge.models.huggingface.head import kept
from smc_bridge.models.huggingface.skipped import NoAttention, NoMLP

#: Models of this shape, and what the names of their parts begin with.
SHAPES = {"Qwen2ForCausalLM": "Qwen2", "Qwen3ForCausalLM": "Qwen3", "LlamaForCausalLM": "Llama"}

#: Kinds of rotary embedding whose frequencies are always the same.
STATIC_ROTARY = frozenset({"default", "linear", "llama3"})

#: What a model of a known shape has besides products, an embedding and lists.
PARTS = ("Model", "DecoderLayer", "Attention", "MLP", "RMSNorm", "RotaryEmbedding")

#: Types of weights, and the difference of two logits that is round-off, in units of the greatest logit's last place.
ROUND_OFF = {torch.float64: 256, torch.float32: 256, torch.bfloat16: 8, torch.float16: 16}


class Lean:
    """The forward of a model that is ordinary throughout.

    Args:
        model: a transformers model.
    Raises:
        ValueError: it is not (`unusual`).
    """

    def __init__(self, model: Any) -> None:
        what = unusual(model)
        if what is not None:
            raise ValueError(f"model = {type(model).__name__}: {what}; call the model itself")
        self.model = model
        modules, layers = list(model.modules()), model.model.layers[: model.config.num_hidden_layers]
        # What must be as it was for a forward to be the model's, looked at before every one.
        shared = torch.nn.modules.module
        self._hooks: list[Any] = [shared._global_forward_hooks, shared._global_forward_pre_hooks]
        for module in modules:
            self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        self._attributes = [module.__dict__ for module in modules]
        self._kinds = [(module, type(module)) for module in modules]
        self._children = [(each._modules, name, part) for each in modules for name, part in each._modules.items()]
        # Of each layer: norm, attention and its parts, norm, parts of the perceptron.
        self._layers = [
            (x.input_layernorm, x.self_attn, x.self_attn._modules, x.post_attention_layernorm, x.mlp._modules)
            for x in layers
        ]
        self._parts = model.model._modules
        # Qwen3 has norms of queries and keys.
        self._plain = not any(hasattr(x.self_attn, "q_norm") for x in layers)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model has parts of its own."""
        return Lean, (self.model,)

    def fits(self, mask: Tensor | dict[str, Tensor]) -> bool:
        """Whether a forward under this mask is still the model's own: an additive `[B or 1, 1, F, K]` of its type."""
        if isinstance(mask, dict):
            mask = mask["full_attention"]
        model = self.model
        weight, config = self._parts["norm"]._parameters["weight"], model.config
        return (
            mask.dim() == 4
            and mask.dtype == weight.dtype
            and not any(self._hooks)
            and not any("forward" in each for each in self._attributes)
            and all(type(module) is kind for module, kind in self._kinds)
            and all(parts.get(name) is part for parts, name, part in self._children)
            and config._attn_implementation == "sdpa"
            and config.num_hidden_layers == len(self._layers)
            and model._compiled_call_impl is None
            and not model.training
            and not torch.is_autocast_enabled(weight.device.type)
        )

    def __call__(
        self, ids: Tensor, mask: Tensor | dict[str, Tensor], position: Tensor, cache: Any = None,
        keep: int | Tensor = 0,
    ) -> Tensor:
        """Logits of one forward without gradient, `[B, C, columns]`; arguments as of `states`."""
        return self.head(self.states(ids, mask, position, cache, keep))

    def head(self, states: Tensor) -> Tensor:
        """Logits `[..., columns]` of `states: [..., hidden]`."""
        return _linear(self.model._modules["lm_head"], states)

    def states(
        self, ids: Tensor, mask: Tensor | dict[str, Tensor], position: Tensor, cache: Any = None,
        keep: int | Tensor = 0,
    ) -> Tensor:
        """What the head reads, of one forward without gradient.

        Args:
            ids: token ids, `[B, F]`.
            mask: additive, `[B or 1, 1, F, K]`, K places cached and fresh; or one for each kind of layer.
            position: of the tokens, `[B or 1, F]`.
            cache: a transformers `Cache`, or None.
            keep: how many of the last places are wanted (0: all), or which, `[C]` or `[B, C]`.
        Returns:
            `[B, C, hidden]`.
        """
        parts, (batch, width) = self._parts, ids.shape
        if isinstance(mask, dict):
            mask = mask["full_attention"]
        hidden = functional.embedding(ids, parts["embed_tokens"]._parameters["weight"])
        cos, sin = _rotation(parts["rotary_emb"], position, hidden.dtype)
        hidden = hidden.flatten(0, 1)  # [B * F, hidden]
        last, queries = len(self._layers) - 1, width
        for index, (first, attention, inner, second, mlp) in enumerate(self._layers):
            if type(attention) is NoAttention:
                hidden = _plus_mlp(second, mlp, hidden)
                continue
            size, normed = attention.head_dim, _norm(first, hidden)
            key = _linear(inner["k_proj"], normed).view(batch, width, -1, size)
            value = _linear(inner["v_proj"], normed).view(batch, width, -1, size).transpose(1, 2)
            key = _turned(key if self._plain else _norm(inner["k_norm"], key), cos, sin).transpose(1, 2)
            if index == last and _narrows(keep, width):
                hidden, normed = (kept(x.view(batch, width, -1), keep).flatten(0, 1) for x in (hidden, normed))
                cos, sin = (kept(x.expand(batch, -1, -1, -1), keep) for x in (cos, sin))
                mask = kept(mask.expand(batch, -1, -1, -1).transpose(1, 2), keep).transpose(1, 2)
                keep, queries = 0, cos.shape[1]
            query = _linear(inner["q_proj"], normed).view(batch, queries, -1, size)
            query = _turned(query if self._plain else _norm(inner["q_norm"], query), cos, sin).transpose(1, 2)
            if cache is not None:
                key, value = cache.update(key, value, index)
            mixed = _attend(query, key, value, mask, attention.scaling).transpose(1, 2).reshape(batch * queries, -1)
            hidden = _plus_mlp(second, mlp, hidden + _linear(inner["o_proj"], mixed))
        return kept(_norm(parts["norm"], hidden).view(batch, queries, -1), keep)


def _linear(module: Any, states: Tensor) -> Tensor:
    weights = module._parameters
    return functional.linear(states, weights["weight"], weights["bias"])


def _plus_mlp(norm: Any, mlp: Any, hidden: Tensor) -> Tensor:
    """Hidden states with what the perceptron of a layer adds; one that is left out has no parts and adds nothing."""
    if not mlp:
        return hidden
    normed = _norm(norm, hidden)
    gate = functional.silu(_linear(mlp["gate_proj"], normed), inplace=True)
    return hidden + _linear(mlp["down_proj"], gate.mul_(_linear(mlp["up_proj"], normed)))


def _norm(module: Any, states: Tensor) -> Tensor:
    """RMS norm over the last dimension in float32 whatever the type, rounded where the module rounds."""
    dtype, eps = states.dtype, module.variance_epsilon
    weight: Tensor = module._parameters["weight"]
    if dtype is torch.float32:
        return functional.rms_norm(states, weight.shape, weight, eps)
    states = states.float()
    if dtype is torch.float64:  # a fused norm would differ in float32's last place
        return weight * (states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + eps)).to(dtype)
    return weight * functional.rms_norm(states, weight.shape, None, eps).to(dtype)


def _rotation(rotary: Any, position: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign that the other half is added with, of positions: `[B or 1, F, 1, D]` each."""
    angle = position[:, :, None, None].float() * rotary.inv_freq.float()
    cos, sin = angle.cos(), angle.sin()
    if rotary.attention_scaling != 1:
        cos, sin = cos * rotary.attention_scaling, sin * rotary.attention_scaling
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `[B, F, H, D]`: x cos + (x's halves exchanged) sin."""
    other = states.roll(states.shape[-1] // 2, -1)
    if states.dtype in (torch.float32, torch.float64):
        return torch.addcmul(states * cos, other, sin)
    return (states * cos).add_(other.mul_(sin))  # rounded as the model rounds


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention `[B, H, C, D]` of queries `[B, H, C, D]` over keys and values of fewer heads `[B, G, K, D]`."""
    groups = query.shape[1] // key.shape[1]
    grouped = groups > 1 and query.device.type == "cpu"
    if groups > 1 and not grouped:  # other devices have quick kernels for a mask or for groups, and not for both
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped
    )


def _narrows(keep: int | Tensor, width: int) -> bool:
    """Whether fewer than all F = `width` places are wanted."""
    return 0 < keep < width if isinstance(keep, int) else keep.dtype != torch.bool and keep.shape[-1] < width


def unusual(model: Any) -> str | None:
    """What of a model is not as in `SHAPES`, or None."""
    name = type(model).__name__
    if name not in SHAPES or type(model) is not getattr(transformers, name, None):
        return "is no known shape"
    prefix, own, config = SHAPES[name], vars(sys.modules[type(model).__module__]), model.config
    ordinary = {torch.nn.Linear, torch.nn.Embedding, torch.nn.ModuleList, NoAttention, NoMLP}
    ordinary |= {own[prefix + part] for part in PARTS}
    if not {type(m) for path, m in model.named_modules() if path and not path.endswith(".act_fn")} <= ordinary:
        return "has parts of another kind"
    if config.hidden_act not in ("silu", "swish") or config.attention_dropout:
        return "has another activation, or dropout"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return "has layers that do not see all"
    rotary, layers = model.model.rotary_emb, model.model.layers
    heads = {x.self_attn.head_dim for x in layers if type(x.self_attn) is not NoAttention}
    if rotary.rope_type not in STATIC_ROTARY or heads != {2 * rotary.inv_freq.numel()}:
        return "has another rotary embedding"
    weights = [*model.parameters(), rotary.inv_freq]
    if any(type(each) is not torch.nn.Parameter for each in weights[:-1]):
        return "has weights of another kind"
    if len({each.device for each in weights}) > 1 or len({each.dtype for each in weights[:-1]}) > 1:
        return "has weights of several types or on several devices"
    return None if weights[0].dtype in ROUND_OFF else "has weights of another type"


def lean(model: Any) -> Lean | None:
    """The lean forward of a model, or None if the model is unusual or its own logits are others.

    They are compared in two forwards over ragged rows under a mask, the second over what the first has cached.
    """
    try:
        found = Lean(model)
        return found if found.fits(_probe(model)[1]) and _agrees(found) else None
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):  # or another transformers
        return None


def _probe(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Ids `[3, 6]`, an additive mask `[3, 1, 6, 10]` that hides about a third, and ragged positions `[3, 10]`."""
    weight = model.model.embed_tokens.weight
    number = torch.arange(180, device=weight.device)
    ids = (7919 * number[:18] + 3).view(3, 6) % weight.shape[0]
    hidden = (37 * number % 101 % 3 == 0).view(3, 1, 6, 10)
    mask = torch.zeros_like(hidden, dtype=weight.dtype).masked_fill_(hidden, torch.finfo(weight.dtype).min)
    return ids, mask, number[:10] + 5 * number[:3, None]


@torch.no_grad()
def _agrees(found: Lean) -> bool:
    """Whether both forwards give the same logits but for round-off."""
    ids, mask, position = _probe(found.model)
    wanted = torch.tensor([0, 3, 2], device=ids.device)
    own, other = DynamicCache(), DynamicCache()
    for tokens, seen, place, keep in (
        (ids[:, :4], mask[..., :4, :4], position[:, :4], 2), (ids, mask, position[:, 4:], wanted),
    ):
        expected = found.model(
            input_ids=tokens, attention_mask=seen, position_ids=place, past_key_values=own, use_cache=True,
            logits_to_keep=keep,
        ).logits
        difference = (found(tokens, seen, place, other, keep) - expected).abs().max()
        room = ROUND_OFF[expected.dtype] * torch.finfo(expected.dtype).eps
        if not bool(difference <= room * expected.abs().max()):  # nor NaN
            return False
    return True
