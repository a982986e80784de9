"""Which convention a diffusion model falls under: its configuration, the table of conventions, and what the user says.

A configuration may state its own in an entry `diffusion`: `shift`, `mask_token_id`, `attention`, `block_size`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from smc_bridge.models.arguments import said, whole_number
from smc_bridge.models.conventions import (
    ATTENTIONS,
    CAUSAL_BACKBONE,
    CONVENTIONS,
    NATIVE_MASKED,
    OVERRIDES,
    OWN_MASKING,
    UNKNOWN,
    UNWRAPPED,
    WRAPPED,
    Attention,
    Convention,
    Override,
)

#: Entry of a configuration in which a diffusion model states its own convention.
ENTRY = "diffusion"


def is_wrapped(names: Mapping[str, Any]) -> bool:
    """Whether weights of these names are those that DiffuLLaMA's trainer writes round its backbone."""
    return any(name.startswith(WRAPPED) for name in names)


def has_language_model(model_type: str, auto_class: str) -> bool:
    """Whether transformers itself has the architecture `model_type` under `auto_class`."""
    from transformers.models.auto import modeling_auto

    mapping = {
        "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    return model_type in mapping[auto_class]


def is_registered(model_type: str) -> bool:
    """Whether transformers was told of a causal model of this type (`AutoModelForCausalLM.register`)."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    return model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_CAUSAL_LM_MAPPING


def _own_class(config: Mapping[str, Any]) -> str | None:
    """Auto class of the checkpoint's own code, if it has any."""
    own = config.get("auto_map") or {}
    return next((name for name in ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel") if name in own), None)


def _stated(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The `diffusion` entry of a configuration, empty if there is none."""
    entry = config.get(ENTRY)
    if entry is None:
        return {}
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"dlm = {str(name)!r}: {ENTRY} = {entry!r} in its configuration is no JSON object: give one, as "
            '{"shift": true, "mask_token_id": 3}'
        )
    shift = entry.get("shift")
    if shift is not None and not isinstance(shift, bool):
        raise ValueError(
            f"dlm = {str(name)!r}: shift = {shift!r} in the {ENTRY} entry of its configuration: give true or false"
        )
    return entry


def convention_of(
    config: Mapping[str, Any],
    *,
    name: str,
    override: Override | None = None,
    attention: Attention | None = None,
    block_size: int | None = None,
    wrapped: bool = False,
    trusted: bool = False,
) -> Convention:
    """How the diffusion model with this configuration is run.

    The output convention is, in this order: `override`; the `shift` of the configuration's `diffusion` entry; its
    `right_shift_logits`; that of the table. So are attention and block size: the arguments, `attention` and
    `block_size` of that entry, the table. What else the convention says is the architecture's.

    Args:
        config: contents of `config.json`.
        name: of the model, for messages.
        override: "shifted" or "unshifted".
        attention: "full" or "block".
        block_size: tokens of a block.
        wrapped: whether the weights are DiffuLLaMA's or DiffuGPT's (`is_wrapped`).
        trusted: whether the checkpoint's own code, if it has any, is to be run rather than a native network.
    Raises:
        ValueError: an argument or an entry is none of these, or nothing says how a model of this type is read.
    """
    if override is not None and override not in OVERRIDES:
        raise ValueError(f"dlm_convention = {override!r}: give 'shifted' or 'unshifted', or leave it out")
    flag = config.get("right_shift_logits")
    if flag is not None and not isinstance(flag, bool):
        raise ValueError(
            f"dlm = {str(name)!r}: right_shift_logits = {flag!r} in its configuration: give true or false"
        )
    stated = _stated(config, name).get("shift", flag)
    if override is not None:
        stated = override == "shifted"
    found = _family(config, name, shift=stated, wrapped=wrapped, trusted=trusted)
    if stated is not None:
        found = replace(found, shift=bool(stated))
    found = _with_attention(found, config, name, attention, block_size)
    if found.attention == "block" and found.masking != "mask-4d":
        native = trusted and str(config.get("model_type")) in CONVENTIONS
        remedy = "leave trust_remote_code out, so that it is loaded natively" if native else "leave it out"
        raise ValueError(
            f"attention = 'block' of dlm = {str(name)!r}: the code that runs it cannot be told of blocks; {remedy}"
        )
    return found


def _family(
    config: Mapping[str, Any], name: str, *, shift: bool | None, wrapped: bool, trusted: bool
) -> Convention:
    """The entry of the table, or what stands for it; `shift` is what is known of that otherwise."""
    model_type = str(config.get("model_type"))
    found = CONVENTIONS.get(model_type)
    if wrapped:
        if model_type not in UNWRAPPED:
            raise ValueError(
                f"dlm = {str(name)!r}: holds the weights of a diffusion wrapper round {model_type!r}; only "
                f"{' and '.join(sorted(UNWRAPPED))} are known: save the backbone itself"
            )
        return UNWRAPPED[model_type]
    if model_type in UNKNOWN and not trusted:
        raise ValueError(
            f"dlm = {str(name)!r} has the model type {model_type!r}, which is not known here: {UNKNOWN[model_type]}; "
            "give another diffusion model"
        )
    own = _own_class(config)
    if found is not None and trusted and own is not None:
        return replace(found, native=None, auto_class=own, masking=OWN_MASKING.get(model_type, "unpadded"))
    if found is not None:
        return found if found.native_of is None else replace(found, native=found.native_of(config))
    if has_language_model(model_type, "AutoModelForMaskedLM") and not config.get("is_encoder_decoder"):
        return NATIVE_MASKED
    if shift is None:
        raise ValueError(
            f"dlm = {str(name)!r} has the model type {model_type!r}, whose convention is not known: set dlm_convention "
            "to 'shifted' (the output at place i - 1 predicts place i, as in Dream) or 'unshifted' (as in LLaDA)"
        )
    if own is not None and (trusted or not has_language_model(model_type, "AutoModelForCausalLM")):
        return Convention(None, shift, "unpadded", auto_class=own)
    if has_language_model(model_type, "AutoModelForCausalLM"):
        return CAUSAL_BACKBONE
    raise ValueError(
        f"dlm = {str(name)!r} has the model type {model_type!r}, which transformers has no language model for: "
        "give a masked or causal language model, or a checkpoint with code of its own and trust_remote_code = True"
    )


def _with_attention(
    found: Convention, config: Mapping[str, Any], name: str, attention: Attention | None, block_size: int | None
) -> Convention:
    """The convention with the attention and block size that are given, or that the configuration says."""
    entry = _stated(config, name)
    switch = True if found.block_switch is None else config.get(found.block_switch, True)
    if not isinstance(switch, bool):
        raise ValueError(
            f"dlm = {str(name)!r}: {found.block_switch} = {switch!r} in its configuration: give true or false"
        )
    usual = found.attention if switch else "full"
    kind = entry.get("attention", usual) if attention is None else attention
    if kind not in ATTENTIONS:
        raise ValueError(f"attention = {said(kind)} of dlm = {str(name)!r}: give 'full' or 'block'")
    if kind == "full":
        if block_size is not None:
            raise ValueError(f"block_size = {said(block_size)} with full attention: give attention = 'block' too")
        return replace(found, attention=kind, block_size=None, either=found.either and attention is None)
    sizes = (block_size, entry.get("block_size"), *(config.get(key) for key in found.block_keys), found.block_size)
    size = next((size for size in sizes if size is not None), None)
    if size is None:
        raise ValueError(
            f"attention = 'block' of dlm = {str(name)!r}: its configuration does not say how many tokens a block has; "
            "give block_size"
        )
    size = whole_number("block_size", size)
    return replace(found, attention=kind, block_size=size, either=False)


def mask_id_of(config: Mapping[str, Any], tokenizer: Any, convention: Convention, *, name: str) -> int:
    """Id of the mask token: the configuration's, else the tokenizer's, else that of the convention's token.

    Raises:
        ValueError: nothing tells, or what does is no id.
    """
    size = config.get("vocab_size")
    last = size - 1 if convention.last_is_mask and isinstance(size, int) else None
    named = None if convention.mask_token is None else tokenizer.get_vocab().get(convention.mask_token)
    found = (
        _stated(config, name).get("mask_token_id"), config.get("mask_token_id"), tokenizer.mask_token_id, named,
        last,
    )
    known = next((i for i in found if i is not None), None)
    if known is None:
        raise ValueError(
            f"mask_id = None, and neither configuration nor tokenizer of dlm = {str(name)!r} has a mask token: give "
            "the id that stands for a masked position"
        )
    if isinstance(known, bool) or not isinstance(known, int) or known < 0:
        raise ValueError(
            f"dlm = {str(name)!r}: mask_token_id = {known!r} in its configuration is no id: give mask_id, a number "
            "from 0"
        )
    return known
