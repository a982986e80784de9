"""The tables of the device check (`benchmarks.device_check`), from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.device_speed import GIVEN
from benchmarks.report import Sheet

#: A record of one cell: what it is, its `state` ("ok", or what is wrong), and figures.
Record = dict[str, Any]


def sheets(found: Mapping[str, Sequence[Record]], shapes: Mapping[str, str]) -> list[Sheet]:
    """A table of every part; `shapes` are those of the random pairs, by the part's name."""
    out = []
    columns: tuple[str, ...]
    for part, records in found.items():
        if part == "tests":
            columns = ("tests parametrised over devices", "state", "passed", "failed", "errors", "skipped")
            forms = [("passed", "d"), ("failed", "d"), ("error", "d"), ("skipped", "d")]
            out.append(Sheet("Tests", columns, [_row(record, forms) for record in records]))
        elif part == "equal":
            columns = (
                "program, weights", "state", "scores apart, places", "allowed", "log weights apart, nats", "allowed",
                "flips", "prompts", "tokens",
            )
            forms = [("places", ".3g"), ("allowed", "d"), ("nats", ".2g"), ("allowed_nats", "g"), ("flips", "d"),
                     ("prompts", "d"), ("tokens", "d")]
            note = (
                "Scores: greatest difference from the CPU's for the same call, in places (eps of the type) of the "
                "greatest logit. Log weights: given the same scores. Flips: prompts with other tokens where each "
                "device has its own scores."
            )
            out.append(Sheet("Draws beside the CPU's", columns, [_row(record, forms) for record in records], note))
        else:
            given = part != "embedded"
            columns = (
                "program", "state", "ms per step", "tokens/s", *([f"at {GIVEN} tokens a step"] if given else []),
                "run / networks", "waits per step", "outside of networks", "told by the device", "peak, GiB",
            )
            forms = [("ms", ".1f"), ("rate", ".1f"), *([("given_rate", ".1f")] if given else []),
                     ("over_networks", ".2f"), ("waits", ".1f"), ("outside", ".1f"), ("told", ".1f"), ("gibi", ".1f")]
            title = "Embedded pair" if not given else f"Random pair, {part} ({shapes[part]}), bfloat16"
            out.append(Sheet(title, columns, [_row(_shown(record), forms) for record in records], (
                "Steps after committed tokens that were given. " if given else ""
            ) + "A step of generate is a token of every prompt, on a random pair each but the first."))
    return out


def _shown(record: Record) -> Record:
    more = {} if "seconds" not in record else {"ms": 1000 * record["seconds"]}
    return {**record, **more, **({"gibi": record["bytes"] / 2**30} if record.get("bytes") is not None else {})}


def _row(record: Record, forms: Sequence[tuple[str, str]]) -> list[str]:
    figures = ["-" if record.get(name) is None else format(record[name], form) for name, form in forms]
    return [record["cell"], record["state"], *figures]
