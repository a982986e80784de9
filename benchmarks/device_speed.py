"""What programs take on a device: time per step, what of it is not the networks', and waits of the host.

On the embedded pair a run decodes problems from their start to their end. Random pairs agree on nothing, so there what
is committed is given, as in `benchmarks.scaling`: every particle has committed tokens of its own before the steps that
are timed, and its rate is told for `GIVEN` tokens per step besides.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from benchmarks.counting import Count, Sessions, counted
from benchmarks.harness import clock, timed
from benchmarks.problems import decoder
from benchmarks.replay import Tape, networks_timed, observe, replay
from benchmarks.scaling import Bench, Point
from smc_bridge.decode import decode
from smc_bridge.engine.sampler import Sampler
from smc_bridge.models.host import known
from smc_bridge.models.pairs import Pair
from smc_bridge.registry import spelled
from smc_bridge.streams import _FRESH
from smc_bridge.tasks import Task

#: Begins every warning of a wait; the debug mode's own, that it does not find all, has other words.
SYNCHRONIZING = "called a synchronizing"
#: Has no session of ours: its step is a token of every prompt.
GENERATE = "generate-batch"
#: Tokens per step at which the rate of a random pair is told.
GIVEN = 8


class Sizes(NamedTuple):
    """Sizes of the measurements.

    Attributes:
        tokens: length limit on the embedded pair.
        steps: that are timed on a random pair.
        prompt, committed: tokens of a prompt, and those of its own that a particle has committed.
        window, lookahead: V and M.
    """

    tokens: int = 64
    steps: int = 4
    prompt: int = 64
    committed: int = 64
    window: int = 32
    lookahead: int = 64


TINY = Sizes(tokens=4, steps=2, prompt=4, committed=2, window=4, lookahead=4)


class Speed(NamedTuple):
    """One program at one batch size.

    Attributes:
        seconds: of a step; of `generate-batch`, of a token of every prompt.
        rate: tokens per second of all prompts, means over particles.
        given_rate: the same if every step commits `GIVEN` tokens; None where a run commits its own.
        over_networks: wall time over that of the networks alone.
        waits, outside: waits of the host per step as `benchmarks.counting` counts them, in all and outside of networks.
        told: waits per step that the device's own debug mode tells of; None without one.
        bytes: greatest memory in use, weights included; None where it is not known.
    """

    seconds: float
    rate: float
    given_rate: float | None
    over_networks: float
    waits: float
    outside: float
    told: float | None
    bytes: int | None


class Work(NamedTuple):
    """A run in two parts, of which the second is timed.

    Attributes:
        begin: makes what the second part needs, from a pair.
        go_on: the second part; gives steps and tokens (of all prompts, means over particles).
        reads: whether the AR model's first forward reads the prompts, and is no step.
    """

    begin: Callable[[Pair], Any]
    go_on: Callable[[Any], tuple[int, float]]
    reads: bool = False

    def steps_timed(self, pair: Pair, begun: Any) -> tuple[float, tuple[int, float]]:
        """Seconds of the steps alone, and what the second part gives."""
        if not self.reads:
            return timed(lambda: self.go_on(begun))
        with own_forwards(pair) as spans:
            found = self.go_on(begun)
            return clock() - spans[0][1], found


def whole_runs(name: str, task: Task, prompts: Sequence[Sequence[int]], sizes: Sizes, *, seed: int) -> Work:
    """Runs of a method on prompts, from start to end."""

    def go_on(program: Any) -> tuple[int, float]:
        steps: list[int] = []
        found = decode(program, prompts, seed=seed, max_new_tokens=sizes.tokens, progress=steps.append)
        count = sizes.tokens if name == GENERATE else len(steps)
        return count, sum(result.tokens for result in found)

    return Work(lambda pair: decoder(name, pair, task, temperature=0.2), go_on)


def given_steps(name: str, prompts: int, sizes: Sizes, *, seed: int) -> Work:
    """Steps of a method after tokens that were given; of `generate-batch`, as many tokens after the first one, which
    the prompts are read for, of prompts as long."""
    point = Point(P=prompts, V=sizes.window, S=sizes.committed, prompt=sizes.prompt)
    text = [[(7919 * i + 11) % 251 for i in range(1009)]]

    def begin(pair: Pair) -> Any:
        program = spelled(name).make(pair, temperature=1.0, window=sizes.window, lookahead=sizes.lookahead)
        bench = Bench(pair, text, kernel="drafts", steps=sizes.steps, seed=seed)
        if not isinstance(program, Sampler):
            return program, bench.prompts(replace(point, prompt=sizes.prompt + sizes.committed))
        return program, bench.begin(program, point)

    def go_on(begun: Any) -> tuple[int, float]:
        program, state = begun
        if not isinstance(program, Sampler):
            found = decode(program, state, seed=seed, max_new_tokens=1 + sizes.steps)
            return sizes.steps, sum(result.tokens - 1 for result in found)
        before, steps = known(state.prefix.length), 0
        with torch.inference_mode():
            while steps < sizes.steps and state.active().numel():
                state, steps = program.step(state), steps + 1
        return steps, float((known(state.prefix.length) - before).sum()) / program.particles

    return Work(begin, go_on, reads=name == GENERATE)


def speed(pair: Pair, work: Work, *, prompts: int, given: bool) -> Speed:
    """Measure: a run to warm up, which is written down; one that is timed; its calls again; one that is counted.

    Args:
        prompts: P.
        given: whether committed tokens are given.
    """
    device, tape = pair.ar.device, Tape()
    begun = work.begin(observe(pair, tape))
    mark = len(tape.calls)
    work.go_on(begun)

    begun = None  # its sessions' memory
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begun = work.begin(pair)
    seconds, (steps, tokens) = work.steps_timed(pair, begun)
    peak = int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None

    begun = None  # its sessions' memory
    networks = networks_seconds(pair, tape, mark) if tape.calls else own_seconds(pair, work)
    count = Count([_FRESH])
    begun = work.begin(observe(pair, Sessions(count)))
    with counted(count, pair), told_by_device(device) as told:
        work.go_on(begun)
    counted_steps = steps + int(work.reads)
    waits = {part: tally.waits.total() / counted_steps for part, tally in count.tallies.items()}
    return Speed(
        seconds / steps, tokens / seconds, prompts * GIVEN * steps / seconds if given and tape.calls else None,
        seconds / networks, sum(waits.values()), waits["sessions"] + waits["program"],
        None if told is None else sum(SYNCHRONIZING in str(each.message) for each in told) / counted_steps, peak,
    )


def networks_seconds(pair: Pair, tape: Tape, mark: int) -> float:
    """Seconds that the networks take in a replay of a tape from call number `mark` on."""
    with networks_timed(pair) as watch:

        def begin(number: int) -> None:
            if number == mark:
                watch.seconds = 0.0

        replay(pair, tape, told=begin)
    return watch.seconds


def own_seconds(pair: Pair, work: Work) -> float:
    """Seconds that the AR model's own forward takes in the steps of a run that asks no session of ours."""
    begun = work.begin(pair)
    with own_forwards(pair) as spans:
        work.go_on(begun)
    return sum(end - start for start, end in spans[int(work.reads) :])


@contextmanager
def own_forwards(pair: Pair) -> Iterator[list[tuple[float, float]]]:
    """When each forward of the AR model of a run that asks no session of ours began and ended, seconds."""
    model: Any = getattr(pair.ar, "model")  # noqa: B009
    spans, forward = list[tuple[float, float]](), model.forward

    @functools.wraps(forward)  # transformers looks at its arguments
    def watched(*arguments: Any, **options: Any) -> Any:
        start = clock()
        try:
            return forward(*arguments, **options)
        finally:
            spans.append((start, clock()))

    with patch.object(model, "forward", watched):
        yield spans


@contextmanager
def told_by_device(device: torch.device) -> Iterator[list[warnings.WarningMessage] | None]:
    """Every warning while CUDA tells of each wait of the host (`torch.cuda.set_sync_debug_mode`); else None."""
    if device.type != "cuda":
        yield None
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield told
        finally:
            torch.cuda.set_sync_debug_mode(before)
