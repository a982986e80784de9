"""A pair of models with one vocabulary: a diffusion model that drafts and an autoregressive model that is the target.

`load_pair("arithmetic")` gives the embedded pair; `pair_from_models` makes one of a user's own transformers models.
transformers is imported when a pair is made and not before: it takes seconds, and the tabular models need none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.protocols import CausalLM, MaskedDiffusionLM

#: Turns a tokenizer and a user's text into the ids that a model is prompted with.
PromptFormat = Callable[[Any, str], list[int]]


def plain_prompt(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` with the special tokens that the tokenizer adds by itself."""
    return list(tokenizer.encode(text))


@dataclass(frozen=True)
class Pair:
    """Two models, the tokenizer of both, and the form of a prompt."""

    name: str
    dlm: MaskedDiffusionLM
    ar: CausalLM
    tokenizer: Any
    format_prompt: PromptFormat

    @property
    def max_length(self) -> int | None:
        """Tokens, prompt included, that both models were built for, or None if neither has a limit."""
        limits = [getattr(model, "max_length", None) for model in (self.dlm, self.ar)]
        return min((limit for limit in limits if limit is not None), default=None)

    def encode(self, text: str) -> Tensor:
        """Ids of the prompt made of `text`, `[S]`, on the AR model's device.

        Raises:
            ValueError: if the text is empty or leaves no room for a single token of response.
        """
        if not text.strip():
            raise ValueError(f"prompt = {text!r} is empty: give a text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt = {text!r} is not valid Unicode: give UTF-8 text") from error
        ids = self.format_prompt(self.tokenizer, text)
        if not ids:
            raise ValueError(f"prompt = {text!r} gives no token: give another text")
        limit = self.max_length
        if limit is not None and len(ids) >= limit:
            raise ValueError(
                f"prompt has {len(ids)} tokens but the pair {self.name!r} reads at most {limit}, response included: "
                "shorten the prompt"
            )
        return torch.tensor(ids, dtype=torch.long, device=self.ar.device)

    def decode(self, ids: Tensor | Iterable[int]) -> str:
        """Text of `ids: [S]`, without the end of the sequence and without banned ids."""
        silent = {self.ar.eos_id, *self.ar.banned_ids}
        text: str = self.tokenizer.decode([i for i in map(int, ids) if i not in silent])
        return text


def pair_from_models(
    dlm_model: Any,
    ar_model: Any,
    tokenizer: Any,
    *,
    shift: bool,
    dlm_tokenizer: Any = None,
    mask_id: int | None = None,
    eos_id: int | None = None,
    reduce: bool = False,
    format_prompt: PromptFormat = plain_prompt,
    name: str = "custom",
) -> Pair:
    """Make a pair of two transformers models.

    Args:
        dlm_model: masked diffusion model: a masked LM, or a causal architecture trained without the causal mask.
        ar_model: causal language model.
        tokenizer: that of `ar_model`; prompts are encoded and sequences decoded with it.
        shift: whether the diffusion model's output at place i - 1 predicts place i (Dream, DiffuLLaMA) or that at
            place i does (LLaDA, MDLM, BERT).
        dlm_tokenizer: that of `dlm_model`. Default: `tokenizer`.
        mask_id: id of the diffusion model's mask token. Default: the one of its tokenizer.
        eos_id: id that ends a sequence. Default: the one of `tokenizer`.
        reduce: restrict both laws to the ids that the tokenizers share rather than refuse a pair that differs.
        format_prompt: form of a prompt. Default: the text as the tokenizer encodes it.
        name: of the pair, for messages.
    Raises:
        ValueError: if the vocabularies differ or no mask token is known.
    """
    from models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM, shared_vocabulary

    dlm_tokenizer = tokenizer if dlm_tokenizer is None else dlm_tokenizer
    mask_id = dlm_tokenizer.mask_token_id if mask_id is None else mask_id
    eos_id = tokenizer.eos_token_id if eos_id is None else eos_id
    if mask_id is None:
        raise ValueError("mask_id = None and the tokenizer has no mask token: give the diffusion model's mask_id")
    shared = shared_vocabulary(
        dlm_model, ar_model, dlm_tokenizer, tokenizer, mask_id=mask_id, eos_id=eos_id, reduce=reduce
    )
    dlm = HuggingFaceMaskedLM(
        dlm_model, mask_id=mask_id, shift=shift,
        eos_id=shared.eos_id, banned_ids=shared.banned_ids, vocab_size=shared.size,
    )
    ar = HuggingFaceCausalLM(
        ar_model, eos_id=shared.eos_id, banned_ids=shared.banned_ids, vocab_size=shared.size
    )
    return Pair(name, dlm, ar, tokenizer, format_prompt)


def _arithmetic(device: torch.device, dtype: torch.dtype) -> Pair:
    """The embedded pair: grade-school word problems with a written-out chain of thought."""
    from models.arithmetic import architecture
    from models.arithmetic import tokenizer as arithmetic_tokenizer

    dlm, ar = (architecture.load(kind).to(device=device, dtype=dtype) for kind in ("dlm", "ar"))
    diffusion = dlm.config.diffusion
    return pair_from_models(
        dlm, ar, arithmetic_tokenizer.load_tokenizer(), shift=diffusion["shift"], mask_id=diffusion["mask_token_id"],
        format_prompt=arithmetic_tokenizer.format_prompt, name="arithmetic",
    )


#: Pairs that ship with the package.
PAIRS: dict[str, Callable[[torch.device, torch.dtype], Pair]] = {"arithmetic": _arithmetic}


def load_pair(
    name: str = "arithmetic", *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Pair:
    """Load a pair by name.

    Args:
        name: one of `PAIRS`.
        device: where both models run. Default: a CUDA device if there is one, else the CPU.
        dtype: of the weights; scores are float32 at least.
    Raises:
        ValueError: if the name is unknown. FileNotFoundError: if the weights are not installed.
    """
    if name not in PAIRS:
        raise ValueError(f"pair = {name!r} is unknown: use one of {sorted(PAIRS)}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return PAIRS[name](torch.device(device), dtype)
