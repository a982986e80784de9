"""The diffusion transformer of MDLM and BD3LM once more, from the papers' formulas, in numpy and float64.

Adaptive layer norm: Peebles and Xie 2023 (arXiv 2212.09748), section 3.2; rotary positions as turns of complex numbers:
Su et al. 2021 (arXiv 2104.09864), section 3.2; attention: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2; the
smooth rectifier: Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2. It reads weights by a checkpoint's names.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def logits(
    weights: Mapping[str, np.ndarray], ids: np.ndarray, *, heads: int, seen: np.ndarray, position: np.ndarray,
    sigma: float = 0.0,
) -> np.ndarray:
    """Logits `[B, F, vocabulary]` of `ids: [B, F]` at `position: [B, F]`, of which i sees j where `seen: [B, F, F]`.

    Args:
        weights: by the checkpoint's names less their first part, `backbone.`.
        heads: number of heads.
        sigma: noise level that the layer norms are conditioned on.
    """
    exact = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    time = _time(exact, sigma) if "sigma_map.mlp.0.weight" in exact else None
    hidden = exact["vocab_embed.embedding"][ids]
    blocks = 1 + max(int(name.split(".")[1]) for name in exact if name.startswith("blocks."))
    for block in (f"blocks.{i}." for i in range(blocks)):
        part = {name.removeprefix(block): value for name, value in exact.items() if name.startswith(block)}
        six = np.split(_changes(part, time, [0, 0, 1, 0, 0, 1], hidden.shape[-1]), 6)
        normed = _norm(hidden, part["norm1.weight"]) * (1 + six[1]) + six[0]
        hidden = hidden + six[2] * _attention(part, normed, heads, seen, position)
        normed = _norm(hidden, part["norm2.weight"]) * (1 + six[4]) + six[3]
        inner = _gelu(normed @ part["mlp.0.weight"].T + part["mlp.0.bias"])
        hidden = hidden + six[5] * (inner @ part["mlp.2.weight"].T + part["mlp.2.bias"])
    last = {name.removeprefix("output_layer."): value for name, value in exact.items() if "output_layer." in name}
    shift, scale = np.split(_changes(last, time, [0, 0], hidden.shape[-1]), 2)
    normed = _norm(hidden, last["norm_final.weight"]) * (1 + scale) + shift
    return normed @ last["linear.weight"].T + last["linear.bias"]


def _time(weights: Mapping[str, np.ndarray], sigma: float) -> np.ndarray:
    """`silu(W_2 silu(W_0 f + b_0) + b_2)` of 128 cosines and 128 sines of the noise level."""
    angle = sigma * 10_000.0 ** -(np.arange(128) / 128)
    features = np.concatenate([np.cos(angle), np.sin(angle)])
    inner = _silu(weights["sigma_map.mlp.0.weight"] @ features + weights["sigma_map.mlp.0.bias"])
    return _silu(weights["sigma_map.mlp.2.weight"] @ inner + weights["sigma_map.mlp.2.bias"])


def _changes(part: Mapping[str, np.ndarray], time: np.ndarray | None, plain: list[int], size: int) -> np.ndarray:
    """Shifts, scales and gates, one after the other."""
    if time is None:
        return np.repeat(np.array(plain, dtype=np.float64), size)
    return part["adaLN_modulation.weight"] @ time + part["adaLN_modulation.bias"]


def _attention(
    part: Mapping[str, np.ndarray], normed: np.ndarray, heads: int, seen: np.ndarray, position: np.ndarray
) -> np.ndarray:
    hidden = normed.shape[-1]
    size = hidden // heads
    turn = np.exp(1j * position[:, :, None] * 10_000.0 ** -(np.arange(0, size, 2) / size))  # [B, F, D / 2]
    mixed = np.zeros_like(normed)
    for head in range(heads):
        query, key, value = (
            normed @ part["attn_qkv.weight"][i * hidden + head * size : i * hidden + (head + 1) * size].T
            for i in range(3)
        )
        query, key = (turn * (x[..., : size // 2] + 1j * x[..., size // 2 :]) for x in (query, key))
        score = np.einsum("bid,bjd->bij", query, key.conj()).real / np.sqrt(size)
        weight = np.where(seen, np.exp(score - score.max(-1, keepdims=True)), 0)
        weight = weight / np.maximum(weight.sum(-1, keepdims=True), 1e-300)
        mixed[:, :, head * size : (head + 1) * size] = weight @ value
    return mixed @ part["attn_out.weight"].T


def _norm(hidden: np.ndarray, weight: np.ndarray) -> np.ndarray:
    centred = hidden - hidden.mean(-1, keepdims=True)
    return weight * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
