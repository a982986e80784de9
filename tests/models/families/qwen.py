"""Families with the weight names of Qwen2, Qwen3 or Llama: Dream, A2D, Fast-dLLM v2, SDAR, and any by configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.models.families.files import (
    COLUMNS,
    END,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    POSITIONS,
    SHARED,
    TURN_END,
    Family,
    bytes_target,
    save_bytes,
    words_target,
    words_tokenizer,
)
from tests.models.families.reference import Layer, Shape, Weights, decoder, doubled, rms_norm, visible

#: A head of Qwen3 is wider than its share of the hidden state.
WIDE_HEAD = 16


def shapes(
    *, biased: bool, normed: bool = False, head_dim: int = HIDDEN // HEADS, tied: bool = False
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights.

    Args:
        biased: biases of queries, keys and values (Qwen2).
        normed: norms of queries and keys (Qwen3).
        tied: no head of its own.
    """
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (COLUMNS, HIDDEN)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            found[f"{layer}self_attn.{name}_proj.weight"] = (heads * head_dim, HIDDEN)
            if biased:
                found[f"{layer}self_attn.{name}_proj.bias"] = (heads * head_dim,)
            if normed and name != "v":
                found[f"{layer}self_attn.{name}_norm.weight"] = (head_dim,)
        found[f"{layer}self_attn.o_proj.weight"] = (HIDDEN, HEADS * head_dim)
        found[f"{layer}mlp.gate_proj.weight"] = found[f"{layer}mlp.up_proj.weight"] = (INNER, HIDDEN)
        found[f"{layer}mlp.down_proj.weight"] = (HIDDEN, INNER)
        found[f"{layer}input_layernorm.weight"] = found[f"{layer}post_attention_layernorm.weight"] = (HIDDEN,)
    found["model.norm.weight"] = (HIDDEN,)
    return found if tied else found | {"lm_head.weight": (COLUMNS, HIDDEN)}


def stack(config: Mapping[str, Any], weights: Weights, ids: list[int], *, block_size: int | None) -> Tensor:
    """Outputs of one row, `[W, columns]`, of weights that have these names."""
    double = doubled(weights)
    shape = Shape(
        heads=config["num_attention_heads"], kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim", config["hidden_size"] // config["num_attention_heads"]),
        eps=config["rms_norm_eps"], theta=config["rope_theta"],
    )  # fmt: skip
    layers = []
    for i in range(config["num_hidden_layers"]):
        name, attention = f"model.layers.{i}.", f"model.layers.{i}.self_attn."
        layers.append(Layer(
            before_attention=double[f"{name}input_layernorm.weight"],
            q=double[f"{attention}q_proj.weight"], k=double[f"{attention}k_proj.weight"],
            v=double[f"{attention}v_proj.weight"], o=double[f"{attention}o_proj.weight"],
            before_mlp=double[f"{name}post_attention_layernorm.weight"], gate=double[f"{name}mlp.gate_proj.weight"],
            up=double[f"{name}mlp.up_proj.weight"], down=double[f"{name}mlp.down_proj.weight"],
            q_bias=double.get(f"{attention}q_proj.bias"), k_bias=double.get(f"{attention}k_proj.bias"),
            v_bias=double.get(f"{attention}v_proj.bias"), q_norm=double.get(f"{attention}q_norm.weight"),
            k_norm=double.get(f"{attention}k_norm.weight"),
        ))  # fmt: skip
    table = double["model.embed_tokens.weight"]
    hidden = decoder(table[ids], layers, shape, visible(len(ids), block_size))
    head = double.get("lm_head.weight", table)
    return rms_norm(hidden, double["model.norm.weight"], shape.eps) @ head.T


SIZES: dict[str, Any] = {
    "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": HIDDEN, "initializer_range": 0.02,
    "intermediate_size": INNER, "max_position_embeddings": POSITIONS, "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS, "rms_norm_eps": 0.01, "rope_scaling": None,
    "rope_theta": 500.0, "vocab_size": COLUMNS, "torch_dtype": "float32",
}  # fmt: skip
_WINDOWS: dict[str, Any] = {"max_window_layers": 1, "sliding_window": None, "use_sliding_window": False}
_ENDS: dict[str, Any] = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
_TWO_ENDS: dict[str, Any] = {
    "bos_token_id": END, "do_sample": True, "eos_token_id": [TURN_END, END], "pad_token_id": END,
    "temperature": 0.6, "top_k": 20, "top_p": 0.95,
}  # fmt: skip


