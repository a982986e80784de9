"""A pair of models with one vocabulary: a diffusion model that drafts and an autoregressive model that is the target.

`load_pair("arithmetic")` gives the embedded pair; `load_pair(dlm, ar)` one of two checkpoints, local folders or names
of the Hugging Face hub; `pair_from_models` makes one of transformers models that are loaded already. transformers is
imported when a pair is made and not before: it takes seconds, and the tabular models need none of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from smc_bridge.models.arguments import check_callable, said, true_or_false, whole_number
from smc_bridge.models.conventions import Override
from smc_bridge.models.loading import Placement, quiet
from smc_bridge.models.prompts import PromptFormat, formatted, plain_prompt
from smc_bridge.models.protocols import CausalLM, MaskedDiffusionLM
from smc_bridge.models.texts import anchor_of, continuation_text


@dataclass(frozen=True, repr=False)
class Pair:
    """Two models, the tokenizer of both, and the form of a prompt."""

    name: str
    dlm: MaskedDiffusionLM
    ar: CausalLM
    tokenizer: Any
    format_prompt: PromptFormat

    def __repr__(self) -> str:
        limit = "no limit of length" if self.max_length is None else f"at most {self.max_length} tokens with the prompt"
        return f"Pair {self.name!r}, {limit}\n  dlm  {self.dlm!r}\n  ar   {self.ar!r}"

    @property
    def max_length(self) -> int | None:
        """Tokens, prompt included, that both models were built for, or None if neither has a limit."""
        limits = [getattr(model, "max_length", None) for model in (self.dlm, self.ar)]
        return min((limit for limit in limits if limit is not None), default=None)

    def encode(self, text: str) -> Tensor:
        """Ids of the prompt made of `text`, `[S]`, on the AR model's device.

        Raises:
            ValueError: the text is empty or leaves no room for a single token of response, a token of it is not in
                the models' alphabet, or `format_prompt` does not give its ids.
        """
        if not isinstance(text, str):
            raise ValueError(f"prompt = {said(text)}: give a text")
        if not text.strip():
            raise ValueError(f"prompt = {text!r} is empty: give a text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt = {text!r} is not valid Unicode: give UTF-8 text") from error
        ids = formatted(self.format_prompt, self.tokenizer, text)
        if not ids:
            raise ValueError(f"prompt = {text!r} gives no token: give another text")
        self._check_alphabet(ids)
        limit = self.max_length
        if limit is not None and len(ids) >= limit:
            raise ValueError(
                f"prompt has {len(ids)} tokens but the pair {self.name!r} reads at most {limit}, response included: "
                "shorten the prompt"
            )
        return torch.tensor(ids, dtype=torch.long, device=self.ar.device)

    def _check_alphabet(self, ids: list[int]) -> None:
        """Raise ValueError, naming the token and who lacks it, unless both models have an output for every one."""
        outside = next((i for i in ids if not 0 <= i < min(self.dlm.vocab_size, self.ar.vocab_size)), None)
        if outside is None:
            return
        # Of a pair with reduce = True the alphabet is the smaller one: only one of the models lacks the token.
        sizes = {
            "diffusion": getattr(self.dlm, "columns", self.dlm.vocab_size),
            "autoregressive": getattr(self.ar, "columns", self.ar.vocab_size),
        }
        lacking = " and the ".join([kind for kind, size in sizes.items() if not 0 <= outside < size] or sizes)
        name = None
        with suppress(OverflowError, IndexError, TypeError):  # ids that no tokenizer can have
            name = getattr(self.tokenizer, "convert_ids_to_tokens", lambda i: None)(outside)
        token = f"{name!r} (id {outside})" if isinstance(name, str) else outside
        raise ValueError(
            f"prompt has the token {token}, which is not in the alphabet of the {lacking} model of the pair "
            f"{self.name!r}: say it without that token, or give another pair"
        )

    @cached_property
    def _anchor(self) -> tuple[int, str] | None:
        return anchor_of(self.tokenizer)

    def decode(self, ids: Tensor | Iterable[int]) -> str:
        """Text that the continuation `ids: [S]` adds to what stands before it (`smc_bridge.models.texts`), its
        leading space with it; without the end of the sequence and without banned ids."""
        silent = {self.ar.eos_id, *self.ar.banned_ids}
        return continuation_text(self.tokenizer, [i for i in map(int, ids) if i not in silent], self._anchor)


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
    causal_backbone: bool | None = None,
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
        causal_backbone: whether the diffusion model sees the whole row only by a 4-D mask. Default: whether
            transformers can generate with it.
        format_prompt: form of a prompt. Default: the text as the tokenizer encodes it.
        name: of the pair, for messages.
    Raises:
        ValueError: if the vocabularies differ or no mask token is known.
    """
    from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM, shared_vocabulary

    dlm_tokenizer = tokenizer if dlm_tokenizer is None else dlm_tokenizer
    mask_id = dlm_tokenizer.mask_token_id if mask_id is None else mask_id
    eos_id = tokenizer.eos_token_id if eos_id is None else eos_id
    if mask_id is None:
        raise ValueError("mask_id = None and the tokenizer has no mask token: give the diffusion model's mask_id")
    if mask_id == eos_id:
        raise ValueError(f"mask_id = {mask_id} is eos_id too: a position cannot be unknown and the end; give another")
    shared = shared_vocabulary(
        dlm_model, ar_model, dlm_tokenizer, tokenizer, mask_id=mask_id, eos_id=eos_id, reduce=reduce
    )
    dlm = HuggingFaceMaskedLM(
        dlm_model, mask_id=mask_id, shift=shift,
        eos_id=shared.eos_id, banned_ids=shared.banned_ids, vocab_size=shared.size, causal_backbone=causal_backbone,
    )
    ar = HuggingFaceCausalLM(
        ar_model, eos_id=shared.eos_id, banned_ids=shared.banned_ids, vocab_size=shared.size
    )
    return Pair(name, dlm, ar, tokenizer, format_prompt)


