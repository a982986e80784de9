"""Loading one model of transformers from a checkpoint, wherever its weights are put."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from smc_bridge.models.checkpoints import CONFIG, WEIGHTS, WEIGHTS_INDEX, Checkpoint, reason
from smc_bridge.models.conventions import Native
from smc_bridge.models.native import network_class, placed, renames, tied
from smc_bridge.models.placement import SPREAD, Placement
from smc_bridge.models.weights import unmatched

#: What types of whole numbers, and of 8-bit ones, begin with in headers of safetensors.
NARROW = ("I", "U", "F8")


@contextmanager
def quiet(*, progress: bool) -> Iterator[None]:
    """Silence transformers' warnings, and its progress bars unless `progress`.

    What the warnings tell of (weights that the checkpoint lacks) is an error here.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not progress:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def one_line(checkpoint: Checkpoint, what: str, *, own_code: bool = False) -> Iterator[None]:
    """Turn what transformers raises on a checkpoint, or its `own_code`, into one line."""
    try:
        yield
    except Exception as error:  # anything: the checkpoint's own code may run in here
        from smc_bridge.models.huggingface.chunks import is_out_of_memory

        if is_out_of_memory(error):
            raise MemoryError(
                f"{checkpoint.said}: out of memory while loading its {what}; give a narrower dtype, or a device_map"
            ) from error
        if isinstance(error, ImportError):
            raise ValueError(
                f"{checkpoint.said}: its {what} cannot be loaded here ({reason(error)}); install what it names, or "
                "leave out what asks for it"
            ) from error
        if any(word in str(error) for word in ("ignore_mismatched_sizes", "size mismatch")):  # listed in a warning
            raise ValueError(
                f"{checkpoint.said}: its {what} cannot be loaded: they have other shapes than its {CONFIG} says; copy "
                "both from one checkpoint"
            ) from error
        writer = _writer(checkpoint) if own_code else ""
        raise ValueError(
            f"{checkpoint.said}: its {what} cannot be loaded ({type(error).__name__}: {reason(error)}); check that the "
            f"checkpoint is whole and that this version of transformers reads it{writer}"
        ) from error


def check_quantisation(checkpoint: Checkpoint, placement: Placement) -> None:
    """Refuse a quantisation, asked for or of the checkpoint, that cannot be had here, before weights are read.

    Raises:
        ValueError: it is unknown, needs a package that is not installed, or another place for the weights.
    """
    given = placement.quantization_config or checkpoint.config.get("quantization_config")
    if not given:
        return
    from transformers.quantizers import AutoHfQuantizer, AutoQuantizationConfig

    options = placement.options(checkpoint)
    with quiet(progress=True), one_line(checkpoint, "quantised weights"):
        config = AutoQuantizationConfig.from_dict(dict(given)) if isinstance(given, Mapping) else given
        quantizer = AutoHfQuantizer.from_config(config, pre_quantized=placement.quantization_config is None)
        quantizer.validate_environment(
            dtype=placement.dtype or torch.float32, device_map=options.get("device_map"), weights_only=True
        )


def _writer(checkpoint: Checkpoint) -> str:
    """Which version of transformers a checkpoint with code of its own was written for, for a message."""
    written = checkpoint.config.get("transformers_version")
    if written is None:
        return ""
    import transformers

    return (
        f": it was written with transformers {written}, this is {transformers.__version__}; its own code may need that "
        "one (leave trust_remote_code out if its family is known here)"
    )


def _weight_files(checkpoint: Checkpoint) -> list[str]:
    """The safetensors of a checkpoint; none if there are none."""
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    options = {**checkpoint.options, "_raise_exceptions_for_missing_entries": False}
    whole = cached_file(checkpoint.name, WEIGHTS, **options)
    if whole is None:
        index = cached_file(checkpoint.name, WEIGHTS_INDEX, **options)
        if index is None:
            return []
        return list(get_checkpoint_shard_files(checkpoint.name, index, **checkpoint.options)[0])
    return [whole]


