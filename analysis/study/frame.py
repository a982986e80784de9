"""From records to data frames: one row a cell, and rows pooled over seeds and blocks of prompts.

Columns: the sampler (`method`, `intermediate`, `particles`, `lanes`, `w`, `window`, `temperature`), the source
(`alphabet`, `length`, `model_seed`, `noise`, or `task`, `block`), `seed`, the figures of
`smc_bridge.analysis.study.figures`, and

    log_evidence                mean of `log_evidences`, nats
    kl_bound, _low, _high       `E[-log Z_hat]`, a bound on the KL divergence from exact AR sampling, nats, as `certify`
                                estimates it
    kl_per_token, _low, _high   the same by the mean length of a sequence drawn by weight, nats per token
    tv_low, tv_high, ..         95 % intervals of `tv`, `run_tv` and `bias`
    tokens_per_dlm_forward      by the sums of both
    accuracy_low, _high         Wilson's 95 % interval of `accuracy`
    cost                        mean of a run (`smc_bridge.analysis.budget`)

What does not exist for a method or a source is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smc_bridge.analysis.bounds import ratio_per_token
from smc_bridge.analysis.estimates import wilson
from smc_bridge.analysis.prices import Cost
from smc_bridge.analysis.store import Record
from smc_bridge.analysis.study.config import Block, TabularPoint
from smc_bridge.analysis.study.figures import ANSWERS, DISTANCES, PER_RUN
from smc_bridge.analysis.study.plan import SETTING_COLUMNS
from smc_bridge.certificate import certify
from smc_bridge.estimate import Estimate, columns
from smc_bridge.models.extras import need

if TYPE_CHECKING:
    import pandas as pd

#: Attribute of a frame: what its costs count, "forwards" or "rows".
WORK = "cost_unit"
#: Entries of a record that are no columns.
UNSHOWN = ("sequences", *ANSWERS)
#: Columns that name a cell.
KEYS = (*SETTING_COLUMNS, *TabularPoint._fields, *Block._fields, "seed")
#: Figures that a pooled row averages over its runs.
AVERAGED = (*PER_RUN, "tokens_per_block", "acceptance", "seconds", "accuracy")


def to_frame(records: Sequence[Record], cost: Cost) -> pd.DataFrame:
    """A data frame with a row for each record, in their order.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    need("pandas", "studies", extra="analysis")
    import pandas as pd

    frame = pd.DataFrame([_row(record, cost) for record in records])
    frame.attrs[WORK] = cost.unit
    return frame


def _row(record: Record, cost: Cost) -> dict[str, Any]:
    """A record, or one that was pooled, with means over runs and the columns that follow from it."""
    row = {name: math.nan if value is None else value for name, value in record.items() if name not in UNSHOWN}
    row |= {name: float(np.mean(row[name])) for name in PER_RUN}
    row["log_evidences"] = evidence = (
        None if record["log_evidences"] is None else [float(z) for z in record["log_evidences"]]
    )
    row.setdefault("accuracy", _share(record.get("correct")))
    share = None if math.isnan(row["accuracy"]) else wilson(round(row["accuracy"] * row["runs"]), int(row["runs"]))
    row |= {**columns("accuracy", share), "accuracy": row["accuracy"]}
    for name in DISTANCES:
        row |= columns(name, Estimate.normal(row[name], row[f"{name}_error"]))
    dlm, ar = (("dlm_rows", "ar_rows") if cost.unit == "rows" else ("dlm_forwards", "ar_forwards"))
    return {
        **row, "log_evidence": math.nan if evidence is None else float(np.mean(evidence)),
        **_bounds(evidence, record["run_tokens"], exact=record["exact"]),
        "tokens_per_dlm_forward": row["tokens"] / row["dlm_forwards"] if row["dlm_forwards"] else math.nan,
        "cost": cost.dlm * row[dlm] + cost.ar * row[ar],
    }


def _share(correct: Sequence[bool | None] | None) -> float:
    """Share of right answers; NaN unless every answer is known."""
    if not correct or None in correct:
        return math.nan
    return float(np.mean([bool(each) for each in correct]))


def _bounds(evidence: Sequence[float] | None, tokens: Sequence[float], *, exact: bool) -> dict[str, float]:
    """KL bounds with their intervals; ends that the runs do not give are NaN."""
    whole = each = None
    if evidence is not None:
        whole, each = certify(evidence, exact=exact), ratio_per_token(evidence, tokens, exact=exact)
    bounds: dict[str, Estimate | None] = {"kl_bound": whole, "kl_per_token": each}
    row: dict[str, float] = {}
    for name, bound in bounds.items():
        row |= columns(name, bound)
        if bound is not None and not bound.has_interval:
            row[f"{name}_low"] = row[f"{name}_high"] = math.nan
    return row


def pool(frame: pd.DataFrame, *, over: Sequence[str] = ("seed", "block"), cost: Cost | None = None) -> pd.DataFrame:
    """One row for all rows that differ in the columns `over` only; runs weigh alike.

    Args:
        frame: what `study` returned.
        over: columns that disappear. Over `model_seed` too, the figures are means over models.
        cost: other prices than those of the frame's column `cost`, which is averaged otherwise.
    Returns:
        Bounds from all evidence together; `tv`, `run_tv` and `bias` are means of the rows' own, with their errors.
    """
    given = [name for name in KEYS if name in frame.columns and name not in over]
    records, costs = [], []
    for _, rows in frame.groupby(given, dropna=False, sort=False):
        share = rows["runs"].to_numpy(dtype=np.float64)
        share = share / share.sum()
        first = rows.iloc[0]
        record: Record = {name: first[name] for name in given}
        record |= {"runs": int(rows["runs"].sum())}
        record |= {name: bool(rows[name].all()) for name in ("proper", "exact")}
        known = [each for each in rows["log_evidences"] if isinstance(each, list)]
        record["log_evidences"] = [z for each in known for z in each] if len(known) == len(rows) else None
        record["run_tokens"] = [t for each in rows["run_tokens"] for t in each]
        for name in AVERAGED:
            record[name] = float(share @ rows[name].to_numpy(dtype=np.float64))
        for name in DISTANCES:
            error = share * rows[f"{name}_error"].to_numpy(dtype=np.float64)
            record[name] = float(share @ rows[name].to_numpy(dtype=np.float64))
            record[f"{name}_error"] = float(np.sqrt(error @ error))
        records.append(record)
        costs.append(float(share @ rows["cost"].to_numpy(dtype=np.float64)))
    pooled = to_frame(records, cost or Cost())
    if cost is None:
        pooled["cost"] = costs
        pooled.attrs[WORK] = frame.attrs.get(WORK, Cost().unit)
    return pooled
