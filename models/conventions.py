"""How a diffusion language model is run: the one table of conventions, keyed by the model type of its configuration.

A checkpoint says what its weights are, not how its outputs are to be read. What differs between published models:

- *shift*: whether the output at place i - 1 predicts place i (kept from the autoregressive model it was made of) or the
  output at place i does;
- *attention*: what a place sees: every place ("full"), or those of its own block and the blocks before it ("block");
- *masking*: how the network is told so (`Masking`);
- *native*: the network of transformers, or of this package, that its weights belong in, so that no code of the
  checkpoint's has to run (`Native`);
- the id of the mask token: the configuration's, the tokenizer's, or one that the family agreed on;
- the name under which the configuration keeps the longest input.

Rows of the embedding past the tokenizer's ids are padding in every family, and no law draws them; ends of sequence are
those of the target.

Sources: Dream (Ye et al. 2025, arXiv 2508.15487), of whose kind are Dream-Coder, DiffuCoder (Gong et al. 2025, arXiv
2506.20639) and DreamOn; DiffuLLaMA and DiffuGPT (Gong et al. 2024, arXiv 2410.17891); LLaDA (Nie et al. 2025, arXiv
2502.09992); MDLM (Sahoo et al. 2024, arXiv 2406.07524); BD3LM (Arriola et al. 2025, arXiv 2503.09573); Fast-dLLM v2 (Wu
et al. 2025, arXiv 2509.26328); SDAR (Cheng et al. 2025, arXiv 2510.06303); A2D (github.com/ZHZisZZ/dllm: shifted or not
by an option of its trainer, `right_shift_logits`, off by default; a configuration that carries the option is believed,
otherwise a model trained with it needs `dlm_convention="shifted"`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from smc_bridge.models.arguments import said

#: What a place sees: every place, or those of its block and of the blocks before it.
Attention = Literal["full", "block"]
#: How a network is told what its places see.
#: - "mask-4d": it takes a `[B, 1, W, W]` additive mask as it stands; a causal architecture becomes bidirectional by it.
#: - "mask-2d": bidirectional by itself; it reads a `[B, W]` mask of the real tokens.
#: - "unpadded": bidirectional by itself and blind to masks: only rows of one length may share a forward.
Masking = Literal["mask-4d", "mask-2d", "unpadded"]
Override = Literal["shifted", "unshifted"]
OVERRIDES: tuple[str, ...] = get_args(Override)
ATTENTIONS: tuple[str, ...] = get_args(Attention)

#: Entry of a configuration with the longest input, tokens, unless the convention names another.
LENGTH_KEY = "max_position_embeddings"


@dataclass(frozen=True)
class Native:
    """A network that needs no code of the checkpoint's.

    Attributes:
        architecture: class of transformers, or "DiT" (`smc_bridge.models.huggingface.dit`).
        published: class that the checkpoint's configuration names; another one of its type is another network.
        entries: from the checkpoint's configuration to that of the network, or to entries of it; by default the same.
        renaming: pattern -> replacement of the names of weights, the first that matches; others keep theirs.
        fused: pattern of a weight that holds several along its first dimension -> their names, in their order; looked
            at before `renaming`.
        unused: patterns of what the checkpoint holds besides.
        resized: the rows of the embedding are those of the weights, whatever the configuration says.
    """

    architecture: str
    published: str | None = None
    entries: Callable[[Mapping[str, Any]], Any] = dict
    renaming: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    resized: bool = False


@dataclass(frozen=True)
class Convention:
    """How one family of diffusion models is run.

    Attributes:
        family: its name, or None of what transformers has many of.
        shift: whether the output at place i - 1 predicts place i.
        attention: see `Attention`.
        either: models of this type are trained with either attention, and no configuration tells which.
        block_size: tokens of a block of "block" attention, or None.
        block_keys: entries of the configuration that say so.
        block_switch: entry of the configuration without which, if it is false, attention is full.
        native: the network that the weights belong in, or None if an automatic class finds it.
        native_of: which one that is for a configuration, where a family has several.
        mask_token: text of the mask token, where neither configuration nor tokenizer tells which token it is.
        last_is_mask: the mask token is the last id of the vocabulary, and no tokenizer knows it.
        length_key: entry of the configuration with the longest input, tokens.
        masking: see `Masking`.
        auto_class: class of transformers that finds the architecture, where it is not `native`.
        inputs: further inputs of that one's forward; "zeros" stands for one zero per row.
        configuration: entries of the configuration that are set when it is loaded.
    """

    family: str | None
    shift: bool
    masking: Masking
    attention: Attention = "full"
    either: bool = False
    block_size: int | None = None
    block_keys: tuple[str, ...] = ()
    block_switch: str | None = None
    native: Native | None = None
    native_of: Callable[[Mapping[str, Any]], Native] | None = None
    mask_token: str | None = None
    last_is_mask: bool = False
    length_key: str = LENGTH_KEY
    auto_class: str = "AutoModelForMaskedLM"
    inputs: Mapping[str, Any] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)


def _llada(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of LLaDA as one of Llama."""
    fused = config.get("block_type", "sequential") == "sequential"
    alike = {
        "block_type": "sequential" if fused else "llama", "activation_type": "swiglu" if fused else "silu",
        "layer_norm_type": "rms", "layer_norm_with_affine": True, "rope": True, "rope_scaling": None, "alibi": False,
        "attention_layer_norm": False, "scale_logits": False, "input_emb_norm": False, "block_group_size": 1,
    }  # fmt: skip
    usual = alike | {"activation_type": "swiglu", "layer_norm_type": "default", "rope": False}  # where nothing is said
    for name, wanted in alike.items():
        found = config.get(name, usual[name])
        if found != wanted:
            raise ValueError(f"{name} = {said(found)} in its configuration is not known here, only {wanted!r}")
    size, heads = config["d_model"], config["n_heads"]
    inner = config.get("mlp_hidden_size") or config.get("mlp_ratio", 4) * size
    one = 1 if config.get("multi_query_attention") else heads
    return {
        "hidden_size": size, "num_attention_heads": heads, "num_hidden_layers": config["n_layers"],
        "num_key_value_heads": config.get("n_kv_heads") or one,
        "intermediate_size": inner // 2 if fused else inner,
        "vocab_size": config.get("embedding_size") or config["vocab_size"],
        "max_position_embeddings": config.get("max_sequence_length", 1024),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5), "rope_theta": config.get("rope_theta", 10000.0),
        "tie_word_embeddings": config.get("weight_tying", True), "mlp_bias": config.get("include_bias", False),
        "attention_bias": bool(config.get("include_bias") or config.get("include_qkv_bias")),
        **{name: config.get(name) for name in ("eos_token_id", "pad_token_id", "dtype", "torch_dtype")},
    }  # fmt: skip


