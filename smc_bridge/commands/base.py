"""What commands are made of: the `Command` record, argument types, and a parser whose errors are one line.

A package adds a command to `smc-bridge` by an entry point in the group `smc_bridge.commands` that names a `Command`.
Every error of the user's is a ValueError (or an OSError) whose message reads `argument = value: remedy`.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rich.console import Console

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


class LineParser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` where argparse prints a usage message and exits."""

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
        if match := re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL):
            raise UsageError(f"{match[1]} is not an argument of `{self.prog}`: leave it out, {where}")
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


def share(text: str) -> float:
    """Argument type: a number in [0, 1]."""
    return _number(text, lambda x: 0 <= x <= 1, "a number in [0, 1]")


def mass(text: str) -> float:
    """Argument type: a number in (0, 1]."""
    return _number(text, lambda x: 0 < x <= 1, "a number in (0, 1]")


def positives(text: str) -> tuple[float, ...]:
    """Argument type: positive numbers with commas between them."""
    try:
        return tuple(positive(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"= {text}: give positive numbers with commas between them") from None


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
            raise argparse.ArgumentTypeError(f"= {text!r}: choose from {', '.join(names)}")
        return text

    return parse


def check_writable(path: Path, argument: str, *, make_folder: bool = False) -> None:
    """Refuse a file that could not be written, before any work is done.

    Args:
        path: of the file; it is not touched.
        argument: its name, for the message.
        make_folder: whether a missing folder is fine, because the caller makes it, if it is to be below the working
            directory.
    Raises:
        UsageError: the path is a folder, or its folder is missing or read-only.
    """
    folder = path.parent
    if path.is_dir():
        raise UsageError(f"{argument} = {path}: is a folder; give a file")
    if make_folder and not folder.exists() and folder.resolve().is_relative_to(Path.cwd()):
        folder = next(parent for parent in folder.resolve().parents if parent.exists())
    if not folder.is_dir():
        raise UsageError(f"{argument} = {path}: its folder does not exist; make it, or give another file")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UsageError(f"{argument} = {path}: cannot be written; give a file that you may write")


def console(stream: TextIO) -> Console:
    """A console on `stream`; where that is no terminal, without colour and wide enough for the tables."""
    return Console(file=stream, highlight=False, width=None if stream.isatty() else PLAIN_WIDTH)
