"""A pair of two checkpoints that the user names: found, compared, and only then loaded.

What can be refused from a few small files is refused before gigabytes are read: configuration, convention, code that is
not trusted, and tokenizers, which are compared id by id. Then the pair is made of networks without numbers, which
refuses every argument that does not fit them, and at last of those with.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from smc_bridge.models.arguments import ids_of, said, whole_number
from smc_bridge.models.checkpoints import Checkpoint, find_checkpoint, generation_ends
from smc_bridge.models.conventions import CONVENTIONS, LENGTH_KEY, Attention, Convention, Override
from smc_bridge.models.ends import Ends, EosId, ends_of
from smc_bridge.models.gguf import dequantised, packaged_gguf
from smc_bridge.models.huggingface.adapter import ADDITIVE_ATTENTION, output_size
from smc_bridge.models.huggingface.unpadded import Unpadded
from smc_bridge.models.huggingface.vocabulary import check_shared_vocabulary, ignorable_ids, shared_ends, special_ids
from smc_bridge.models.loading import load_model, load_native, weight_shapes
from smc_bridge.models.native import Shapes, account, automatic, network_config, skeleton
from smc_bridge.models.pair import DlmCache, Pair, pair_from_models
from smc_bridge.models.placement import Placement, options_of
from smc_bridge.models.prompts import Chat, PromptFormat, check_form, prompt_format
from smc_bridge.models.protocols import CausalLM
from smc_bridge.models.recognise import convention_of, has_language_model, is_wrapped, mask_id_of
from smc_bridge.models.tokenizers import load_tokenizer

Name = str | os.PathLike[str]
#: How one model is loaded (`smc_bridge.models.placement.options_of`).
Options = tuple[Placement, Mapping[str, Any]]


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

    checkpoint = find_checkpoint(argument, architecture.WEIGHTS / argument, tokenizer=False)
    dtype = placement.dtype or torch.float32
    return Source(
        checkpoint, arithmetic_tokenizer.load_tokenizer(), arithmetic_tokenizer.format_prompt,
        replace(placement, dtype=dtype),
    )  # fmt: skip


def _source(
    argument: str, name: Name, options: Options, *, trust_remote_code: bool, tokenizer: Name | None = None
) -> Source:
    placement, hub = options
    for what, value in ((argument, name), (f"{argument}_tokenizer", tokenizer)):
        if not isinstance(value, str | os.PathLike) and (value is not None or what == argument):
            raise ValueError(f"{what} = {said(value)}: give a folder or a name of the hub")
    if name == "arithmetic":
        return _embedded(argument, placement)
    if name == "smollm2":
        if argument != "ar":
            raise ValueError(f"{argument} = 'smollm2': is an autoregressive model; give it as ar")
        name = dequantised(packaged_gguf())
    found = find_checkpoint(argument, name, tokenizer=tokenizer is None, hub=hub)
    home = found if tokenizer is None else find_checkpoint(f"{argument}_tokenizer", tokenizer, weights=False, hub=hub)
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
    torch_dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    eos_id: EosId = None,
    device_map: str | Mapping[str, Any] | None = None,
    tp_plan: str | Mapping[str, str] | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    chat: Chat = "auto",
    system: str | None = None,
) -> Causal:
    """Load an autoregressive model without a diffusion model; arguments and errors are those of `load_pair`."""
    from smc_bridge.models.huggingface import HuggingFaceCausalLM

    ends = ends_of(eos_id)
    check_form(chat, system)
    options = options_of({
        "dtype": dtype, "torch_dtype": torch_dtype, "device": device, "device_map": device_map, "tp_plan": tp_plan,
        "attn_implementation": attn_implementation, "quantization_config": quantization_config, "revision": revision,
        "token": token,
    })  # fmt: skip
    source = _target(ar, options, trust_remote_code)
    form = _form(source, chat, system)
    tokenizer = source.tokenizer
    if eos_id is None:
        ends = ends_of_target(source)
    model = _load_ar(source, trust=trust_remote_code)
    size = output_size(model)
    if eos_id is None:
        ends = shared_ends(ends, tokenizer, tokenizer, size=size)
    banned = (special_ids(tokenizer) | (set(range(size)) - set(tokenizer.get_vocab().values()))).difference(ends)
    adapter = HuggingFaceCausalLM(model, eos_id=ends, banned_ids=[i for i in banned if i < size])
    return Causal(adapter, tokenizer, form)


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


def _target(ar: Name, options: Options, trust: bool) -> Source:
    """An autoregressive model that may be run."""
    source = _source("ar", ar, options, trust_remote_code=trust)
    _check_code(source.checkpoint, trust, "AutoModelForCausalLM")
    return source


def _load_ar(source: Source, *, trust: bool) -> Any:
    shapes = weight_shapes(source.checkpoint)
    return load_model(
        source.checkpoint, "AutoModelForCausalLM", source.placement, trust_remote_code=trust, shapes=shapes
    )


def _check_code(checkpoint: Checkpoint, trust: bool, *auto_classes: str) -> None:
    """Refuse a checkpoint that nothing but code of its own can run, unless that is trusted."""
    if checkpoint.config.get("auto_map") and not trust:
        model_type = str(checkpoint.config["model_type"])
        if not any(has_language_model(model_type, auto_class) for auto_class in auto_classes):
            checkpoint.refuse_code()


@dataclass(frozen=True)
class Diffusion:
    """A diffusion model of which everything was looked at but its weights.

    Attributes:
        source: where it is.
        convention: how it is run.
        trust: whether code of its own may run.
        config: of a native network, or None.
        empty: the network without numbers, or None if it cannot be had.
    """

    source: Source
    convention: Convention
    trust: bool
    config: Any = None
    empty: Any = None

    @classmethod
    def of(cls, source: Source, convention: Convention, shapes: Shapes, *, trust: bool) -> Diffusion:
        """Look at it.

        Raises:
            ValueError: its code is not trusted, its weights are not those of its network, or an attention is asked for
                that takes no mask.
        """
        checkpoint, native, wanted = source.checkpoint, convention.native, source.placement.attn_implementation
        if convention.masking == "mask-4d" and wanted is not None and wanted not in ADDITIVE_ATTENTION:
            raise ValueError(
                f"attn_implementation = {wanted!r} of {checkpoint.said}: takes no mask of which places are seen; give "
                f"one of {', '.join(ADDITIVE_ATTENTION)}, or leave it out"
            )
        if native is None:
            _check_code(checkpoint, trust, convention.auto_class)
            empty = None if trust else automatic(checkpoint, convention.auto_class, convention.configuration)
            if empty is not None and convention.masking == "unpadded":
                empty = Unpadded(empty, convention.inputs)
            return cls(source, convention, trust, None, empty)
        config = network_config(checkpoint, native, shapes)
        empty = skeleton(native, config)
        if not checkpoint.config.get("quantization_config"):  # those have other weights
            account(checkpoint, native, empty, shapes)
        return cls(source, convention, trust, config, empty)

    def load(self, shapes: Shapes) -> Any:
        """The network with its weights, which are read now."""
        checkpoint, convention, placement = self.source.checkpoint, self.convention, self.source.placement
        if convention.native is not None:
            return load_native(checkpoint, convention.native, self.config, self.empty, placement)
        model = load_model(
            checkpoint, convention.auto_class, placement, trust_remote_code=self.trust, shapes=shapes,
            additive=convention.masking == "mask-4d", configuration=convention.configuration,
        )
        return Unpadded(model, convention.inputs) if convention.masking == "unpadded" else model


def load_two(
    dlm: Name,
    ar: Name,
    *,
    dlm_options: Options,
    ar_options: Options,
    trust_remote_code: bool,
    dlm_convention: Override | None,
    attention: Attention | None,
    block_size: int | None,
    mask_id: int | None,
    eos_id: EosId,
    dlm_tokenizer: Name | None,
    reduce: bool,
    format_prompt: PromptFormat | None,
    chat: Chat,
    system: str | None,
    dlm_cache: DlmCache,
    max_logit_bytes: int | None,
) -> Pair:
    """Load two checkpoints as a pair; the arguments are those of `smc_bridge.models.pairs.load_pair`, which calls this.

    Raises:
        ValueError, FileNotFoundError: as `load_pair`.
    """
    trust = trust_remote_code
    check_id("mask_id", mask_id)
    ends = ends_of(eos_id)
    left = _source("dlm", dlm, dlm_options, trust_remote_code=trust, tokenizer=dlm_tokenizer)
    config = left.checkpoint.config
    if str(config["model_type"]) not in CONVENTIONS:
        _check_code(left.checkpoint, trust, "AutoModelForMaskedLM", "AutoModelForCausalLM")
    shapes = weight_shapes(left.checkpoint)
    convention = convention_of(
        config, name=left.checkpoint.name, override=dlm_convention, attention=attention, block_size=block_size,
        wrapped=is_wrapped(shapes), trusted=trust,
    )
    diffusion = Diffusion.of(left, convention, shapes, trust=trust)
    if mask_id is None:
        mask_id = mask_id_of(config, left.tokenizer, convention, name=left.checkpoint.name)
    right = _target(ar, ar_options, trust)
    if eos_id is None:
        ends = shared_ends(ends_of_target(right), left.tokenizer, right.tokenizer, mask_id=mask_id)
    if not reduce:
        ignore = ignorable_ids(left.tokenizer, right.tokenizer, mask_id=mask_id, ends=ends)
        check_shared_vocabulary(left.tokenizer, right.tokenizer, ignore=ignore)
    if convention.either:
        warnings.warn(
            f"{left.checkpoint.said}: models of its type are trained with full attention or block by block, and its "
            "configuration does not tell; it is read with full attention: give attention = 'block' and block_size "
            "if it was trained by blocks (BD3LM), attention = 'full' to say that it was not",
            stacklevel=4,
        )

    def pair_of(dlm_model: Any, ar_model: Any) -> Pair:
        """The pair of these two networks."""
        own = ends
        if eos_id is None:
            size = min(output_size(dlm_model), output_size(ar_model))
            own = shared_ends(ends, left.tokenizer, right.tokenizer, mask_id=mask_id, size=size)
        pair = pair_from_models(
            dlm_model, ar_model, right.tokenizer, shift=convention.shift, dlm_tokenizer=left.tokenizer,
            mask_id=mask_id, eos_id=own, reduce=reduce, causal_backbone=convention.masking == "mask-4d",
            block_size=convention.block_size, dlm_cache=dlm_cache, max_logit_bytes=max_logit_bytes,
            format_prompt=format_prompt or _form(right, chat, system), name=f"{os.fspath(dlm)} + {os.fspath(ar)}",
        )
        fit_adapter(pair.dlm, config, convention)
        return pair

    ar_empty = None if trust else automatic(right.checkpoint, "AutoModelForCausalLM", {})
    if diffusion.empty is not None and ar_empty is not None:
        with warnings.catch_warnings(action="ignore"):  # they come with the real one
            pair_of(diffusion.empty, ar_empty)
    ar_model = _load_ar(right, trust=trust)
    pair = pair_of(diffusion.load(shapes), ar_model)
    if pair.dlm.device != pair.ar.device:
        raise ValueError(
            f"dlm is on {pair.dlm.device} and ar on {pair.ar.device}: scores of both meet on one device; give one "
            "device, or the same device_map"
        )
    return pair


def fit_adapter(adapter: Any, config: Mapping[str, Any], convention: Convention) -> None:
    """Tell an adapter how it was loaded, and the positions that the model was built for, where its configuration says
    them differently."""
    adapter.family = convention.family
    if convention.length_key != LENGTH_KEY and convention.length_key in config:
        adapter.max_length, adapter.limited_by = int(config[convention.length_key]), convention.length_key
