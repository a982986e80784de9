"""A model that the user names, before it is loaded: its checkpoint, tokenizer, form of prompts, and place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from smc_bridge.models.arguments import said
from smc_bridge.models.checkpoints import Checkpoint, find_checkpoint
from smc_bridge.models.gguf import dequantised, packaged_gguf
from smc_bridge.models.placement import Placement
from smc_bridge.models.prompts import Chat, PromptFormat, formatted, prompt_format
from smc_bridge.models.recognise import has_language_model
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


def source_of(
    argument: str, name: Name, options: Options, *, trust_remote_code: bool, tokenizer: Name | None = None
) -> Source:
    """Find what an argument names, and its tokenizer, that of another checkpoint if one is given.

    Raises:
        ValueError, FileNotFoundError: there is none, or it is not whole.
    """
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


def form_of(source: Source, chat: Chat, system: str | None) -> PromptFormat:
    """The form of prompts that is asked for; the source's own unless anything is.

    Raises:
        ValueError: there is no such form, or it fails.
    """
    own = chat == "auto" and system is None
    form = source.format_prompt if own else prompt_format(source.tokenizer, chat, system)
    formatted(form, source.tokenizer, "text")  # a chat template is a program, and may fail
    return form


def runs_own_code(checkpoint: Checkpoint, trust: bool, auto_class: str) -> bool:
    """Whether code of the checkpoint's will be run, which nothing here is known of."""
    return trust and auto_class in (checkpoint.config.get("auto_map") or {})


def check_code(checkpoint: Checkpoint, trust: bool, *auto_classes: str) -> None:
    """Refuse a checkpoint that nothing but code of its own can run, unless that is trusted."""
    if checkpoint.config.get("auto_map") and not trust:
        model_type = str(checkpoint.config["model_type"])
        if not any(has_language_model(model_type, auto_class) for auto_class in auto_classes):
            checkpoint.refuse_code()
