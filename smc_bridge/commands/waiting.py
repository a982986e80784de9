"""What a terminal shows while one waits; where standard error is none, nothing is written, for it has errors alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.text import Text

from smc_bridge.commands.base import console

if TYPE_CHECKING:
    from smc_bridge.decode import Decoder
    from smc_bridge.result import Result

#: Shows what is done now.
Say = Callable[[str], None]


@contextmanager
def waiting(text: str) -> Iterator[Say | None]:
    """Show a line in a terminal for as long as the block lasts.

    Args:
        text: what is waited for.
    Yields:
        what changes the line; None where there is no terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with console(sys.stderr).status(Text(text)) as status:
        yield lambda text: status.update(Text(text))


class Counted:
    """A decoder of a single prompt that says after every step how long its continuation is.

    Args:
        decoder: everything else is its own.
        limit: most tokens of the continuation.
    """

    def __init__(self, decoder: Decoder[Any], limit: int, say: Say) -> None:
        self._decoder, self._limit, self._say = decoder, limit, say

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def step(self, state: Any) -> Any:
        """See `Decoder.step`; the count is told after it."""
        state = self._decoder.step(state)
        result: Result = self._decoder.result(state, 0)
        longest = max(map(len, result.sequences), default=0)
        self._say(f"decoding: {longest} of at most {self._limit} tokens")
        return state
