"""What a probe of a model found: refused or warned of where the model is loaded, shown by `smc-bridge doctor`.

A probe is a generator of verdicts, each of which may cost a tiny forward, so that loading stops at the first fault.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at.

    Attributes:
        name: what holds of a good model.
        fault: what is wrong and the remedy, for a line that begins with the model's name; None if it holds.
        fatal: whether a model with this fault is refused, or only warned of.
    """

    name: str
    fault: str | None = None
    fatal: bool = True


_UNPROBED: ContextVar[bool] = ContextVar("unprobed", default=False)
_NAMES: ContextVar[Mapping[str, str]] = ContextVar("names", default={})  # noqa: B039 -- it is never written to


@contextmanager
def unprobed() -> Iterator[None]:
    """Models that are made in the block are not probed: for who probes them by hand, or knows better."""
    token = _UNPROBED.set(True)
    try:
        yield
    finally:
        _UNPROBED.reset(token)


@contextmanager
def by_name(names: Mapping[str, str]) -> Iterator[None]:
    """Messages of models that are made in the block name them by what the user said, `argument = value` for each of
    `dlm_model` and `ar_model`."""
    token = _NAMES.set(names)
    try:
        yield
    finally:
        _NAMES.reset(token)


def subject_of(argument: str, model: Any) -> str:
    """What a message about a model begins with: `argument = ClassName`, or what the user said (`by_name`)."""
    return _NAMES.get().get(argument, f"{argument} = {type(model).__name__}")


def settle(subject: str, verdicts: Iterable[Verdict]) -> None:
    """Refuse a model at its first fatal fault, and warn of others; nothing within `unprobed`.

    Args:
        subject: of the message (`subject_of`).
    Raises:
        ValueError: a fault.
    """
    if _UNPROBED.get():
        return
    for verdict in verdicts:
        if verdict.fault is not None and verdict.fatal:
            raise ValueError(f"{subject}: {verdict.fault}")
        if verdict.fault is not None:
            warnings.warn(f"{subject}: {verdict.fault}", stacklevel=4)
