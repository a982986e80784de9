"""What `smc-bridge` does: it parses, runs a command, and turns every error of the user's into one line, exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper

from smc_bridge import __version__
from smc_bridge.commands.base import INTERRUPTED, PROGRAM, Command, LineParser, UsageError, importing, printing, tell
from smc_bridge.commands.decode import command as decode
from smc_bridge.commands.doctor import command as doctor
from smc_bridge.commands.methods import command as methods
from smc_bridge.commands.plugins import discover, given
from smc_bridge.commands.words import in_flags
from smc_bridge.models.extras import MissingExtraError

#: Commands that are always there.
OWN = (decode, doctor, methods)
#: Exit codes besides 0 and that of an interruption.
FAILURE, BAD_INPUT = 1, 2
#: How a stream may treat text that its encoding lacks, if it is not to replace it.
FATAL = ("strict", "surrogateescape", "surrogatepass")


def dispatch(argv: Sequence[str], commands: Iterable[Command] | None) -> int:
    """Run a command line; see `smc_bridge.cli.main`."""
    with _streams():
        parser: argparse.ArgumentParser | None = None
        try:
            with importing():
                offer = discover(OWN, _check) if commands is None else given(OWN, commands)
                whole = build_parser(offer.working.values(), offer.broken)
            for name, reason in offer.broken.items():
                if [*argv[:1]] == [name]:
                    raise UsageError(f"command {name} is unavailable: {reason}; repair or remove its package")
                tell(f"{PROGRAM}: command {name} is unavailable: {reason}; repair or remove its package")
            arguments = whole.parse_args(argv)
            parser = arguments.parser
            with _warnings(arguments.parser):
                code: int = arguments.run(arguments)
            return _leave(code)
        except SystemExit as done:  # of --help and --version
            return _leave(done.code if isinstance(done.code, int) else 0)
        except KeyboardInterrupt:
            tell(f"{PROGRAM}: interrupted")
            return INTERRUPTED
        except BrokenPipeError:
            _abandon_output()  # the reader has left
            return FAILURE
        except (ValueError, OSError, MemoryError, RuntimeError, MissingExtraError) as error:
            # Where memory runs out, torch raises errors of its own; any other RuntimeError is a fault, not the user's.
            if isinstance(error, RuntimeError) and not _out_of_memory(error):
                raise
            text = _told(error)
            tell(f"{PROGRAM}: error: {text if parser is None else in_flags(text, parser)}")
            return _leave(BAD_INPUT)


def build_parser(commands: Iterable[Command], broken: Mapping[str, str] | None = None) -> LineParser:
    """The parser of `smc-bridge` with one subparser for each command.

    Args:
        broken: commands that are listed and cannot be called, with the reason.
    """
    parser = LineParser(
        PROGRAM, description="Properly weighted sampling from diffusion language models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for command in commands:
        own = subparsers.add_parser(command.name, help=command.help, description=command.help, allow_abbrev=False)
        command.configure(own)
        own.set_defaults(run=command.run, parser=own)
    for name, reason in (broken or {}).items():
        subparsers.add_parser(name, help=f"unavailable: {reason}".replace("%", "%%"))
    return parser


def _check(command: Command) -> None:
    """Raise whatever a command raises where it is offered, and where its help is shown."""
    build_parser([command]).format_help()
    own = LineParser(command.name)
    command.configure(own)
    own.format_help()


@contextmanager
def _streams() -> Iterator[None]:
    """Standard output and standard error as one can write to them: text that their encoding lacks is replaced, and what
    the caller has closed goes nowhere. Afterwards they are as they were."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        # Closed streams are None.
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
        text = sys.stdout if isinstance(sys.stdout, TextIOWrapper) else None
        errors = None if text is None else text.errors
        if text is not None and errors in FATAL:
            text.reconfigure(errors="replace")
        try:
            yield
        finally:
            if text is not None and errors in FATAL:
                with suppress(OSError):
                    text.reconfigure(errors=errors)
            sys.stdout, sys.stderr = before


@contextmanager
def _warnings(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Warnings are one line as errors are, in the words of flags and without the place in the source."""
    before = warnings.formatwarning

    def line(message: Warning | str, *_: object, **__: object) -> str:
        return f"{PROGRAM}: warning: {in_flags(' '.join(str(message).split()), parser)}\n"

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = before


def _leave(code: int) -> int:
    """The exit code, after what was printed has left the process, or cannot."""
    try:
        with printing():
            pass
    except (BrokenPipeError, UsageError) as error:
        _abandon_output()
        if code == 0 and isinstance(error, UsageError):
            tell(f"{PROGRAM}: error: {error}")
        return code or (BAD_INPUT if isinstance(error, UsageError) else FAILURE)
    return code


def _abandon_output() -> None:
    """Nothing more may be written to standard output, also not when the interpreter flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _out_of_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from smc_bridge.models.huggingface.chunks import is_out_of_memory

    return is_out_of_memory(error)


def _told(error: Exception) -> str:
    """What an error says, on one line; where memory ran out also what to do, unless that is said."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | RuntimeError) and not (isinstance(error, MemoryError) and text):
        return f"out of memory ({text or type(error).__name__}): use fewer prompts at once, particles or lanes"
    return text