def _read(checkpoint: Checkpoint, wanted: Container[str] | None = None) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, or those that are wanted, mapped into memory."""
    from safetensors import safe_open

    held: dict[str, torch.Tensor] = {}
    for file in _weight_files(checkpoint):
        with safe_open(file, framework="pt") as opened:
            names = [name for name in opened.keys() if wanted is None or name in wanted]  # noqa: SIM118
            held |= {name: opened.get_tensor(name) for name in names}
    return held


def weight_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a checkpoint's safetensors, from their headers; empty if there are none.

    Raises:
        ValueError: a file is none, or holds weights of 8 bits, or whole numbers, and no configuration of quantisation
            explains them.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    quantised = bool(checkpoint.config.get("quantization_config"))
    for file in _weight_files(checkpoint):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    part = opened.get_slice(name)
                    shapes[name] = tuple(part.get_shape())
                    kind = str(part.get_dtype())
                    if not quantised and kind.startswith(NARROW) and name.endswith("weight"):
                        raise ValueError(
                            f"{checkpoint.said}: {name} holds numbers of type {kind}, and its {CONFIG} has no "
                            "quantization_config that explains them; copy it anew"
                        )
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{checkpoint.said}: {Path(file).name} is no safetensors file ({reason(error)}); copy it anew"
            ) from error
    return shapes


def load_model(
    checkpoint: Checkpoint,
    auto_class: str,
    placement: Placement,
    *,
    trust_remote_code: bool,
    shapes: Mapping[str, tuple[int, ...]],
    additive: bool = False,
    configuration: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> Any:
    """The model of a checkpoint, in evaluation mode, from its safetensors.

    Args:
        auto_class: class of transformers that finds the architecture.
        shapes: of the weights (`weight_shapes`).
        additive: ask for an attention that takes an additive mask as it stands.
        configuration: entries of the configuration to set.
        strict: refuse weights that have no place in the model, too, unless its own code is run.
    Raises:
        ValueError: it cannot be loaded, or weights are missing, which would then be random.
    """
    import transformers

    # Only transformers' own classes are known to report what they found; for others the names are compared.
    reports = "auto_map" not in checkpoint.config
    loaded = _load(
        checkpoint, getattr(transformers, auto_class).from_pretrained, placement, checkpoint.name, additive=additive,
        own_code=trust_remote_code and not reports, use_safetensors=True, trust_remote_code=trust_remote_code,
        output_loading_info=reports, **checkpoint.options, **(configuration or {}),
    )
    model, report = loaded if reports else (loaded, {})
    if reports:
        missing, unknown = sorted(report.get("missing_keys", ())), sorted(report.get("unexpected_keys", ()))
    else:
        missing, unknown = unmatched(model, shapes)
    _refuse_missing(checkpoint, model, missing, unknown)
    if strict and reports:
        _refuse_unknown(checkpoint, model, unknown)
    return model


def _refuse_unknown(checkpoint: Checkpoint, model: Any, unknown: list[str]) -> None:
    """Raise ValueError if there are weights that have no place in a model that was loaded."""
    if unknown:
        raise ValueError(
            f"{checkpoint.said}: {len(unknown)} weights have no place in {type(model).__name__} (first {unknown[0]}); "
            f"copy weights and {CONFIG} from one checkpoint"
        )


def _refuse_missing(checkpoint: Checkpoint, model: Any, missing: list[str], unknown: list[str]) -> None:
    """Raise ValueError if weights of a model that was loaded are `missing`; `unknown` are those that have no place."""
    if missing:
        others = f"; {len(unknown)} others have no place in it, first {unknown[0]}" if unknown else ""
        raise ValueError(
            f"{checkpoint.said}: {len(missing)} weights of {type(model).__name__} are not in it (first {missing[0]}"
            f"{others}) and would be random; copy weights and {CONFIG} from one checkpoint, saved with its "
            "language-modelling head"
        )


def load_native(checkpoint: Checkpoint, native: Native, config: Any, empty: Any, placement: Placement) -> Any:
    """The network of a checkpoint that was published with code of its own, in evaluation mode.

    Args:
        config: of the network (`smc_bridge.models.native.network_config`).
        empty: the network without numbers, for which all weights are there (`smc_bridge.models.native.account`).
    Raises:
        ValueError: it cannot be loaded.
    """
    given: dict[str, Any] = {**checkpoint.options, "use_safetensors": True}
    name: str | None = checkpoint.name
    if renames(native):
        with one_line(checkpoint, "weights"):
            given = {"state_dict": placed(native, empty, _read(checkpoint))}
        name = None
    _refuse_other_head(checkpoint, native, empty)
    load = network_class(native).from_pretrained
    model, report = _load(
        checkpoint, load, placement, name, additive=True, config=config, output_loading_info=True, **given
    )
    # The headers told of all but quantised weights.
    missing, unknown = (sorted(report.get(name, ())) for name in ("missing_keys", "unexpected_keys"))
    _refuse_missing(checkpoint, model, missing, unknown)
    if checkpoint.config.get("quantization_config"):
        _refuse_unknown(checkpoint, model, unknown)
    return model


def _refuse_other_head(checkpoint: Checkpoint, native: Native, empty: Any) -> None:
    """Raise ValueError if weights that are tied by the configuration are two different ones in the checkpoint, of which
    versions of transformers choose differently."""
    for one, other in tied(native, empty, weight_shapes(checkpoint)):
        held = _read(checkpoint, {one, other})
        if not torch.equal(held[one], held[other]) and not held[one].isnan().any():  # that is told of by a probe
            raise ValueError(
                f"{checkpoint.said}: {one} and {other} are tied by its {CONFIG} and differ; copy weights and {CONFIG} "
                "from one checkpoint"
            )


def _load(
    checkpoint: Checkpoint, load: Callable[..., Any], placement: Placement, name: str | None, *, additive: bool,
    own_code: bool = False, **given: Any,
) -> Any:
    """What `from_pretrained` returns, its model in evaluation mode and where it belongs."""
    options = placement.options(checkpoint)
    shown = not checkpoint.offline or sys.stderr.isatty()  # gigabytes of a folder take minutes too
    with quiet(progress=shown), one_line(checkpoint, "weights", own_code=own_code):
        load = partial(load, name, **given, **options)
        loaded = _with_attention(placement.attn_implementation, load, additive=additive)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if not options.keys() & set(SPREAD):
            model.to(placement.device)
        model.eval()
    return loaded


def _with_attention(wanted: str | None, load: Callable[..., Any], *, additive: bool) -> Any:
    """What `load` returns with the attention that is wanted; without one, and `additive`, with the first that takes an
    additive mask and that the architecture has.

    transformers refuses the others with a ValueError before it reads any weight.
    """
    from smc_bridge.models.huggingface.adapter import ADDITIVE_ATTENTION

    if wanted is not None:
        return load(attn_implementation=wanted)
    if not additive:
        return load()
    for name in ADDITIVE_ATTENTION[:-1]:
        try:
            return load(attn_implementation=name)
        except ValueError:  # of any other kind it comes again
            continue
    return load(attn_implementation=ADDITIVE_ATTENTION[-1])
