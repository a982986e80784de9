"""The arguments of a command that name a pair of models: one that ships with the package, or two checkpoints.

A model of one's own comes with the other one of its pair; `arithmetic` names those of the embedded pair.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smc_bridge.commands.base import UsageError, importing, one_of, whole
from smc_bridge.commands.waiting import waiting
from smc_bridge.models.caches import CACHES, cache_named
from smc_bridge.models.conventions import ATTENTIONS, OVERRIDES

if TYPE_CHECKING:
    from smc_bridge.models.pairs import Pair

#: Pair, and each model, unless it is named.
EMBEDDED = "arithmetic"
#: Options that decide where and how much at once is computed, and not what.
PLACE = ("device", "max_logit_bytes")
#: Options that are about the user's own checkpoints.
OWN = (
    "trust_remote_code", "dlm_convention", "attention", "block_size", "attn_implementation", "revision", "mask_id",
    "eos_id", "dlm_tokenizer", "reduce", "plain", "system",
)
#: All options of `add_model_arguments`.
MODEL_OPTIONS = ("pair", "dlm", "ar", "dtype", "dlm_cache", *PLACE, *OWN)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--pair`, `--dlm`, `--ar` and what goes with them."""
    group = parser.add_argument_group("models", "a pair by name, or two checkpoints with one tokenizer")
    group.add_argument("--pair", metavar="NAME", help=f"pair of models (default: the task's; {EMBEDDED}, adult)")
    group.add_argument("--dlm", metavar="NAME", help="diffusion model: a folder or a name of the hub")
    group.add_argument("--ar", metavar="NAME", help="autoregressive model: a folder, a name of the hub, or smollm2")
    group.add_argument("--dtype", metavar="TYPE", help="of the weights, as bfloat16 (default: the checkpoint's)")
    group.add_argument("--device", metavar="NAME", help="where the models run (default: a GPU if there is one)")
    group.add_argument("--trust-remote-code", action="store_true", help="let the checkpoints' own code run")
    group.add_argument(
        "--dlm-convention", type=one_of(OVERRIDES), metavar="NAME",
        help=f"which place an output of the diffusion model is about: {', '.join(OVERRIDES)} (default: by its type)",
    )
    group.add_argument(
        "--attention", type=one_of(ATTENTIONS), metavar="KIND",
        help=f"what a place of the diffusion model sees: {', '.join(ATTENTIONS)} (default: by its type)",
    )
    group.add_argument("--block-size", type=whole(1), metavar="B", help="tokens of a block of that attention")
    group.add_argument("--attn-implementation", metavar="NAME", help="as in transformers: sdpa, eager, ...")
    group.add_argument("--revision", metavar="NAME", help="of both models on the hub: a branch, tag or commit")
    group.add_argument("--mask-id", type=whole(0), metavar="ID", help="of the diffusion model's mask token")
    group.add_argument("--eos-id", type=_ids, metavar="IDS", help="of the tokens that end a sequence, as 7 or 7,2")
    group.add_argument("--dlm-tokenizer", metavar="NAME", help="checkpoint with the diffusion model's tokenizer")
    group.add_argument(
        "--dlm-cache", type=_cache, default="auto", metavar="MODE",
        help=f"keys and values that the diffusion model keeps: {', '.join(CACHES)}; cheaper drafts, a little worse "
        "(default, auto: prefix where the model can, else none)",
    )
    group.add_argument(
        "--max-logit-bytes", type=whole(1), metavar="B",
        help="bytes of logits that a head computes at once (default: no cap)",
    )
    group.add_argument(
        "--reduce", action="store_true", help="where tokenizers differ, sample from the ids that both share"
    )
    group.add_argument(
        "--plain", action="store_true", help="prompt with the text as it is (default: by the target's chat template)"
    )
    group.add_argument("--system", metavar="TEXT", help="of a system turn, in the target's chat template")


def _cache(text: str) -> str:
    """Argument type: what the diffusion model keeps, by its name."""
    try:
        return str(cache_named(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("cache ")) from None


def _ids(text: str) -> int | tuple[int, ...]:
    """Argument type: an id, or several with commas between them."""
    try:
        first, *others = (whole(0)(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"= {text}: give an id, or several with commas between them") from None
    return (first, *others) if others else first


def is_given(value: Any) -> bool:
    """Whether an option of a model says anything: not None, nor False, nor what is found out."""
    return value is not None and value is not False and value != "auto"


def pair_name(arguments: argparse.Namespace, default: str = EMBEDDED) -> str:
    """Name of the pair that is asked for; empty for two checkpoints of the user's."""
    own = arguments.dlm is not None or arguments.ar is not None
    return "" if own else arguments.pair or default


@dataclass(frozen=True)
class Models:
    """The models that a command was asked for, by name: what a process needs to load its own.

    Attributes:
        names: of a pair, or of a diffusion model and an autoregressive model.
        options: of `smc_bridge.models.pairs.load_pair`.
    """

    names: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Pair:
        """Load the models by their names.

        Raises:
            ValueError, FileNotFoundError: as `load_pair`.
        """
        with importing():
            from smc_bridge.models.pairs import load_pair
        if len(self.names) > 1:
            with importing():
                from transformers.utils import logging
            logging.disable_progress_bar()  # standard error is for one-line errors and our own progress
        return load_pair(*self.names, **self.options)

    @property
    def identity(self) -> str:
        """Names and options that a result's figures may depend on, besides the weights; empty for a pair as it
        ships."""
        said = [
            f"{name}={value!r}" if name == "system" else f"{name}={value}"  # it may have several lines
            for name, value in sorted(self.options.items())
            if (is_given(value) or name == "chat") and name not in PLACE
        ]
        return ", ".join([*self.names, *said] if said or len(self.names) > 1 else [])


def load_models(arguments: argparse.Namespace) -> Pair:
    """Load the pair that the arguments name.

    Raises:
        UsageError: arguments contradict each other. ValueError, FileNotFoundError: as `load_pair`.
    """
    return load_shown(models_of(arguments))


def load_shown(models: Models) -> Pair:
    """Load models, and tell a terminal that this is what it waits for."""
    with waiting(f"loading {' and '.join(models.names)}"):
        return models.load()


def models_of(arguments: argparse.Namespace, default: str = EMBEDDED) -> Models:
    """The models that the arguments name; nothing is loaded.

    Args:
        default: pair, unless one or two models are named.
    Raises:
        UsageError: arguments contradict each other.
    """
    place = {name: getattr(arguments, name) for name in ("dtype", "device", "dlm_cache", "max_logit_bytes")}
    own = {name: getattr(arguments, name) for name in OWN}
    if name := pair_name(arguments, default):
        given = next((option for option, value in own.items() if is_given(value)), None)
        if given is not None:
            raise UsageError(f"--{given.replace('_', '-')} is for models of your own: give --dlm and --ar too")
        return Models((name,), place)
    if arguments.pair is not None:
        raise UsageError(f"--pair = {arguments.pair} with --dlm or --ar: give either a pair or two models")
    if arguments.ar is None:
        raise UsageError(
            f"--dlm = {arguments.dlm} without --ar: give the autoregressive model of your pair too, with --ar NAME"
        )
    if arguments.dlm is None and arguments.ar != EMBEDDED:
        raise UsageError(
            f"--ar = {arguments.ar} without --dlm: give the diffusion model of your pair too, with --dlm NAME"
        )
    if own.pop("plain"):
        own["chat"] = False
    return Models((arguments.dlm or EMBEDDED, arguments.ar), {**place, **own})
