"""A pair of two checkpoints that the user names: found, compared, and only then loaded.

What can be refused from a few small files is refused before gigabytes are read: configuration, convention, code that is
not trusted, and tokenizers, which are compared id by id.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from smc_bridge.models.arguments import ids_of, said, whole_number
from smc_bridge.models.checkpoints import Checkpoint, find_checkpoint
from smc_bridge.models.conventions import Convention, Override, convention_of, mask_id_of
from smc_bridge.models.gguf import dequantised, packaged_gguf
from smc_bridge.models.huggingface.adapter import output_size
from smc_bridge.models.huggingface.unpadded import Unpadded
from smc_bridge.models.huggingface.vocabulary import check_shared_vocabulary, ignorable_ids, special_ids
from smc_bridge.models.loading import (
    Placement,
    fit_adapter,
    is_wrapped,
    load_model,
    weight_shapes,
)
from smc_bridge.models.pair import Pair, pair_from_models
from smc_bridge.models.prompts import Chat, PromptFormat, check_form, prompt_format
from smc_bridge.models.protocols import CausalLM
from smc_bridge.models.tokenizers import load_tokenizer

Name = str | os.PathLike[str]


@dataclass(frozen=True)
class Source:
    """One model of a pair before it is loaded.

    Attributes:
        checkpoint: where its weights are.
        tokenizer: the one that belongs to it.
        format_prompt: gives the ids that it is prompted with, unless the user wants another form.
        placement: type and place of its weights.
    """

    checkpoint: Checkpoint
    tokenizer: Any
    format_prompt: PromptFormat
    placement: Placement


def _embedded(argument: str, placement: Placement) -> Source:
    """A model of the embedded pair by itself; its file holds float16, which is widened."""
    from smc_bridge.models.arithmetic import architecture
    from smc_bridge.models.arithmetic import tokenizer as arithmetic_tokenizer

    checkpoint = find_checkpoint(argument, architecture.WEIGHTS / argument, trust_remote_code=False, tokenizer=False)
    dtype = placement.dtype or torch.float32
    return Source(
        checkpoint, arithmetic_tokenizer.load_tokenizer(), arithmetic_tokenizer.format_prompt,
        replace(placement, dtype=dtype),
    )  # fmt: skip


def _source(
    argument: str, name: Name, placement: Placement, *, trust_remote_code: bool, tokenizer: Name | None = None
) -> Source:
    for what, value in ((argument, name), (f"{argument}_tokenizer", tokenizer)):
        if not isinstance(value, str | os.PathLike) and (value is not None or what == argument):
            raise ValueError(f"{what} = {said(value)}: give a folder or a name of the hub")
    if name == "arithmetic":
        return _embedded(argument, placement)
    if name == "smollm2":
        if argument != "ar":
            raise ValueError(f"{argument} = 'smollm2': is an autoregressive model; give it as ar")
        name = dequantised(packaged_gguf())
    found = find_checkpoint(argument, name, trust_remote_code=trust_remote_code, tokenizer=tokenizer is None)
    home = found if tokenizer is None else find_checkpoint(
        f"{argument}_tokenizer", tokenizer, trust_remote_code=trust_remote_code, weights=False
    )
    loaded = load_tokenizer(home, trust_remote_code=trust_remote_code)
    return Source(found, loaded, prompt_format(loaded), placement)


def _form(source: Source, chat: Chat, system: str | None) -> PromptFormat:
    """The form of prompts that is asked for; the source's own unless anything is."""
    return source.format_prompt if chat == "auto" and system is None else prompt_format(source.tokenizer, chat, system)


@dataclass(frozen=True)
class Causal:
    """An autoregressive model by itself: a target that no diffusion model drafts for.

    Attributes:
        model: the adapter; mask, padding, begin of sequence and outputs without a token are banned, as in a pair.
        tokenizer, format_prompt: `format_prompt(tokenizer, text)` gives the ids that the model is prompted with.
    """

    model: CausalLM
    tokenizer: Any
    format_prompt: PromptFormat


def load_causal(
    ar: Name,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    eos_id: int | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    tp_plan: str | Mapping[str, str] | None = None,
    chat: Chat = "auto",
    system: str | None = None,
) -> Causal:
    """Load an autoregressive model without a diffusion model; arguments and errors are those of `load_pair`."""
    from smc_bridge.models.huggingface import HuggingFaceCausalLM

    check_id("eos_id", eos_id)
    check_form(chat, system)
    placement = Placement.of(dtype, device, device_map, tp_plan)
    source = _source("ar", ar, placement, trust_remote_code=trust_remote_code)
    form = _form(source, chat, system)
    eos_id = end_of_sequence(source, eos_id)
    model = _load_ar(source, trust=trust_remote_code)
    warn_of_other_ends(source, model, eos_id)
    tokenizer = source.tokenizer
    size = output_size(model)
    banned = (special_ids(tokenizer) | (set(range(size)) - set(tokenizer.get_vocab().values()))) - {eos_id}
    adapter = HuggingFaceCausalLM(model, eos_id=eos_id, banned_ids=[i for i in banned if i < size])
    return Causal(adapter, tokenizer, form)


