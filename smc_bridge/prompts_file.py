"""A file of prompts, one JSON object a line, and the task that it makes.

    {"prompt": "What is 2 + 3?", "answer": "5", "id": "sum-1"}

`prompt` is a text. `answer`, in every line or in none, is what a grader judges by (`smc_bridge.graders`). `id`, a text
or a whole number, names the prompt in what is saved; by default it is the number of the line. Other fields and blank
lines are passed over. The file is UTF-8, with or without a byte order mark, its lines end in `\\n` or `\\r\\n`.

The draws of a prompt depend on the seed and on the prompt only, so that a prompt which comes twice would count one
sample twice; it is refused, as are two prompts with one id.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from smc_bridge.files import shown
from smc_bridge.graders import check_answer, find_grader
from smc_bridge.tasks import Item, check_range

#: The path that is standard input.
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class PromptsTask:
    """The prompts of a file as a task (`smc_bridge.tasks.Task`).

    Attributes:
        name: of the file.
        items: its prompts; the answer of each is None if the file has none.
        grader: name of the grader.
        pair: name of the pair of models, unless others are given.
        max_new_tokens, lookahead, window: limits, tokens.
    """

    name: str
    items: tuple[Item, ...]
    grader: str = "exact"
    pair: str = "arithmetic"
    max_new_tokens: int = 128
    lookahead: int = 256
    window: int = 32

    def problems(self, n: int, offset: int = 0) -> list[Item]:
        """Items `offset` to `offset + n` of the file; ValueError if there are not so many."""
        check_range(n, offset, len(self.items), f"{self.name!r}")
        return list(self.items[offset : offset + n])

    def grade(self, text: str, answer: Any) -> bool:
        """Whether a decoded text gives the answer, by the grader."""
        return find_grader(self.grader)(text, answer)


def read_prompts(path: str | Path, *, grader: str = "exact", argument: str = "path") -> tuple[Item, ...]:
    """The prompts of a file, checked.

    Args:
        path: of the file, or `-` for standard input.
        grader: name of the grader that the answers are for.
        argument: what the user typed before the path, for messages.
    Raises:
        ValueError: the file cannot be read or has no prompts, or a line is not as the module says; its number is told.
    """
    items: list[Item] = []
    prompts: dict[str, int] = {}
    ids: dict[str, int] = {}
    first = 0

    for line, entry in _objects(path, argument):

        def refuse(message: str, line: int = line) -> NoReturn:
            raise ValueError(f"{argument} = {shown(path)}, line {line}: {message}")

        prompt, answer = _text(entry, refuse), entry.get("answer")
        name = _id(entry, line, refuse)
        if prompt in prompts:
            refuse(f"has the prompt of line {prompts[prompt]}, so that its draws would count twice: leave it out")
        if name in ids:
            refuse(f"id = {name!r} is that of line {ids[name]} too: give every prompt its own")
        if items and (answer is None) != (items[0].answer is None):
            has, other = ("no", "one") if answer is None else ("an", "none")
            refuse(f"has {has} answer, and line {first} has {other}: give every prompt an answer, or none")
        if answer is not None:
            try:
                check_answer(grader, answer)
            except ValueError as error:
                refuse(str(error))
        first = first or line
        prompts[prompt], ids[name] = line, line
        items.append(Item(prompt, answer, name))
    if not items:
        raise ValueError(f"{argument} = {shown(path)}: has no prompts; give JSON objects with a prompt, one a line")
    return tuple(items)


def _objects(path: str | Path, argument: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line that is not blank."""
    try:
        data = _standard_input() if str(path) == STANDARD_INPUT else Path(path).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{argument} = {shown(path)}: cannot be read ({why}); give a file of JSON lines") from error
    # Only \n ends a line: a text may hold the other line ends of Unicode.
    for line, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = raw.decode("utf-8")
            if not text.strip():
                continue
            entry = json.loads(text, parse_constant=_refuse_constant)
        except UnicodeDecodeError as error:
            raise ValueError(f"{argument} = {shown(path)}, line {line}: is not UTF-8; save the file in it") from error
        except (ValueError, RecursionError) as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise ValueError(
                f"{argument} = {shown(path)}, line {line}: is not JSON ({why}); give one object a line"
            ) from error
        if not isinstance(entry, dict):
            raise ValueError(f'{argument} = {shown(path)}, line {line}: is no object; give {{"prompt": "..."}}')
        yield line, entry


def _standard_input() -> bytes:
    if sys.stdin is None:  # closed by whoever began this process
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return sys.stdin.buffer.read()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _text(entry: dict[str, Any], refuse: Any) -> str:
    """The prompt."""
    if "prompt" not in entry:
        fields = ", ".join(map(repr, list(entry)[:5])) or "nothing"
        refuse(f"has no 'prompt', but {fields if len(fields) < 100 else 'others'}: give every line a prompt")
    prompt = entry["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        refuse(f"its prompt is {'empty' if isinstance(prompt, str) else type(prompt).__name__}: give a text")
    _check_unicode("prompt", prompt, refuse)
    return str(prompt)


def _id(entry: dict[str, Any], line: int, refuse: Any) -> str:
    """The id, that of the line if there is none."""
    given = entry.get("id")
    if given is None:
        return str(line)
    if isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip():
        refuse(f"its id is {'empty' if isinstance(given, str) else type(given).__name__}: give a text or whole number")
    _check_unicode("id", str(given), refuse)
    return str(given)


def _check_unicode(field: str, text: str, refuse: Any) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        refuse(f"its {field} is not valid Unicode (half a surrogate pair): give whole characters")
