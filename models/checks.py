"""Checks on what tensors hold: refused at once, or gathered into one flag that is read once.

To look at a tensor makes the host wait for the device. `refuse` looks at once, unless it is called within `gathered()`:
then the question is kept, and all questions of the block are read together when it ends. Only a failing block looks for
the place to name, in the order in which the questions were asked. What runs between a question and its answer must
stand bad values (no index past an end): its results are thrown away with the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

#: Makes the message about a place, from its indices.
Message = Callable[[tuple[int, ...]], str]


class Checks:
    """Questions that were asked and not answered yet."""

    def __init__(self) -> None:
        self._asked: list[tuple[Tensor, Message]] = []

    def add(self, bad: Tensor, message: Message) -> None:
        """Ask whether `bad: [...]` holds anywhere."""
        self._asked.append((bad, message))

    def flag(self, device: torch.device) -> Tensor:
        """Whether any question is answered by yes, one bool on the device, not read yet; `settle` what it says."""
        flags = [bad.reshape(-1) for bad, _ in self._asked]
        return torch.cat(flags).any() if flags else torch.zeros((), dtype=torch.bool, device=device)

    def settle(self, failed: bool) -> None:
        """Forget the questions; if one `failed`, raise ValueError with the message about the first place of the first
        that did."""
        asked, self._asked = self._asked, []
        if failed:
            for bad, message in asked:
                if bool(bad.any()):
                    raise ValueError(message(tuple(bad.nonzero()[0].tolist())))

    def read(self) -> None:
        """Read all questions now: ValueError if one fails."""
        if self._asked:
            self.settle(bool(self.flag(self._asked[0][0].device)))


_GATHERED: ContextVar[Checks | None] = ContextVar("gathered", default=None)


@contextmanager
def gathered() -> Iterator[Checks]:
    """Gather the checks of a block; they are read when it ends, unless it has read them.

    Another error of the block comes after a failing check, most likely from what that let through: the check is told.
    """
    checks = Checks()
    token = _GATHERED.set(checks)
    try:
        yield checks
    except Exception:
        checks.read()
        raise
    finally:
        _GATHERED.reset(token)
    checks.read()


def refuse(bad: Tensor, message: Message) -> None:
    """Raise ValueError with the message about the first place where `bad: [...]` holds: now, or as `gathered` ends."""
    checks = _GATHERED.get() or Checks()
    checks.add(bad, message)
    if checks is not _GATHERED.get():
        checks.read()
