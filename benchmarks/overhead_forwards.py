"""What the sampler adds to its models: the wall time of a run over that of its model calls made again without it.

A run is recorded once. Then, in turn: the run itself, a replay of its calls on fresh sessions (`benchmarks.replay`),
and a replay in which the networks proper are timed: what the sessions do around them (padding, masks, caches) is the
difference. The networks are timed once more by transformers' own forward, for the run uses a lean one of the same
weights (`smc_bridge.models.huggingface.lean`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

from benchmarks.harness import Advance, interleaved, ratios, spread, timed
from benchmarks.problems import TABLES, decoder, methods
from benchmarks.replay import Tape, networks_timed, observe, replay
from smc_bridge.decode import Decoder, decode
from smc_bridge.estimate import Estimate
from smc_bridge.models.huggingface.adapter import HuggingFaceAdapter
from smc_bridge.models.pairs import Pair
from smc_bridge.tasks import Task


class Case(NamedTuple):
    """A program on a batch of prompts.

    Attributes:
        name: of the program.
        prompts: P.
        build: makes its decoder from a pair.
    """

    name: str
    prompts: int
    build: Callable[[Pair], Decoder[Any]]


def cases(task: Task, *, temperature: float, prompts: Sequence[int]) -> list[Case]:
    """Every program at every batch size."""
    programs = {
        name: partial(decoder, name, task=task, temperature=temperature)
        for name in methods(TABLES["overhead"]["methods"])
    }
    return [Case(name, count, build) for count in prompts for name, build in programs.items()]


class Overhead(NamedTuple):
    """What the sampler adds to its models' time on one case, a value for each round.

    Attributes:
        program: name of the case's program.
        prompts: P.
        wall: seconds of the run.
        calls: seconds of its session calls alone.
        networks: seconds of the networks alone.
        own: seconds of the networks by transformers' own forward, where the run uses a lean one.
        over_calls, over_networks, over_own: the run's seconds over each.
        forwards: calls that score.
    """

    program: str
    prompts: int
    wall: Estimate
    calls: Estimate
    networks: Estimate
    own: Estimate
    over_calls: Estimate
    over_networks: Estimate
    over_own: Estimate
    forwards: int


def overhead(
    case: Case, pair: Pair, prompts: Sequence[Sequence[int]], *, rounds: int, max_new_tokens: int, seed: int,
    advance: Advance,
) -> Overhead:
    """Measure one case on its first prompts."""
    prompts = prompts[: case.prompts]
    program, tape = case.build(pair), Tape()
    decode(case.build(observe(pair, tape)), prompts, seed=seed, max_new_tokens=max_new_tokens)

    def run() -> float:
        return timed(lambda: decode(program, prompts, seed=seed, max_new_tokens=max_new_tokens))[0]

    def again() -> float:
        return timed(lambda: replay(pair, tape))[0]

    def networks() -> float:
        with networks_timed(pair) as watch:
            replay(pair, tape)
        return watch.seconds

    def own() -> float:
        with patch.object(HuggingFaceAdapter, "lean", None):
            return networks()

    found = interleaved(
        {"run": run, "calls": again, "networks": networks, "own": own}, rounds, warmup=int(rounds > 1),
        advance=advance,
    )
    whole, calls, inside, plain = found.values()
    return Overhead(
        case.name, case.prompts, spread(whole), spread(calls), spread(inside), spread(plain), ratios(whole, calls),
        ratios(whole, inside), ratios(whole, plain), tape.forwards("dlm") + tape.forwards("ar"),
    )
