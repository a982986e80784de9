"""A pair of two checkpoints that the user names: found, compared, and only then loaded.

What can be refused from a few small files is refused before gigabytes are read: configuration, convention, code that is
not trusted, and tokenizers, which are compared id by id. Then the pair is made of networks without numbers, which
refuses every argument that does not fit them, and at last of those with.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smc_bridge.models.arguments import whole_number
from smc_bridge.models.caches import CachePolicy
from smc_bridge.models.conventions import CONVENTIONS, LENGTH_KEY, UNKNOWN, Attention, Convention, Override
from smc_bridge.models.ends import EosId, ends_of
from smc_bridge.models.huggingface.adapter import ADDITIVE_ATTENTION, output_size
from smc_bridge.models.huggingface.unpadded import Unpadded
from smc_bridge.models.huggingface.vocabulary import check_shared_vocabulary, ignorable_ids, shared_ends
from smc_bridge.models.loading import check_quantisation, load_model, load_native, weight_shapes
from smc_bridge.models.native import Shapes, account, automatic, network_config, skeleton
from smc_bridge.models.pair import Pair, pair_from_models
from smc_bridge.models.prompts import Chat, PromptFormat
from smc_bridge.models.recognise import convention_of, is_wrapped, mask_id_of
from smc_bridge.models.source import Name, Options, Source, check_code, form_of, runs_own_code, source_of
from smc_bridge.models.target import ends_of_target, load_target, target_of


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
            check_code(checkpoint, trust, convention.auto_class)
            own = runs_own_code(checkpoint, trust, convention.auto_class)
            empty = None if own else automatic(checkpoint, convention.auto_class, convention.configuration)
            if empty is not None and convention.masking == "unpadded":
                empty = Unpadded(empty, convention.inputs)
            return cls(source, convention, trust, None, empty)
        config = network_config(checkpoint, native, shapes)
        empty = skeleton(checkpoint, native, config)
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
            strict=convention.auto_class == "AutoModelForCausalLM",  # masked LMs come with poolers and other heads
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
    dlm_cache: str | CachePolicy,
    max_logit_bytes: int | None,
) -> Pair:
    """Load two checkpoints as a pair; the arguments are those of `smc_bridge.models.pairs.load_pair`, which calls this.

    Raises:
        ValueError, FileNotFoundError: as `load_pair`.
    """
    trust = trust_remote_code
    if mask_id is not None:
        mask_id = whole_number("mask_id", mask_id, least=0, remedy="give an id, a number from 0")
    ends = ends_of(eos_id)
    left = source_of("dlm", dlm, dlm_options, trust_remote_code=trust, tokenizer=dlm_tokenizer)
    config = left.checkpoint.config
    if str(config["model_type"]) not in {*CONVENTIONS, *UNKNOWN}:
        check_code(left.checkpoint, trust, "AutoModelForMaskedLM", "AutoModelForCausalLM")
    shapes = weight_shapes(left.checkpoint)
    convention = convention_of(
        config, name=left.checkpoint.name, override=dlm_convention, attention=attention, block_size=block_size,
        wrapped=is_wrapped(shapes), trusted=trust,
    )
    diffusion = Diffusion.of(left, convention, shapes, trust=trust)
    if mask_id is None:
        mask_id = mask_id_of(config, left.tokenizer, convention, name=left.checkpoint.name)
    right = target_of(ar, ar_options, trust)
    if eos_id is None:
        ends = shared_ends(ends_of_target(right), left.tokenizer, right.tokenizer, mask_id=mask_id)
    if not reduce:
        ignore = ignorable_ids(left.tokenizer, right.tokenizer, mask_id=mask_id, ends=ends)
        check_shared_vocabulary(left.tokenizer, right.tokenizer, ignore=ignore)
    form = format_prompt or form_of(right, chat, system)
    check_quantisation(left.checkpoint, left.placement)
    if convention.either:
        warnings.warn(
            f"{left.checkpoint.said}: models of its type are trained with full attention or block by block, and its "
            "configuration does not tell; it is read with full attention: give attention = 'block' and block_size "
            "if it was trained by blocks (BD3LM), attention = 'full' to say that it was not",
            stacklevel=4,
        )

    def pair_of(dlm_model: Any, ar_model: Any) -> Pair:
        """The pair of these two networks."""
        shared = ends
        if eos_id is None:
            size = min(output_size(dlm_model), output_size(ar_model))
            shared = shared_ends(ends, left.tokenizer, right.tokenizer, mask_id=mask_id, size=size)
        pair = pair_from_models(
            dlm_model, ar_model, right.tokenizer, shift=convention.shift, dlm_tokenizer=left.tokenizer,
            mask_id=mask_id, eos_id=shared, reduce=reduce, causal_backbone=convention.masking == "mask-4d",
            block_size=convention.block_size, dlm_cache=dlm_cache, max_logit_bytes=max_logit_bytes,
            format_prompt=form, name=f"{os.fspath(dlm)} + {os.fspath(ar)}",
        )
        fit_adapter(pair.dlm, config, convention)
        return pair

    own = runs_own_code(right.checkpoint, trust, "AutoModelForCausalLM")
    ar_empty = None if own else automatic(right.checkpoint, "AutoModelForCausalLM", {})
    if diffusion.empty is not None and ar_empty is not None:
        with warnings.catch_warnings(action="ignore"):  # they come with the real one
            pair_of(diffusion.empty, ar_empty)
    ar_model = load_target(right, trust=trust)
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
    if convention.length_key != LENGTH_KEY and config.get(convention.length_key) is not None:
        limit = whole_number(f"{convention.length_key} in the configuration of dlm", config[convention.length_key])
        adapter.max_length, adapter.limited_by = limit, convention.length_key
