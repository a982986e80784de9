"""The arguments of a command that name a pair of models: one that ships with the package, or two checkpoints.

A model that is not named is that of the embedded pair, so `--ar NAME` alone asks whether NAME shares its tokenizer.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from models.conventions import OVERRIDES
from smc_bridge.commands.base import UsageError, importing, one_of, whole

if TYPE_CHECKING:
    from models.pairs import Pair

#: Pair, and each model, unless it is named.
EMBEDDED = "arithmetic"
#: What the diffusion model may keep of a prefix.
CACHES = ("none", "prefix")
#: Options that are about the user's own checkpoints.
OWN = ("trust_remote_code", "dlm_convention", "mask_id", "eos_id", "dlm_tokenizer", "reduce")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--pair`, `--dlm`, `--ar` and what goes with them."""
    group = parser.add_argument_group("models", "a pair by name, or two checkpoints with one tokenizer")
    group.add_argument("--pair", metavar="NAME", help=f"pair of models (default: {EMBEDDED})")
    group.add_argument("--dlm", metavar="NAME", help="diffusion model: a folder or a name of the hub")
    group.add_argument("--ar", metavar="NAME", help="autoregressive model: a folder, a name of the hub, or smollm2")
    group.add_argument("--dtype", metavar="TYPE", help="of the weights, as bfloat16 (default: the checkpoint's)")
    group.add_argument("--device", metavar="NAME", help="where the models run (default: a GPU if there is one)")
    group.add_argument("--trust-remote-code", action="store_true", help="let the checkpoints' own code run")
    group.add_argument(
        "--dlm-convention", type=one_of(OVERRIDES), metavar="NAME",
        help=f"which place an output of the diffusion model is about: {', '.join(OVERRIDES)} (default: by its type)",
    )
    group.add_argument("--mask-id", type=whole(0), metavar="ID", help="of the diffusion model's mask token")
    group.add_argument("--eos-id", type=whole(0), metavar="ID", help="of the token that ends a sequence")
    group.add_argument("--dlm-tokenizer", metavar="NAME", help="checkpoint with the diffusion model's tokenizer")
    group.add_argument(
        "--dlm-cache", type=one_of(CACHES), default="none", metavar="MODE",
        help="prefix: keep keys and values of committed tokens; cheaper drafts, a little worse (default: none)",
    )
    group.add_argument(
        "--max-logit-bytes", type=whole(1), metavar="B", help="cap on the logits of one forward (default: none)"
    )
    group.add_argument(
        "--reduce", action="store_true", help="where tokenizers differ, sample from the ids that both share"
    )


def pair_name(arguments: argparse.Namespace) -> str:
    """Name of the pair that is asked for; empty for two checkpoints of the user's."""
    own = arguments.dlm is not None or arguments.ar is not None
    return "" if own else arguments.pair or EMBEDDED


def load_models(arguments: argparse.Namespace) -> Pair:
    """Load the pair that the arguments name.

    Raises:
        UsageError: arguments contradict each other. ValueError, FileNotFoundError: as `load_pair`.
    """
    with importing():
        from models.pairs import load_pair
    place = {name: getattr(arguments, name) for name in ("dtype", "device", "dlm_cache", "max_logit_bytes")}
    own = {name: getattr(arguments, name) for name in OWN}
    if name := pair_name(arguments):
        given = next((option for option, value in own.items() if value not in (None, False)), None)
        if given is not None:
            raise UsageError(f"--{given.replace('_', '-')} is for models of your own: give --dlm and --ar too")
        return load_pair(name, **place)
    if arguments.pair is not None:
        raise UsageError(f"--pair = {arguments.pair} with --dlm or --ar: give either a pair or two models")
    if arguments.ar is None:
        raise UsageError(
            f"--dlm = {arguments.dlm} without --ar: give the autoregressive model of your pair too, with --ar NAME"
        )
    with importing():
        from transformers.utils import logging
    logging.disable_progress_bar()  # standard error is for one-line errors and our own progress
    return load_pair(arguments.dlm or EMBEDDED, arguments.ar, **place, **own)
