"""Records of finished cells, in memory and on disk, so that work goes on where it was interrupted.

Records are appended to a journal (`smc_bridge.analysis.journal`) as they come: to FILE itself, or, where FILE is to be
one document with a summary for readers, to `FILE.partial` until every record is there and FILE is written whole. The
journal's header says what decides the figures; a file with another one is refused. One process writes at a time
(`smc_bridge.analysis.lock`). A destination that is no file (`smc_bridge.files`) is written and not continued.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smc_bridge.analysis.journal import Journal
from smc_bridge.analysis.lock import holding
from smc_bridge.files import is_stream, resolved, write_text

#: What a cell leaves: the entries that name it, and its figures, as plain data for JSON.
Record = dict[str, Any]
#: The values of the entries that name a cell.
Key = tuple[Any, ...]


class Store:
    """The records of one piece of work.

    Args:
        path: FILE, or None to keep everything in memory.
        header: plain data with `kind` and `format` that must equal what the file was written with.
        keys: the entries that name each cell of the work, the same names for all.
        valid: whether what a file holds under the key of a cell is its record.
        argument, noun: what the user typed before FILE, and what it holds, for messages.
        fresh: start anew, whatever the file holds.
        whole: whether FILE is one document with a summary.
    Raises:
        ValueError: the file cannot be read, is something else, or belongs to other work.
    """

    def __init__(
        self, path: Path | None, header: Mapping[str, Any], keys: Sequence[Mapping[str, Any]], *,
        valid: Callable[[Record], bool], argument: str, noun: str, fresh: bool = False, whole: bool = False,
    ) -> None:
        self.path, self.header, self.argument, self.whole = path, dict(header), argument, whole
        self._names, self._valid = list(keys[0]), valid
        self._order = {self.key(each): i for i, each in enumerate(keys)}
        self._records: dict[Key, Record] = {}
        #: Whether FILE is one document that holds what the store holds.
        self.finished = False
        self._journal: Journal | None = None
        if path is None or (whole and is_stream(path)):
            return
        file = resolved(path)
        place = file.with_name(file.name + ".partial") if whole else path
        self._journal = journal = Journal(place, self.header, argument=argument, noun=noun)
        document = journal.parse(path, journal.read(file)) if whole and file.exists() else None
        if document is not None and document.get("kind") != self.header["kind"]:
            raise journal.foreign(path)
        if fresh:
            # A finished document stays until the new one replaces it.
            journal.clear()
            if whole:
                place.unlink(missing_ok=True)
        elif document is not None and not place.exists():
            journal.check(path, document)
            self.take(document.get("cells"), journal.foreign(path))
            self.finished = True
        else:
            self.take(journal.resume(), journal.foreign(place))

    def key(self, named: Mapping[str, Any]) -> Key:
        """What names a cell, of the entries of its record or of its own; 1 and 1.0 are one value."""
        return tuple(named.get(name) for name in self._names)

    def __contains__(self, named: Mapping[str, Any]) -> bool:
        return self.key(named) in self._records

    def __len__(self) -> int:
        return len(self._records)

    @property
    def records(self) -> list[Record]:
        """All records that are kept, in the order of the work."""
        return [self._records[key] for key in sorted(self._records, key=self._order.__getitem__)]

    def add(self, record: Record) -> None:
        """Keep the record of a cell, on disk too."""
        if self._journal is not None:
            self._journal.append(record)
        self._records[self.key(record)] = record
        self.finished = False

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write FILE as one document: header, summary, and the records in order as `cells`."""
        if self.path is None or self.finished:
            return
        data = {**self.header, **summary, "cells": self.records}
        write_text(self.path, json.dumps(data, allow_nan=False) + "\n", argument=self.argument)
        if self._journal is not None:
            self._journal.file.unlink(missing_ok=True)

    def take(self, records: Any, foreign: Exception) -> None:
        """Take records as they were read, the first one of each cell.

        Raises:
            Exception: `foreign`, if one of them is none of this work's.
        """
        if not isinstance(records, list):
            raise foreign
        for record in records:
            try:
                known = isinstance(record, dict) and self.key(record) in self._order and self._valid(record)
            except (TypeError, KeyError, ValueError, AttributeError) as error:
                raise foreign from error
            if not known:
                raise foreign
            self._records.setdefault(self.key(record), record)


@contextmanager
def open_store(
    path: Path | None, header: Mapping[str, Any], keys: Sequence[Mapping[str, Any]], *, argument: str, **options: Any
) -> Iterator[Store]:
    """A store that no other process writes; arguments and errors as `Store`, and of `holding`."""
    with holding(path, argument=argument):
        yield Store(path, header, keys, argument=argument, **options)
