"""Pairs of random Qwen2-shaped models as large as real ones, made where they run: nothing is downloaded or stored.

Their sizes are those of Qwen2.5, so a forward takes what a real one takes; their laws agree on nothing, so what is
committed has to be given. Weights are drawn on the device itself, from a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers

from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM
from smc_bridge.models.pair import Pair
from smc_bridge.models.prompts import plain_prompt

#: Memory that a pair needs beside its weights: caches and scores of many rows, and the device's own.
BESIDE = 8 << 30


class Numbers:
    """A tokenizer of models without words: the text of a token is its number."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """The ids with spaces between them."""
        return " ".join(map(str, ids))


class Shape(NamedTuple):
    """Sizes of one model.

    Attributes:
        hidden, layers, heads, groups, inner: width, layers, heads of queries and of keys, width of the perceptron.
        alphabet: A.
        tied: whether the head is the table of embeddings.
        dtype: of the weights.
    """

    hidden: int
    layers: int
    heads: int
    groups: int
    inner: int
    alphabet: int
    tied: bool
    dtype: torch.dtype = torch.bfloat16

    @property
    def parameters(self) -> int:
        """Weights of one model, biases and norms included."""
        shared = self.hidden * self.groups // self.heads
        attention = 2 * self.hidden * (self.hidden + shared) + self.hidden + 2 * shared
        layer = attention + 3 * self.hidden * self.inner + 2 * self.hidden
        return self.layers * layer + self.hidden + (2 - self.tied) * self.alphabet * self.hidden

    @property
    def bytes(self) -> int:
        """Memory of both models' weights."""
        return 2 * self.parameters * self.dtype.itemsize


#: By name. `tiny` is for tests.
SHAPES = {
    "tiny": Shape(32, 2, 4, 2, 48, 300, tied=True),
    "0.5 B": Shape(896, 24, 14, 2, 4864, 151_936, tied=True),
    "7 B": Shape(3584, 28, 28, 4, 18_944, 152_064, tied=False),
}


def lacking(shape: Shape, device: torch.device) -> str | None:
    """Why a pair does not fit on a device as it is now, or None; of the host's memory nothing is known."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    needed = shape.bytes + BESIDE
    gibi = 1 << 30
    return None if free >= needed else f"needs {needed / gibi:.0f} GiB of memory, {free / gibi:.0f} GiB are free"


def random_pair(name: str, device: torch.device, *, seed: int) -> Pair:
    """Two models of one shape with weights of their own, no end of sequence, and a prefix cache in both.

    Args:
        name: of `SHAPES`.
        seed: of the weights.
    """
    shape = SHAPES[name]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        dlm, ar = (_network(shape, device) for _ in range(2))
    mask = shape.alphabet - 1
    return Pair(
        f"random {name}",
        HuggingFaceMaskedLM(dlm, mask_id=mask, shift=True, eos_id=None, banned_ids=(mask,), cache="prefix"),
        HuggingFaceCausalLM(ar, eos_id=None, banned_ids=(mask,)), tokenizer=Numbers(), format_prompt=plain_prompt,
    )


def _network(shape: Shape, device: torch.device) -> Any:
    """A random model, its weights drawn on the device and never on the host."""
    config = transformers.Qwen2Config(
        vocab_size=shape.alphabet, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.groups, intermediate_size=shape.inner,
        tie_word_embeddings=shape.tied, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None,
        pad_token_id=None, attn_implementation="sdpa",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(shape.dtype)
    try:
        with device:
            return transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
