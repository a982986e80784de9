"""Patterns of short names: letters, digits and hyphens, and options in angle brackets that stand for whole numbers.

`smc-<particles>x<lanes>` is met by `smc-2x3`, with particles = "2" and lanes = "3". Two patterns clash if some text
meets both, for then one of them hides the other.
"""

from __future__ import annotations

import re

#: A place of a pattern: the characters that may stand there, and whether they may repeat, also no time.
Place = tuple[str, bool]

_PART = re.compile(r"<(\w+)>|([a-z0-9-])")


def places(pattern: str) -> list[str]:
    """Options in angle brackets of a pattern, in order.

    Raises:
        ValueError: it is no pattern.
    """
    found = [match[1] for match in _PART.finditer(pattern) if match[1]]
    if not re.fullmatch(r"[a-z](<[a-z_]\w*>|[a-z0-9-])*", pattern) or len(set(found)) < len(found):
        raise ValueError(
            f"alias = {pattern!r}: give lower-case letters, digits, hyphens, and options as <name>, each once"
        )
    return found


def met(pattern: str, text: str) -> dict[str, str] | None:
    """What the options of a pattern are in a text, None if it does not meet the pattern."""
    parts = (f"(?P<{match[1]}>[1-9][0-9]*)" if match[1] else re.escape(match[2]) for match in _PART.finditer(pattern))
    found = re.fullmatch("".join(parts), text)
    return None if found is None else found.groupdict()


def clash(one: str, other: str) -> bool:
    """Whether some text meets both patterns; a name is a pattern too."""
    return _meet(_expanded(one), _expanded(other))


def _expanded(pattern: str) -> list[Place]:
    found: list[Place] = []
    for match in _PART.finditer(pattern):
        found += [("123456789", False), ("0123456789", True)] if match[1] else [(match[2], False)]
    return found


def _meet(one: list[Place], other: list[Place]) -> bool:
    """Whether some text fills the places of both."""
    if not one and not other:
        return True
    if (one and one[0][1] and _meet(one[1:], other)) or (other and other[0][1] and _meet(one, other[1:])):
        return True
    if not (one and other) or not set(one[0][0]).intersection(other[0][0]) or (one[0][1] and other[0][1]):
        return False
    return _meet(one if one[0][1] else one[1:], other if other[0][1] else other[1:])
