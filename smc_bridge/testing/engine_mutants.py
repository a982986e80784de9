"""Loops that are wrong in known ways: each replaces a function of `smc_bridge.engine.survivors`, for as long as asked.

    with mutated("finished particles dropped"):
        assert_biased(sampler)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from smc_bridge.engine import survivors
from smc_bridge.engine.survivors import Reduced
from smc_bridge.models.arguments import said

Reduce = Callable[..., Reduced]
Commit = Callable[..., None]


def dropping_finished(reduce: Reduce) -> Reduce:
    """Finished particles never survive while another one still grows (C5)."""

    def mutant(log_weights: Tensor, *, pick: Tensor, **rest: Any) -> Reduced:
        drop = ~pick & pick.any(1, keepdim=True)
        return reduce(log_weights.masked_fill(drop[..., None], -math.inf), pick=pick, **rest)

    return mutant


def reweighting_finished(reduce: Reduce) -> Reduce:
    """Finished particles stay, but count as if of weight one (C5)."""

    def mutant(log_weights: Tensor, *, pick: Tensor, **rest: Any) -> Reduced:
        flat = torch.full_like(log_weights, -math.log(log_weights.shape[-1]))
        return reduce(torch.where(pick[..., None], log_weights, flat), pick=pick, **rest)

    return mutant


def not_resetting(reduce: Reduce) -> Reduce:
    """Survivors of resampling keep their ancestors' weights (C6)."""

    def mutant(log_weights: Tensor, **rest: Any) -> Reduced:
        out = reduce(log_weights, **rest)
        own = log_weights.logsumexp(-1).gather(1, out.survivors // log_weights.shape[-1])
        return out._replace(log_weights=torch.where(out.resampled[:, None], own, out.log_weights))

    return mutant


def resetting_to_one(reduce: Reduce) -> Reduce:
    """Survivors of resampling get weight one, so that the evidence so far is lost (C6)."""

    def mutant(log_weights: Tensor, **rest: Any) -> Reduced:
        out = reduce(log_weights, **rest)
        return out._replace(log_weights=torch.where(out.resampled[:, None], 0.0, out.log_weights))

    return mutant


def weighing_the_kept_lane(reduce: Reduce) -> Reduce:
    """The particle's weight is that of the lane it keeps, not the mean of its lanes (C6)."""

    def mutant(log_weights: Tensor, **rest: Any) -> Reduced:
        out = reduce(log_weights, **rest)
        lanes = log_weights.shape[-1]
        chosen = log_weights.reshape(log_weights.shape[0], -1).gather(1, out.survivors) + math.log(lanes)
        return out._replace(log_weights=chosen)

    return mutant


def forgetting_the_potential(commit: Commit) -> Commit:
    """The potential of a prefix is taken for zero in the next step, and so counted again (C6)."""

    def mutant(program: Any, state: Any, *arguments: Any, **options: Any) -> None:
        commit(program, state, *arguments, **options)
        state.log_potential = torch.zeros_like(state.log_potential)

    return mutant


def potential_of_another(commit: Commit) -> Commit:
    """Survivors carry the potential that stood in their place before resampling (C6)."""

    def mutant(program: Any, state: Any, *arguments: Any, **options: Any) -> None:
        before = state.log_potential.clone()
        commit(program, state, *arguments, **options)
        state.log_potential = before

    return mutant


#: Name -> function of the engine, and what replaces it. The last two need a potential of unfinished sequences.
ENGINE_MUTANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "finished particles dropped": ("reduce_lanes", dropping_finished),
    "finished particles reweighted": ("reduce_lanes", reweighting_finished),
    "weights not reset": ("reduce_lanes", not_resetting),
    "weights reset to one": ("reduce_lanes", resetting_to_one),
    "weight of the kept lane": ("reduce_lanes", weighing_the_kept_lane),
    "potential forgotten": ("commit", forgetting_the_potential),
    "potential of another": ("commit", potential_of_another),
}


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """Break the engine of this process, until the block ends.

    Args:
        name: of `ENGINE_MUTANTS`.
    Raises:
        ValueError: there is no such mutant.
    """
    if name not in ENGINE_MUTANTS:
        raise ValueError(f"name = {said(name)}: give one of {', '.join(ENGINE_MUTANTS)}")
    function, change = ENGINE_MUTANTS[name]
    with mock.patch.object(survivors, function, change(getattr(survivors, function))):
        yield
