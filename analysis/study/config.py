"""The configuration of a study: axes, a source of prompts, and the prices of forwards; from Python or a TOML file.

    methods = ["smc", "smc,kernel=block"]   # axes: a value or a list (see `smc_bridge.analysis.study.plan`)
    particles = [1, 4, 16]
    seeds = [0, 1]

    [tabular]                           # seeded tabular models, which can be enumerated, or ..
    alphabets = [3]
    runs = 200

    [task]                              # .. the problems of a task
    name = "arithmetic"
    n = 64

    [cost]
    dlm = 1.0
    ar = 1.0
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smc_bridge.analysis.prices import Cost
from smc_bridge.analysis.study.plan import Axes, check_axis, check_whole
from smc_bridge.models.arguments import real_number
from smc_bridge.models.tabular import ENUMERABLE


class TabularPoint(NamedTuple):
    """One pair of tabular models.

    Attributes:
        alphabet: A.
        length: S, tokens.
        model_seed: of its tables.
        noise: standard deviation of its diffusion model's log-marginals, nats.
    """

    alphabet: int
    length: int
    model_seed: int
    noise: float


class Block(NamedTuple):
    """Prompts of a task that are decoded together, one point of a study's source.

    Attributes:
        task: its name.
        block: number of the batch, from 0.
    """

    task: str
    block: int


#: Where a row's runs come from.
Point = TabularPoint | Block


@dataclass(frozen=True)
class Tabular:
    """Seeded tabular models (`smc_bridge.models.tabular`): axes of their own, and independent runs of each row.

    Attributes:
        alphabets: A, alphabet sizes.
        lengths: S, tokens; also the length limit and the default lookahead.
        model_seeds: of the tables and of the noise.
        noises: standard deviation of the diffusion model's log-marginals, nats.
        concentration: of the tables (`TabularAR.random`).
        eos: whether token 0 ends a sequence.
        runs: independent runs behind a row.
    """

    alphabets: tuple[int, ...] = (3,)
    lengths: tuple[int, ...] = (4,)
    model_seeds: tuple[int, ...] = (1,)
    noises: tuple[float, ...] = (0.5,)
    concentration: float = 0.7
    eos: bool = False
    runs: int = 200

    def __post_init__(self) -> None:
        for name, least in (("alphabets", 2), ("lengths", 1), ("model_seeds", 0)):
            check_axis(name, getattr(self, name))
            for value in getattr(self, name):
                check_whole(name, value, least)
        check_axis("noises", self.noises)
        for value in (*self.noises, self.concentration):
            real_number("noises, concentration", value)
        if min(self.noises) < 0 or not self.concentration > 0:
            raise ValueError(
                f"noises = {min(self.noises)}, concentration = {self.concentration}: give noises of at least 0 and a "
                "positive concentration"
            )
        check_whole("runs", self.runs, 1)
        if not isinstance(self.eos, bool):
            raise ValueError(f"eos = {self.eos}: give true or false")
        if max(self.alphabets) ** max(self.lengths) > ENUMERABLE:
            raise ValueError(
                f"alphabets = {max(self.alphabets)} with lengths = {max(self.lengths)} gives more than {ENUMERABLE} "
                "sequences: give smaller models"
            )
        object.__setattr__(self, "noises", tuple(map(float, self.noises)))
        object.__setattr__(self, "concentration", float(self.concentration))

    def points(self) -> list[TabularPoint]:
        """Every pair of tabular models, as a point of the study."""
        return [
            TabularPoint(*each)
            for each in itertools.product(self.alphabets, self.lengths, self.model_seeds, self.noises)
        ]


@dataclass(frozen=True)
class Prompts:
    """The first problems of a task, in batches, each of which gives a row.

    Attributes:
        name: of the task.
        n: problems.
        batch: problems that are decoded together.
    """

    name: str = "arithmetic"
    n: int = 32
    batch: int = 16

    def __post_init__(self) -> None:
        for name in ("n", "batch"):
            check_whole(name, getattr(self, name), 1)

    def points(self) -> list[Block]:
        """Every batch of problems, as a point of the study."""
        return [Block(self.name, block) for block in range(-(-self.n // self.batch))]

    def problems(self, block: int) -> range:
        """Indices of the problems of a block."""
        return range(block * self.batch, min(self.n, (block + 1) * self.batch))


@dataclass(frozen=True)
class Config:
    """The configuration of a study.

    Attributes:
        axes: of the samplers, and seeds.
        source: of the prompts.
        lookahead: M, tokens; None for the source's own (S, or the task's).
        cost: prices for the column `cost`; they do not enter the saved rows.
    """

    axes: Axes = field(default_factory=Axes)
    source: Tabular | Prompts = field(default_factory=Tabular)
    lookahead: int | None = None
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        if self.lookahead is not None:
            check_whole("lookahead", self.lookahead, 1)

    def header(self) -> dict[str, Any]:
        """Everything that the saved rows depend on, besides the models' weights, as plain data for JSON."""
        data: dict[str, Any] = {**asdict(self.axes), "lookahead": self.lookahead}
        data["tabular" if isinstance(self.source, Tabular) else "task"] = asdict(self.source)
        return {name: _plain(value) for name, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """From the data of a TOML file (module docstring) or the arguments of `study`.

        Raises:
            ValueError: a name is unknown, or a value out of range.
        """
        rest = dict(data)
        axes = _section(Axes, {item.name: rest.pop(item.name) for item in fields(Axes) if item.name in rest}, "")
        if "tabular" in rest and "task" in rest:
            raise ValueError("[tabular] with [task]: give one source of prompts")
        source: Tabular | Prompts
        if "task" in rest:
            source = _section(Prompts, rest.pop("task"), "task")
        else:
            source = _section(Tabular, rest.pop("tabular", {}), "tabular")
        given = rest.pop("cost", {})
        cost = given if isinstance(given, Cost) else _section(Cost, given, "cost")
        lookahead = rest.pop("lookahead", None)
        lookahead = lookahead.item() if isinstance(lookahead, np.generic) else lookahead
        if rest:
            known = [*(item.name for item in fields(Axes)), "lookahead", "[tabular]", "[task]", "[cost]"]
            raise ValueError(f"{next(iter(rest))} is not part of a study: choose from {', '.join(known)}")
        return cls(axes, source, lookahead, cost)

    @classmethod
    def from_toml(cls, path: Path, *, prompts: Mapping[str, Any] | None = None) -> Config:
        """Read a TOML file.

        Args:
            prompts: name and number of prompts that come from elsewhere; the file may still say `n` and `batch`.
        Raises:
            ValueError: it cannot be read, is not TOML, is not a study, or has a source of its own besides `prompts`.
        """
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"config = {path}: cannot be read ({error.strerror}); give a TOML file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"config = {path}: is not TOML ({error}); see docs/study.toml") from error
        try:
            return cls.from_dict(data if prompts is None else _with_prompts(data, prompts))
        except ValueError as error:
            raise ValueError(f"config = {path}: {error}") from error


def _with_prompts(data: Mapping[str, Any], prompts: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a study whose `[task]` is that of prompts from elsewhere."""
    own = data.get("task", {})
    if "tabular" in data or not isinstance(own, Mapping) or "name" in own:
        what = "[tabular]" if "tabular" in data else "name of [task]"
        raise ValueError(f"{what} with prompts from a file: leave it out, or the file")
    return {**data, "task": {**prompts, **own}}


def _section(kind: type[Any], data: Any, name: str) -> Any:
    """An object of a dataclass from a table of TOML; axes may be given as a single value."""
    if isinstance(data, kind):
        return data
    if not isinstance(data, Mapping):
        raise ValueError(f"{name} = {data!r}: give a table, [{name}]")
    known = {item.name: item for item in fields(kind)}
    values = {}
    for key, given in data.items():
        if key not in known:
            raise ValueError(f"{key} is not part of [{name}]: choose from {', '.join(known)}")
        listed = isinstance(known[key].default, tuple)
        value = given.item() if isinstance(given, np.generic) else given
        if isinstance(value, Mapping) or (not listed and not isinstance(value, str | int | float)):
            raise ValueError(f"{key} = {value!r}: give a {'value or a list' if listed else 'value'}")
        values[key] = _values(key, value) if listed else value
    return kind(**values)


def _values(name: str, value: Any) -> tuple[Any, ...]:
    """An axis as a tuple of plain values; numpy's numbers become Python's."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    items = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    items = tuple(item.item() if isinstance(item, np.generic) else item for item in items)
    for item in items:
        if not isinstance(item, str | int | float):
            raise ValueError(f"{name} = {item!r}: give a value or a list of plain values")
    return items


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
