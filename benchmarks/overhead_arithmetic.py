"""What a step's own arithmetic takes with a large alphabet, against the textbook's form (`benchmarks.textbook`).

The models are mocks with precomputed logits, one particle with K lanes. Both forms get the same logits and the same
uniforms. Memory is what is allocated beyond the models' logits, at its peak, in units of a `[K, V, A]` float32 tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.harness import Advance, interleaved, ratios, spread, timed
from benchmarks.memory import peak_bytes
from benchmarks.mock import MockPair
from benchmarks.textbook import Step, Uniforms, textbook_step
from smc_bridge.engine.presets import lane_temperatures, smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.state import SMCState
from smc_bridge.estimate import Estimate
from smc_bridge.methods import poe_bridge as presets
from smc_bridge.result import Result
from smc_bridge.streams import Role, prompt_generator

PROMPT = [0, 1, 2]
TEMPERATURE, W = 1.0, 0.3


class Arithmetic(NamedTuple):
    """One program on the mock pair, and the same step as the textbook has it.

    Attributes:
        name: of the program.
        lanes, window, alphabet: K, V, A.
        seconds, textbook_seconds: of a step.
        share: of the textbook's time, within each round.
        memory, textbook_memory: peak beyond the models' logits, in `[K, V, A]` float32 tensors.
        equal_lanes: lanes, of `lanes`, that committed the same block in both forms.
        block_lengths: committed tokens of each lane.
    """

    name: str
    lanes: int
    window: int
    alphabet: int
    seconds: Estimate
    textbook_seconds: Estimate
    share: Estimate
    memory: float
    textbook_memory: float
    equal_lanes: int
    block_lengths: list[int]


#: By name: whether every lane has its own temperature, or one is for all.
PROGRAMS = {"one temperature": False, "own temperatures": True}


class MockStep:
    """The first step of a program on a mock pair, in both forms; `mixed` lanes have their own temperatures.

    The program runs on what `watch` makes of the pair.
    """

    def __init__(
        self, mixed: bool, *, lanes: int, window: int, alphabet: int, seed: int, dtype: torch.dtype = torch.float32,
        watch: Callable[[MockPair], Any] = lambda pair: pair,
    ) -> None:
        self.lanes, self.window, self.seed = lanes, window, seed
        self.pair = MockPair.make(alphabet=alphabet, lanes=lanes, window=window, seed=seed, dtype=dtype)
        watched = watch(self.pair)
        options: dict[str, Any] = {"temperature": TEMPERATURE, "lookahead": window, "window": window, "w": W}
        self.sampler: Sampler = (
            presets.paper(watched, lanes=lanes, **options) if mixed
            else smc(watched, 1, lanes=lanes, **options)
        )
        own = lane_temperatures(lanes) if mixed else [TEMPERATURE]
        self.lane_temperatures = torch.tensor(own, dtype=dtype)
        self.exponent = (1 - W) * TEMPERATURE / self.lane_temperatures

    def start(self) -> SMCState:
        """A state before its first step, with fresh copies of the logits."""
        self.pair.prepare()
        return self.sampler.start([PROMPT], seed=self.seed, max_new_tokens=4 * self.window)

    @torch.inference_mode()
    def ours(self, state: SMCState) -> None:
        """One step of the sampler."""
        self.sampler.step(state)

    def textbook(self) -> Step:
        """The textbook's step on the prepared logits, with the uniforms of the sampler."""
        uniforms = Uniforms.draw(prompt_generator(self.seed, PROMPT, role=Role.SMC), self.lanes, self.window)
        return textbook_step(
            self.pair.dlm.take(1, self.window)[0], lambda draft: self.pair.ar.take(*draft.shape), uniforms,
            lane_temperatures=self.lane_temperatures, temperature=TEMPERATURE, w=W, target_exponent=self.exponent,
        )

    def compare(self) -> tuple[Result, Step]:
        """A run of one window, whose first step is the one in question, and the textbook's step."""
        self.pair.prepare()
        run = self.sampler.run([PROMPT], seed=self.seed, max_new_tokens=self.window, keep_drafts=True)[0]
        self.pair.prepare()
        return run, self.textbook()


def blocks(run: Result, book: Step) -> tuple[list[list[int]], list[list[int]]]:
    """What every lane commits: in the sampler's first step, and in the textbook's."""
    kept = run.trace[0].blocks
    assert kept is not None
    return kept[0], [row[:length] for row, length in zip(book.block.tolist(), book.length.tolist(), strict=True)]


def arithmetic(
    name: str, *, lanes: int, window: int, alphabet: int, rounds: int, seed: int, advance: Advance
) -> Arithmetic:
    """Time and memory of one of the `PROGRAMS`."""
    mock = MockStep(PROGRAMS[name], lanes=lanes, window=window, alphabet=alphabet, seed=seed)

    def ours() -> float:
        state = mock.start()
        return timed(lambda: mock.ours(state))[0]

    def textbook() -> float:
        mock.pair.prepare()
        return timed(mock.textbook)[0]

    found = interleaved({"ours": ours, "textbook": textbook}, rounds, advance=advance)
    memory = peak_bytes(mock.ours, prepare=mock.start)
    book_memory = peak_bytes(lambda _: mock.textbook(), prepare=mock.pair.prepare)
    unit = 4 * lanes * window * alphabet
    committed, expected = blocks(*mock.compare())
    return Arithmetic(
        name, lanes, window, alphabet, spread(found["ours"]), spread(found["textbook"]),
        ratios(found["ours"], found["textbook"]), memory / unit, book_memory / unit,
        sum(a == b for a, b in zip(committed, expected, strict=True)), [len(block) for block in committed],
    )
