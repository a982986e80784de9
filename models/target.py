"""An autoregressive model that the user names: the target, alone or of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from smc_bridge.models.arguments import ids_of
from smc_bridge.models.checkpoints import configured_ends, generation_ends
from smc_bridge.models.conventions import CONVENTIONS
from smc_bridge.models.ends import Ends, EosId, ends_of
from smc_bridge.models.huggingface.adapter import output_size
from smc_bridge.models.huggingface.vocabulary import shared_ends, special_ids
from smc_bridge.models.loading import check_quantisation, load_model, weight_shapes
from smc_bridge.models.placement import options_of
from smc_bridge.models.prompts import Chat, PromptFormat, check_form
from smc_bridge.models.protocols import CausalLM
from smc_bridge.models.recognise import has_language_model, is_registered
from smc_bridge.models.source import Name, Options, Source, check_code, form_of, source_of
from smc_bridge.models.verdicts import by_name


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
    source = target_of(ar, options, trust_remote_code)
    form = form_of(source, chat, system)
    tokenizer = source.tokenizer
    if eos_id is None:
        ends = ends_of_target(source)
    model = load_target(source, trust=trust_remote_code)
    size = output_size(model)
    if eos_id is None:
        ends = shared_ends(ends, tokenizer, tokenizer, size=size)
    banned = (special_ids(tokenizer) | (set(range(size)) - set(tokenizer.get_vocab().values()))).difference(ends)
    with by_name({"ar_model": source.checkpoint.said}):
        adapter = HuggingFaceCausalLM(model, eos_id=ends, banned_ids=[i for i in banned if i < size])
    return Causal(adapter, tokenizer, form)


def ends_of_target(source: Source) -> Ends:
    """Ids that end a sequence of a target that nobody names others for: those of its generation configuration, of its
    configuration and of its tokenizer."""
    checkpoint = source.checkpoint
    own = ids_of(source.tokenizer.eos_token_id)
    return ends_of([*generation_ends(checkpoint), *configured_ends(checkpoint), *own])


def target_of(ar: Name, options: Options, trust: bool) -> Source:
    """An autoregressive model that may be run."""
    source = source_of("ar", ar, options, trust_remote_code=trust)
    found = CONVENTIONS.get(str(source.checkpoint.config["model_type"]))
    if found is not None and found.native is not None:
        raise ValueError(
            f"{source.checkpoint.said}: is a diffusion model ({found.family}), and a target must be autoregressive; "
            "give it as dlm"
        )
    check_code(source.checkpoint, trust, "AutoModelForCausalLM")
    model_type = str(source.checkpoint.config["model_type"])
    known = has_language_model(model_type, "AutoModelForCausalLM") or is_registered(model_type)
    if not (known or source.checkpoint.config.get("auto_map")):
        raise ValueError(
            f"{source.checkpoint.said}: has the model type {model_type!r}, of which this version of transformers has "
            "no causal language model; give another"
        )
    check_quantisation(source.checkpoint, source.placement)
    return source


def load_target(source: Source, *, trust: bool) -> Any:
    """The network of a target, with its weights."""
    shapes = weight_shapes(source.checkpoint)
    return load_model(
        source.checkpoint, "AutoModelForCausalLM", source.placement, trust_remote_code=trust, shapes=shapes
    )
