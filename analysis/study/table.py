"""The summary of a study: one line for every sampler, pooled over seeds and prompts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from smc_bridge.analysis.study.frame import KEYS, pool
from smc_bridge.display import PrintedTable

if TYPE_CHECKING:
    import pandas as pd

#: Headers of the columns that name a row.
NAMES = {
    "particles": "N", "lanes": "K", "window": "V", "temperature": "T", "alphabet": "A", "length": "S",
    "model_seed": "model seed", "noise": "noise",
}
#: Columns of figures, their headers and formats; those that a study does not have are left out.
FIGURES = (
    ("runs", "runs", "d"), ("kl_bound", "-log Z, nats", ".3g"), ("kl_per_token", "-log Z, nats / token", ".3g"),
    ("ess", "ESS", ".2f"), ("tv", "TV", ".3g"),
    ("bias", "bias", ".2g"), ("accuracy", "accuracy", ".1%"), ("tokens", "tokens", ".1f"),
    ("acceptance", "accepted", ".0%"), ("tokens_per_dlm_forward", "tokens / DLM forward", ".2f"),
    ("cost", "cost", ".2f"),
)


def render(frame: pd.DataFrame, *, title: str = "") -> PrintedTable:
    """The table; '-' where a column does not apply, and names that are the same throughout are left out.

    Args:
        frame: what `study` returned.
    """
    pooled = pool(frame)
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in pooled.to_dict("records")]
    table = PrintedTable(
        title=title, title_justify="left", caption_justify="left",
        caption="± and brackets: 95 % intervals; -log Z: bound on the KL divergence from exact AR sampling; TV: of the "
        "law of one draw from a run's weights; bias: of the estimated probability of the likeliest sequence",
    )
    named = [
        name for name in KEYS
        if name in pooled.columns and (name == "method" or len({_text(row[name]) for row in rows}) > 1)
    ]
    figures = [each for each in FIGURES if each[0] in pooled.columns and any(_known(row[each[0]]) for row in rows)]
    for name in named:
        table.add_column(NAMES.get(name, name), justify="left" if name in ("method", "intermediate") else "right")
    for _, header, _ in figures:
        table.add_column(header, justify="right")
    for row in rows:
        table.add_row(*(_text(row[name]) for name in named), *(_figure(row, name, form) for name, _, form in figures))
    return table


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    if not _known(value):
        return "-"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _figure(row: dict[str, Any], name: str, form: str) -> str:
    value = row[name]
    if not _known(value):
        return "-"
    # Adding zero turns -0.0 into 0.0.
    shown = format(value if form == "d" else value + 0.0, form)
    low, high = row.get(f"{name}_low", math.nan), row.get(f"{name}_high", math.nan)
    if not (_known(low) and _known(high)):
        return shown
    if name == "accuracy":
        return f"{shown} [{low:{form}}, {high:{form}}]"
    # That of a bound is skewed.
    return f"{shown} [{low:.2g}, {high:.2g}]" if name.startswith("kl_") else f"{shown} ± {(high - low) / 2:.2g}"
