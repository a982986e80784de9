"""`Pair`: a diffusion model that drafts and an autoregressive model that is the target, over one vocabulary.

`pair_from_models` makes one of transformers models that are loaded already, `smc_bridge.models.pairs` one by name.
transformers is imported when a pair is made and not before: it takes seconds, and the tabular models need none of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smc_bridge.models.arguments import ids_of, said
from smc_bridge.models.caches import CachePolicy
from smc_bridge.models.ends import Ends, EosId, ends_of
from smc_bridge.models.prompts import PromptFormat, formatted, plain_prompt
from smc_bridge.models.protocols import CausalLM, MaskedDiffusionLM
from smc_bridge.models.texts import anchor_of, continuation_text


@dataclass(frozen=True, repr=False)
class Pair:
    """A diffusion model and an autoregressive model over one vocabulary.

    Attributes:
        name: of the pair, for messages and results.
        dlm: the diffusion model, which drafts.
        ar: the autoregressive model, which is the target.
        tokenizer: of both.
        format_prompt: `format_prompt(tokenizer, text)` gives the ids that the models are prompted with.
        learned: files of the parts that were trained for these models, by name (`smc_bridge.models.learned`).
        example: a prompt to try it with; None where any text is one.
    """

    name: str
    dlm: MaskedDiffusionLM
    ar: CausalLM
    tokenizer: Any
    format_prompt: PromptFormat
    learned: Mapping[str, Path] = field(default_factory=dict)
    example: str | None = None

    def __repr__(self) -> str:
        limit = "no limit of length" if self.max_length is None else f"at most {self.max_length} tokens with the prompt"
        return f"Pair {self.name!r}, {limit}\n  dlm  {self.dlm!r}\n  ar   {self.ar!r}"

    @property
    def max_length(self) -> int | None:
        """Tokens, prompt included, that both models were built for, or None if neither has a limit."""
        limits = [model.max_length for model in (self.dlm, self.ar)]
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

    def part(self, name: str, given: str | os.PathLike[str] | nn.Module | None = None) -> nn.Module:
        """A learned part, on the device of the diffusion model.

        Args:
            name: of the part (`smc_bridge.models.learned.PARTS`).
            given: a network, or a file of one. Default: the pair's own, read once.
        Raises:
            ValueError: the pair has none and none is given, or it is of another kind. FileNotFoundError: no such file.
        """
        from smc_bridge.models.learned import TRAINED_BY
        from smc_bridge.models.learned.store import command, load

        if given is None:
            if name not in self.learned:
                raise ValueError(
                    f"the pair {self.name!r} has no trained {name}: train one for it (as {command(name)} does for the "
                    f"pair {'adult' if name in TRAINED_BY else 'arithmetic'!r}), and give its file"
                )
            if name not in self._parts:
                self._parts[name] = load(self.learned[name], kind=name).to(self.dlm.device)
            return self._parts[name]
        if isinstance(given, nn.Module):
            return given
        if not isinstance(given, str | os.PathLike):
            raise ValueError(f"{name} = {said(given)}: give a network, or a file of {command(name)}")
        return load(given, kind=name).to(self.dlm.device)

    @cached_property
    def _parts(self) -> dict[str, nn.Module]:
        return {}

    @cached_property
    def _anchor(self) -> tuple[int, str] | None:
        return anchor_of(self.tokenizer)

    def decode(self, ids: Tensor | Iterable[int], prompt: Tensor | Iterable[int] | None = None) -> str:
        """Text that the continuation `ids: [S]` adds to that of the `prompt: [S]`, its leading space with it.

        It is without the ends of a sequence and without banned ids. If the prompt is not given, it is some text
        (`smc_bridge.models.texts`).
        """
        silent = {*ends_of(self.ar.eos_id), *self.ar.banned_ids}
        shown = [i for i in map(int, ids) if i not in silent]
        before = None if prompt is None else list(map(int, prompt))
        return continuation_text(self.tokenizer, shown, self._anchor, before) if shown else ""


def pair_from_models(
    dlm_model: Any,
    ar_model: Any,
    tokenizer: Any,
    *,
    shift: bool,
    dlm_tokenizer: Any = None,
    mask_id: int | None = None,
    eos_id: EosId = None,
    reduce: bool = False,
    causal_backbone: bool | None = None,
    block_size: int | None = None,
    dlm_cache: str | CachePolicy = "none",
    max_logit_bytes: int | None = None,
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
        eos_id: id that ends a sequence, or several that each do. Default: that of `tokenizer`, and those that the
            generation configuration of `ar_model` names.
        reduce: restrict both laws to the ids that the tokenizers share rather than refuse a pair that differs.
        causal_backbone: whether the diffusion model sees the whole row only by a 4-D mask. Default: whether
            transformers can generate with it.
        block_size: tokens of a block of a block-causal diffusion model (BD3LM, SDAR, Fast-dLLM v2), None where every
            place sees all others.
        dlm_cache: what is kept of committed tokens: "prefix", or another policy (`smc_bridge.models.caches`); "auto":
            "prefix" where there is one. That is exact with a block size and approximate without: who brings a network
            gets its own scores unless they ask.
        max_logit_bytes: cap on the bytes of logits that the head of either model computes at once, None for no cap.
        format_prompt: form of a prompt. Default: the text as the tokenizer encodes it.
        name: of the pair, for messages.
    Raises:
        ValueError: if the vocabularies differ or no mask token is known.
    """
    from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM, shared_vocabulary
    from smc_bridge.models.huggingface.adapter import output_size
    from smc_bridge.models.huggingface.vocabulary import shared_ends

    dlm_tokenizer = tokenizer if dlm_tokenizer is None else dlm_tokenizer
    mask_id = dlm_tokenizer.mask_token_id if mask_id is None else mask_id
    if mask_id is None:
        raise ValueError("mask_id = None and the tokenizer has no mask token: give the diffusion model's mask_id")
    if eos_id is None:
        size = min(output_size(model) for model in (dlm_model, ar_model))
        ends = shared_ends(_own_ends(ar_model, tokenizer), dlm_tokenizer, tokenizer, mask_id=mask_id, size=size)
    else:
        ends = ends_of(eos_id)
    if mask_id in ends:
        raise ValueError(f"mask_id = {mask_id} is eos_id too: a position cannot be unknown and the end; give another")
    shared = shared_vocabulary(
        dlm_model, ar_model, dlm_tokenizer, tokenizer, mask_id=mask_id, eos_id=ends, reduce=reduce
    )
    dlm = HuggingFaceMaskedLM(
        dlm_model, mask_id=mask_id, shift=shift,
        eos_id=shared.ends, banned_ids=shared.banned_ids, vocab_size=shared.size, causal_backbone=causal_backbone,
        block_size=block_size, cache=dlm_cache, max_logit_bytes=max_logit_bytes,
    )
    ar = HuggingFaceCausalLM(
        ar_model, eos_id=shared.ends, banned_ids=shared.banned_ids, vocab_size=shared.size,
        max_logit_bytes=max_logit_bytes,
    )
    return Pair(name, dlm, ar, tokenizer, format_prompt)


def _own_ends(ar_model: Any, tokenizer: Any) -> Ends:
    """Ids at which the model's own `generate` stops, and the tokenizer's end; not what a configuration's class sets."""
    generation: Any = getattr(ar_model, "generation_config", None)
    stated = None if getattr(generation, "_from_model_config", True) else generation.eos_token_id
    return ends_of([*ids_of(tokenizer.eos_token_id), *ids_of(stated)])
