"""Records in a file that are appended as they come, and survive a killed process.

A journal is JSON lines: a header, which says what made it, then one record a line. Every record is on the disk before
the next is made. The line that a kill cut short is dropped when the journal is read again; whatever else is not as it
was written is refused, and the file is left alone. Blank lines at the end are no records.

Of a destination that is no file (`smc_bridge.files`) nothing is read: records are written through as they come.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from smc_bridge.files import is_standard_output, is_stream, refusing, resolved, shown, write_text


class Journal:
    """A journal and its header.

    Args:
        path: of the file; its folder is made at the first record.
        header: plain data with `kind` and `format`; a file with another header is refused.
        argument: what the user typed before the file's name, for messages.
        noun: what the file holds, for messages.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, argument: str, noun: str) -> None:
        self.path, self.header, self.argument, self.noun = path, dict(header), argument, noun
        #: Behind all links, which stay.
        self.file = resolved(path)
        self._stream: BinaryIO | None = None
        self._begun = False

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record, after the header if the file is new, and wait until it is on the disk.

        Raises:
            ValueError: the file cannot be written.
        """
        line = json.dumps(record, allow_nan=False) + "\n"
        head = json.dumps(self.header) + "\n"
        if is_stream(self.path):
            self._write_through(line if self._begun else head + line)
            self._begun = True
            return
        with refusing(self.path, self.argument):
            new = not self.file.exists() or self.file.stat().st_size == 0
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(head + line if new else line)
                file.flush()
                os.fsync(file.fileno())

    def _write_through(self, text: str) -> None:
        if is_standard_output(self.path):
            write_text(self.path, text)
            return
        with refusing(self.path, self.argument):
            # A pipe that is closed between two records would end for its reader.
            self._stream = self._stream or open(self.path, "ab", buffering=0)  # noqa: SIM115
            self._stream.write(text.encode())

    def resume(self) -> list[dict[str, Any]]:
        """The records of an existing file, which ends with a whole line afterwards; none if there is no file.

        Raises:
            ValueError: the file cannot be read, is something else, or has another header.
        """
        if is_stream(self.path) or not self.file.exists():
            return []
        text = self.read(self.file)
        whole = text[: text.rfind("\n") + 1]
        if not whole:
            if text and not json.dumps(self.header).startswith(text):
                raise self.foreign(self.path)
            self._empty()
            return []
        header, records = self._parse_lines(whole)
        self.check(self.path, header)
        # A record must not come to stand behind a blank line.
        clean = whole.rstrip() + "\n"
        if clean != text:
            write_text(self.file, clean, argument=self.argument)
        return records

    def load(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Header and records of an existing file, which is left as it is.

        Raises:
            ValueError: the file cannot be read, or is of another kind.
        """
        text = self.read(self.path)
        header, records = self._parse_lines(text[: text.rfind("\n") + 1])
        self.check_kind(self.path, header)
        return header, records

    def _parse_lines(self, whole: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        header, *records = [self.parse(self.path, line) for line in whole.rstrip().splitlines() or [""]]
        return header, records

    def clear(self) -> None:
        """Remove the file, if it is of this kind at all.

        Raises:
            ValueError: it is something else.
        """
        if not is_stream(self.path) and self.file.exists():
            first = self.read(self.file).partition("\n")[0]
            # A header that was cut short belongs to nobody's work.
            if not json.dumps(self.header).startswith(first):
                self.check_kind(self.path, self.parse(self.path, first))
            self._empty()

    def _empty(self) -> None:
        """Drop what the file holds; its mode stays."""
        with refusing(self.path, self.argument):
            os.truncate(self.file, 0)

    def check_kind(self, path: Path, header: Mapping[str, Any]) -> None:
        """Raise ValueError if another program, or another version of it, wrote the header."""
        if any(header.get(name) != self.header[name] for name in ("kind", "format")):
            raise self.foreign(path)

    def check(self, path: Path, header: Mapping[str, Any]) -> None:
        """Raise ValueError unless a file's header is this one."""
        self.check_kind(path, header)
        for name, value in self.header.items():
            if header.get(name) != value:
                raise ValueError(
                    f"{self.argument} = {shown(path)}: holds a {self.noun} with {name} = {_short(header.get(name))} "
                    f"rather than {_short(value)}; start anew with --fresh, or give another file"
                )

    def foreign(self, path: Path) -> ValueError:
        """The error to raise for a file that is something else."""
        return ValueError(f"{self.argument} = {shown(path)}: is not a saved {self.noun}; give another file")

    def read(self, path: Path) -> str:
        """The text of a file; ValueError if it cannot be read."""
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(
                f"{self.argument} = {shown(path)}: cannot be read ({error.strerror}); give another file"
            ) from error
        except UnicodeDecodeError as error:
            raise self.foreign(path) from error

    def parse(self, path: Path, text: str) -> dict[str, Any]:
        """The JSON object of a text of a file; ValueError if it is none."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise self.foreign(path) from error
        if not isinstance(data, dict):
            raise self.foreign(path)
        return data


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name} {item}" for name, item in value.items()) or "none"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
