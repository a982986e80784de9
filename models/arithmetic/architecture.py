"""The two networks of the embedded pair: one Qwen2 backbone, run causally or bidirectionally.

The diffusion model follows Dream (Ye et al. 2025, arXiv 2508.15487): it starts from the weights of the autoregressive
model, sees the whole sequence, reads a mask token where nothing is known yet, and keeps the autoregressive *shift*: the
output at position `i - 1` predicts the token at position `i`.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from smc_bridge.models.arithmetic.tokenizer import BOS_ID, EOS_ID, MASK_ID, PAD_ID, VOCABULARY_SIZE

WEIGHTS = Path(__file__).with_name("weights")
ARCHITECTURE: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
}
DIFFUSION: dict[str, Any] = {"mask_token_id": MASK_ID, "shift": True}


def build(kind: str) -> Qwen2ForCausalLM:
    """Return a freshly initialised float32 network. `kind` is "ar" or "dlm"; raises ValueError otherwise.

    The two differ in nothing but what their configuration says of how to run them.
    """
    if kind not in ("ar", "dlm"):
        raise ValueError(f"kind={kind!r}: unknown network; use 'ar' or 'dlm'")
    extra = {"diffusion": DIFFUSION} if kind == "dlm" else {}
    return Qwen2ForCausalLM(Qwen2Config(**ARCHITECTURE, **extra))


def load(kind: str, weights: Path = WEIGHTS) -> Qwen2ForCausalLM:
    """Return the trained network `kind` ("ar" or "dlm") in float32 and evaluation mode, from `weights / kind`."""
    folder = weights / kind
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"weights={folder}: no checkpoint there; run `make train PART=pair`, or reinstall it")
    model: Qwen2ForCausalLM = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def bidirectional_mask(lengths: Tensor, size: int) -> Tensor:
    """Return the additive attention mask `[R, 1, size, size]`, float32: 0 where a key is real, -inf-like on padding.

    Args:
        lengths: real tokens of each row, `[R]`; padding is on the right.
        size: padded length.
    """
    padding = torch.arange(size)[None, :] >= lengths[:, None]
    bias = torch.zeros(padding.shape).masked_fill(padding, torch.finfo(torch.float32).min)
    return bias[:, None, None, :].expand(-1, 1, size, size)


def masked_logits(model: Qwen2ForCausalLM, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return the diffusion model's logits `[R, S, A]`, *aligned*: entry `i` is about the token at position `i`.

    The shift leaves none for entry 0, which repeats that of position 1; every sequence starts with a known bos.

    Args:
        tokens: `[R, S]`, mask tokens where unknown, padded on the right.
        lengths: `[R]`.
    """
    logits: Tensor = model(input_ids=tokens, attention_mask=bidirectional_mask(lengths, tokens.shape[1])).logits
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
