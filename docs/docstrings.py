"""From docstrings as they are written here to what Sphinx reads: `tidy` before Napoleon, `split` after it."""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes

#: Number of a section of the theory page -> its name in links.
SECTIONS = {
    number: nodes.make_id(title)
    for number, title in re.findall(
        r"^## (\d+)\. (.*)$", (Path(__file__).parent / "theory.md").read_text(encoding="utf-8"), re.MULTILINE
    )
}


def tidy(what: str, lines: list[str]) -> list[str]:
    """Listings as such, citations of the theory page as links, and no type before a colon where none is meant."""
    text = "\n".join(_listings(lines))
    text = re.sub(
        r"(docs/theory(?:\.md)?,\s+section\s+)(\d+)",
        lambda found: f"`{found[1]}{found[2]} <../theory.html#{SECTIONS[found[2]]}>`__", text,
    )
    # Napoleon takes what stands before the first colon for a type.
    return (": " + text if what in ("property", "attribute") else text).split("\n")


def _listings(lines: list[str]) -> list[str]:
    """An indented paragraph after a blank line is a listing, as it is for a reader of the source."""
    found: list[str] = []
    before = ""
    for line in lines:
        if line.startswith("    ") and found and not found[-1].strip() and before and not before.startswith(" "):
            found += ["::", ""]
        found.append(line)
        before = line if line.strip() else before
    return found


def split(lines: list[str]) -> list[str]:
    """One field for each attribute where several share a line, `low, high: ...`."""
    fields = re.split(r"(?m)^(?=:)", "\n".join(lines))
    found = []
    for field in fields:
        several = re.match(r":ivar (\w+(?:, \w+)+):", field)
        names = several[1].split(", ") if several else []
        found += [f":ivar {name}:{field[several.end():].rstrip()}\n" for name in names] if several else [field]
    return "".join(found).split("\n")