def family(
    config: Mapping[str, Any], save_tokenizer: Callable[[Path], None], *, shift: bool, mask_id: int, biased: bool,
    normed: bool = False, block_size: int | None = None, target: Callable[[Path], None] = bytes_target,
    generation: Mapping[str, Any] | None = None, shards: int = 1, kwargs: Mapping[str, Any] | None = None,
) -> Family:  # fmt: skip
    """A family whose weights have the names of Qwen2, Qwen3 or Llama."""
    head_dim = config.get("head_dim", HIDDEN // HEADS)
    return Family(
        config=config,
        shapes=shapes(biased=biased, normed=normed, head_dim=head_dim, tied=config["tie_word_embeddings"]),
        outputs=partial(stack, config, block_size=block_size), shift=shift, mask_id=mask_id,
        save_tokenizer=save_tokenizer, save_target=target, block_size=block_size, generation=generation,
        shards=shards, kwargs=kwargs or {},
    )  # fmt: skip


# -- Dream (Ye et al. 2025), Dream-Coder, DiffuCoder (Gong et al. 2025), DreamOn (Wu et al. 2025)

_DREAM: dict[str, Any] = SIZES | _WINDOWS | _ENDS | {
    "architectures": ["DreamModel"],
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "mask_token_id": 19, "model_type": "Dream", "tie_word_embeddings": False, "transformers_version": "4.46.2",
    "use_cache": True, "use_mrope": False,
}  # fmt: skip
_DREAM_GENERATION = _ENDS | {"_from_model_config": True, "transformers_version": "4.46.2"}


def dream_tokenizer(folder: Path, *, more: Mapping[int, str] | None = None, pad: str | None = None) -> None:
    """Dream's tokenizer comes as code of its own beside a vocabulary and merges; there is no `tokenizer.json`."""
    added = SHARED | {18: "<|beginoftext|>", 19: "<|mask|>"} | dict(more or {})
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}, "bos_token": "<|beginoftext|>",
        "mask_token": "<|mask|>", "pad_token": pad or SHARED[END], "tokenizer_class": "DreamTokenizer",
    }  # fmt: skip
    save_bytes(folder, added, settings, whole=False)


def dream(tokenizer: Callable[[Path], None] = dream_tokenizer, **rest: Any) -> Family:
    """Full attention, shifted, weights in shards."""
    return family(
        _DREAM, tokenizer, shift=True, mask_id=19, biased=True, generation=_DREAM_GENERATION, shards=2, **rest
    )


# -- A2D (github.com/ZHZisZZ/dllm): a base model re-saved under another name


def _a2d_tokenizer(folder: Path) -> None:
    save_bytes(folder, SHARED | {18: "<|mask|>"}, {"mask_token": "<|mask|>"})


def _a2d(kind: str, more: Mapping[str, Any]) -> dict[str, Any]:
    config = {
        "architectures": [f"A2D{kind.capitalize()}LMHeadModel"], "dtype": "float32", "model_type": f"a2d-{kind}",
        "transformers_version": "4.57.0", "use_cache": True, "attention_bias": False,
    }  # fmt: skip
    return {name: value for name, value in (SIZES | config | more).items() if name != "torch_dtype"}


_LAYER_TYPES = {"layer_types": ["full_attention"] * LAYERS}
_A2D_QWEN2 = _a2d("qwen2", _WINDOWS | _LAYER_TYPES | _ENDS | {"tie_word_embeddings": True})
_A2D_QWEN3 = _a2d("qwen3", _WINDOWS | _LAYER_TYPES | _ENDS | {
    "auto_map": {
        "AutoConfig": "modeling_qwen3.A2DQwen3Config", "AutoModel": "modeling_qwen3.A2DQwen3LMHeadModel",
        "AutoModelForMaskedLM": "modeling_qwen3.A2DQwen3LMHeadModel",
    },
    "head_dim": WIDE_HEAD, "tie_word_embeddings": True,
})  # fmt: skip
_A2D_LLAMA = _a2d("llama", {
    "bos_token_id": 1, "eos_token_id": 2, "head_dim": HIDDEN // HEADS, "mlp_bias": False, "pad_token_id": None,
    "pretraining_tp": 1, "tie_word_embeddings": False,
})  # fmt: skip


