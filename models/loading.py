"""Loading one model of transformers from a checkpoint, wherever its weights are put.

`dtype`, `device`, `device_map` and `tp_plan` mean what they mean in transformers. With a `device_map` accelerate
spreads the layers over the devices and moves what passes between them; with `tp_plan="auto"` (under `torchrun`)
transformers splits every layer over the processes, and each process runs the whole program: all see the same logits
and, with the same seed, draw the same tokens.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import torch

from smc_bridge.models.arguments import said
from smc_bridge.models.checkpoints import CONFIG, WEIGHTS, WEIGHTS_INDEX, Checkpoint, reason
from smc_bridge.models.conventions import LENGTH_KEY, UNWRAPPED, WRAPPED, Convention
from smc_bridge.models.extras import install
from smc_bridge.models.weights import unmatched

DTYPES = {
    name: dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for name in (str(dtype).removeprefix("torch."), dtype)
}


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A type of weights by name; None is passed through.

    Raises:
        ValueError: it is no floating-point type.
    """
    if dtype is None:
        return None
    if not isinstance(dtype, str | torch.dtype) or dtype not in DTYPES:
        names = [name for name in DTYPES if isinstance(name, str)]
        raise ValueError(f"dtype = {said(dtype)}: use one of {', '.join(names)}")
    return DTYPES[dtype]


def as_device(device: torch.device | str | None) -> torch.device:
    """A device by name; by default a CUDA device if there is one, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"device = {str(device)!r}: is not there ({reason(error)}); use 'cpu', or leave it out"
        ) from error
    if found.type == "meta":
        raise ValueError("device = 'meta': holds no numbers, so nothing is scored there; use 'cpu', or leave it out")
    return found


@dataclass(frozen=True)
class Placement:
    """Type and place of the weights.

    Attributes:
        dtype: of the weights, or None for that of the checkpoint.
        device: of the whole model; not used with a device map or a tensor-parallel plan.
        device_map: as in transformers: "auto", or module -> device.
        tp_plan: as in transformers: "auto", or module -> style.
    """

    dtype: torch.dtype | None
    device: torch.device
    device_map: str | Mapping[str, Any] | None = None
    tp_plan: str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        """Refuse what excludes each other or cannot run here."""
        if self.device_map is not None and self.tp_plan is not None:
            raise ValueError("device_map and tp_plan exclude each other: give one of them")
        if self.device_map is not None and util.find_spec("accelerate") is None:
            raise ValueError(f"device_map = {self.device_map!r}: needs the package accelerate; {install('devices')}")
        if self.tp_plan is not None and "WORLD_SIZE" not in os.environ:
            raise ValueError(
                f"tp_plan = {self.tp_plan!r}: needs one process per device; start the program with torchrun"
            )

    @classmethod
    def of(
        cls,
        dtype: torch.dtype | str | None,
        device: torch.device | str | None,
        device_map: str | Mapping[str, Any] | None,
        tp_plan: str | Mapping[str, str] | None,
    ) -> Placement:
        """A placement as a user names it (see `as_dtype` and `as_device`).

        Raises:
            ValueError: there is no such type or device, or what is given excludes each other.
        """
        if device is not None and (device_map is not None or tp_plan is not None):
            by = "device_map" if device_map is not None else "tp_plan"
            raise ValueError(f"device = {str(device)!r} with {by}: {by} places the weights; leave device out")
        return cls(as_dtype(dtype), as_device(device), device_map, tp_plan)

    @property
    def spread(self) -> bool:
        """Whether transformers places the weights."""
        return self.device_map is not None or self.tp_plan is not None

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`."""
        found: dict[str, Any] = {"dtype": "auto" if self.dtype is None else self.dtype}
        if self.device_map is not None:
            found["device_map"] = self.device_map
        if self.tp_plan is not None:
            try:
                from transformers.distributed import DistributedConfig

                found["distributed_config"] = DistributedConfig(tp_plan=self.tp_plan)
            except (ImportError, TypeError):  # transformers 4
                found["tp_plan"] = self.tp_plan
        return found


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
def one_line(checkpoint: Checkpoint, what: str) -> Iterator[None]:
    """Turn what transformers raises on a checkpoint into one line."""
    try:
        yield
    except Exception as error:  # anything: the checkpoint's own code may run in here
        from smc_bridge.models.huggingface.chunks import is_out_of_memory

        if is_out_of_memory(error):
            raise MemoryError(
                f"{checkpoint.said}: out of memory while loading its {what}; give a narrower dtype, or a device_map"
            ) from error
        if "ignore_mismatched_sizes" in str(error):  # transformers lists them in a warning, which is silenced
            raise ValueError(
                f"{checkpoint.said}: its {what} cannot be loaded: they have other shapes than its {CONFIG} says; copy "
                "both from one checkpoint"
            ) from error
        raise ValueError(
            f"{checkpoint.said}: its {what} cannot be loaded ({type(error).__name__}: {reason(error)}); check that the "
            "checkpoint is whole and that this version of transformers reads it"
        ) from error


