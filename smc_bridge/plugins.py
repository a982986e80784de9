"""What a user's part returns, checked where it enters: one line names the part, what came and what is wanted.

Type, shape, dtype and device cost nothing to check, and are checked of every part. Values cost a read from the device:
the questions are gathered (`smc_bridge.models.checks`), and asked only of parts from outside of this package
(`foreign`), whose own ones are held by its tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from smc_bridge.models.arguments import called, said

#: Kinds of numbers that a part may have to return, in a message's words.
Kind = Literal["float", "int64", "bool"]

_PACKAGE = __name__.split(".")[0] + "."


def foreign(part: Any) -> bool:
    """Whether a function, method or object comes from outside of this package."""
    return not str(getattr(part, "__module__", "")).startswith(_PACKAGE)


def check_tensor(found: Any, source: str, shape: tuple[int, ...], kind: Kind, device: torch.device) -> Tensor:
    """What a part returned, if it is a tensor of the shape `shape`, of that kind and device.

    Args:
        source: what returned it, for the message.
    Raises:
        ValueError: it is something else.
    """
    wanted = f"a tensor of {kind}, shape {list(shape)}"
    if not isinstance(found, Tensor):
        raise ValueError(f"{source} returned {said(found)}: return {wanted}")
    right = found.dtype.is_floating_point if kind == "float" else str(found.dtype) == f"torch.{kind}"
    if tuple(found.shape) != shape or not right:
        dtype = str(found.dtype).removeprefix("torch.")
        raise ValueError(f"{source} returned a tensor of {dtype}, shape {list(found.shape)}: return {wanted}")
    if found.device != device:
        raise ValueError(f"{source} returned a tensor on {found.device}: return it on {device}")
    return found


def texts_of(
    detokenize: Callable[..., str] | None, sequences: list[list[int]], prompt: Sequence[int]
) -> list[str] | None:
    """Texts of continuations of `prompt`, None without a function that makes them.

    Args:
        detokenize: a function of a list of ids, and of the prompt's ids if it has an argument `prompt`.
    Raises:
        ValueError: the function returned no text.
    """
    if detokenize is None:
        return None
    behind = {"prompt": list(prompt)} if _takes_prompt(detokenize) else {}
    texts = [detokenize(list(ids), **behind) for ids in sequences]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"detokenize {called(detokenize)} returned {said(text)}: return a text")
    return texts


def _takes_prompt(function: Callable[..., str]) -> bool:
    try:
        return "prompt" in signature(function).parameters
    except (ValueError, TypeError):  # of the built-in ones, which do not tell
        return False
