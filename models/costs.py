"""Costs: seconds of a forward of either model, by its rows and positions, measured once per pair and machine.

A forward of R rows that brings V new positions each takes about as long as another of that size, whatever the tokens.
So a few sizes are timed (`measure`, about a second on a small pair), and what lies between and beyond them is bilinear.
The times are kept in the user's cache folder, under a name made of everything that they depend on: both models, device,
threads, torch (`costs_of`). They decide how much is drafted and verified at once (`smc_bridge.engine.pace`), hence the
draws: a run that is to be repeated is given the costs that the first one had.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from smc_bridge.models.arguments import is_list, real_between, said, whole_numbers
from smc_bridge.models.ends import ends_of
from smc_bridge.models.gguf import cache_folder
from smc_bridge.models.protocols import MASKED, CausalLM, LanguageModel, MaskedDiffusionLM

#: Sizes that are timed: rows of a forward, and new positions of each; tokens of the prefix before them.
ROWS, POSITIONS, PREFIX = (1, 4, 16), (1, 8, 32), 64
#: A size is timed so often, unless all of them together have taken so many seconds.
REPEATS, ENOUGH = 3, 4.0
#: Least seconds of a forward: an extrapolation to few positions may fall below zero.
LEAST = 1e-9
#: Of the files: those of another are measured anew.
VERSION = 1

_TABLE = "give rows and positions that increase, and positive seconds for each pair of them"


@dataclass(frozen=True)
class Table:
    """Seconds of a forward at some sizes, bilinear between and beyond them.

    Attributes:
        rows: R of the sizes, increasing, `[r]`.
        positions: new positions of each row, increasing, `[v]`.
        seconds: of a forward, `[r][v]`.
    Raises:
        ValueError: sizes do not increase, or seconds are not positive.
    """

    rows: tuple[int, ...]
    positions: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for name in ("rows", "positions"):
            sizes = tuple(whole_numbers(name, getattr(self, name), remedy=_TABLE))
            if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
                raise ValueError(f"{name} = {said(sizes)}: {_TABLE}")
            object.__setattr__(self, name, sizes)
        cells = [list(row) if is_list(row) else [] for row in (self.seconds if is_list(self.seconds) else [])]
        if [len(row) for row in cells] != [len(self.positions)] * len(self.rows):
            raise ValueError(f"seconds = {said(self.seconds)}: {_TABLE}")
        object.__setattr__(self, "seconds", tuple(
            tuple(float(real_between("seconds", x, 0.0, math.inf, remedy=_TABLE, strictly=True)) for x in row)
            for row in cells
        ))

    def __call__(self, rows: float, positions: float) -> float:
        """Seconds of a forward of that many rows with that many new positions each."""
        i, along = _between(self.rows, rows)
        j, across = _between(self.positions, positions)
        ends = [
            above if across == 0.0 else above + across * (self.seconds[k][j + 1] - above)
            for k, above in ((k, self.seconds[k][j]) for k in ((i, i + 1) if along else (i,)))
        ]
        return max(ends[0] + along * (ends[-1] - ends[0]), LEAST)


def _between(sizes: Sequence[int], size: float) -> tuple[int, float]:
    """The interval whose straight line gives a size, and where in it, below 0 or above 1 beyond the sizes."""
    if len(sizes) == 1:
        return 0, 0.0
    i = min(max(bisect_right(sizes, size) - 1, 0), len(sizes) - 2)
    return i, (size - sizes[i]) / (sizes[i + 1] - sizes[i])


class Step(NamedTuple):
    """Seconds of a step of a decoder besides its forwards.

    Attributes:
        base: of any step.
        lane: more for each lane in it, of all prompts.
    """

    base: float = 0.0
    lane: float = 0.0

    def __call__(self, lanes: float) -> float:
        """Seconds of a step of that many lanes."""
        return self.base + self.lane * lanes


NOTHING = Step()


@dataclass(frozen=True)
class Costs:
    """What a pair's forwards cost on a machine, and a step besides.

    Attributes:
        dlm: of the diffusion model, by rows and masked positions.
        ar: of the autoregressive model on cached prefixes, by rows and verified positions.
        step: what a step takes besides.
    Raises:
        ValueError: seconds of a step are negative or no numbers.
    Example:
        >>> costs = Costs.linear(dlm=(0.01, 0.001), ar=(0.005, 0.001))
        >>> round(costs.dlm(4, 32), 4)
        0.138
        >>> Costs.of(costs.data()) == costs
        True
    """

    dlm: Table
    ar: Table
    step: Step = NOTHING

    def __post_init__(self) -> None:
        remedy = "give two numbers of seconds, at least 0"
        given = list(self.step) if is_list(self.step) else []
        if len(given) != 2:
            raise ValueError(f"step = {said(self.step)}: {remedy}")
        object.__setattr__(self, "step", Step(*(
            float(real_between("step", x, 0.0, sys.float_info.max, remedy=remedy)) for x in given
        )))

    @classmethod
    def linear(
        cls, *, dlm: tuple[float, float], ar: tuple[float, float], step: tuple[float, float] = (0.0, 0.0)
    ) -> Costs:
        """Costs `a + b * rows * positions`, for each model (a, b): seconds of a forward, and of each position."""
        tables = [
            Table((1, 2), (1, 2), tuple(tuple(a + b * r * v for v in (1, 2)) for r in (1, 2))) for a, b in (dlm, ar)
        ]
        return cls(tables[0], tables[1], Step(*step))

    @classmethod
    def of(cls, value: Any) -> Costs:
        """Costs as they are given: as such, or as plain data (`data`, a run's settings).

        Raises:
            ValueError: they are neither.
        """
        if isinstance(value, cls):
            return value
        try:
            return cls(Table(**value["dlm"]), Table(**value["ar"]), value["step"])
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"costs = {said(value)}: give Costs, their data(), or None to have them measured"
            ) from error

    def data(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


def measure(dlm: MaskedDiffusionLM, ar: CausalLM) -> Costs:
    """Time forwards of both models at a few sizes: the best of some repetitions, increasing in either size."""

    def masked(rows: int, prefix: Tensor, positions: int) -> Callable[[], Tensor]:
        session, every = dlm.session(prefix, torch.full_like(prefix[:, 0], prefix.shape[1])), prefix.new_ones(rows, 1)
        canvas = every.expand(-1, positions) * MASKED
        return lambda: session.score(torch.arange(rows, device=canvas.device), canvas)

    def causal(rows: int, prefix: Tensor, positions: int) -> Callable[[], Tensor]:
        session, drafts = ar.session(prefix, torch.full_like(prefix[:, 0], prefix.shape[1])), prefix[:, :1]
        return lambda: session.score(torch.arange(rows, device=prefix.device), drafts.expand(-1, positions))

    with torch.inference_mode():
        return Costs(_table(dlm, masked), _table(ar, causal))


def _table(model: LanguageModel, forward: Callable[[int, Tensor, int], Callable[[], Tensor]]) -> Table:
    """Seconds of a model's forwards; `forward` makes one of rows, prefix and positions."""
    before, token = place_of(model)
    room = math.inf if model.max_length is None else model.max_length
    positions = tuple(v for v in POSITIONS if before + v <= room) or (1,)
    begun, best = time.perf_counter(), []
    for rows in ROWS:
        prefix = torch.full((rows, before), token, device=model.device)
        best.append([_best(model, forward(rows, prefix, v), begun + ENOUGH / 2) for v in positions])
    # More never takes less: what says so is noise, and would be taken for a bargain.
    seconds = torch.tensor(best, dtype=torch.float64).cummax(0).values.cummax(1).values
    return Table(ROWS, positions, tuple(map(tuple, seconds.tolist())))


def place_of(*models: LanguageModel) -> tuple[int, int]:
    """Tokens of the prefix that models are timed on, with room after it as far as they have any, and a token for it."""
    banned = {i for model in models for i in (*model.banned_ids, *ends_of(model.eos_id))}
    token = next((i for i in range(models[0].vocab_size) if i not in banned), 0)
    room = min([PREFIX, *(m.max_length - max(POSITIONS) for m in models if m.max_length is not None)])
    return max(1, room, *(model.min_length for model in models)), token


def _best(model: LanguageModel, forward: Callable[[], Tensor], until: float) -> float:
    """Least seconds of a forward after the first, which may compile, cache and allocate."""
    times = []
    for _ in range(1 + REPEATS):
        wait(model)
        begun = time.perf_counter()
        forward()
        wait(model)
        times.append(time.perf_counter() - begun)
        if time.perf_counter() > until and len(times) > 1:
            break
    return max(min(times[1:]), LEAST)


def wait(model: LanguageModel) -> None:
    """Let an accelerator finish what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def costs_of(dlm: MaskedDiffusionLM, ar: CausalLM, measured: Callable[[], Costs] | None = None) -> Costs:
    """The pair's costs on this machine: from the user's cache folder, else measured and kept there.

    A file that cannot be read, or that is of something else, is measured anew; a folder that cannot be written is left.
    Models that hold no network have no file, since others would look the same: their costs are kept in this process.

    Args:
        dlm, ar: the pair.
        measured: measures them, `measure` unless it is given.
    """
    measured = measured or (lambda: measure(dlm, ar))
    if _networks(dlm) and _networks(ar):
        return _filed(dlm, ar, measured)
    with contextlib.suppress(TypeError, KeyError):  # a model that has no hash
        return _MEASURED[dlm][ar]
    costs = measured()
    with contextlib.suppress(TypeError):
        _MEASURED.setdefault(dlm, WeakKeyDictionary())[ar] = costs
    return costs


#: Costs of models that hold no network, as far as they were measured in this process.
_MEASURED: MutableMapping[Any, MutableMapping[Any, Costs]] = WeakKeyDictionary()


def _filed(dlm: MaskedDiffusionLM, ar: CausalLM, measured: Callable[[], Costs]) -> Costs:
    """Costs from a file, else measured and written to it."""
    key = {
        "version": VERSION, "models": [_fingerprint(model) for model in (dlm, ar)], "threads": torch.get_num_threads(),
        "torch": torch.__version__, "sizes": [ROWS, POSITIONS, PREFIX],
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):
        path = cache_folder() / "costs" / f"{name}.json"
        return Costs.of(json.loads(path.read_text(encoding="utf-8"))["costs"])
    costs = measured()
    with contextlib.suppress(OSError, RuntimeError):  # there is no home, or no room in it
        _write(cache_folder() / "costs" / f"{name}.json", json.dumps({"of": key, "costs": costs.data()}, indent=1))
    return costs


def _networks(model: Any) -> list[torch.nn.Module]:
    """The networks that a model holds."""
    return [each for each in getattr(model, "__dict__", {}).values() if isinstance(each, torch.nn.Module)]


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise


def _fingerprint(model: Any) -> dict[str, Any]:
    """What of a model its speed depends on: class, configuration, parameters, options of the adapter, device."""
    networks = _networks(model)
    parameters = [each for network in networks for each in network.parameters()]
    configs: list[Any] = [getattr(network, "config", None) for network in networks]
    shape = {
        f"{i}.{name}": value for i, config in enumerate(configs) if hasattr(config, "to_dict")
        for name, value in config.to_dict().items() if not name.startswith("_")
    }
    device = model.device
    plain = {name: value for name, value in vars(model).items() if isinstance(value, bool | int | str | None)}
    return {
        "class": type(model).__qualname__, "inner": [type(network).__qualname__ for network in networks],
        "options": _text(plain), "config": _text(shape),
        "parameters": sum(p.numel() for p in parameters), "dtype": sorted({str(p.dtype) for p in parameters}),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(device),
    }


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _processor(device: torch.device) -> str:
    """The device, and what the system calls the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{device}, {line.split(':', 1)[1].strip()}"
    return str(device)
