"""What commands are made of: the `Command` record, argument types, and a parser whose errors are one line.

A package adds a command to `smc-bridge` by an entry point in the group `smc_bridge.commands` that names a `Command`.
Every error of the user's is a ValueError (or an OSError) whose message reads `argument = value: remedy`.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rich.console import Console
from rich.text import Text

from smc_bridge.files import STANDARD_OUTPUT, is_standard_output, shown
from smc_bridge.files import check_writable as check_writable
from smc_bridge.names import meant

PROGRAM = "smc-bridge"
#: Exit code of a command that was interrupted.
INTERRUPTED = 130
#: Width of tables where the output is not a terminal, columns.
PLAIN_WIDTH = 176


class UsageError(ValueError):
    """An argument of the command line that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        name: what the user types.
        help: one line.
        configure: adds the arguments to the command's parser.
        run: does the work and returns the exit code.
    """

    name: str
    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


class WholeWords(argparse.HelpFormatter):
    """Help whose lines end between words: a name such as `plain-is` stays whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class LineParser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` where argparse prints a usage message and exits."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **({"formatter_class": WholeWords} | options))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments; what is left of them is told in the words of the command that was given, not of its parser's.

        Raises:
            UsageError: an argument that cannot be used.
        """
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            getattr(found, "parser", self)._refuse(unknown)
        return found

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        name = next((word for word in unknown if word.startswith("--")), "").partition("=")[0]
        shown = [action for action in self._actions if action.help is not argparse.SUPPRESS]
        flags = [flag for action in shown for flag in action.option_strings if flag.startswith("--")]
        hint = (meant(name, flags) if name else "") or "leave it out, "
        raise UsageError(
            f"{' '.join(unknown)} is not an argument of `{self.prog}`: {hint}see `{self.prog} --help`"
        )

    def error(self, message: str) -> NoReturn:
        """Raise the error in the form `argument = value: remedy`.

        Raises:
            UsageError: always.
        """
        where = f"see `{self.prog} --help`"
        if match := re.fullmatch(r"argument (\S+): (= .*)", message, re.DOTALL):
            raise UsageError(f"{match[1]} {match[2]}")
        if match := re.fullmatch(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", message, re.DOTALL):
            raise UsageError(f"{match[1]} = {match[2]}: choose from {match[3].replace(chr(39), '')}")
        if match := re.fullmatch(r"the following arguments are required: (.*)", message):
            raise UsageError(f"{match[1]} is missing: give it, {where}")
        raise UsageError(f"{message.removeprefix('argument ')}: {where}")


def whole(least: int) -> Callable[[str], int]:
    """Argument type: a whole number of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"= {text}: give a whole number of at least {least}")
        return value

    return parse


def whole_or_auto(text: str) -> int | str:
    """Argument type: a whole number of at least 1, or `auto`."""
    try:
        return text if text == "auto" else whole(1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"= {text}: give a whole number of at least 1, or auto") from None


def _number(text: str, accept: Callable[[float], bool], wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not accept(value):
        raise argparse.ArgumentTypeError(f"= {text}: give {wanted}")
    return value


def positive(text: str) -> float:
    """Argument type: a positive finite number."""
    return _number(text, lambda x: math.isfinite(x) and x > 0, "a positive number")


def not_negative(text: str) -> float:
    """Argument type: a finite number of at least 0."""
    return _number(text, lambda x: math.isfinite(x) and x >= 0, "0 for greedy decoding, or a positive number")


def share(text: str) -> float:
    """Argument type: a number in [0, 1]."""
    return _number(text, lambda x: 0 <= x <= 1, "a number in [0, 1]")


def below_one(text: str) -> float:
    """Argument type: a number in [0, 1)."""
    return _number(text, lambda x: 0 <= x < 1, "a probability below 1, or 0 for never")


def ratio(text: str) -> float:
    """Argument type: a number from 1 to 1e30."""
    return _number(text, lambda x: 1 <= x <= 1e30, "a number from 1 to 1e30")


def mass(text: str) -> float:
    """Argument type: a number in (0, 1]."""
    return _number(text, lambda x: 0 < x <= 1, "a number in (0, 1]")


def level(text: str) -> float:
    """Argument type: a confidence in (0, 1)."""
    return _number(text, lambda x: 0 < x < 1, "a confidence between 0 and 1, such as 0.95")


def not_negatives(text: str) -> tuple[float, ...]:
    """Argument type: numbers of at least 0 with commas between them."""
    try:
        return tuple(not_negative(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"= {text}: give 0 or positive numbers with commas between them") from None


def add_w_argument(group: Any, text: str, *, default: float | None = None) -> None:
    """Add `--w`, the exponent on the diffusion model; `--weight`, its old name, is understood and not shown.

    Args:
        group: parser or group of arguments.
        text: help.
        default: None where what is not given is the method's own.
    """
    group.add_argument("--w", type=share, default=default, metavar="w", help=text)
    group.add_argument("--weight", dest="w", type=share, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """Argument type: one of some names."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"= {text!r}: {meant(text, names)}choose from {', '.join(names)}")
        return text

    return parse


def destination(text: str) -> Path:
    """Argument type: a file that is to be written, or `-` for standard output; `./-` is a file of that name."""
    if not text:
        raise argparse.ArgumentTypeError("= '': is no name of a file; give a file, or - for standard output")
    path = Path(text)
    return path.absolute() if str(path) == STANDARD_OUTPUT != text else path


def console(stream: TextIO) -> Console:
    """A console on `stream` that prints text as it stands; without a terminal it has no colour, and is as wide as the
    environment's COLUMNS says, or wide enough for the tables."""
    columns = os.environ.get("COLUMNS", "")
    plain = int(columns) if columns.isdecimal() and int(columns) > 0 else PLAIN_WIDTH
    return Console(
        file=stream, highlight=False, markup=False, emoji=False, width=None if stream.isatty() else plain
    )


@contextmanager
def importing() -> Iterator[None]:
    """Within the block Ctrl-C waits for its end: an import that is cut short leaves half a module, and raises whatever
    the package makes of it. A process that ignores Ctrl-C, as one in the background of a script, goes on to."""
    pressed = False

    def wait(*_: object) -> None:
        nonlocal pressed
        pressed = True

    before = signal.getsignal(signal.SIGINT)
    # Only the main thread hears of signals; None was not set by Python.
    if before in (None, signal.SIG_IGN) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def tell(text: str) -> None:
    """Write a line to standard error; where that cannot be written the line is dropped, for the work goes on."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextmanager
def printing(saved: str = "") -> Iterator[None]:
    """Around what prints to standard output, which has left the process at the end of the block.

    Args:
        saved: where else the result is, for the message.
    Raises:
        UsageError: standard output cannot be written to. BrokenPipeError: its reader has left.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"standard output cannot be written ({error.strerror}); send it elsewhere{saved}") from error


def deliver(path: Path | None, save: Callable[[], None], show: Callable[[Console], None]) -> None:
    """Save what a command has found, and then print it: printing may fail, and must not take the result along.

    Args:
        path: where it is saved, or None for nowhere. Where that is standard output, tables go to standard error.
        save: writes the file. If it fails, the result is shown all the same.
        show: prints.
    Raises:
        ValueError: of `save`, or as `printing`. BrokenPipeError: the reader of standard output has left.
    """
    if path is None:
        with printing():
            show(console(sys.stdout))
    elif is_standard_output(path):
        with printing():
            save()
        with suppress(OSError):
            show(console(sys.stderr))
    else:
        try:
            save()
        except ValueError:
            with suppress(OSError, UsageError), printing():
                show(console(sys.stdout))
            raise
        with printing(f"; the result is saved as {shown(path)}"):
            show(console(sys.stdout))
            console(sys.stdout).print(Text(f"saved as {shown(path)}"), soft_wrap=True)