def check_id(name: str, value: object) -> None:
    """Raise ValueError unless the argument `name` is None or a number from 0."""
    if value is not None:
        whole_number(name, value, least=0, remedy="give an id, a number from 0")


def end_of_sequence(source: Source, eos_id: int | None) -> int | None:
    """Id that ends a sequence of the target: the one given, else the tokenizer's, else the configuration's first."""
    known = [] if eos_id is None else [eos_id]
    ids = [*known, *ids_of(source.tokenizer.eos_token_id), *ids_of(source.checkpoint.config.get("eos_token_id"))]
    return ids[0] if ids else None


def warn_of_other_ends(source: Source, model: Any, eos_id: int | None) -> None:
    """Tell of ids at which the model's own `generate` may stop besides `eos_id`: a law here has one end."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    others = sorted({*ids_of(stated), *ids_of(source.checkpoint.config.get("eos_token_id"))} - {eos_id})
    if others:
        warnings.warn(
            f"{source.checkpoint.said}: its configuration ends sequences at ids {others} too; here only "
            f"eos_id = {eos_id} does: give another eos_id if that is not what is wanted",
            stacklevel=4,
        )


def _load_ar(source: Source, *, trust: bool) -> Any:
    shapes = weight_shapes(source.checkpoint)
    return load_model(
        source.checkpoint, "AutoModelForCausalLM", source.placement, trust_remote_code=trust, shapes=shapes
    )


def _load_dlm(source: Source, convention: Convention, shapes: dict[str, tuple[int, ...]], *, trust: bool) -> Any:
    four_d = convention.attention == "mask-4d"
    model = load_model(
        source.checkpoint, convention.auto_class, source.placement, trust_remote_code=trust, shapes=shapes,
        additive=four_d, configuration=convention.configuration,
    )
    return Unpadded(model, convention.inputs) if convention.attention == "unpadded" else model


def load_two(
    dlm: Name,
    ar: Name,
    placement: Placement,
    *,
    trust_remote_code: bool,
    dlm_convention: Override | None,
    mask_id: int | None,
    eos_id: int | None,
    dlm_tokenizer: Name | None,
    reduce: bool,
    format_prompt: PromptFormat | None,
    chat: Chat,
    system: str | None,
) -> Pair:
    """Load two checkpoints as a pair; the arguments are those of `smc_bridge.models.pairs.load_pair`, which calls this.

    Raises:
        ValueError, FileNotFoundError: as `load_pair`.
    """
    trust = trust_remote_code
    check_id("mask_id", mask_id)
    check_id("eos_id", eos_id)
    left = _source("dlm", dlm, placement, trust_remote_code=trust, tokenizer=dlm_tokenizer)
    config = left.checkpoint.config
    shapes = weight_shapes(left.checkpoint)
    convention = convention_of(
        config, name=left.checkpoint.name, override=dlm_convention, wrapped=is_wrapped(shapes)
    )
    if mask_id is None:
        mask_id = mask_id_of(config, left.tokenizer, convention, name=left.checkpoint.name)
    right = _source("ar", ar, placement, trust_remote_code=trust)
    format_prompt = format_prompt or _form(right, chat, system)
    eos_id = end_of_sequence(right, eos_id)
    if not reduce:
        ignore = ignorable_ids(left.tokenizer, right.tokenizer, mask_id=mask_id, eos_id=eos_id)
        check_shared_vocabulary(left.tokenizer, right.tokenizer, ignore=ignore)
    ar_model = _load_ar(right, trust=trust)
    warn_of_other_ends(right, ar_model, eos_id)
    dlm_model = _load_dlm(left, convention, shapes, trust=trust)
    pair = pair_from_models(
        dlm_model, ar_model, right.tokenizer, shift=convention.shift, dlm_tokenizer=left.tokenizer, mask_id=mask_id,
        eos_id=eos_id, reduce=reduce, causal_backbone=convention.attention == "mask-4d",
        format_prompt=format_prompt, name=f"{os.fspath(dlm)} + {os.fspath(ar)}",
    )
    fit_adapter(pair.dlm, config, convention)
    return pair
