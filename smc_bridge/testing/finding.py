"""`Finding`: one claim about a part or a program, tried, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

#: Greatest gap of an enumeration that is put down to round-off.
ROUND_OFF = 1e-9


class Finding(NamedTuple):
    """One claim about a part or a program, tried.

    Attributes:
        claim: what was tried, for one part the same at every table.
        text: the claim and the two numbers, in one line.
        gap: greatest difference between the two; an estimate unless all draws were enumerated.
        wrong: whether the claim is refuted: by more than round-off, or by draws at the level that was asked for.
        biases: whether a program with such a part is biased. A closed form that is wrong alone does not bias a run.
    """

    claim: str
    text: str
    gap: float
    wrong: bool
    biases: bool = True


def worst_of(findings: Iterable[Finding]) -> list[Finding]:
    """The finding with the greatest gap of each claim, greatest first."""
    ordered = sorted(findings, key=lambda finding: -finding.gap)
    return list({finding.claim: finding for finding in reversed(ordered)}.values())[::-1]
