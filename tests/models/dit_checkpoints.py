"""Checkpoint folders of MDLM and BD3LM, tiny and random, in these families' own layout.

Neither has a tokenizer with a mask token: the mask is the last id of the vocabulary. Both name code of their own, which
is not in the folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.models.checkpoints import make_tokenizer

HIDDEN, HEADS, BLOCKS, CONDITION = 16, 2, 2, 6
SIZE = 21  # the tokenizer's 20 ids and the mask
MASK_ID = SIZE - 1

#: What both families' configurations hold.
_COMMON: dict[str, Any] = {
    "cond_dim": CONDITION, "dropout": 0.1, "hidden_dim": HIDDEN, "n_blocks": BLOCKS, "n_heads": HEADS,
    "return_dict": False, "time_conditioning": False, "torch_dtype": "float32", "vocab_size": SIZE,
}


def save_mdlm(folder: Path, *, seed: int = 0, length: int = 64) -> dict[str, torch.Tensor]:
    """Save a checkpoint as MDLM's; returns its weights by the names that they are saved under."""
    config = _COMMON | {
        "architectures": ["MDLM"],
        "auto_map": {
            "AutoConfig": "configuration_mdlm.MDLMConfig", "AutoModelForMaskedLM": "modeling_mdlm.MDLM",
        },
        "model_length": length, "model_type": "mdlm", "transformers_version": "4.38.2",
    }
    return _save(folder, config, _weights(seed, adaptive=True))


def save_bd3lm(
    folder: Path, *, block_size: int = 4, adaln: bool = True, cross_attn: bool = True, seed: int = 0, length: int = 64
) -> dict[str, torch.Tensor]:
    """Save a checkpoint as BD3LM's; returns its weights by the names that they are saved under.

    Args:
        block_size: tokens of a block.
        adaln: whether there is adaptive layer norm.
        cross_attn: whether it is block-causal; if False, all tokens see each other.
        seed: of the weights.
        length: longest input, tokens.
    """
    name = f"kuleshov-group/bd3lm-owt-block_size{block_size}"
    config = _COMMON | {
        "_name_or_path": name, "adaln": adaln, "architectures": ["BD3LM"], "attn_backend": "flex",
        "auto_map": {
            "AutoConfig": f"{name}--configuration_bd3lm.BD3LMConfig",
            "AutoModelForMaskedLM": f"{name}--modeling_bd3lm.BD3LM",
        },
        "block_size": block_size, "causal": False, "cross_attn": cross_attn, "model_length": length,
        "model_type": "bd3lm", "sampling_eps_max": 0.999, "sampling_eps_min": 0.001,
        "transformers_version": "4.49.0", "var_min": True,
    }
    noise = {"sampling_eps_min": torch.tensor(0.001), "sampling_eps_max": torch.tensor(0.999)}
    return _save(folder, config, _weights(seed, adaptive=adaln) | noise)


def _save(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer(mask_token=None).save_pretrained(folder)
    return weights


def _weights(seed: int, *, adaptive: bool) -> dict[str, torch.Tensor]:
    """Wide random weights, so that a wrong mask, position, gate or order shows."""
    shapes = {"vocab_embed.embedding": (SIZE, HIDDEN)}
    for block in (f"blocks.{i}." for i in range(BLOCKS)):
        shapes |= {
            f"{block}norm1.weight": (HIDDEN,), f"{block}norm2.weight": (HIDDEN,),
            f"{block}attn_qkv.weight": (3 * HIDDEN, HIDDEN), f"{block}attn_out.weight": (HIDDEN, HIDDEN),
            f"{block}mlp.0.weight": (4 * HIDDEN, HIDDEN), f"{block}mlp.0.bias": (4 * HIDDEN,),
            f"{block}mlp.2.weight": (HIDDEN, 4 * HIDDEN), f"{block}mlp.2.bias": (HIDDEN,),
        }
        if adaptive:
            shapes |= _linear(f"{block}adaLN_modulation", 6 * HIDDEN, CONDITION)
    shapes |= {"output_layer.norm_final.weight": (HIDDEN,)} | _linear("output_layer.linear", SIZE, HIDDEN)
    if adaptive:
        shapes |= _linear("output_layer.adaLN_modulation", 2 * HIDDEN, CONDITION)
        shapes |= _linear("sigma_map.mlp.0", CONDITION, 256) | _linear("sigma_map.mlp.2", CONDITION, CONDITION)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in weights:
        if "norm" in name:
            weights[name] += 1
        if name == "sigma_map.mlp.0.weight":  # 128 of its numbers are added up
            weights[name] *= 0.1
    size = HIDDEN // HEADS
    weights["rotary_emb.inv_freq"] = 1.0 / (10_000 ** (torch.arange(0, size, 2).float() / size))
    return {f"backbone.{name}": weight for name, weight in weights.items()}


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
