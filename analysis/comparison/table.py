"""From outcomes to the table of a comparison: one row a method.

Accuracy carries Wilson's score interval; the KL bound that of `smc_bridge.certificate`, also per token; tokens per
forward that of a ratio of means over problems (`smc_bridge.intervals`). Costs count every forward of every model, also
those of drafts that were refused, by the tokens of a continuation.

A bound on the distance from the AR law has who is properly weighted for that law, and nobody else: what is proper for
another one (a product of experts, a power of the AR law) is said to be of another law, and what is proper for none is
called improper.
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
#: What a method claims whose bounds are bounds on the distance from the AR law.
AR = "AR"
#: Stand where a method has no bound: it is no proper sampler, or one of another law.
IMPROPER, OTHER_LAW = "improper", "other law"
#: A spelling that takes more columns than this may take several lines.
LONG = 20
#: Fields of a row that carry an interval.
INTERVALS = ("accuracy", "tokens_per_dlm_forward", "nats", "nats_per_token")


@dataclass(frozen=True)
class Row:
    """One method's figures in a comparison; None where a column does not apply.

    Attributes:
        method: as it is spelled.
        n: problems.
        particles: N.
        targets: the law that the method claims (`smc_bridge.registry`).
        proper: whether its results are properly weighted for that law.
        accuracy: share of right answers.
        tokens_per_dlm_forward: all tokens by all forwards of the DLM.
        ar_forwards: of the AR model, mean per problem.
        ar_forwards_per_token: the same by the tokens of a continuation.
        ar_positions_per_token: tokens or tree nodes that the AR model scored, of all particles and lanes, by the tokens
            of a continuation.
        tokens_per_second: all tokens by the wall time of all batches; the only figure that depends on the machine.
        ess: mean over problems, of `particles`; of proper results.
        nats: estimate of `E[-log Z_hat]` per sequence, a bound on the KL divergence from exact AR sampling; of results
            that are proper for the AR law.
        nats_per_token: the same by the mean length of a sequence drawn by weight.
    """

    method: str
    n: int
    particles: int
    targets: str
    proper: bool
    accuracy: Estimate | None
    tokens_per_dlm_forward: Estimate | None
    ar_forwards: float | None
    ar_forwards_per_token: float | None
    ar_positions_per_token: float | None
    tokens_per_second: float
    ess: float | None
    nats: Estimate | None
    nats_per_token: Estimate | None

    @property
    def for_ar(self) -> bool:
        """Whether the results are properly weighted for the AR law, so that there is a bound."""
        return self.proper and self.targets == AR

    @property
    def tokens_per_forward(self) -> float:
        """Tokens per forward of the DLM; of a method that runs none, of the AR model; NaN of one that runs neither."""
        if self.tokens_per_dlm_forward is not None:
            return self.tokens_per_dlm_forward.value
        return 1.0 / self.ar_forwards_per_token if self.ar_forwards_per_token else math.nan

    @property
    def bound(self) -> str:
        """The KL bound per token as a text, or that there is none; exact draws have one of 0, which needs no ends."""
        if self.nats_per_token is None:
            return OTHER_LAW if self.proper and self.targets != AR else IMPROPER
        known = self.nats_per_token
        return f"{known.value:.2g}" if known.low == known.high else known.text(".2g")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite are None, and an interval is its value and its ends."""
        return {name: plain(value) for name, value in vars(self).items()}

    def flat(self) -> dict[str, Any]:
        """One entry a number: intervals as `NAME`, `NAME_low` and `NAME_high`; NaN for what does not apply."""
        out: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            out |= columns(item.name, value) if item.name in INTERVALS else {
                item.name: math.nan if value is None else value  # the law's name and `proper` as they are
            }
        return out


def summarise(method: str, records: Sequence[Record], *, targets: str = AR) -> Row:
    """The row of a method from the records of its cells; `targets` is the law that it claims."""

    def every(name: str) -> list[Any]:
        return [value for record in records for value in record[name]]

    tokens, dlm, ar = every("tokens"), sum(every("dlm_forwards")), sum(every("ar_forwards"))
    seconds = sum(record["seconds"] * record["runs"] for record in records)
    right = [correct for correct in every("correct") if correct is not None]
    ess = whole = each = None
    proper = all(record["proper"] for record in records)
    if proper:
        sizes = every("ess")
        ess = sum(sizes) / len(sizes)
    if proper and targets == AR:
        evidence, exact = [float(z) for z in every("log_evidences")], all(record["exact"] for record in records)
        whole = certify(evidence, level=LEVEL, exact=exact)
        each = ratio_per_token(evidence, every("run_tokens"), level=LEVEL, exact=exact)
    return Row(
        method=method, n=len(tokens), particles=records[0]["sequences"], targets=targets, proper=proper,
        accuracy=wilson(sum(right), len(right)) if right else None,
        tokens_per_dlm_forward=_per_forward(tokens, every("dlm_forwards")) if dlm else None,
        ar_forwards=ar / len(tokens) if ar else None,
        ar_forwards_per_token=ar / sum(tokens) if ar else None,
        ar_positions_per_token=sum(every("ar_tokens")) / sum(tokens) if ar else None,
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
        caption="in brackets: 95 % confidence interval, of the KL bound where the runs give one; KL bound: on the "
        f"divergence from exact AR sampling, by -log Z; {IMPROPER}: no proper sampler; {OTHER_LAW}: a proper one of "
        "another law than the AR model's",
    )
    table.add_column("method")
    graded = any(row.accuracy is not None for row in rows)
    for name in (
        *(["accuracy, %"] if graded else []), "tokens / DLM forward", "AR forwards / token", "AR positions / token",
        "tokens/s", "ESS", "KL bound, nats / token",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        rate = row.tokens_per_dlm_forward
        table.add_row(
            _broken(row.method), *([_text(row.accuracy and row.accuracy.times(100), ".1f")] if graded else []),
            _plain(None if rate is None else rate.value, ".2f"), _plain(row.ar_forwards_per_token, ".2f"),
            _plain(row.ar_positions_per_token, ".1f"), f"{row.tokens_per_second:.1f}", _size(row), row.bound,
        )
    return table


def _text(value: Estimate | None, form: str) -> str:
    return "-" if value is None else value.text(form)


def _plain(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _broken(method: str) -> str:
    """A long spelling with blanks where a line may end, which change nothing in it."""
    return method if len(method) <= LONG else method.replace(",", ", ")


def _size(row: Row) -> str:
    """The ESS of a single particle says nothing."""
    return "-" if row.ess is None or row.particles == 1 else f"{row.ess:.1f} of {row.particles}"
