"""From outcomes to the table of a comparison: one row a method.

Accuracy carries Wilson's score interval; `-log Z` that of `smc_bridge.certificate`, also per token; tokens per forward
that of a ratio of means over problems (`smc_bridge.intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from smc_bridge.analysis.bounds import ratio_per_token
from smc_bridge.analysis.estimates import wilson
from smc_bridge.analysis.store import Record
from smc_bridge.certificate import certify
from smc_bridge.display import PrintedTable
from smc_bridge.estimate import Estimate, columns, plain
from smc_bridge.intervals import NAME, ratio_interval

LEVEL = 0.95
#: Fields of a row that carry an interval.
INTERVALS = ("accuracy", "tokens_per_dlm_forward", "nats", "nats_per_token")


@dataclass(frozen=True)
class Row:
    """One method's figures in a comparison; None where a column does not apply.

    Attributes:
        method: as it is spelled.
        n: problems.
        particles: N.
        accuracy: share of right answers.
        tokens_per_dlm_forward: all tokens by all forwards of the DLM.
        ar_forwards: mean per problem.
        tokens_per_second: all tokens by the wall time of all batches; the only figure that depends on the machine.
        ess: mean over problems, of `particles`.
        nats: estimate of `E[-log Z_hat]` per sequence, a bound on the KL divergence from exact AR sampling.
        nats_per_token: the same by the mean length of a sequence drawn by weight.
    """

    method: str
    n: int
    particles: int
    accuracy: Estimate | None
    tokens_per_dlm_forward: Estimate | None
    ar_forwards: float | None
    tokens_per_second: float
    ess: float | None
    nats: Estimate | None
    nats_per_token: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite are None, and an interval is its value and its ends."""
        return {name: plain(value) for name, value in vars(self).items()}

    def flat(self) -> dict[str, Any]:
        """One entry a number: intervals as `NAME`, `NAME_low` and `NAME_high`; NaN for what does not apply."""
        out: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            out |= columns(item.name, value) if item.name in INTERVALS else {
                item.name: math.nan if value is None else value
            }
        return out


def summarise(method: str, records: Sequence[Record]) -> Row:
    """The row of a method from the records of its cells."""

    def every(name: str) -> list[Any]:
        return [value for record in records for value in record[name]]

    tokens, dlm, ar = every("tokens"), sum(every("dlm_forwards")), sum(every("ar_forwards"))
    seconds = sum(record["seconds"] * record["runs"] for record in records)
    right = [correct for correct in every("correct") if correct is not None]
    ess = whole = each = None
    # Who does not draft has nothing to weigh.
    if dlm and all(record["proper"] for record in records):
        evidence, sizes, exact = [float(z) for z in every("log_evidences")], every("ess"), all(
            record["exact"] for record in records
        )
        ess = sum(sizes) / len(sizes)
        whole = certify(evidence, level=LEVEL, exact=exact)
        each = ratio_per_token(evidence, every("run_tokens"), level=LEVEL, exact=exact)
    return Row(
        method=method, n=len(tokens), particles=records[0]["sequences"],
        accuracy=wilson(sum(right), len(right)) if right else None,
        tokens_per_dlm_forward=_per_forward(tokens, every("dlm_forwards")) if dlm else None,
        ar_forwards=ar / len(tokens) if ar else None,
        tokens_per_second=sum(tokens) / seconds if seconds else math.inf, ess=ess, nats=whole, nats_per_token=each,
    )


def _per_forward(tokens: Sequence[float], forwards: Sequence[float]) -> Estimate:
    """Tokens of all problems by forwards of all, with its interval."""
    above, below = np.asarray(tokens, dtype=np.float64), np.asarray(forwards, dtype=np.float64)
    return Estimate(float(above.sum() / below.sum()), *ratio_interval(above, below, level=LEVEL), len(tokens), NAME)


def render(rows: Sequence[Row], *, title: str = "") -> PrintedTable:
    """The table; '-' where a column does not apply, and no accuracy where no answer is known."""
    table = PrintedTable(
        title=title, title_justify="left", caption_justify="left",
        caption="in brackets: 95 % confidence interval, of -log Z where the runs give one; -log Z: bound on the KL "
        "divergence from exact AR sampling",
    )
    table.add_column("method", no_wrap=True)
    graded = any(row.accuracy is not None for row in rows)
    for name in (
        *(["accuracy, %"] if graded else []), "tokens / DLM forward", "AR forwards", "tokens/s", "ESS",
        "-log Z, nats / sequence", "-log Z, nats / token",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.method, *([_text(row.accuracy and row.accuracy.times(100), ".1f")] if graded else []),
            _text(row.tokens_per_dlm_forward, ".2f"), _plain(row.ar_forwards, ".1f"), f"{row.tokens_per_second:.1f}",
            _size(row), _text(row.nats), _text(row.nats_per_token),
        )
    return table


def _text(value: Estimate | None, form: str = ".3g") -> str:
    return "-" if value is None else value.text(form)


def _plain(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _size(row: Row) -> str:
    """The ESS of a single particle says nothing."""
    return "-" if row.ess is None or row.particles == 1 else f"{row.ess:.2f} of {row.particles}"
