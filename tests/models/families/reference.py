"""Independent forwards of decoder stacks in plain torch, written from the papers' formulas.

They share no code with the library or with transformers and read weights under a family's own names, so they know
nothing of key maps. One row without padding, float64, all positions at once.

Sources: RMS norm (Zhang & Sennrich 2019), rotary positions in halves (Su et al. 2021), grouped queries (Ainslie et al.
2023), SwiGLU (Shazeer 2020), norms of queries and keys (Qwen3, 2025), GPT-2 (Radford et al. 2019), blocks (Arriola et
al. 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """What the weights do not tell: heads, width of a head, epsilon of the norms and base of the rotary positions."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float


@dataclass(frozen=True)
class Layer:
    """Weights of one layer by role; `[out, in]`. Biases and norms of queries and keys may be absent."""

    before_attention: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    before_mlp: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


def visible(width: int, block_size: int | None) -> Tensor:
    """Whether place i (row) sees place j (column), `[W, W]`: all of it, or j // block_size <= i // block_size."""
    if block_size is None:
        return torch.ones(width, width, dtype=torch.bool)
    block = torch.arange(width) // block_size
    return block[None, :] <= block[:, None]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`weight * x / sqrt(mean(x^2) + eps)` over the last dimension."""
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary positions 0, 1, ... of `x: [W, H, D]`: coordinates d and d + D/2 turn together."""
    width, _, size = x.shape
    half = size // 2
    speed = torch.tensor([theta ** (-2 * d / size) for d in range(half)], dtype=x.dtype)
    angle = (torch.arange(width, dtype=x.dtype)[:, None] * speed)[:, None, :]  # [W, 1, D/2]
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
    """Attention of `q: [W, H, D]` over `k, v: [W, G, D]`; query head h reads head h // (H / G). Gives `[W, H * D]`."""
    width, heads, size = q.shape
    out = []
    for head in range(heads):
        group = head // (heads // k.shape[1])
        score = q[:, head] @ k[:, group].T / math.sqrt(size)
        out.append(score.masked_fill(~sees, -torch.inf).softmax(-1) @ v[:, group])
    return torch.stack(out, 1).reshape(width, heads * size)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.T if bias is None else x @ weight.T + bias


def decoder(x: Tensor, layers: list[Layer], shape: Shape, sees: Tensor) -> Tensor:
    """Hidden states of a pre-norm stack with rotary positions and SwiGLU, before the last norm; `x: [W, hidden]`."""
    width = x.shape[0]
    for layer in layers:
        h = rms_norm(x, layer.before_attention, shape.eps)
        q = _linear(h, layer.q, layer.q_bias).view(width, shape.heads, shape.head_dim)
        k = _linear(h, layer.k, layer.k_bias).view(width, shape.kv_heads, shape.head_dim)
        v = _linear(h, layer.v, layer.v_bias).view(width, shape.kv_heads, shape.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rms_norm(q, layer.q_norm, shape.eps), rms_norm(k, layer.k_norm, shape.eps)
        x = x + attend(rotate(q, shape.theta), rotate(k, shape.theta), v, sees) @ layer.o.T
        h = rms_norm(x, layer.before_mlp, shape.eps)
        gate = h @ layer.gate.T
        x = x + (gate * gate.sigmoid() * (h @ layer.up.T)) @ layer.down.T
    return x


def doubled(weights: Weights) -> dict[str, Tensor]:
    """The weights in float64."""
    return {name: value.double() for name, value in weights.items()}


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension."""
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() + bias


def gpt2(
    embedded: Tensor, of: Callable[[str], Tensor], layers: int, heads: int, eps: float, sees: Tensor
) -> Tensor:
    """Normed hidden states of GPT-2's stack, `[W, hidden]`; its matrices are `[in, out]`.

    Args:
        embedded: token embeddings, `[W, hidden]`.
        of: weight by its name within the stack.
    """
    width, hidden = embedded.shape
    x = embedded + of("wpe.weight")[:width]
    for i in range(layers):
        h = layer_norm(x, of(f"h.{i}.ln_1.weight"), of(f"h.{i}.ln_1.bias"), eps)
        qkv = h @ of(f"h.{i}.attn.c_attn.weight") + of(f"h.{i}.attn.c_attn.bias")
        q, k, v = (part.view(width, heads, hidden // heads) for part in qkv.split(hidden, -1))
        x = x + attend(q, k, v, sees) @ of(f"h.{i}.attn.c_proj.weight") + of(f"h.{i}.attn.c_proj.bias")
        h = layer_norm(x, of(f"h.{i}.ln_2.weight"), of(f"h.{i}.ln_2.bias"), eps)
        h = h @ of(f"h.{i}.mlp.c_fc.weight") + of(f"h.{i}.mlp.c_fc.bias")
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + h @ of(f"h.{i}.mlp.c_proj.weight") + of(f"h.{i}.mlp.c_proj.bias")
    return layer_norm(x, of("ln_f.weight"), of("ln_f.bias"), eps)