def _arithmetic(device: torch.device, dtype: torch.dtype) -> Pair:
    """The embedded pair: grade-school word problems with a written-out chain of thought."""
    from smc_bridge.models.arithmetic import architecture
    from smc_bridge.models.arithmetic import tokenizer as arithmetic_tokenizer

    with quiet(progress=False):
        dlm, ar = (architecture.load(kind).to(device=device, dtype=dtype) for kind in ("dlm", "ar"))
    diffusion = dlm.config.diffusion
    return pair_from_models(
        dlm, ar, arithmetic_tokenizer.load_tokenizer(), shift=diffusion["shift"], mask_id=diffusion["mask_token_id"],
        format_prompt=arithmetic_tokenizer.format_prompt, name="arithmetic",
    )


#: Pairs that ship with the package.
PAIRS: dict[str, Callable[[torch.device, torch.dtype], Pair]] = {"arithmetic": _arithmetic}


def load_pair(
    dlm: str | os.PathLike[str] = "arithmetic",
    ar: str | os.PathLike[str] | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    dlm_convention: Override | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    tp_plan: str | Mapping[str, str] | None = None,
    mask_id: int | None = None,
    eos_id: int | None = None,
    dlm_tokenizer: str | os.PathLike[str] | None = None,
    reduce: bool = False,
    format_prompt: PromptFormat | None = None,
    dlm_cache: Literal["none", "prefix"] = "none",
    max_logit_bytes: int | None = None,
) -> Pair:
    """Load a pair that ships with the package by its name, or two checkpoints that share a vocabulary.

    Args:
        dlm: diffusion model: a local folder or a name of the hub; "arithmetic" is that of the embedded pair. Without
            `ar`, the name of a pair (`PAIRS`).
        ar: autoregressive model: a folder, a name of the hub, "arithmetic", or "smollm2" (extra `smollm2`).
        dtype: of the weights, also by name. Default: that of each checkpoint; float32 for the embedded models. Scores
            are float32 at least.
        device: where both models run. Default: a CUDA device if there is one, else the CPU.
        trust_remote_code: let the checkpoints' own code run.
        dlm_convention: "shifted" or "unshifted", against or in want of what `smc_bridge.models.conventions` says.
        device_map: spread the layers of both over devices, as in transformers (needs accelerate).
        tp_plan: split every layer of both over the processes of `torchrun`, as in transformers.
        mask_id: id of the diffusion model's mask token. Default: configuration, tokenizer, or convention.
        eos_id: the one id that ends a sequence. Default: that of the autoregressive model's tokenizer, else of its
            configuration.
        dlm_tokenizer: checkpoint that the diffusion model's tokenizer is read from. Default: `dlm`.
        reduce: restrict both laws to the ids that the tokenizers share rather than refuse a pair that differs.
        format_prompt: form of a prompt. Default: the chat template of the autoregressive model's tokenizer if it has
            one, else the text.
        dlm_cache: "prefix" keeps the diffusion model's keys and values of committed tokens: cheaper drafts that are a
            little worse, and no other law of what is sampled (`HuggingFaceMaskedLM`).
        max_logit_bytes: cap on the bytes of float32 logits that one forward of either model makes; larger batches are
            scored in row chunks. A single row may exceed it. Default: no cap.
    Raises:
        ValueError: a name or value that is not known, tokenizers that differ, code that is not trusted, or a checkpoint
            that cannot be loaded. FileNotFoundError: a checkpoint or a part of it is missing.
    Example:
        >>> pair = load_pair("arithmetic")
        >>> pair.max_length, pair.ar.vocab_size
        (1024, 640)
    """
    if dlm_cache not in ("none", "prefix"):
        raise ValueError(f"dlm_cache = {said(dlm_cache)}: give 'none' or 'prefix'")
    if max_logit_bytes is not None:
        remedy = "give at least 1 byte, or None for no cap"
        max_logit_bytes = whole_number("max_logit_bytes", max_logit_bytes, remedy=remedy)
    trust_remote_code = true_or_false("trust_remote_code", trust_remote_code)
    reduce = true_or_false("reduce", reduce)
    check_callable("format_prompt", format_prompt, "a function of the tokenizer and the text")
    placement = Placement.of(dtype, device, device_map, tp_plan)
    if ar is None:
        if not isinstance(dlm, str | os.PathLike):
            raise ValueError(f"pair = {said(dlm)}: use one of {sorted(PAIRS)}, or name two models (dlm and ar)")
        if dlm not in PAIRS:
            raise ValueError(
                f"pair = {os.fspath(dlm)!r} is unknown: use one of {sorted(PAIRS)}, or name two models (dlm and ar)"
            )
        given = {
            "trust_remote_code": trust_remote_code or None, "dlm_convention": dlm_convention, "mask_id": mask_id,
            "eos_id": eos_id, "dlm_tokenizer": dlm_tokenizer, "reduce": reduce or None, "format_prompt": format_prompt,
        }  # fmt: skip
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} = {said(value)} is for two models of your own: leave it out with the pair {dlm!r}"
                )
        if not placement.spread:
            pair = PAIRS[os.fspath(dlm)](placement.device, placement.dtype or torch.float32)
            return _with_cache(_capped(pair, max_logit_bytes), dlm_cache)
        ar = dlm
    from smc_bridge.models.own import load_two

    pair = load_two(
        dlm, ar, placement, trust_remote_code=trust_remote_code, dlm_convention=dlm_convention, mask_id=mask_id,
        eos_id=eos_id, dlm_tokenizer=dlm_tokenizer, reduce=reduce, format_prompt=format_prompt,
    )
    return _with_cache(_capped(pair, max_logit_bytes), dlm_cache)


def _capped(pair: Pair, max_logit_bytes: int | None) -> Pair:
    """The pair, freshly made, with that cap on the logits of one forward of each of its models."""
    if max_logit_bytes is None:
        return pair
    from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM
    from smc_bridge.models.huggingface.chunks import RowChunks

    for model in (pair.dlm, pair.ar):
        if not isinstance(model, HuggingFaceCausalLM | HuggingFaceMaskedLM):
            raise ValueError(
                f"max_logit_bytes = {max_logit_bytes}: {type(model).__name__} of {pair.name!r} has no forwards "
                "to cut; leave it out"
            )
        model.chunks = RowChunks(max_logit_bytes)
    return pair


def _with_cache(pair: Pair, cache: Literal["none", "prefix"]) -> Pair:
    """The pair with that cache in the sessions of its diffusion model."""
    if cache == "none":
        return pair
    from smc_bridge.models.huggingface import HuggingFaceMaskedLM

    if not isinstance(pair.dlm, HuggingFaceMaskedLM):
        raise ValueError(f"dlm_cache = {cache!r}: the diffusion model of the pair {pair.name!r} has no cache")
    return replace(pair, dlm=pair.dlm.with_cache(cache))
