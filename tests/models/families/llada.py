"""LLaDA (Nie et al. 2025): full attention, unshifted, names of its own, fused or separate projections."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from tests.models.families.files import (
    COLUMNS,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    POSITIONS,
    Family,
    words_target,
    words_tokenizer,
)
from tests.models.families.reference import Layer, Shape, Weights, decoder, doubled, rms_norm, visible

STEM = "model.transformer."
HEAD = HIDDEN // HEADS
#: Rows of the embedding: more than `vocab_size` says.
ROWS = COLUMNS + 2

_CONFIG: dict[str, Any] = {
    "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0, "attention_layer_norm": False, "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama", "d_model": HIDDEN,
    "embedding_dropout": 0.0, "embedding_size": ROWS, "eos_token_id": 2, "flash_attention": False,
    "include_bias": False, "include_qkv_bias": False, "init_cutoff_factor": None, "init_device": "meta",
    "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": False, "layer_norm_type": "rms",
    "layer_norm_with_affine": True, "mask_token_id": 3, "max_sequence_length": POSITIONS, "mlp_hidden_size": INNER,
    "mlp_ratio": 4, "model_type": "llada", "multi_query_attention": None, "n_heads": HEADS, "n_kv_heads": HEADS,
    "n_layers": LAYERS, "pad_token_id": 2, "precision": "amp_bf16", "residual_dropout": 0.0, "rms_norm_eps": 0.01,
    "rope": True, "rope_full_precision": True, "rope_theta": 500.0, "scale_logits": False,
    "transformers_version": "4.46.3", "use_cache": False, "vocab_size": COLUMNS, "weight_tying": False,
    "torch_dtype": "float32",
}  # fmt: skip


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    kv = config["n_kv_heads"] * HEAD
    inner = config["mlp_hidden_size"] or config["mlp_ratio"] * HIDDEN
    found: dict[str, tuple[int, ...]] = {f"{STEM}wte.weight": (ROWS, HIDDEN), f"{STEM}ln_f.weight": (HIDDEN,)}
    if not config["weight_tying"]:
        found[f"{STEM}ff_out.weight"] = (ROWS, HIDDEN)
    for i in range(LAYERS):
        block = f"{STEM}blocks.{i}."
        found[f"{block}attn_norm.weight"] = found[f"{block}ff_norm.weight"] = (HIDDEN,)
        found[f"{block}attn_out.weight"] = (HIDDEN, HIDDEN)
        found[f"{block}ff_proj.weight"] = (inner, HIDDEN)
        projections = {"q_proj": HIDDEN, "k_proj": kv, "v_proj": kv}
        if config["block_type"] == "sequential":
            projections = {"att_proj": HIDDEN + 2 * kv}
            found[f"{block}ff_out.weight"] = (HIDDEN, inner // 2)
        else:
            found[f"{block}up_proj.weight"] = (inner, HIDDEN)
            found[f"{block}ff_out.weight"] = (HIDDEN, inner)
        for name, rows in projections.items():
            found[f"{block}{name}.weight"] = (rows, HIDDEN)
            if config["include_qkv_bias"]:
                found[f"{block}{name}.bias"] = (rows,)
    return found


def _layer(weights: Weights, block: str, kv_heads: int) -> Layer:
    """One block; a fused projection holds queries, keys and values, a fused MLP its values and then its gate."""
    biases: list[Tensor | None]
    if f"{block}att_proj.weight" in weights:
        sizes = [HIDDEN, kv_heads * HEAD, kv_heads * HEAD]
        q, k, v = weights[f"{block}att_proj.weight"].split(sizes)
        bias = weights.get(f"{block}att_proj.bias")
        biases = [None] * 3 if bias is None else list(bias.split(sizes))
        up, gate = weights[f"{block}ff_proj.weight"].chunk(2)
    else:
        q, k, v = (weights[f"{block}{name}_proj.weight"] for name in "qkv")
        biases = [weights.get(f"{block}{name}_proj.bias") for name in "qkv"]
        gate, up = weights[f"{block}ff_proj.weight"], weights[f"{block}up_proj.weight"]
    return Layer(
        weights[f"{block}attn_norm.weight"], q, k, v, weights[f"{block}attn_out.weight"],
        weights[f"{block}ff_norm.weight"], gate, up, weights[f"{block}ff_out.weight"], *biases,
    )  # fmt: skip


def _outputs(config: Mapping[str, Any], weights: Weights, ids: list[int]) -> Tensor:
    double = doubled(weights)
    shape = Shape(config["n_heads"], config["n_kv_heads"], HEAD, config["rms_norm_eps"], config["rope_theta"])
    layers = [_layer(double, f"{STEM}blocks.{i}.", shape.kv_heads) for i in range(LAYERS)]
    table = double[f"{STEM}wte.weight"]
    hidden = decoder(table[ids], layers, shape, visible(len(ids), None))
    return rms_norm(hidden, double[f"{STEM}ln_f.weight"], shape.eps) @ double.get(f"{STEM}ff_out.weight", table).T


def _llada(*, shards: int = 1, **changes: Any) -> Family:
    config = _CONFIG | changes
    # The tokenizer has the mask as a token, but does not call it the mask; padding is the end.
    return Family(
        config=config, shapes=_shapes(config), outputs=partial(_outputs, config), shift=False, mask_id=3,
        save_tokenizer=words_tokenizer(mask_token=None, pad_token="<eos>"), save_target=words_target("llama"),
        shards=shards,
    )  # fmt: skip


LLADA: dict[str, Family] = {
    "llada": _llada(shards=3),
    "llada tied, grouped": _llada(weight_tying=True, n_kv_heads=KV_HEADS),
    "llada biased": _llada(include_qkv_bias=True),
    "llada fused": _llada(block_type="sequential", activation_type="swiglu", n_kv_heads=KV_HEADS),
    "llada fused, sizes by default": _llada(
        block_type="sequential", activation_type="swiglu", mlp_hidden_size=None, mlp_ratio=2
    ),
}  # fmt: skip