def a2d(block_size: int | None) -> dict[str, Family]:
    """The three base models, trained with full attention or in blocks; the configuration is the same."""
    kwargs = {} if block_size is None else {"attention": "block", "block_size": block_size}
    name = "mdlm" if block_size is None else "bd3lm"
    return {
        f"a2d-qwen2-{name}": family(
            _A2D_QWEN2, _a2d_tokenizer, shift=False, mask_id=18, biased=True, block_size=block_size,
            generation=_TWO_ENDS, kwargs=kwargs,
        ),
        f"a2d-qwen3-{name}": family(
            _A2D_QWEN3, _a2d_tokenizer, shift=False, mask_id=18, biased=False, normed=True, block_size=block_size,
            generation=_TWO_ENDS, kwargs=kwargs,
        ),
        f"a2d-llama-{name}": family(
            _A2D_LLAMA, words_tokenizer(), shift=False, mask_id=3, biased=False, block_size=block_size,
            target=words_target("llama"), kwargs=kwargs,
        ),
    }  # fmt: skip


# -- Fast-dLLM v2 (Wu et al. 2025): Qwen2 in blocks, shifted; no entry of the configuration says what the mask is

_FAST: dict[str, Any] = SIZES | _WINDOWS | _LAYER_TYPES | {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration.Fast_dLLM_QwenConfig", "AutoModel": "modeling.Fast_dLLM_QwenModel",
        "AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM",
    },
    "bd_size": 8, "bos_token_id": END, "conplemenrary_mask": True, "eos_token_id": TURN_END,
    "model_type": "Fast_dLLM_Qwen", "pad_token_id": TURN_END, "tie_word_embeddings": False,
    "transformers_version": "4.53.1", "use_cache": True,
}  # fmt: skip


def _fast_tokenizer(folder: Path) -> None:
    settings = {"additional_special_tokens": ["|<MASK>|"], "eos_token": SHARED[TURN_END], "extra_special_tokens": {}}
    save_bytes(folder, SHARED | {18: "|<MASK>|"}, settings)


# -- SDAR (Cheng et al. 2025): Qwen3 in blocks

_SDAR: dict[str, Any] = SIZES | _WINDOWS | {
    "architectures": ["SDARForCausalLM"], "attention_bias": False, "attn_implementation": "flex_attention",
    "auto_map": {
        "AutoConfig": "configuration_sdar.SDARConfig", "AutoModel": "modeling_sdar.SDARModel",
        "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
    },
    "block_size": 4, "bos_token_id": END, "debug": False, "eos_token_id": END, "ep_size": 1,
    "fuse_cross_entropy": True, "head_dim": WIDE_HEAD, "mask_token_id": 18, "micro_forward": False,
    "model_type": "sdar", "skip_checkpoint": False, "tie_word_embeddings": False, "transformers_version": "4.52.4",
    "use_cache": False, "use_deepep": False,
}  # fmt: skip


def _sdar_tokenizer(folder: Path) -> None:
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenization_qwen2.Qwen2Tokenizer", None]}, "mask_token": "<|MASK|>",
    }  # fmt: skip
    save_bytes(folder, SHARED | {18: "<|MASK|>"}, settings)


# -- any other block model, by what the user says

_OTHER: dict[str, Any] = SIZES | {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
    "head_dim": HIDDEN // HEADS, "mlp_bias": False, "model_type": "llama", "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip

QWEN: dict[str, Family] = {
    "dream": dream(),
    "diffucoder": dream(partial(dream_tokenizer, more={20: "<|dlm_pad|>"}, pad="<|dlm_pad|>")),
    # The target has no token that widens the canvas, so the two vocabularies differ by it.
    "dreamon": dream(partial(dream_tokenizer, more={20: "<|expand|>"}), kwargs={"reduce": True}),
    **a2d(None),
    **a2d(4),
    "fast-dllm-v2": family(
        _FAST, _fast_tokenizer, shift=True, mask_id=18, biased=True, block_size=8, generation=_TWO_ENDS, shards=2
    ),
    "fast-dllm-v2 tied": family(
        _FAST | {"tie_word_embeddings": True}, _fast_tokenizer, shift=True, mask_id=18, biased=True, block_size=8,
        generation=_TWO_ENDS,
    ),
    "sdar": family(
        _SDAR, _sdar_tokenizer, shift=False, mask_id=18, biased=False, normed=True, block_size=4,
        generation=_TWO_ENDS, shards=2,
    ),
    "any block model": family(
        _OTHER, words_tokenizer(), shift=False, mask_id=3, biased=False, block_size=4, target=words_target("llama"),
        kwargs={"attention": "block", "block_size": 4, "dlm_convention": "unshifted"},
    ),
}  # fmt: skip
