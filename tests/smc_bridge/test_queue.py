"""Continuous refill and interruptions: whoever sits beside a prompt, it draws the same; and Ctrl-C loses no finished
work."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from smc_bridge import Interrupted
from smc_bridge.decoders import ar_sampling, diffusion
from smc_bridge.engine.queue import Queue, Request
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.state import SMCState
from smc_bridge.models.tabular import TabularCausalSession, TabularDiffusionSession
from smc_bridge.result import Result
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


Decoder = Callable[..., list[Result]]


def decoders() -> dict[str, Decoder]:
    """Everything that decodes prompts in a batch."""
    settings = Settings("rejection", "systematic", 0.8, particles=2, temperatures=(0.9,), window=2, lookahead=3)
    sampler = engine(settings, 1)

    def dlm_decoder(count: int | None, order: Any) -> Decoder:
        return lambda prompts, **options: diffusion(
            sampler.proposal, prompts, tokens_per_forward=count, order=order, window=2, **options)

    return {
        "smc": sampler.run, "ar": lambda prompts, **options: ar_sampling(sampler.target, prompts, **options),
        "dlm-1": dlm_decoder(1, "left_to_right"), "dlm-2-entropy": dlm_decoder(2, "entropy"),
        "dlm-all": dlm_decoder(None, "left_to_right"),
    }


@pytest.mark.parametrize("name", ["ar", "dlm-1", "dlm-2-entropy", "dlm-all"])
def test_other_decoders_do_not_depend_on_the_batch_either(name: str) -> None:
    decode = decoders()[name]
    alone = [decode([prompt], seed=s, max_new_tokens=NEW)[0] for prompt, s in zip(MANY, OWN, strict=True)]
    assert len({tuple(result.sequences[0]) for result in alone}) >= 3
    for batch in (None, *BATCHES):
        same(decode(MANY, seed=OWN, max_new_tokens=NEW, batch=batch), alone, f"batch {batch}")


@pytest.mark.parametrize("name", decoders())
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_every_result_is_reported_once_as_soon_as_it_is_there(name: str, batch: int | None) -> None:
    told: list[tuple[int, Result]] = []
    results = decoders()[name](
        MANY, seed=OWN, max_new_tokens=NEW, batch=batch, on_result=lambda i, result: told.append((i, result)))
    assert sorted(i for i, _ in told) == list(range(len(MANY)))
    assert all(result is results[i] for i, result in told)
    assert all(result.complete for result in results)
    if batch == 1:
        assert [i for i, _ in told] == list(range(len(MANY)))


def test_no_more_than_a_batch_is_decoded_at_a_time_and_no_seat_stays_empty() -> None:
    settings = Settings("rejection", "systematic", 0.8, particles=2, temperatures=(0.9,), window=2, lookahead=3)
    sampler, sizes = engine(settings, 1), list[int]()
    step = Sampler.step

    def watched(self: Sampler, state: SMCState, active: Any, **options: Any) -> None:
        assert state.prefix.length.numel() == 3 * 2
        assert state.marginals.logits.shape[0] <= 2 * 3 * 2, "marginals of finished prompts are kept"
        sizes.append(active.numel())
        step(self, state, active, **options)

    with mock.patch.object(Sampler, "step", watched):
        results = sampler.run(MANY, seed=OWN, max_new_tokens=NEW, batch=3)
    assert sum(sizes) == sum(len(result.trace) for result in results)
    assert max(sizes) == 3
    tail = sizes[sizes.index(min(sizes)):]
    assert sizes[: -len(tail)] == [3] * (len(sizes) - len(tail)) or sizes == sorted(sizes, reverse=True), sizes


def test_seconds_count_from_when_a_prompt_entered() -> None:
    settings = Settings("rejection", "systematic", 0.8, particles=2, temperatures=(0.9,), window=2, lookahead=3)
    with mock.patch("time.perf_counter", side_effect=range(10_000)):
        results = engine(settings, 1).run([[0]] * 6, seed=range(6), max_new_tokens=NEW, batch=1)
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


@pytest.mark.parametrize("name", decoders())
@pytest.mark.parametrize("batch", [None, 2])
def test_an_interrupt_hands_over_what_is_done(name: str, batch: int | None) -> None:
    """At whichever forward it comes: finished results are those of the whole run, unfinished ones its beginning."""
    decode = decoders()[name]
    whole = decode(MANY, seed=OWN, max_new_tokens=NEW)
    unfinished = 0
    for call in range(1, 10_000):
        told = list[int]()
        try:
            with interrupt(call):
                decode(MANY, seed=OWN, max_new_tokens=NEW, batch=batch, on_result=lambda i, _: told.append(i))  # noqa: B023
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
            else:
                assert result.sequences[0] == whole[i].sequences[0][: len(result.sequences[0])]
    assert call > 3
    assert unfinished > 3, "no interrupt left a prompt unfinished"


@pytest.mark.parametrize("name", decoders())
def test_an_error_hands_over_what_is_done_too(name: str) -> None:
    decode, told = decoders()[name], list[int]()
    whole = decode(MANY, seed=OWN, max_new_tokens=NEW)
    with interrupt(10_000) as forwards:
        decode(MANY, seed=OWN, max_new_tokens=NEW, batch=2)
    with pytest.raises(ArithmeticError) as caught, interrupt(forwards() * 3 // 4, ArithmeticError):
        decode(MANY, seed=OWN, max_new_tokens=NEW, batch=2, on_result=lambda i, _: told.append(i))
    results = caught.value.results  # type: ignore[attr-defined]
    assert told
    assert sorted(told) == [i for i, result in results.items() if result.complete]
    assert all(replace(results[i], seconds=0.0) == replace(whole[i], seconds=0.0) for i in told)
    [note] = caught.value.__notes__
    assert f"{len(told)} finished" in note


def test_prompts_that_occur_twice_share_no_forward_of_a_model_with_a_history() -> None:
    settings = Settings("rejection", "systematic", 0.8, particles=2, temperatures=(0.9,), window=2, lookahead=3)
    score, scored = TabularDiffusionSession.score, list[int]()

    def counted(self: TabularDiffusionSession, rows: Any, canvas: Any) -> Any:
        scored.append(rows.numel())
        return score(self, rows, canvas)

    with mock.patch.object(TabularDiffusionSession, "score", counted):
        engine(settings, None).run([[0]] * 3, seed=range(3), max_new_tokens=NEW)
        shared, scored = scored[0], []
        with mock.patch.object(TabularDiffusionSession, "has_history", True, create=True):
            engine(settings, None).run([[0]] * 3, seed=range(3), max_new_tokens=NEW)
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
    settings = Settings("rejection", "systematic", 0.8, particles=2, temperatures=(0.9,), window=2, lookahead=3)
    [result] = engine(settings, 1).run([[0]], seed=5, max_new_tokens=NEW)
    copy = pickle.loads(pickle.dumps(result))
    assert copy == result
    assert copy.trace[-1] == result.trace[-1]
    assert list(reversed(copy.trace)) == list(reversed(result.trace))


def test_a_queue_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="prompts is empty"):
        Queue([])
    for batch in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"batch = {batch}: decode at least 1"):
            Queue([Request(0, [1], 0, Role.SMC)], batch=batch)  # type: ignore[arg-type]
