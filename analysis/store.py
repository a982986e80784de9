"""Finished work on disk, in parts that are appended as they are done.

While the work runs, `FILE.partial` holds one JSON object a line: what decides the figures, then parts in the order in
which they came. A line that an interruption cut short is dropped. When every part is there, `FILE` is written whole and
the partial file removed. A destination that is no file (`smc_bridge.files`) is written in the end, and not continued.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from smc_bridge.analysis.journal import Journal
from smc_bridge.files import is_stream, resolved, write_text

Key = TypeVar("Key", bound=Hashable)
Part = TypeVar("Part")


class Store(Generic[Key, Part]):
    """The two files of one piece of work.

    Args:
        path: FILE, or None to keep everything in memory.
        header: plain data with `kind` and `format` that must equal what the files were written with.
        noun: what the files hold, for messages.
        read: a part from plain data; TypeError, KeyError, ValueError or AttributeError if it is something else.
        write: inverse of `read`.
        key: what names a part.
        fresh: start anew; what the files hold is not used.
        argument: what the user typed before the path, for messages.
    Raises:
        ValueError: a file cannot be read, is something else, or belongs to other settings.
    """

    def __init__(
        self, path: Path | None, header: Mapping[str, Any], *, noun: str, read: Callable[[Any], Part],
        write: Callable[[Part], dict[str, Any]], key: Callable[[Part], Key], fresh: bool = False,
        argument: str = "--json",
    ) -> None:
        self.path, self.header, self.argument = path, dict(header), argument
        self.read, self.write, self.key = read, write, key
        self.cells: dict[Key, Part] = {}
        #: Whether FILE is whole and holds what `cells` holds.
        self.finished = False
        self.journal: Journal | None = None
        if path is None or is_stream(path):
            return
        file = resolved(path)
        partial = file.with_name(file.name + ".partial")
        self.journal = journal = Journal(partial, self.header, argument=argument, noun=noun)
        data = journal.parse(path, journal.read(file)) if file.exists() else None
        if data is not None and data.get("kind") != self.header["kind"]:
            raise journal.foreign(path)
        if fresh:
            # A finished FILE stays until the new one replaces it whole.
            journal.clear()
            partial.unlink(missing_ok=True)
        elif partial.exists():
            self._load(partial, journal.resume())
        elif data is not None:
            journal.check(path, data)
            self._load(path, data.get("cells", ()))
            self.finished = True

    def add(self, part: Part) -> None:
        """Keep a finished part, on disk too."""
        if self.journal is not None:
            self.journal.append(self.write(part))
        self.cells[self.key(part)] = part
        self.finished = False

    def finish(self, summary: Mapping[str, Any], parts: Iterable[Part]) -> None:
        """Write FILE whole, with a summary for readers and the parts in order, and remove the partial file."""
        if self.path is None or self.finished:
            return
        data = {**self.header, **summary, "cells": [self.write(part) for part in parts]}
        write_text(self.path, json.dumps(data, allow_nan=False) + "\n", argument=self.argument)
        if self.journal is not None:
            self.journal.file.unlink(missing_ok=True)

    def _load(self, path: Path, parts: Any) -> None:
        try:
            for data in parts:
                part = self.read(data)
                self.cells.setdefault(self.key(part), part)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            assert self.journal is not None
            raise self.journal.foreign(path) from error
