"""The loop, with every kind of decoder on it: whoever sits beside a prompt, it draws the same; a step leaves the old
state readable; and Ctrl-C loses no finished work."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from smc_bridge import Decoder, Interrupted, Request
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.rules import AllAtOnce, Ordered, Reconsider
from smc_bridge.decode import Seat, decode, serve
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.state import SMCState
from smc_bridge.methods.ar import ARSampling
from smc_bridge.models.protocols import CausalLM
from smc_bridge.models.tabular import TabularCausalSession, TabularDiffusionSession
from smc_bridge.result import Forwards, Result
from smc_bridge.streams import Role
from tests.smc_bridge.reference_loop import Settings
from tests.smc_bridge.test_engine_loop import KERNELS, NEW, PROMPTS, engine, log_phi, seeds

#: Prompts of several lengths, some of them twice.
MANY = [*PROMPTS, [2, 0], [0], [1]]
BATCHES = [1, 2, 5, len(MANY), 99]
#: A seed for each, for those that stand there twice have other draws.
OWN = list(range(3, 3 + len(MANY)))


def same(left: list[Result], right: list[Result], where: str) -> None:
    """Everything but the time is equal to the last bit."""
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        assert replace(a, seconds=0.0) == replace(b, seconds=0.0), f"prompt {i} {MANY[i]}, {where}: {a} and {b}"


@pytest.mark.parametrize("potential", [None, log_phi], ids=["no-potential", "potential"])
@pytest.mark.parametrize("resampler", ["systematic", "ssp"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_draws_do_not_depend_on_the_batch(kernel: str, resampler: str, potential: Any) -> None:
    settings = Settings(
        kernel, resampler, 0.8, particles=3, temperatures=(0.7, 1.5) if potential else (0.9,), target_temperature=0.8,
        w=0.4, window=2, lookahead=3, nodes=3, potential=potential)
    sampler = engine(settings, 1)
    alone = [
        sampler.run([prompt], seed=seed, max_new_tokens=NEW, keep_drafts=True)[0]
        for prompt, seed in zip(MANY, OWN, strict=True)
    ]
    assert len({len(result.trace) for result in alone}) > 1, "prompts finish at different times"
    for batch in (None, *BATCHES):
        found = sampler.run(MANY, seed=OWN, max_new_tokens=NEW, batch=batch, keep_drafts=True)
        same(found, alone, f"batch {batch}")


@pytest.mark.parametrize("kernel", KERNELS)
def test_retained_sequences_do_not_depend_on_the_batch(kernel: str) -> None:
    whole = [[0, 1], [2, 2, 0, 2], [1], [0, 0, 0, 0], [2, 1], [0, 2, 1], [2, 0, 0, 1], [1]]
    settings = Settings(kernel, "ssp", 0.8, particles=3, temperatures=(0.9,), window=2, lookahead=3, nodes=2)
    sampler = engine(settings, 1)
    together = sampler.run(PROMPTS, seed=seeds(7), max_new_tokens=NEW, retained=whole)
    for batch in (1, 3):
        found = sampler.run(PROMPTS, seed=seeds(7), max_new_tokens=NEW, retained=whole, batch=batch)
        same(found, together, f"batch {batch}")
        assert [result.sequences[0] for result in found] == whole


class Greedy:
    """A decoder as a user writes one: the likeliest token, one after another, without a cache."""

    name, stream = "greedy", Role.AR

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        self.models = {"autoregressive": model}

    def open(self, requests: Sequence[Request | None], limit: int) -> tuple[int, list[Seat | None]]:
        return limit, [Seat.of(request) for request in requests]

    def step(self, state: tuple[int, list[Seat | None]]) -> tuple[int, list[Seat | None]]:
        limit, seats = state
        return limit, [None if seat is None else self.advance(seat, limit) for seat in seats]

    def advance(self, seat: Seat, limit: int) -> Seat:
        held = torch.tensor([[*seat.request.prompt, *seat.tokens]], dtype=torch.long)
        session = self.model.session(held, torch.tensor([held.shape[1]]))
        token = int(session.score(torch.tensor([0]), torch.zeros(1, 1, dtype=torch.long)).argmax())
        tokens = [*seat.tokens, token]
        return seat.after(tokens, complete=token == self.model.eos_id or len(tokens) == limit)

    def finished(self, state: tuple[int, list[Seat | None]]) -> list[int]:
        return [place for place, seat in enumerate(state[1]) if seat is not None and seat.complete]

    def result(self, state: tuple[int, list[Seat | None]], seat: int) -> Result:
        own = state[1][seat]
        assert own is not None
        forwards = Forwards(0, 0, own.forwards, own.forwards, own.forwards)
        return own.result({"method": self.name}, forwards=forwards, reasons=["it draws nothing"])

    def reseat(
        self, state: tuple[int, list[Seat | None]], seats: Sequence[int], requests: Sequence[Request | None]
    ) -> tuple[int, list[Seat | None]]:
        fresh = dict(zip(seats, requests, strict=True))
        return state[0], [Seat.of(fresh[i]) if i in fresh else seat for i, seat in enumerate(state[1])]


#: Two particles of which each has a draft of two tokens.
SETTINGS = Settings("rejection", "systematic", 0.8, particles=2, temperatures=(0.9,), window=2, lookahead=3)


def decoders() -> dict[str, Decoder[Any]]:
    """Everything that decodes prompts in a batch."""
    sampler = engine(SETTINGS, 1)
    rules = {
        "dlm-1": Ordered(), "dlm-2-entropy": Ordered("entropy", 2), "dlm-all": AllAtOnce(),
        "dlm-again": Reconsider(Ordered("confidence"), forwards=2),
    }
    canvases = {
        name: Canvas(sampler.proposal, rule, None if name == "dlm-all" else 2) for name, rule in rules.items()
    }
    target = sampler.target
    return {"smc": sampler, "ar": ARSampling(target), "user's": Greedy(target.model), **canvases}


NAMES = list(decoders())


@pytest.mark.parametrize("name", NAMES)
def test_no_decoder_depends_on_the_batch(name: str) -> None:
    decoder = decoders()[name]
    alone = [decode(decoder, [prompt], seed=s, max_new_tokens=NEW)[0] for prompt, s in zip(MANY, OWN, strict=True)]
    assert len({tuple(result.sequences[0]) for result in alone}) >= 3
    for batch in (None, *BATCHES):
        same(decode(decoder, MANY, seed=OWN, max_new_tokens=NEW, batch=batch), alone, f"batch {batch}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_every_result_is_reported_once_as_soon_as_it_is_there(name: str, batch: int | None) -> None:
    told, counts = list[tuple[int, Result]](), list[int]()
    results = decode(
        decoders()[name], MANY, seed=OWN, max_new_tokens=NEW, batch=batch, progress=counts.append,
        on_result=lambda i, result: told.append((i, result)))
    assert sorted(i for i, _ in told) == list(range(len(MANY)))
    assert all(result is results[i] for i, result in told)
    assert all(result.complete for result in results)
    assert counts == sorted(counts)
    assert counts[-1] == len(MANY)
    if batch == 1:
        assert [i for i, _ in told] == list(range(len(MANY)))


@pytest.mark.parametrize("name", NAMES)
def test_an_old_state_says_what_it_said_before(name: str) -> None:
    """After a step, and after a refill: tokens, weights, traces, who is finished; to the last bit."""
    decoder = decoders()[name]
    requests = [
        Request(place, prompt, seed, decoder.stream) for place, (prompt, seed) in enumerate(zip(MANY, OWN, strict=True))
    ]

    def read(state: Any) -> Any:
        found = [replace(decoder.result(state, seat), seconds=0.0) for seat in range(3)]
        return [(result, list(result.trace)) for result in found], decoder.finished(state)

    state, waiting, refills = decoder.open(requests[:3], NEW), requests[3:], 0
    while waiting:
        before = read(state)
        new = decoder.step(state)
        assert read(state) == before, "a step wrote to the state before it"
        assert read(new) != before, "a step did nothing"
        if left := decoder.finished(new)[: len(waiting)]:
            before = read(new)
            refilled = decoder.reseat(new, left, [waiting.pop(0) for _ in left])
            assert read(new) == before, "a refill wrote to the state before it"
            new, refills = refilled, refills + 1
        state = new
    assert refills > 1


def test_no_more_than_a_batch_is_decoded_at_a_time_and_no_seat_stays_empty() -> None:
    sampler, sizes = engine(SETTINGS, 1), list[int]()
    step = Sampler.step

    def watched(self: Sampler, state: SMCState) -> SMCState:
        assert state.prefix.length.numel() == 3 * 2
        assert state.drafts.marginals.logits.shape[0] <= 2 * 3 * 2, "marginals of finished prompts are kept"
        sizes.append(state.active().numel())
        return step(self, state)

    with mock.patch.object(Sampler, "step", watched):
        results = sampler.run(MANY, seed=OWN, max_new_tokens=NEW, batch=3)
    assert sum(sizes) == sum(len(result.trace) for result in results)
    assert max(sizes) == 3
    tail = sizes[sizes.index(min(sizes)):]
    assert sizes[: -len(tail)] == [3] * (len(sizes) - len(tail)) or sizes == sorted(sizes, reverse=True), sizes


def test_seconds_count_from_when_a_prompt_entered() -> None:
    with mock.patch("time.perf_counter", side_effect=range(10_000)):
        results = engine(SETTINGS, 1).run([[0]] * 6, seed=range(6), max_new_tokens=NEW, batch=1)
    seconds = [result.seconds for result in results]
    assert max(seconds) < 3 * min(seconds), f"{seconds}: every prompt takes about as long as the first"


@contextmanager
def interrupt(call: int, error: type[BaseException] = KeyboardInterrupt) -> Iterator[Callable[[], int]]:
    """Ctrl-C, or another error, in the middle of the n-th forward of any model; gives the forwards so far."""
    calls = 0

    def stopping(score: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise error
            return score(*arguments)

        return stopped

    causal, masked = TabularCausalSession, TabularDiffusionSession
    with mock.patch.object(causal, "score", stopping(causal.score)), \
            mock.patch.object(masked, "score", stopping(masked.score)):
        yield lambda: calls


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [None, 2])
def test_an_interrupt_hands_over_what_is_done(name: str, batch: int | None) -> None:
    """At whichever forward it comes: finished results are those of the whole run, unfinished ones its beginning."""
    decoder = decoders()[name]
    whole = decode(decoder, MANY, seed=OWN, max_new_tokens=NEW)
    unfinished = 0
    for call in range(1, 10_000):
        told = list[int]()
        try:
            with interrupt(call):
                decode(
                    decoder, MANY, seed=OWN, max_new_tokens=NEW, batch=batch,
                    on_result=lambda i, _: told.append(i),  # noqa: B023
                )
        except Interrupted as error:
            results = error.results
        else:
            break
        assert sorted(told) == [i for i, result in results.items() if result.complete], f"call {call}"
        for i, result in results.items():
            if result.complete:
                assert replace(result, seconds=0.0) == replace(whole[i], seconds=0.0), f"call {call}, prompt {i}"
                continue
            unfinished += 1
            assert result.forwards != whole[i].forwards, f"call {call}, prompt {i} is not cut"
            if name == "smc":
                assert list(result.trace) == list(whole[i].trace)[: len(result.trace)]
                assert result.log_weights == result.trace[-1].log_weights
            elif name != "dlm-again":  # which takes tokens back
                assert result.sequences[0] == whole[i].sequences[0][: len(result.sequences[0])]
    assert call > 3
    assert unfinished > 3, "no interrupt left a prompt unfinished"


@pytest.mark.parametrize("name", NAMES)
def test_an_error_hands_over_what_is_done_too(name: str) -> None:
    decoder, told = decoders()[name], list[int]()
    whole = decode(decoder, MANY, seed=OWN, max_new_tokens=NEW)
    with interrupt(10_000) as forwards:
        decode(decoder, MANY, seed=OWN, max_new_tokens=NEW, batch=2)
    with pytest.raises(ArithmeticError) as caught, interrupt(forwards() * 3 // 4, ArithmeticError):
        decode(decoder, MANY, seed=OWN, max_new_tokens=NEW, batch=2, on_result=lambda i, _: told.append(i))
    results = caught.value.results  # type: ignore[attr-defined]
    assert told
    assert sorted(told) == [i for i, result in results.items() if result.complete]
    assert all(replace(results[i], seconds=0.0) == replace(whole[i], seconds=0.0) for i in told)
    [note] = caught.value.__notes__
    assert f"{len(told)} finished" in note


def test_prompts_that_occur_twice_share_no_forward_of_a_model_with_a_history() -> None:
    score, scored = TabularDiffusionSession.score, list[int]()

    def counted(self: TabularDiffusionSession, rows: Any, canvas: Any) -> Any:
        scored.append(rows.numel())
        return score(self, rows, canvas)

    with mock.patch.object(TabularDiffusionSession, "score", counted):
        engine(SETTINGS, None).run([[0]] * 3, seed=range(3), max_new_tokens=NEW)
        shared, scored = scored[0], []
        with mock.patch.object(TabularDiffusionSession, "has_history", True, create=True):
            engine(SETTINGS, None).run([[0]] * 3, seed=range(3), max_new_tokens=NEW)
    assert (shared, scored[0]) == (1, 3)


def test_an_interrupted_commit_leaves_the_last_whole_step() -> None:
    """Ctrl-C when some of a step has been written: the result is that of the step before."""
    settings = Settings("rejection", "systematic", 2.0, particles=3, temperatures=(0.9,), window=1, lookahead=3)
    sampler = engine(settings, None)
    [whole] = sampler.run([[0]], seed=5, max_new_tokens=NEW)
    commit, calls = TabularCausalSession.commit, 0

    def stopped(self: TabularCausalSession, *arguments: Any) -> None:
        nonlocal calls
        commit(self, *arguments)
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with mock.patch.object(TabularCausalSession, "commit", stopped), pytest.raises(KeyboardInterrupt) as caught:
        sampler.run([[0]], seed=5, max_new_tokens=NEW)
    assert isinstance(caught.value, Interrupted)
    [result] = caught.value.results.values()
    assert list(result.trace) == list(whole.trace)[:2]
    assert [len(s) for s in result.sequences] == [2, 2, 2]
    assert not result.complete
    with pytest.raises(ValueError, match=r"complete = False.*run it to the end"):
        result.certificate()


def test_results_travel_to_other_processes_with_their_trace() -> None:
    [result] = engine(SETTINGS, 1).run([[0]], seed=5, max_new_tokens=NEW)
    copy = pickle.loads(pickle.dumps(result))
    assert copy == result
    assert copy.trace[-1] == result.trace[-1]
    assert list(reversed(copy.trace)) == list(reversed(result.trace))


@pytest.mark.parametrize("name", NAMES)
def test_an_error_of_the_caller_keeps_the_result_that_it_was_told(name: str) -> None:
    def fails(place: int, result: Result) -> None:
        told.append(place)
        if len(told) == 3:
            raise RuntimeError("no room on the disk")

    told = list[int]()
    with pytest.raises(RuntimeError, match="no room") as caught:
        decode(decoders()[name], MANY, seed=OWN, max_new_tokens=NEW, batch=2, on_result=fails)
    results = caught.value.results  # type: ignore[attr-defined]
    assert set(told) <= set(results)
    assert all(results[place].complete for place in told)


def test_the_loop_refuses_what_makes_no_sense() -> None:
    decoder = decoders()["ar"]
    for empty in (lambda: decode(decoder, []), lambda: decoders()["smc"].start([])):  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=r"^prompts is empty"):
            empty()
    for batch in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"^batch = {batch}: decode at least 1"):
            serve(decoder, [Request(0, [1], 0, Role.SMC)], max_new_tokens=1, batch=batch)  # type: ignore[arg-type]
    for argument in ("on_result", "progress"):
        with pytest.raises(ValueError, match=f"^{argument} = 'x'"):
            decode(decoder, [[0]], **{argument: "x"})  # type: ignore[arg-type]


def test_what_is_no_decoder_is_refused_by_what_it_lacks() -> None:
    with pytest.raises(ValueError, match=r"^decoder = 'smc' has no name, stream, models, open, .*: give an object"):
        decode("smc", [[0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^decoder = .*Greedy.* has no models: give an object"):
        decode(Greedy, [[0]])  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [[0, 0], [5], [1]], ids=str)
def test_a_decoder_that_finishes_who_is_not_there_is_named(wrong: list[int]) -> None:
    decoder = decoders()["user's"]
    decoder.finished = lambda state: wrong  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"^decoder greedy: finished returned .* where \[0\] are seated"):
        decode(decoder, [[0]], max_new_tokens=2)


@pytest.mark.parametrize("wrong", [None, 0, ["a"], [0.0], [False], "0"], ids=repr)
def test_a_decoder_that_finishes_no_seats_is_named(wrong: Any) -> None:
    decoder = decoders()["user's"]
    decoder.finished = lambda state: wrong  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"^finished of decoder greedy = .*: return some of \[0\], who are seated"):
        decode(decoder, [[0]], max_new_tokens=2)


def test_seats_may_be_numbers_of_any_library() -> None:
    expected, decoder = decode(decoders()["user's"], PROMPTS[:3], max_new_tokens=2), decoders()["user's"]
    finished = decoder.finished
    decoder.finished = lambda state: torch.tensor(finished(state))  # type: ignore[assignment,method-assign,return-value]
    same(decode(decoder, PROMPTS[:3], max_new_tokens=2), expected, "a tensor of seats")


#: What a decoder says of itself, and how the line goes on.
MISSTATED: dict[str, tuple[str, Any, str]] = {
    "no name": ("name", 3, "decoder Greedy: name = 3: give a text"),
    "no stream": ("stream", None, "decoder greedy: stream = None: give a Role"),
    "a stream's name": ("stream", "smc", "decoder greedy: stream = 'smc': give a Role"),
    "a list of models": ("models", [], "decoder greedy: models = []: give models by kind"),
    "no models": ("models", {}, "decoder greedy: models = {}: give models by kind"),
    "no model": ("models", {"diffusion": 3}, "decoder greedy: models = {'diffusion': 3}: give models by kind"),
}


@pytest.mark.parametrize("case", MISSTATED)
def test_a_decoder_that_misstates_itself_is_named_in_one_line(case: str) -> None:
    attribute, value, words = MISSTATED[case]
    decoder = decoders()["user's"]
    setattr(decoder, attribute, value)
    with pytest.raises(ValueError, match="^" + re.escape(words)) as caught:
        decode(decoder, [[0]], max_new_tokens=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [None, [0, 1], {"complete": True}], ids=str)
def test_a_decoder_whose_result_is_none_is_named(wrong: Any) -> None:
    """Also where another prompt is being decoded, whose partial result is none either."""
    decoder = decoders()["user's"]
    decoder.result = lambda state, seat: wrong  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"^decoder greedy: result returned .* for seat \d: return a Result") as caught:
        decode(decoder, PROMPTS[:3], max_new_tokens=2)
    assert caught.value.results == {}  # type: ignore[attr-defined]