_BODY, _LAYER = r"^(?:model\.)?transformer\.", r"^(?:model\.)?transformer\.blocks\.(\d+)\."
_LLADA = Native(
    "LlamaForCausalLM", "LLaDAModelLM", _llada,
    {
        _BODY + r"wte\.": "model.embed_tokens.",
        _BODY + r"ln_f\.": "model.norm.",
        _BODY + r"ff_out\.": "lm_head.",
        _LAYER + r"attn_norm\.": r"model.layers.\1.input_layernorm.",
        _LAYER + r"([qkv])_proj\.": r"model.layers.\1.self_attn.\2_proj.",
        _LAYER + r"attn_out\.": r"model.layers.\1.self_attn.o_proj.",
        _LAYER + r"ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
        _LAYER + r"ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
        _LAYER + r"up_proj\.": r"model.layers.\1.mlp.up_proj.",
        _LAYER + r"ff_out\.": r"model.layers.\1.mlp.down_proj.",
    },
)


def _llada_network(config: Mapping[str, Any]) -> Native:
    """That of LLaDA with this configuration: a Qwen2, not a Llama, has biases of queries, keys and values alone; and
    the layers of another kind fuse these into one weight, and both parts of SwiGLU."""
    found = _LLADA
    if config.get("include_qkv_bias") and not config.get("include_bias"):
        found = replace(found, architecture="Qwen2ForCausalLM")
    if config.get("block_type", "sequential") == "sequential":
        parts = tuple(rf"model.layers.\1.self_attn.{x}_proj." for x in "qkv")
        gated = (r"model.layers.\1.mlp.up_proj.", r"model.layers.\1.mlp.gate_proj.")
        found = replace(found, fused={_LAYER + r"att_proj\.": parts, _LAYER + r"ff_proj\.": gated})
    return found


#: Names of weights of MDLM and BD3LM, and in `DiT`.
_DIT_KEYS = {
    r"^backbone\.vocab_embed\.embedding$": "embedding.weight",
    r"^backbone\.sigma_map\.mlp\.": "time.",
    r"^backbone\.blocks\.(\d+)\.norm1\.": r"blocks.\1.norm_attention.",
    r"^backbone\.blocks\.(\d+)\.attn_qkv\.": r"blocks.\1.qkv.",
    r"^backbone\.blocks\.(\d+)\.attn_out\.": r"blocks.\1.out.",
    r"^backbone\.blocks\.(\d+)\.norm2\.": r"blocks.\1.norm_mlp.",
    r"^backbone\.blocks\.(\d+)\.mlp\.": r"blocks.\1.mlp.",
    r"^backbone\.blocks\.(\d+)\.adaLN_modulation\.": r"blocks.\1.modulation.",
    r"^backbone\.output_layer\.norm_final\.": "norm.",
    r"^backbone\.output_layer\.adaLN_modulation\.": "modulation.",
    r"^backbone\.output_layer\.linear\.": "head.",
}
#: What such checkpoints hold besides: rotary frequencies, computed here, and noise levels of BD3LM's training.
_DIT_UNUSED = (r"^backbone\.rotary_emb\.inv_freq$", r"^sampling_eps_(min|max)$")


