"""The decoders that a comparison knows by name, each as a function from prompts to results."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import smc_bridge  # its names are imported when they are used: the parsers of commands need the names here alone

if TYPE_CHECKING:
    from smc_bridge.engine.sampler import Sampler
    from smc_bridge.methods.rules import Order
    from smc_bridge.models.pairs import Pair
    from smc_bridge.result import Result
    from smc_bridge.tasks import Limits

DEFAULT_METHODS = (
    "ar", "dlm-1", "dlm-1-entropy", "dlm-2", "dlm-4", "dlm-8", "dlm-all", "plain-is", "speculative", "released",
    "paper", "smc-1", "smc-4", "smc-8", "tree-walk",
)

#: All at once has no order.
_DLM = re.compile(r"dlm-(?:all|([1-9]\d*)(?:-(entropy|confidence))?)")
_SMC = re.compile(r"smc-([1-9]\d*)(?:x([1-9]\d*))?")
_FIXED = ("ar", "plain-is", "speculative", "released", "paper", "tree-walk")
#: Those that are properly weighted, for messages.
KNOWN_PROPER = "smc-<particles>, smc-<particles>x<lanes>, tree-walk, plain-is, speculative, paper"
#: For messages.
KNOWN = "ar, dlm-<tokens per forward>, dlm-<tokens>-entropy, dlm-<tokens>-confidence, dlm-all, released, " \
    f"{KNOWN_PROPER}"


@dataclass(frozen=True)
class Method:
    """A decoder.

    Attributes:
        name: as the user types it.
        weighted: whether its results carry weights (of whatever quality).
        decode: results of prompts (token ids), each with its seed.
    """

    name: str
    weighted: bool
    decode: Callable[[Sequence[Sequence[int]], Sequence[int]], list[Result]]


def check_methods(names: Sequence[str]) -> None:
    """Raise ValueError if a name is unknown."""
    for name in names:
        if name not in _FIXED and not _DLM.fullmatch(name) and not _SMC.fullmatch(name):
            raise ValueError(f"methods = {name!r}: choose from {KNOWN}")


def check_proper(name: str) -> None:
    """Raise ValueError unless this is the name of a properly weighted method."""
    known = name in _FIXED or _SMC.fullmatch(name)
    if not known or name in ("ar", "released"):
        raise ValueError(f"method = {name!r}: choose from {KNOWN_PROPER}")


def make_method(name: str, pair: Pair, task: Limits, *, temperature: float, weight: float) -> Method:
    """Build a decoder.

    Args:
        name: see `check_methods`.
        pair: models.
        task: gives length limit, lookahead and window.
        temperature: of the target, and of the diffusion model's own decoders.
        weight: w where there is a product of experts.
    Raises:
        ValueError: the name is unknown.
    """
    from smc_bridge.methods.rules import Order

    check_methods([name])
    limit = task.max_new_tokens

    if name == "ar":
        target = smc_bridge.ARTarget(pair.ar, temperature=temperature)
        return Method(name, False, lambda prompts, seeds: smc_bridge.ar_sampling(
            target, prompts, seed=seeds, max_new_tokens=limit, detokenize=pair.decode, name=name,
        ))
    if match := _DLM.fullmatch(name):
        count = None if match[1] is None else int(match[1])
        order: Order = next((o for o in get_args(Order) if o == match[2]), "left_to_right")
        # Its own decoder opens one window at a time, and drafts that far; all at once drafts the whole continuation.
        lookahead = limit if count is None else task.lookahead
        proposal = smc_bridge.DLMProposal(pair.dlm, temperature=temperature, lookahead=lookahead)
        return Method(name, False, lambda prompts, seeds: smc_bridge.diffusion(
            proposal, prompts, tokens_per_forward=count, order=order, window=task.lookahead, seed=seeds,
            max_new_tokens=limit, detokenize=pair.decode, name=name,
        ))
    sampler = make_sampler(name, pair, task, temperature=temperature, weight=weight)
    return Method(name, True, lambda prompts, seeds: sampler.run(prompts, seed=seeds, max_new_tokens=limit))


def make_sampler(name: str, pair: Pair, task: Limits, *, temperature: float, weight: float) -> Sampler:
    """Build the program of a weighted method; arguments as `make_method`.

    Raises:
        ValueError: the name is unknown, or is that of a decoder that is no program (`ar`, `dlm-..`).
    """
    check_methods([name])
    if name == "ar" or _DLM.fullmatch(name):
        raise ValueError(f"method = {name!r}: is a plain decoder without weights; choose a weighted one of {KNOWN}")
    common: dict[str, Any] = {
        "temperature": temperature, "lookahead": task.lookahead, "window": task.window, "name": name,
    }
    if match := _SMC.fullmatch(name):
        return smc_bridge.smc(pair, int(match[1]), lanes=int(match[2] or 1), w=weight, **common)
    match name:
        case "plain-is":
            return smc_bridge.plain_is(pair, **common)
        case "speculative":
            return smc_bridge.speculative(pair, **common)
        case "released":
            return smc_bridge.released(pair, w=weight, **common)
        case "paper":
            return smc_bridge.paper(pair, w=weight, **common)
        case _:
            return smc_bridge.tree_walk(pair, w=weight, **common)
