"""What a run costs, and comparisons at equal cost.

    cost = c_D * (work of the DLM) + c_A * (work of the AR model)

Work is counted in *forwards* (calls that served the prompt: the measure where a call's time does not depend on how many
rows it has, as on an accelerator that waits for its memory) or in *rows* of those calls (where it grows with them, as
on a processor). The coefficients are stated, or measured in seconds by `measure_cost`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from smc_bridge.analysis.prices import Cost, Unit
from smc_bridge.models.arguments import real_between, whole_number
from smc_bridge.models.protocols import MASKED, LanguageModel, ModelPair
from smc_bridge.requests import check_prompts
from smc_bridge.result import Forwards, Result

if TYPE_CHECKING:
    import pandas as pd

def cost_of(result: Result | Forwards | Sequence[Result], cost: Cost | None = None) -> float:
    """Cost of a run, or mean cost of several; every forward counts 1 unless a `cost` is given.

    Raises:
        ValueError: an empty list of results.
    """
    price = cost or Cost()
    if isinstance(result, Sequence):
        if not result:
            raise ValueError("results is empty: give at least one Result")
        return statistics.fmean(cost_of(each, price) for each in result)
    work = result.forwards if isinstance(result, Result) else result
    if price.unit == "rows":
        return price.dlm * work.dlm_rows + price.ar * work.ar_rows
    return price.dlm * work.dlm_forwards + price.ar * work.ar_forwards


@torch.inference_mode()
def measure_cost(
    pair: ModelPair, *, lookahead: int, window: int, prompt: Sequence[int] = (), rows: int = 1, repeats: int = 5,
    unit: Unit = "forwards",
) -> Cost:
    """Time a forward of each model: a draft of M positions, and the verification of V tokens.

    Args:
        pair: the models.
        lookahead, window: M and V, tokens.
        prompt: token ids that stand before; its length matters.
        rows: rows of each call; by unit "rows" the time is divided among them.
        repeats: calls that are timed after one that is not; the median counts. Every call is on a session of its own,
            whose cache is filled by a first call that is not timed, as in a run.
        unit: of the returned cost.
    Returns:
        Seconds; `.ratio` is c_D / c_A.
    Raises:
        ValueError: a number below 1, or a prompt that the models cannot read with a draft behind it.
    """
    lookahead, window = whole_number("lookahead", lookahead), whole_number("window", window)
    rows, repeats = whole_number("rows", rows), whole_number("repeats", repeats)
    models: dict[str, LanguageModel] = {"diffusion": pair.dlm, "autoregressive": pair.ar}
    [prompt] = check_prompts([prompt], models, max_new_tokens=max(lookahead, window), called=lambda _: "prompt")
    share = rows if unit == "rows" else 1

    def one(model: str) -> float:
        """Seconds of one call."""
        network = pair.dlm if model == "dlm" else pair.ar
        tokens = torch.tensor([list(prompt)] * rows, dtype=torch.long, device=network.device).reshape(rows, -1)
        session = network.session(tokens, torch.full((rows,), len(prompt), dtype=torch.long, device=network.device))
        width, fill = (lookahead, MASKED) if model == "dlm" else (window, 0)
        draft = torch.full((rows, width), fill, dtype=torch.long, device=network.device)
        every = torch.arange(rows, device=network.device)
        session.score(every, draft)
        _wait(network.device)
        began = time.perf_counter()
        session.score(every, draft)
        _wait(network.device)
        return time.perf_counter() - began

    seconds = {}
    for model in ("dlm", "ar"):
        one(model)
        seconds[model] = statistics.median(one(model) for _ in range(repeats)) / share
    return Cost(seconds["dlm"], seconds["ar"], unit)


def _wait(device: torch.device) -> None:
    """Until an accelerator has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def largest_within(budget: float, cost_at: Callable[[int], float], *, most: int = 1024) -> int:
    """Largest size (N or K) whose cost stays within a budget, by doubling and bisection.

    Args:
        budget: in the units of `cost_at`.
        cost_at: cost of a size; taken to grow with it.
        most: largest size to try.
    Raises:
        ValueError: a single particle is too dear.
    """
    most = whole_number("most", most)
    budget = real_between("budget", budget, 0.0, math.inf, remedy="give a cost of at least 0")
    low, high = 1, 1
    if (least := cost_at(1)) > budget:
        raise ValueError(f"budget = {budget:g}: size 1 costs {least:g} already; give more")
    while high < most and cost_at(min(2 * high, most)) <= budget:
        low = high = min(2 * high, most)
    if high == most:
        return most
    high = min(2 * high, most)  # too dear
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost_at(middle) <= budget else (low, middle)
    return low


def at_equal_cost(frame: pd.DataFrame, budget: float, *, sizes: Sequence[str] = ("particles", "lanes")) -> pd.DataFrame:
    """From a study, the rows of each sampler at the sizes (N, K) that make best use of a budget.

    Samplers differ in method, intermediate, w, V and temperature. Of each, all rows (models, blocks, seeds) are kept at
    the sizes of largest mean cost within the budget (of equal cost, the largest); a sampler that exceeds it at every
    size is left out.

    Args:
        frame: what `study` returned, with its column `cost`.
        budget: greatest mean cost, in the units of that column.
        sizes: columns that may be chosen.
    Raises:
        ValueError: no sampler fits.
    """
    names = [name for name in ("method", "intermediate", "w", "window", "temperature") if name not in sizes]
    kept: list[pd.DataFrame] = []
    for _, sampler in frame.groupby(names, dropna=False, sort=False):
        means = [
            (float(group["cost"].mean()), math.prod(float(group[name].iloc[0]) for name in sizes), group)
            for _, group in sampler.groupby(list(sizes), dropna=False, sort=False)
        ]
        if within := [each for each in means if each[0] <= budget]:
            kept.append(max(within, key=lambda each: each[:2])[2])
    if not kept:
        raise ValueError(f"budget = {budget:g}: every sampler costs more, from {frame['cost'].min():g}; give more")
    import pandas as pd

    return pd.concat(kept).sort_index()
