"""Diffusion models that were published with code of their own, in networks that need none: `conventions.Native`.

Most of them are known architectures that were trained without the causal mask: the weights of Dream are those of a
Qwen2, the weights of LLaDA those of a Llama under other names. What would have to run is then known, reads explicit
positions and masks, keeps caches, and does not depend on the version of transformers that the code was written for.

Every weight is accounted for from the headers of the files, before any is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from smc_bridge.models.arguments import said
from smc_bridge.models.checkpoints import CONFIG, Checkpoint, reason
from smc_bridge.models.conventions import Native

#: Entries of a configuration that are about the code that it was written for.
FOREIGN = ("auto_map", "architectures", "model_type", "transformers_version", "attn_implementation", "use_cache")
#: Entries that change every logit, so that none of a class's defaults may stand for them.
NEEDED = ("rms_norm_eps", "rope_theta")
#: Weights that old checkpoints hold and that are computed: rotary frequencies, and causal masks of GPT-2.
COMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$")
#: The table of input embeddings.
EMBEDDING = re.compile(r"\.(wte|embed_tokens)\.weight$")

Shapes = Mapping[str, tuple[int, ...]]


def network_class(native: Native) -> Any:
    """The class of the network."""
    if native.architecture == "DiT":
        from smc_bridge.models.huggingface.dit import DiT

        return DiT
    import transformers

    return getattr(transformers, native.architecture)


def network_config(checkpoint: Checkpoint, native: Native, shapes: Shapes) -> Any:
    """The configuration of the network.

    Raises:
        ValueError: an entry is missing, or says something that the network is not.
    """
    published = checkpoint.config.get("architectures") or [native.published]
    if not isinstance(published, list):
        raise ValueError(
            f"{checkpoint.said}: architectures = {said(published)} in {CONFIG} is no list of names; copy it anew"
        )
    if native.published is not None and native.published not in published:
        raise ValueError(
            f"{checkpoint.said}: is a {published[0]}, and only {native.published} of its type is known here; set "
            "trust_remote_code = True to run its own code"
        )
    if renames(native) and checkpoint.config.get("quantization_config"):
        raise ValueError(
            f"{checkpoint.said}: its weights are quantised under names of their own, which are not known here; give "
            "the checkpoint that it was made of, with quantization_config"
        )
    try:
        found = native.entries(checkpoint.config)
        if not isinstance(found, Mapping):
            return found
        empty = next((name for name in NEEDED if name in found and found[name] is None), None)
        if empty is not None:
            raise ValueError(f"{empty} = null in {CONFIG}: the network's own may be another; copy the checkpoint anew")
        entries = {name: value for name, value in found.items() if name not in FOREIGN and value is not None}
        if native.resized:
            rows = [shape[0] for name, shape in shapes.items() if EMBEDDING.search(_places(native, name)[0])]
            entries |= {"vocab_size": rows[0]} if rows else {}
        return network_class(native).config_class(**entries)
    except KeyError as error:
        raise ValueError(f"{checkpoint.said}: {CONFIG} has no {error}; copy the checkpoint anew") from error
    except Exception as error:  # of whatever kind transformers' configurations raise
        raise ValueError(f"{checkpoint.said}: {' '.join(str(error).split())}") from error


def skeleton(checkpoint: Checkpoint, native: Native, config: Any) -> Any:
    """The network without numbers.

    Raises:
        ValueError: no network can be made by this configuration.
    """
    try:
        with torch.device("meta"):
            model = network_class(native)(config)
        model.tie_weights()
    except Exception as error:  # anything: an entry is used first where a layer is made
        raise ValueError(
            f"{checkpoint.said}: no {native.architecture} can be made by its {CONFIG} ({type(error).__name__}: "
            f"{reason(error)}); copy the checkpoint anew"
        ) from error
    return model


def automatic(checkpoint: Checkpoint, auto_class: str, configuration: Mapping[str, Any]) -> Any | None:
    """The network that transformers has for a checkpoint, without numbers; None if it cannot be made so."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint.name, **checkpoint.options, **configuration)
        with torch.device("meta"):
            return getattr(transformers, auto_class).from_config(config)
    except Exception:  # whatever is wrong is told of when it is loaded
        return None


def account(checkpoint: Checkpoint, native: Native, empty: Any, shapes: Shapes) -> None:
    """Refuse a checkpoint whose weights are not exactly those of the network `empty` (of `skeleton`).

    Raises:
        ValueError: a weight is missing, has no place, or another shape; one line that names the first.
    """
    wanted = {name: tuple(value.shape) for name, value in empty.state_dict().items()}
    held: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        places = _places(native, name)
        rows = [wanted[place][0] for place in places if wanted.get(place)]
        whole = len(places) == 1 or (len(rows) == len(places) and sum(rows) == shape[0])
        twice = sorted(held.keys() & set(places))
        if twice:
            raise ValueError(
                f"{checkpoint.said}: holds {twice[0]} twice, under two names (one is {name}); copy it anew"
            )
        held |= {p: shape if len(places) == 1 or not whole else wanted[p][:1] + shape[1:] for p in places}
    own = type(empty).__name__
    same = _tied(empty)
    missing = sorted(name for name in wanted.keys() - held.keys() if not same.get(name, set()) & held.keys())
    unused = [COMPUTED, *map(re.compile, native.unused)]
    unknown = sorted(name for name in held.keys() - wanted.keys() if not any(x.search(name) for x in unused))
    other = sorted(name for name in held.keys() & wanted.keys() if held[name] != wanted[name])
    remedy = f"copy weights and {CONFIG} from one checkpoint"
    if missing:
        raise ValueError(
            f"{checkpoint.said}: {len(missing)} weights of {own} are not in it (first {missing[0]}); {remedy}"
        )
    if unknown:
        raise ValueError(
            f"{checkpoint.said}: {len(unknown)} weights have no place in {own} (first {unknown[0]}); {remedy}"
        )
    if other:
        name = other[0]
        raise ValueError(
            f"{checkpoint.said}: {len(other)} weights have another shape than {own} by its {CONFIG} (first {name}: "
            f"{held[name]} against {wanted[name]}); {remedy}"
        )


def placed(native: Native, empty: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a checkpoint under the names of the network `empty`, those that are computed left out."""
    wanted = empty.state_dict()
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        places = _places(native, name)
        parts = [value] if len(places) == 1 else torch.split(value, [wanted[place].shape[0] for place in places])
        out |= {place: part for place, part in zip(places, parts, strict=True) if place in wanted}
    return out


def tied(native: Native, empty: Any, names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of weights of a checkpoint that are one parameter of the network `empty`, and so must be equal."""
    places = {_places(native, name)[0]: name for name in names}
    same = _tied(empty)
    return [
        (places[one], places[other])
        for one in sorted(same) for other in sorted(same[one])
        if one < other and one in places and other in places
    ]


def renames(native: Native) -> bool:
    """Whether weights have other names in the checkpoint than in the network."""
    return bool(native.renaming or native.fused)


def _places(native: Native, name: str) -> tuple[str, ...]:
    """Names in the network of what the weight `name` of the checkpoint holds."""
    for pattern, replacements in native.fused.items():
        if re.search(pattern, name):
            return tuple(re.sub(pattern, replacement, name) for replacement in replacements)
    for pattern, replacement in native.renaming.items():
        if re.search(pattern, name):
            return (re.sub(pattern, replacement, name),)
    return (name,)


def _tied(model: Any) -> dict[str, set[str]]:
    """For each parameter the other names of the same one."""
    names: dict[int, set[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), set()).add(name)
    return {name: same - {name} for same in names.values() for name in same}
