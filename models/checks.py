"""Questions about what tensors hold: answered at once, or gathered into one flag that is read once.

To look at a tensor makes the host wait for the device. `ask`, and `refuse` for what must not be, look at once, unless
they are called within `gathered()`: then the question is kept, and all questions of the block are read together when it
ends. Only where the flag is set each is looked at, in the order in which they were asked. What runs between a question
and its answer must stand bad values (no index past an end): its results are thrown away with the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

#: Told the indices of a place.
Told = Callable[[tuple[int, ...]], None]


class Checks:
    """Questions that were asked and not answered yet."""

    def __init__(self) -> None:
        self._asked: list[tuple[Tensor, Told]] = []

    def add(self, bad: Tensor, told: Told) -> None:
        """Ask whether `bad: [...]` holds anywhere."""
        self._asked.append((bad, told))

    def flag(self, device: torch.device) -> Tensor:
        """Whether any answer is yes, one bool on the device, not read yet; `settle` what it says."""
        flags = [bad.reshape(-1) for bad, _ in self._asked]
        return torch.cat(flags).any() if flags else torch.zeros((), dtype=torch.bool, device=device)

    def settle(self, any_yes: bool) -> None:
        """Forget the questions; if there is `any_yes`, those who asked are told the first place, in their order."""
        asked, self._asked = self._asked, []
        if any_yes:
            for bad, told in asked:
                if bool(bad.any()):
                    told(tuple(bad.nonzero()[0].tolist()))

    def read(self) -> None:
        """Read all questions now."""
        if self._asked:
            self.settle(bool(self.flag(self._asked[0][0].device)))


_GATHERED: ContextVar[Checks | None] = ContextVar("gathered", default=None)


@contextmanager
def gathered() -> Iterator[Checks]:
    """Gather the questions of a block; they are read when it ends, unless it has read them.

    Another error of the block comes after a question, most likely from what that let through: the question goes first.
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


def ask(bad: Tensor, told: Told) -> None:
    """Call `told` with the first place where `bad: [...]` holds, if any: now, or as `gathered` ends."""
    checks = _GATHERED.get() or Checks()
    checks.add(bad, told)
    if checks is not _GATHERED.get():
        checks.read()


def answer() -> None:
    """Read what was gathered so far: before what would not stand bad values."""
    checks = _GATHERED.get()
    if checks is not None:
        checks.read()


def refuse(bad: Tensor, message: Callable[[tuple[int, ...]], str]) -> None:
    """Raise ValueError with the message about the first place where `bad: [...]` holds: now, or as `gathered` ends."""
    def told(at: tuple[int, ...]) -> None:
        raise ValueError(message(at))

    ask(bad, told)