def _dit(config: Mapping[str, Any]) -> Any:
    """A configuration of MDLM or BD3LM as one of `DiT`."""
    from smc_bridge.models.huggingface.dit import DiTConfig

    return DiTConfig.from_checkpoint(config)


_DIT = Native("DiT", entries=_dit, renaming=_DIT_KEYS, unused=_DIT_UNUSED)


def _wrapped(architecture: str, body: str, embedding: str) -> Convention:
    """DiffuLLaMA's and DiffuGPT's trainer wrote a wrapper round a backbone of transformers, its embedding apart."""
    renaming = {r"^denoise_model\.": f"{body}.", r"^embed_tokens\.": f"{body}.{embedding}."}
    return Convention(
        "DiffuLLaMA", True, "mask-4d", native=Native(architecture, renaming=renaming, resized=True)
    )


def _a2d(architecture: str) -> Convention:
    return Convention(
        "A2D", False, "mask-4d", either=True, block_keys=("block_size",), native=Native(architecture)
    )


#: Masked LMs of transformers that take a mask of the real tokens and let padding through all the same.
_BLIND = Convention(None, False, "unpadded")
#: Conventions by `config.model_type`. Masked LMs of transformers need no entry: they are `NATIVE_MASKED`.
CONVENTIONS: dict[str, Convention] = {
    "Dream": Convention(
        "Dream", True, "mask-4d", native=Native("Qwen2ForCausalLM", "DreamModel")
    ),  # and Dream-Coder, DiffuCoder, DreamOn
    "llada": Convention(
        "LLaDA", False, "mask-4d", native=_LLADA, native_of=_llada_network, length_key="max_sequence_length",
    ),
    "a2d-llama": _a2d("LlamaForCausalLM"),
    "a2d-qwen2": _a2d("Qwen2ForCausalLM"),
    "a2d-qwen3": _a2d("Qwen3ForCausalLM"),
    "Fast_dLLM_Qwen": Convention(
        "Fast-dLLM v2", True, "mask-4d", "block", block_size=32, block_keys=("bd_size", "block_size"),
        mask_token="|<MASK>|", native=Native("Qwen2ForCausalLM"),
    ),
    "sdar": Convention(
        "SDAR", False, "mask-4d", "block", block_size=4, block_keys=("block_size", "block_length"),
        mask_token="<|MASK|>", native=Native("Qwen3ForCausalLM"),
    ),
    "mdlm": Convention(
        "MDLM", False, "mask-4d", native=_DIT, last_is_mask=True, length_key="model_length",
        inputs={"timesteps": "zeros"},
    ),
    "bd3lm": Convention(
        "BD3LM", False, "mask-4d", "block", block_keys=("block_size",), block_switch="cross_attn", native=_DIT,
        last_is_mask=True, length_key="model_length", inputs={"timesteps": "zeros", "sample_mode": True},
    ),
    "convbert": _BLIND,  # its convolutions reach over padding
    "fnet": _BLIND,
    "funnel": _BLIND,
    "mobilebert": _BLIND,  # every embedding reads its neighbours'
    "nystromformer": _BLIND,
    "reformer": _BLIND,
    "yoso": _BLIND,
    # Its sparse attention reads padding, and gives way to the full one for good at the first short row.
    "big_bird": Convention(None, False, "mask-2d", configuration={"attention_type": "original_full"}),
}
NATIVE_MASKED = Convention(None, False, "mask-2d")
CAUSAL_BACKBONE = Convention(None, True, "mask-4d", auto_class="AutoModelForCausalLM")
#: Diffusion models that are known not to be run by any convention here, by `config.model_type`, and why.
UNKNOWN: dict[str, str] = {
    "nemotron_labs_diffusion": "what it has finished sees only what stands before it, and the open block everything",
    "sdar_moe": "it is a mixture of experts",
    "llada2_moe": "it is a mixture of experts",
}
#: Prefix of the weights that DiffuLLaMA's and DiffuGPT's trainer writes round a backbone of transformers.
WRAPPED = "denoise_model."
#: Conventions of such weights, by the model type of the backbone.
UNWRAPPED: dict[str, Convention] = {
    "gpt2": _wrapped("GPT2LMHeadModel", "transformer", "wte"),
    "llama": _wrapped("LlamaForCausalLM", "model", "embed_tokens"),
}
#: How the checkpoint's own code is masked, where it is trusted: conventions that differ from the native route.
OWN_MASKING: dict[str, Masking] = {
    "Dream": "mask-4d", "a2d-llama": "mask-2d", "a2d-qwen2": "mask-2d", "a2d-qwen3": "mask-2d",
}
