"""Pairs by name: `load_pair("arithmetic")` gives the embedded one, `load_pair(dlm, ar)` one of two checkpoints, local
folders or names of the Hugging Face hub.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from smc_bridge.models.arguments import said, true_or_false, whole_number
from smc_bridge.models.caches import CachePolicy, cache_named
from smc_bridge.models.conventions import Attention, Override
from smc_bridge.models.ends import EosId
from smc_bridge.models.loading import quiet
from smc_bridge.models.pair import Pair, pair_from_models
from smc_bridge.models.placement import options_of
from smc_bridge.models.prompts import Chat, PromptFormat, check_form
from smc_bridge.models.verdicts import by_name

__all__ = ["PAIRS", "Pair", "load_pair", "pair_from_models"]


def _arithmetic(device: torch.device, dtype: torch.dtype) -> Pair:
    """The embedded pair: grade-school word problems with a written-out chain of thought."""
    from smc_bridge.models.arithmetic import architecture
    from smc_bridge.models.arithmetic import tokenizer as arithmetic_tokenizer

    with quiet(progress=False):
        dlm, ar = (architecture.load(kind).to(device=device, dtype=dtype) for kind in ("dlm", "ar"))
    diffusion = dlm.config.diffusion
    pair = pair_from_models(
        dlm, ar, arithmetic_tokenizer.load_tokenizer(), shift=diffusion["shift"], mask_id=diffusion["mask_token_id"],
        format_prompt=arithmetic_tokenizer.format_prompt, name="arithmetic",
    )
    return replace(pair, learned={file.stem: file for file in architecture.WEIGHTS.glob("*.safetensors")})


def _adult(device: torch.device, dtype: torch.dtype) -> Pair:
    """Rows of UCI Adult, a token for each of 15 columns."""
    from smc_bridge.models.tables.pair import load_table_pair

    return load_table_pair("adult", device=device, dtype=dtype)


#: Pairs that ship with the package.
PAIRS: dict[str, Callable[[torch.device, torch.dtype], Pair]] = {"arithmetic": _arithmetic, "adult": _adult}


def load_pair(
    dlm: str | os.PathLike[str] = "arithmetic",
    ar: str | os.PathLike[str] | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    dlm_convention: Override | None = None,
    attention: Attention | None = None,
    block_size: int | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    tp_plan: str | Mapping[str, str] | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    dlm_kwargs: Mapping[str, Any] | None = None,
    ar_kwargs: Mapping[str, Any] | None = None,
    mask_id: int | None = None,
    eos_id: EosId = None,
    dlm_tokenizer: str | os.PathLike[str] | None = None,
    reduce: bool = False,
    format_prompt: PromptFormat | None = None,
    chat: Chat = "auto",
    system: str | None = None,
    dlm_cache: str | CachePolicy = "auto",
    max_logit_bytes: int | None = None,
) -> Pair:
    """Load a pair that ships with the package by its name, or two checkpoints that share a vocabulary.

    Args:
        dlm: diffusion model: a local folder or a name of the hub; "arithmetic" is that of the embedded pair. Without
            `ar`, the name of a pair (`PAIRS`).
        ar: autoregressive model: a folder, a name of the hub, "arithmetic", or "smollm2" (extra `smollm2`).
        dtype: of the weights, also by name. Default: that of each checkpoint; float32 for the embedded models. Scores
            are float32 at least.
        torch_dtype: another name of `dtype`.
        device: where both models run. Default: a CUDA device if there is one, else the CPU.
        trust_remote_code: let the checkpoints' own code run, where they bring any. The families of
            `smc_bridge.models.conventions` need none: without it they are read into networks that are known here.
        dlm_convention: "shifted" or "unshifted", against or in want of what `smc_bridge.models.conventions` says.
        attention: what a place of the diffusion model sees, "full" or "block" (its block and those before), likewise.
        block_size: tokens of a block, likewise.
        device_map: spread the layers of both over devices, as in transformers (needs accelerate).
        tp_plan: split every layer of both over the processes of `torchrun`, as in transformers.
        attn_implementation, quantization_config, revision, token: as in transformers.
        dlm_kwargs, ar_kwargs: those of `dtype`, `torch_dtype`, `device`, `device_map`, `tp_plan` and the four above
            that are different for the one model.
        mask_id: id of the diffusion model's mask token. Default: configuration, tokenizer, or convention.
        eos_id: id that ends a sequence, or several that each do, and no other. Default: all that the autoregressive
            model's generation configuration, configuration and tokenizer name.
        dlm_tokenizer: checkpoint that the diffusion model's tokenizer is read from. Default: `dlm`.
        reduce: restrict both laws to the ids that the tokenizers share rather than refuse a pair that differs.
        format_prompt: form of a prompt, in the place of `chat` and `system`: `format_prompt(tokenizer, text)` returns
            ids.
        chat: whether a prompt is the first turn of a conversation, written by the chat template of the autoregressive
            model's tokenizer (True), or the text as it is (False). "auto": the template if there is one.
        system: text of a system turn before it. Default: what the template writes by itself, if anything.
        dlm_cache: "prefix" keeps the diffusion model's keys and values of committed tokens: cheaper drafts that are a
            little worse (of a block-causal model the same), and no other law of what is sampled
            (`HuggingFaceMaskedLM`); "freecache", "refresh", "dual" and "window:W", or a policy object, keep others
            (`smc_bridge.models.caches`); "none" computes all anew. "auto": "prefix" where there is one.
        max_logit_bytes: cap on the bytes of logits that the head of either model computes at once, at least those of
            one position; scores differ by round-off. Default: no cap.
    Raises:
        ValueError: a name or value that is not known, tokenizers that differ, code that is not trusted, or a checkpoint
            that cannot be loaded. FileNotFoundError: a checkpoint or a part of it is missing.
    Example:
        >>> pair = load_pair("arithmetic")
        >>> pair.max_length, pair.ar.vocab_size
        (1024, 640)
    """
    dlm_cache = cache_named(dlm_cache, argument="dlm_cache")
    if max_logit_bytes is not None:
        remedy = "give a whole number of bytes, at least 1, or leave it out, for no cap"
        max_logit_bytes = whole_number("max_logit_bytes", max_logit_bytes, remedy=remedy)
    trust_remote_code = true_or_false("trust_remote_code", trust_remote_code)
    reduce = true_or_false("reduce", reduce)
    check_form(chat, system, format_prompt)
    common = {
        "dtype": dtype, "torch_dtype": torch_dtype, "device": device, "device_map": device_map, "tp_plan": tp_plan,
        "attn_implementation": attn_implementation, "quantization_config": quantization_config, "revision": revision,
        "token": token,
    }  # fmt: skip
    dlm_options = options_of(common, dlm_kwargs)
    ar_options = options_of(common, ar_kwargs, argument="ar_kwargs")
    if ar is None:
        if not isinstance(dlm, str | os.PathLike):
            raise ValueError(f"pair = {said(dlm)}: use one of {sorted(PAIRS)}, or name two models (dlm and ar)")
        if dlm not in PAIRS:
            raise ValueError(
                f"pair = {os.fspath(dlm)!r} is unknown: use one of {sorted(PAIRS)}, or name two models (dlm and ar)"
            )
        given = {
            "trust_remote_code": trust_remote_code or None, "dlm_convention": dlm_convention, "attention": attention,
            "block_size": block_size, "attn_implementation": attn_implementation,
            "quantization_config": quantization_config, "revision": revision, "token": token, "dlm_kwargs": dlm_kwargs,
            "ar_kwargs": ar_kwargs, "mask_id": mask_id, "eos_id": eos_id, "dlm_tokenizer": dlm_tokenizer,
            "reduce": reduce or None, "format_prompt": format_prompt, "chat": None if chat == "auto" else chat,
            "system": system,
        }  # fmt: skip
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} = {said(value)} is for two models of your own: leave it out with the pair {dlm!r}"
                )
        placement = ar_options[0]
        if device_map is None and tp_plan is None:
            pair = PAIRS[os.fspath(dlm)](placement.device, placement.dtype or torch.float32)
            return _with_cache(_capped(pair, max_logit_bytes), dlm_cache)
        ar = dlm
    from smc_bridge.models.own import load_two

    names = {"dlm_model": f"dlm = {_named(dlm)}", "ar_model": f"ar = {_named(ar)}"}
    with by_name(names):
        return load_two(
            dlm, ar, dlm_options=dlm_options, ar_options=ar_options, trust_remote_code=trust_remote_code,
            dlm_convention=dlm_convention, attention=attention, block_size=block_size, mask_id=mask_id, eos_id=eos_id,
            dlm_tokenizer=dlm_tokenizer, reduce=reduce, format_prompt=format_prompt, chat=chat, system=system,
            dlm_cache=dlm_cache, max_logit_bytes=max_logit_bytes,
        )


def _named(name: Any) -> str:
    """A checkpoint as other messages say it: a path is a text."""
    return said(os.fspath(name) if isinstance(name, os.PathLike) else name)


def _capped(pair: Pair, max_logit_bytes: int | None) -> Pair:
    """The pair, freshly made, with that cap on the logits that the heads of its models compute at once."""
    if max_logit_bytes is None:
        return pair
    from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM

    for model in (pair.dlm, pair.ar):
        if not isinstance(model, HuggingFaceCausalLM | HuggingFaceMaskedLM):
            raise ValueError(
                f"max_logit_bytes = {max_logit_bytes}: {type(model).__name__} of {pair.name!r} has no forwards "
                "to cut; leave it out"
            )
        model.cap(max_logit_bytes)
    return pair


def _with_cache(pair: Pair, cache: str | CachePolicy) -> Pair:
    """The pair with that cache in the sessions of its diffusion model, for "auto" the one that there is."""
    if cache == "none":
        return pair
    from smc_bridge.models.huggingface import HuggingFaceMaskedLM

    if not isinstance(pair.dlm, HuggingFaceMaskedLM):
        if cache == "auto":
            return pair
        raise ValueError(f"dlm_cache = {str(cache)!r}: the diffusion model of the pair {pair.name!r} has no cache")
    return replace(pair, dlm=pair.dlm.with_cache(cache))
