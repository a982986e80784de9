"""Laws of drafted logits where lanes have temperatures of their own: one for all, or one per lane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.logits import LogitLaw, model_law
from smc_bridge.distributions.shaping import Shaping, check_temperature
from smc_bridge.models.arguments import is_list


def lane_temperatures_of(temperature: Any) -> tuple[float, tuple[float, ...] | None]:
    """The first temperature, and all of them if there is one per lane.

    Raises:
        ValueError: one is out of range, or there is none.
    """
    several = is_list(temperature)
    given = temperature if several else [temperature]
    every = [check_temperature(x, name="temperature of the proposal") for x in given]
    if not every:
        raise ValueError("temperature of the proposal is an empty list: give one number, or one per lane")
    return every[0], tuple(map(float, every)) if several else None


def lane_law(
    scores: Tensor, lane: Tensor, lanes: int, shaping: Shaping, temperatures: tuple[float, ...] | None, chunks: Chunks,
    *, source: Tensor | None = None, width: int | None = None, kind: Callable[..., LogitLaw] = LogitLaw,
) -> Law:
    """The law of logits `[n, V, A]` of lanes, each at its own temperature, `[n, V, A]`.

    Args:
        scores: logits.
        lane: which of all lanes of all particles, `[n]`; K consecutive ones are of one particle.
        lanes: K.
        shaping: of all lanes but for their temperatures.
        temperatures: of the K lanes, None for that of the shaping.
        chunks: how much is computed at a time.
        source, width, kind: see `model_law`, where the lanes do not have logits of their own, one after the other.
    """
    if source is None:
        count, columns, _ = scores.shape
        source = torch.arange(count * columns, device=scores.device).reshape(count, columns)
    temperature = greedy = None
    if temperatures is not None:
        own = torch.tensor(temperatures, dtype=torch.float64, device=scores.device)
        temperature = own[lane % lanes]
        if 0.0 in temperatures:
            greedy = (temperature == 0.0).nonzero().flatten()
    return model_law(
        scores, source, shaping, temperature=temperature, greedy=greedy, chunks=chunks, lowest=True, width=width,
        kind=kind,
    )
