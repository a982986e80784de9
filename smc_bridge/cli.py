"""The command line `smc-bridge`: parses, dispatches, and turns every error of the user's into one line, exit code 2.

Subcommands are `decode` and whatever installed packages register in the entry-point group `smc_bridge.commands` (so
this package imports none of them).
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from transformers.utils import logging as transformers_logging

from models.extras import MissingExtraError
from models.huggingface.chunks import is_out_of_memory
from smc_bridge.commands.base import INTERRUPTED, PROGRAM, Command, LineParser, UsageError
from smc_bridge.commands.decode import command as decode

GROUP = "smc_bridge.commands"
#: Exit codes besides 0.
FAILURE, BAD_INPUT = 1, 2


def declared() -> list[metadata.EntryPoint]:
    """Entry points of installed packages; in a source tree that is not installed also those of its pyproject.toml."""
    found = list(metadata.entry_points(group=GROUP))
    project = Path(__file__).parent.parent / "pyproject.toml"
    if not any(True for _ in metadata.distributions(name=PROGRAM)) and project.is_file():
        own = tomllib.loads(project.read_text(encoding="utf-8"))["project"].get("entry-points", {}).get(GROUP, {})
        found += [metadata.EntryPoint(name, value, GROUP) for name, value in own.items()]
    return found


def discover() -> list[Command]:
    """Commands besides `decode`, by name.

    Raises:
        UsageError: one of them cannot be imported.
    """
    found = {}
    for entry in declared():
        try:
            found[entry.name] = entry.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(f"command {entry.name} = {entry.value}: {error}; reinstall the package") from error
    return [found[name] for name in sorted(found)]


def build_parser(commands: Iterable[Command]) -> LineParser:
    """The parser of `smc-bridge` with one subparser for each command."""
    parser = LineParser(
        PROGRAM, description="Properly weighted sampling from diffusion language models.", allow_abbrev=False
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for command in commands:
        own = subparsers.add_parser(command.name, help=command.help, description=command.help, allow_abbrev=False)
        command.configure(own)
        own.set_defaults(run=command.run)
    return parser


def _told(error: Exception) -> str:
    """What an error says, on one line; where memory ran out also what to do, unless that is said."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error) and not (isinstance(error, MemoryError) and text):
        return f"out of memory ({text or type(error).__name__}): use fewer prompts at once, particles or lanes"
    return text


def main(argv: Sequence[str] | None = None, *, commands: Iterable[Command] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        argv: arguments; by default those of the process.
        commands: what to offer besides `decode`; by default what is installed.
    """
    transformers_logging.disable_progress_bar()  # standard error is for one-line errors and our own progress
    try:
        extra = discover() if commands is None else commands
        arguments = build_parser([decode, *extra]).parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left: nothing more may be written, also not when the interpreter flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (ValueError, OSError, MemoryError, RuntimeError, MissingExtraError) as error:
        # Where memory runs out, torch raises errors of its own; any other RuntimeError is a fault, not the user's.
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        print(f"{PROGRAM}: error: {_told(error)}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
