"""The command line `smc-bridge`.

All there is to it is in `smc_bridge.commands.dispatch`, which is imported where an interruption is answered already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smc_bridge.commands.base import Command


def main(argv: Sequence[str] | None = None, *, commands: Iterable[Command] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 (a pipe that was closed), 2 (bad input), 130 (Ctrl-C).

    Args:
        argv: arguments; by default those of the process.
        commands: what to offer besides `decode` and `methods`; by default what is installed.
    """
    try:
        from smc_bridge.commands.dispatch import dispatch

        return dispatch(sys.argv[1:] if argv is None else [*argv], commands)
    except KeyboardInterrupt:
        print("smc-bridge: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