def weight_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a checkpoint's safetensors, from their headers; empty if there are none."""
    from safetensors import SafetensorError, safe_open
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    options = {"local_files_only": checkpoint.offline, "_raise_exceptions_for_missing_entries": False}
    whole = cached_file(checkpoint.name, WEIGHTS, **options)
    if whole is None:
        index = cached_file(checkpoint.name, WEIGHTS_INDEX, **options)
        if index is None:
            return {}
        files = get_checkpoint_shard_files(checkpoint.name, index, local_files_only=checkpoint.offline)[0]
    else:
        files = [whole]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{checkpoint.said}: {Path(file).name} is no safetensors file ({reason(error)}); copy it anew"
            ) from error
    return shapes


def is_wrapped(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether weights are those that DiffuLLaMA's trainer writes round its backbone."""
    return any(name.startswith(WRAPPED) for name in shapes)


def load_model(
    checkpoint: Checkpoint,
    auto_class: str,
    placement: Placement,
    *,
    trust_remote_code: bool,
    shapes: Mapping[str, tuple[int, ...]],
    additive: bool = False,
    configuration: Mapping[str, Any] | None = None,
) -> Any:
    """The model of a checkpoint, in evaluation mode, from its safetensors.

    Args:
        auto_class: class of transformers that finds the architecture.
        shapes: of the weights (`weight_shapes`).
        additive: ask for an attention that takes an additive mask as it stands.
        configuration: entries of the configuration to set.
    Raises:
        ValueError: it cannot be loaded, or weights are missing, which would then be random.
    """
    import transformers

    from smc_bridge.models.huggingface.adapter import ADDITIVE_ATTENTION

    options: dict[str, Any] = {
        "use_safetensors": True, "trust_remote_code": trust_remote_code, "local_files_only": checkpoint.offline,
    }  # fmt: skip
    if is_wrapped(shapes):
        options |= _unwrapped(checkpoint, shapes)
    # Only transformers' own classes are known to report what they found; for others the names are compared.
    reports = "auto_map" not in checkpoint.config
    with quiet(progress=not checkpoint.offline), one_line(checkpoint, "weights"):
        loader = getattr(transformers, auto_class)
        load = partial(
            loader.from_pretrained, checkpoint.name, output_loading_info=reports, **options, **placement.options(),
            **(configuration or {}),
        )
        loaded = _with_attention(ADDITIVE_ATTENTION, load) if additive else load()
        model, report = loaded if reports else (loaded, {})
        if not placement.spread:
            model = model.to(placement.device)
    if reports:
        missing, unknown = sorted(report.get("missing_keys", ())), sorted(report.get("unexpected_keys", ()))
    else:
        missing, unknown = unmatched(model, shapes, options.get("key_mapping"))
    if missing:
        others = f"; {len(unknown)} others have no place in it, first {unknown[0]}" if unknown else ""
        raise ValueError(
            f"{checkpoint.said}: {len(missing)} weights of {type(model).__name__} are not in it (first {missing[0]}"
            f"{others}) and would be random; give a checkpoint that was saved with its language-modelling head"
        )
    return model.eval()


def _with_attention(implementations: Sequence[str], load: Callable[..., Any]) -> Any:
    """What `load` returns with the first of these attention implementations that the architecture has.

    transformers refuses the others with a ValueError before it reads any weight.
    """
    for name in implementations[:-1]:
        try:
            return load(attn_implementation=name)
        except ValueError:  # of any other kind it comes again
            continue
    return load(attn_implementation=implementations[-1])


def _unwrapped(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Options that put DiffuLLaMA's weights into the backbone, whose configuration still has the old vocabulary."""
    from transformers import AutoConfig

    model_type = checkpoint.config["model_type"]
    if model_type not in UNWRAPPED:
        raise ValueError(
            f"{checkpoint.said}: holds the weights of a diffusion wrapper round {model_type!r}; only "
            f"{' and '.join(sorted(UNWRAPPED))} are known: save the backbone itself"
        )
    options: dict[str, Any] = {"key_mapping": UNWRAPPED[model_type]}
    rows = shapes.get("embed_tokens.weight", (None,))[0]
    if rows is not None and rows != checkpoint.config.get("vocab_size"):
        config = AutoConfig.from_pretrained(checkpoint.name, local_files_only=checkpoint.offline)
        config.vocab_size = rows
        options["config"] = config
    return options


def fit_adapter(adapter: Any, config: Mapping[str, Any], convention: Convention) -> None:
    """Tell an adapter the positions that the model was built for, where its configuration says it differently."""
    if convention.length_key != LENGTH_KEY and convention.length_key in config:
        adapter.max_length, adapter.limited_by = int(config[convention.length_key]), convention.length_key
