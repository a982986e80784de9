"""Made tables and what they are judged by, for `benchmarks.tabular`.

Rows come of the pair `adult` by a method, of TabDiff, or are real ones that nothing was learnt from. They are held
against the real table by the measures of `smc_bridge.analysis.table_quality` if Adult is installed, and in any case, as
tokens, against rows of the AR model itself (`smc_bridge.analysis.token_tables`).

What was drawn and what was measured is kept in files under a folder that the weights name: a run that was interrupted
goes on where it was, and tables that are added cost their own time only.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smc_bridge.analysis.table_quality import closest_records, efficacy, imputation_errors, quality
from smc_bridge.analysis.token_tables import apart
from smc_bridge.decode import decode
from smc_bridge.files import write_text
from smc_bridge.models.extras import MissingExtraError
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.models.tables.data import Table
from smc_bridge.models.tables.datasets import Dataset, adult
from smc_bridge.models.tables.pair import WEIGHTS
from smc_bridge.models.tables.sampler import Sampling, Source, draw
from smc_bridge.models.tables.skipping import Skipping
from smc_bridge.models.tables.tabdiff import TabDiff
from smc_bridge.registry import spelled

#: How TabDiff draws rows: as published, with forecasts between its calls, and with as many calls alone.
PUBLISHED = "TabDiff, 50 steps"
FORMS: Mapping[str, Sampling] = {
    PUBLISHED: Sampling(),
    "TabDiff, forecast": Sampling(skipping=Skipping()),
    "TabDiff, 15 steps": Sampling(steps=15),
}
#: Real rows that nothing was learnt from: what chance alone gives.
REAL = "held-out rows"
#: Rows that stand for the AR model's law, by so many times the rows of a table, and their seed past that of the tables.
MANY, APART = 5, 10_000
#: Rows of a table whose closest records are sought.
CLOSEST = 250
#: Draws that are averaged where columns are imputed, and TabDiff's steps there.
DRAWS, STEPS = 4, 10


class Cost(NamedTuple):
    """Means over rows.

    Attributes:
        ar, dlm: forwards of either model; of TabDiff, calls of its network.
        rows: rows that both scored.
        nats: of the KL bound; NaN of what has no weights.
    """

    ar: float
    dlm: float
    rows: float
    nats: float


class Made(NamedTuple):
    """One table.

    Attributes:
        errors: by name; those against the real table are missing where there is none.
        cost: of its rows; None of real ones.
    """

    errors: Mapping[str, float]
    cost: Cost | None


def kept(file: Path, make: Callable[[], Any], *, fresh: bool) -> Any:
    """What a file holds as JSON; made and written if it is not there, or if all is to be fresh."""
    if not fresh and file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    found = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(found), argument="--out")
    return found


@dataclass
class Tables:
    """Tables of so many rows, of methods of the pair and of TabDiff.

    Attributes:
        out: folder of what is kept.
        rows: of a table.
        batch: rows of the pair that are decoded at a time.
        seed: of the first table.
        real: Adult; None where it, or what its measures need, is not installed.
        fresh: whether what is kept is made anew.
    """

    out: Path
    rows: int
    batch: int
    seed: int
    real: Dataset | None
    fresh: bool = False

    @cached_property
    def pair(self) -> Pair:
        """The two models of the table's columns."""
        return load_pair("adult", device="cpu")

    @cached_property
    def tabdiff(self) -> TabDiff:
        """The diffusion of whole rows."""
        model = self.pair.part("table_diffusion")
        assert isinstance(model, TabDiff)
        return model

    @cached_property
    def exact(self) -> Tensor:
        """Tokens of rows that stand for the AR model's law, `[n, C]`."""
        return self.drawn("ar", MANY * self.rows, self.seed + APART)[0]

    def drawn(self, text: str, count: int, seed: int) -> tuple[Tensor, Cost]:
        """Rows of a method as tokens, `[n, C]`, one drawn from the weights of each run, and what they cost."""
        def make() -> dict[str, Any]:
            begin, columns = self.pair.tokenizer.bos_id, len(self.pair.tokenizer.columns)
            runs = decode(
                spelled(text).make(self.pair), [[begin]] * count, seed=range(seed * count, (seed + 1) * count),
                max_new_tokens=columns, batch=self.batch,
            )
            works = [run.forwards for run in runs]
            return {
                "tokens": [run.sample_tokens(seed=seed) for run in runs],
                "cost": [
                    statistics.fmean(w.ar_forwards for w in works), statistics.fmean(w.dlm_forwards for w in works),
                    statistics.fmean(w.ar_rows + w.dlm_rows for w in works),
                    -statistics.fmean(run.log_evidence for run in runs) if runs[0].proper else float("nan"),
                ],
            }

        found = kept(self._file(f"{text}-{count}-{seed}"), make, fresh=self.fresh)
        return torch.tensor(found["tokens"]), Cost(*found["cost"])

    def made(self, name: str, text: str | None, table: int) -> Made:
        """The table of a number: of a method of the pair, if its spelling is given, of TabDiff, or of real rows."""
        seed, cost, codec = self.seed + table, None, self.pair.tokenizer
        unseen = None if self.real is None else self.real.test
        if text is not None:
            tokens, cost = self.drawn(text, self.rows, seed)
            rows = codec.rows(tokens, seed=table)
        elif name in FORMS:
            rows, calls = self._of_tabdiff(name, seed)
            tokens, cost = codec.tokens(rows)[:, 1:], Cost(0.0, calls, calls, float("nan"))
        else:
            assert unseen is not None, "real rows are not installed"
            rows, unseen = unseen.split(seed, min(1.0, self.rows / len(unseen)))
            tokens = codec.tokens(rows)[:, 1:]
        named = self._file(f"{text or name}-{self.rows}-{self.seed}-{table}.errors", of_tabdiff=name in FORMS)
        errors = kept(named, lambda: self._errors(tokens, rows, unseen, table), fresh=self.fresh)
        return Made(errors, cost)

    def imputed(
        self, methods: Mapping[str, str], guidance: Sequence[float], columns: int, count: int
    ) -> dict[str, dict[str, float]]:
        """Errors of the last columns of so many test rows, drawn anew given the others, by what drew them and column.

        Args:
            methods: of the pair, by name, as they are spelled.
            guidance: weights of TabDiff's.
            columns: how many.
            count: of the rows.
        """
        assert self.real is not None, "real rows are not installed"
        rows = self.real.test.split(self.seed, min(1.0, count / len(self.real.test)))[0]
        codec = self.pair.tokenizer
        names, known = tuple(c.name for c in rows.columns[-columns:]), codec.tokens(rows)[:, :-columns]

        def judged(draw_all: Callable[[Any], list[Table]], what: Any) -> dict[str, float]:
            return imputation_errors(draw_all(what), rows, names)

        def by(text: str) -> list[Table]:
            found = []
            for turn in range(DRAWS):
                seeds = range(turn * len(rows), (turn + 1) * len(rows))
                runs = decode(
                    spelled(text).make(self.pair), known.tolist(), seed=seeds, max_new_tokens=columns, batch=self.batch
                )
                ends = [run.sample_tokens(seed=turn) for run in runs]
                found.append(codec.rows(torch.cat([known, torch.tensor(ends)], 1), seed=turn))
            return found

        def guided(weight: float) -> list[Table]:
            sampling = Sampling(steps=STEPS)
            return [
                self.tabdiff.impute(rows, names, self.seed + turn, guidance=weight, sampling=sampling)
                for turn in range(DRAWS)
            ]

        found: dict[str, dict[str, float]] = {}
        for name, text in methods.items():
            file = self._file(f"imputed-{text}-{len(rows)}-{columns}-{self.seed}")
            found[name] = kept(file, partial(judged, by, text), fresh=self.fresh)
        for w in guidance:
            file = self._file(f"imputed-guidance={w:g}-{len(rows)}-{columns}-{self.seed}", of_tabdiff=True)
            found[f"TabDiff, guidance {w:g}"] = kept(file, partial(judged, guided, w), fresh=self.fresh)
        return found

    def _of_tabdiff(self, name: str, seed: int) -> tuple[Table, int]:
        """A table of TabDiff, and the calls of its network for a row."""
        sampling = FORMS[name]

        def make() -> dict[str, Any]:
            table = self.tabdiff.sample(self.rows, seed, sampling=sampling)
            calls = draw(self.tabdiff, Source((torch.Generator().manual_seed(0),), 1), sampling).calls
            return {"numbers": table.numbers.tolist(), "categories": table.categories.tolist(), "calls": calls}

        found = kept(self._file(f"{name}-{self.rows}-{seed}", of_tabdiff=True), make, fresh=self.fresh)
        numbers = torch.tensor(found["numbers"], dtype=torch.float64)
        return Table(self.tabdiff.columns, numbers, torch.tensor(found["categories"])), found["calls"]

    def _errors(self, tokens: Tensor, rows: Table, unseen: Table | None, table: int) -> dict[str, float]:
        """How far a table is from the AR model's rows and from real ones, per cent (the area under a curve too)."""
        near = apart(tokens, self.exact)
        found = {"trend_ar": 100 * near.trends, "shape_ar": 100 * near.shapes}
        if self.real is None or unseen is None:
            return found
        real, judged = self.real, quality(self.real.train, rows)
        some = rows.rows(slice(0, CLOSEST))
        return found | {
            "trend_real": 100 * apart(tokens, self.pair.tokenizer.tokens(real.train)[:, 1:]).trends,
            "trend": 100 * judged.trends, "shape": 100 * judged.shapes,
            "auroc": 100 * efficacy(rows, real.test, real.label, seed=table),
            "nearer": 100 * closest_records(some, real.train, unseen, seed=table),
        }

    def _file(self, name: str, *, of_tabdiff: bool = False) -> Path:
        """Where something is kept, under the name of the weights that it came of."""
        return self.out / self._folders[of_tabdiff] / f"{name.translate(str.maketrans(' /:', '_+-'))}.json"

    @cached_property
    def _folders(self) -> tuple[str, str]:
        told = [WEIGHTS / name for name in ("adult-ar.safetensors", "adult-dlm.safetensors", "adult.json")]
        own, whole = (
            hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
            for files in (told, [*told, self.pair.learned["table_diffusion"]])
        )
        return f"adult-{own}", f"tabdiff-{whole}"


def rows_of_adult() -> Dataset | None:
    """The real rows, None where they or their measures are not installed."""
    try:
        return adult()
    except MissingExtraError:
        return None
