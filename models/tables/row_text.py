"""The text of a row, `row: age=37, workclass=Private`: its columns in their order, a name and a value each.

A name or value that would not come back as it stands (a comma in it, a quotation mark, a blank at its end) is written
as a JSON string: `city="Paris, Texas"`.
"""

from __future__ import annotations

import json
import re

#: Text that a row begins with.
START = "row:"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PART = re.compile(rf"\s*({_QUOTED}|[^,=]*?)\s*=\s*({_QUOTED}|[^,]*?)\s*(?:,|$)")


def row_text(parts: list[str], *, begins: bool) -> str:
    """The text of a row's parts (`part_text`), from its beginning or not."""
    if begins and not parts:
        return START
    return (f"{START} " if begins else "") + ", ".join(parts)


def part_text(name: str, value: str) -> str:
    """A column and its value, as one part of a row's text."""
    is_plain = bool(name) and "=" not in name and not name.startswith(START)
    return f"{_quoted(name, is_plain=is_plain)}={_quoted(value)}"


def parts_of(text: str) -> list[tuple[str, str | None]]:
    """Names and values of a row's text; the value is None in a part that has no equals sign.

    Example:
        >>> parts_of('row: age=37, city="Paris, Texas", sex')
        [('age', '37'), ('city', 'Paris, Texas'), ('sex', None)]
    """
    text = text.strip().removeprefix(START)
    found: list[tuple[str, str | None]] = []
    at = 0
    while at < len(text):
        match = _PART.match(text, at)
        if match is not None:
            found.append((_plain(match[1]), _plain(match[2])))
            at = match.end()
            continue
        end = text.find(",", at)
        end = len(text) if end < 0 else end
        if part := text[at:end].strip():
            found.append((part, None))
        at = end + 1
    return found


def _quoted(text: str, *, is_plain: bool = True) -> str:
    if is_plain and text == text.strip() and not set(text) & set(',"\n\r'):
        return text
    return json.dumps(text, ensure_ascii=False)


def _plain(text: str) -> str:
    if not re.fullmatch(_QUOTED, text):
        return text
    try:
        return str(json.loads(text))
    except ValueError:  # a text that only looks like one
        return text
