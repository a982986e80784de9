"""From outcomes to the table of a comparison: one row a method.

Accuracy carries Wilson's score interval (Wilson 1927); `-log Z` that of `smc_bridge.certificate`, also per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from scipy import stats

from smc_bridge.analysis.bounds import ratio_per_token
from smc_bridge.analysis.comparison.store import Cell
from smc_bridge.certificate import certify
from smc_bridge.display import PrintedTable

LEVEL = 0.95
#: Fields of a row that carry an interval.
INTERVALS = ("accuracy", "nats", "nats_per_token")


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval; infinite where one number gives no interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One method's figures; None where a column does not apply.

    Attributes:
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
    accuracy: Interval | None
    tokens_per_dlm_forward: float | None
    ar_forwards: float | None
    tokens_per_second: float
    ess: float | None
    nats: Interval | None
    nats_per_token: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite are None."""
        data: dict[str, Any] = _finite(asdict(self))
        return data

    def flat(self) -> dict[str, Any]:
        """One entry a number: intervals as `NAME`, `NAME_low` and `NAME_high`; NaN for what does not apply."""
        out: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in INTERVALS:
                given = value or Interval(math.nan, math.nan, math.nan)
                out |= {item.name: given.value, f"{item.name}_low": given.low, f"{item.name}_high": given.high}
            else:
                out[item.name] = math.nan if value is None else value
        return out


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def wilson(right: int, n: int, *, level: float = LEVEL) -> Interval:
    """Share `right / n` with Wilson's score interval."""
    z = float(stats.norm.ppf((1 + level) / 2))
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, min(share, centre - half), max(share, centre + half))


def summarise(method: str, cells: Sequence[Cell]) -> Row:
    """The row of a method from its cells."""
    outcomes = [outcome for cell in cells for outcome in cell.outcomes]
    n = len(outcomes)
    tokens = [outcome.tokens for outcome in outcomes]
    dlm, ar = sum(o.dlm_forwards for o in outcomes), sum(o.ar_forwards for o in outcomes)
    seconds = sum(cell.seconds for cell in cells)
    evidence = [o.log_evidence for o in outcomes if o.log_evidence is not None]
    right = [o.correct for o in outcomes if o.correct is not None]
    sizes = [o.ess for o in outcomes if o.ess is not None]
    whole = each = None
    if evidence:
        exact = all(cell.exact for cell in cells)
        whole = certify(evidence, level=LEVEL, exact=exact)
        each = ratio_per_token(evidence, [o.drawn_tokens for o in outcomes], level=LEVEL, exact=exact)
    return Row(
        method=method, n=n, particles=cells[0].particles, accuracy=wilson(sum(right), len(right)) if right else None,
        tokens_per_dlm_forward=sum(tokens) / dlm if dlm else None, ar_forwards=ar / n if ar else None,
        tokens_per_second=sum(tokens) / seconds if seconds else math.inf, ess=sum(sizes) / n if sizes else None,
        nats=None if whole is None else Interval(whole.kl, whole.low, whole.high),
        nats_per_token=None if each is None else Interval(each.kl, each.low, each.high),
    )


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
            row.method, *([_share(row.accuracy)] if graded else []),
            _plain(row.tokens_per_dlm_forward, ".2f"), _plain(row.ar_forwards, ".1f"), f"{row.tokens_per_second:.1f}",
            _size(row), _spread(row.nats), _spread(row.nats_per_token),
        )
    return table


def _share(right: Interval | None) -> str:
    """Per cent."""
    return "-" if right is None else f"{100 * right.value:.1f} [{100 * right.low:.1f}, {100 * right.high:.1f}]"


def _plain(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _size(row: Row) -> str:
    """The ESS of a single particle says nothing."""
    return "-" if row.ess is None or row.particles == 1 else f"{row.ess:.2f} of {row.particles}"


def _spread(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    # Adding zero turns -0.0 into 0.0.
    value, low, high = (f"{x + 0.0:.3g}" for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]" if math.isfinite(interval.low) and math.isfinite(interval.high) else value
