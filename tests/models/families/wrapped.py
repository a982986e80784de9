"""DiffuLLaMA and DiffuGPT (Gong et al. 2024): a causal backbone made bidirectional, shifted, a mask token added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.models.checkpoints import make_tokenizer
from tests.models.families import qwen
from tests.models.families.files import COLUMNS, HEADS, HIDDEN, LAYERS, POSITIONS, Family, words_target
from tests.models.families.reference import Weights, doubled, gpt2, visible

#: The added mask token, and the vocabulary that the configuration still speaks of.
MASK_ID, BEFORE = COLUMNS - 2, COLUMNS - 2


def _tokenizer(folder: Path) -> None:
    tokenizer = make_tokenizer(mask_token=None)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(folder)


_GPT2: dict[str, Any] = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 2,
    "embd_pdrop": 0.1, "eos_token_id": 2, "initializer_range": 0.02, "layer_norm_epsilon": 0.01, "model_type": "gpt2",
    "n_ctx": POSITIONS, "n_embd": HIDDEN, "n_head": HEADS, "n_layer": LAYERS, "n_positions": POSITIONS,
    "resid_pdrop": 0.1, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "torch_dtype": "float32", "vocab_size": BEFORE,
}  # fmt: skip


def _gpt2_shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (COLUMNS, HIDDEN), "denoise_model.wpe.weight": (POSITIONS, HIDDEN),
        "denoise_model.ln_f.weight": (HIDDEN,), "denoise_model.ln_f.bias": (HIDDEN,),
    }  # fmt: skip
    for i in range(LAYERS):
        layer = f"denoise_model.h.{i}."
        for norm in ("ln_1", "ln_2"):
            found[f"{layer}{norm}.weight"] = found[f"{layer}{norm}.bias"] = (HIDDEN,)
        sizes = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
        for name, (into, out) in sizes.items():
            found[f"{layer}{name}.weight"] = (into * HIDDEN, out * HIDDEN)
            found[f"{layer}{name}.bias"] = (out * HIDDEN,)
    return found


def _gpt2_outputs(weights: Weights, ids: list[int]) -> Tensor:
    double = doubled(weights)
    table, sees = double["embed_tokens.weight"], visible(len(ids), None)
    hidden = gpt2(table[ids], lambda name: double[f"denoise_model.{name}"], LAYERS, HEADS, 0.01, sees)
    return hidden @ table.T


_LLAMA: dict[str, Any] = qwen.SIZES | {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
    "model_type": "llama", "pretraining_tp": 1, "tie_word_embeddings": False, "vocab_size": BEFORE,
}  # fmt: skip


def _renamed(name: str) -> str:
    """The trainer's name of a weight of Llama: its embedding is taken out of the backbone."""
    return name.replace("model.embed_tokens.", "embed_tokens.").replace("model.", "denoise_model.")


def _llama_outputs(weights: Weights, ids: list[int]) -> Tensor:
    names = {_renamed(name): name for name in qwen.shapes(biased=False)}
    return qwen.stack(_LLAMA, {names[name]: value for name, value in weights.items()}, ids, block_size=None)


def _wrapped(
    config: Mapping[str, Any], shapes: dict[str, tuple[int, ...]], outputs: Callable[[Weights, list[int]], Tensor]
) -> Family:
    return Family(
        config=config, shapes=shapes, outputs=outputs, shift=True, mask_id=MASK_ID, save_tokenizer=_tokenizer,
        save_target=words_target(config["model_type"]),
    )  # fmt: skip


WRAPPED: dict[str, Family] = {
    "diffugpt": _wrapped(_GPT2, _gpt2_shapes(), _gpt2_outputs),
    "diffullama of the trainer": _wrapped(
        _LLAMA, {_renamed(name): shape for name, shape in qwen.shapes(biased=False).items()}, _llama_outputs
    ),
    # As published it is a plain Llama that nothing in its files calls a diffusion model.
    "diffullama as published": qwen.family(
        _LLAMA | {"vocab_size": COLUMNS}, _tokenizer, shift=True, mask_id=MASK_ID, biased=False,
        target=words_target("llama"), kwargs={"dlm_convention": "shifted"},
    ),
}  # fmt: skip
