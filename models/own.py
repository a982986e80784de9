"""A pair of two checkpoints that the user names: found, compared, and only then loaded.

What can be refused from a few small files is refused before gigabytes are read: configuration, convention, code that is
not trusted, and tokenizers, which are compared id by id.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from smc_bridge.models.arguments import ids_of, said, whole_number
from smc_bridge.models.checkpoints import Checkpoint, find_checkpoint, generation_ends
from smc_bridge.models.conventions import Convention, Override, convention_of, mask_id_of
from smc_bridge.models.ends import Ends, EosId, ends_of
from smc_bridge.models.gguf import dequantised, packaged_gguf
from smc_bridge.models.huggingface.adapter import output_size
from smc_bridge.models.huggingface.unpadded import Unpadded
from smc_bridge.models.huggingface.vocabulary import check_shared_vocabulary, ignorable_ids, shared_ends, special_ids
from smc_bridge.models.loading import (
    Placement,
    fit_adapter,
    is_wrapped,
    load_model,
    load_tokenizer,
    weight_shapes,
)
from smc_bridge.models.pair import Pair, pair_from_models
from smc_bridge.models.prompts import PromptFormat, default_prompt
from smc_bridge.models.protocols import CausalLM

Name = str | os.PathLike[str]


@dataclass(frozen=True)
class Source:
    """One model of a pair before it is loaded.

    Attributes:
        checkpoint: where its weights are.
        tokenizer: the one that belongs to it.
        format_prompt: gives the ids that it is prompted with.
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
    return Source(found, loaded, default_prompt(loaded), placement)


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
    eos_id: EosId = None,
    device_map: str | Mapping[str, Any] | None = None,
    tp_plan: str | Mapping[str, str] | None = None,
) -> Causal:
    """Load an autoregressive model without a diffusion model; arguments and errors are those of `load_pair`."""
    from smc_bridge.models.huggingface import HuggingFaceCausalLM

    ends = ends_of(eos_id)
    placement = Placement.of(dtype, device, device_map, tp_plan)
    source = _source("ar", ar, placement, trust_remote_code=trust_remote_code)
    tokenizer = source.tokenizer
    if eos_id is None:
        ends = ends_of_target(source)
    model = _load_ar(source, trust=trust_remote_code)
    size = output_size(model)
    if eos_id is None:
        ends = shared_ends(ends, tokenizer, tokenizer, size=size)
    banned = (special_ids(tokenizer) | (set(range(size)) - set(tokenizer.get_vocab().values()))).difference(ends)
    adapter = HuggingFaceCausalLM(model, eos_id=ends, banned_ids=[i for i in banned if i < size])
    return Causal(adapter, tokenizer, source.format_prompt)


def check_id(name: str, value: object) -> None:
    """Raise ValueError unless the argument `name` is None or a number from 0."""
    if value is not None:
        whole_number(name, value, least=0, remedy="give an id, a number from 0")


def ends_of_target(source: Source) -> Ends:
    """Ids that end a sequence of a target that nobody names others for: those of its generation configuration, of its
    configuration and of its tokenizer."""
    config, tokenizer = source.checkpoint.config, source.tokenizer
    return ends_of([
        *generation_ends(source.checkpoint), *ids_of(config.get("eos_token_id")), *ids_of(tokenizer.eos_token_id),
    ])  # fmt: skip


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
    eos_id: EosId,
    dlm_tokenizer: Name | None,
    reduce: bool,
    format_prompt: PromptFormat | None,
) -> Pair:
    """Load two checkpoints as a pair; the arguments are those of `smc_bridge.models.pairs.load_pair`, which calls this.

    Raises:
        ValueError, FileNotFoundError: as `load_pair`.
    """
    trust = trust_remote_code
    check_id("mask_id", mask_id)
    ends = ends_of(eos_id)
    left = _source("dlm", dlm, placement, trust_remote_code=trust, tokenizer=dlm_tokenizer)
    config = left.checkpoint.config
    shapes = weight_shapes(left.checkpoint)
    convention = convention_of(
        config, name=left.checkpoint.name, override=dlm_convention, wrapped=is_wrapped(shapes)
    )
    if mask_id is None:
        mask_id = mask_id_of(config, left.tokenizer, convention, name=left.checkpoint.name)
    right = _source("ar", ar, placement, trust_remote_code=trust)
    if eos_id is None:
        ends = shared_ends(ends_of_target(right), left.tokenizer, right.tokenizer, mask_id=mask_id)
    if not reduce:
        ignore = ignorable_ids(left.tokenizer, right.tokenizer, mask_id=mask_id, ends=ends)
        check_shared_vocabulary(left.tokenizer, right.tokenizer, ignore=ignore)
    ar_model = _load_ar(right, trust=trust)
    dlm_model = _load_dlm(left, convention, shapes, trust=trust)
    if eos_id is None:
        size = min(output_size(dlm_model), output_size(ar_model))
        ends = shared_ends(ends, left.tokenizer, right.tokenizer, mask_id=mask_id, size=size)
    pair = pair_from_models(
        dlm_model, ar_model, right.tokenizer, shift=convention.shift, dlm_tokenizer=left.tokenizer, mask_id=mask_id,
        eos_id=ends, reduce=reduce, causal_backbone=convention.attention == "mask-4d",
        format_prompt=format_prompt or right.format_prompt, name=f"{os.fspath(dlm)} + {os.fspath(ar)}",
    )
    fit_adapter(pair.dlm, config, convention)
    return pair
