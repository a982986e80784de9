"""The one loop that runs every method: `decode(decoder, prompts)`.

    open -> [ step -> results of who is finished -> the next prompts take their seats ] -> results in the prompts' order

A *seat* is a prompt's place in the batch. A method is a `Decoder`: it owns what its state is and how a step advances
it; queue, refill, interrupts and partial results are here. Sessions need no more for a refill than what a step asks of
them: `crop` to length 0 and `commit` of the next prompt on its rows. A prompt's draws come from a generator of its own
(`Request.generator`), so they are the same whatever its seat, and whoever sits beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from smc_bridge.models.arguments import called, check_callable, said, whole_number, whole_numbers
from smc_bridge.models.protocols import LanguageModel
from smc_bridge.plugins import texts_of
from smc_bridge.requests import Request, check_limit, requests_of
from smc_bridge.result import Forwards, Result
from smc_bridge.streams import Role

#: What a decoder carries from step to step.
State = TypeVar("State")

#: Told the place of a prompt among those of the run, and its result, as soon as it is finished.
OnResult = Callable[[int, Result], None]

#: Called after every step with the number of prompts that are finished.
Progress = Callable[[int], None]


class Decoder(Protocol[State]):
    """A method that decodes prompts in a batch, as `decode` runs it.

    A state that was stepped or reseated can still be read by `finished` and `result`, which then say what they said
    before; it cannot be stepped again, for sessions and generators go on with the newest state.
    """

    name: str  #: of the method, for results

    @property
    def stream(self) -> Role:
        """The stream of random numbers that its draws come from."""
        ...

    @property
    def models(self) -> Mapping[str, LanguageModel]:
        """The models that read the prompts, by kind ("diffusion", "autoregressive")."""
        ...

    def open(self, requests: Sequence[Request | None], limit: int) -> State:
        """The state before the first step.

        Args:
            requests: one for each seat, None for nobody.
            limit: most tokens of a continuation.
        """
        ...

    def step(self, state: State) -> State:
        """The state after one more step of every prompt that is seated and not finished."""
        ...

    def finished(self, state: State) -> list[int]:
        """Seats (indices, in increasing order) whose prompt is there and grows no more."""
        ...

    def result(self, state: State, seat: int) -> Result:
        """The result of the prompt in a seat, as far as it has come; `complete` is False if it is not finished."""
        ...

    def reseat(self, state: State, seats: Sequence[int], requests: Sequence[Request | None]) -> State:
        """The state with other prompts in some seats; None empties a seat."""
        ...


class Interrupted(KeyboardInterrupt):
    """A run was interrupted (Ctrl-C).

    Attributes:
        results: by the prompt's place in the run: what is finished, and for prompts that were being decoded what the
            last whole step left (`complete` is False). Prompts that had no step are missing.
    """

    def __init__(self, results: Mapping[int, Result]) -> None:
        self.results = dict(sorted(results.items()))
        whole = sum(result.complete for result in self.results.values())
        super().__init__(f"{whole} finished and {len(self.results) - whole} unfinished results are in `results`")


def decode(
    decoder: Decoder[Any], prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int] = 0,
    max_new_tokens: int = 256, batch: int | None = None, on_result: OnResult | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Decode prompts with any method.

    Args:
        decoder: the method, such as a `Sampler`.
        prompts: token ids of each prompt.
        seed: one for all, or one per prompt; a whole number of any size. The same (prompt, seed) gives the same draws
            in every batch, up to round-off of the models' forwards.
        max_new_tokens: length limit of a continuation.
        batch: prompts that are decoded at a time; when one finishes, the next takes its seat. None: all at once.
        on_result: called with (place in `prompts`, result) as soon as a prompt is finished.
        progress: told the number of finished prompts after every step.
    Returns:
        one `Result` per prompt, in their order.
    Raises:
        ValueError: an argument out of range, or the decoder is not what `Decoder` says.
        Interrupted: a KeyboardInterrupt that carries what is done, also of prompts that are not finished. Any other
            error during the run carries the same in an attribute `results`.
    Example:
        >>> from smc_bridge import load_pair, smc
        >>> pair = load_pair("arithmetic")
        >>> [result] = decode(smc(pair, particles=2), [pair.encode("Ann has 3 apples.")], max_new_tokens=4)
        >>> len(result.sequences)
        2
    """
    if lacks := lacking(decoder):
        raise ValueError(f"decoder = {said(decoder)}{lacks}: give an object such as a Sampler")
    _check_attributes(decoder)
    limit = check_limit(max_new_tokens)
    requests = requests_of(prompts, decoder.models, seed=seed, max_new_tokens=limit, stream=decoder.stream)
    return serve(decoder, requests, max_new_tokens=limit, batch=batch, on_result=on_result, progress=progress)


def lacking(decoder: Any) -> str:
    """What keeps an object from being a `Decoder`, in a message's words after its name; empty if nothing does."""
    missing = [name for name in ("name", "stream", "models", *_VERBS) if not hasattr(decoder, name)]
    if missing:
        return f" has no {', '.join(missing)}"
    return " is a class" if isinstance(decoder, type) else ""


_VERBS = ("open", "step", "finished", "result", "reseat")


def _check_attributes(decoder: Decoder[Any]) -> None:
    """Raise ValueError, naming the decoder, unless its name, stream and models are what `Decoder` says."""
    name, stream, models = decoder.name, decoder.stream, decoder.models
    if not isinstance(name, str):
        raise ValueError(f"decoder {called(decoder)}: name = {said(name)}: give a text")
    if not isinstance(stream, Role):
        raise ValueError(f"decoder {name}: stream = {said(stream)}: give a Role of smc_bridge.streams")
    read = isinstance(models, Mapping) and len(models) > 0
    if not read or not all(hasattr(model, "vocab_size") for model in models.values()):
        raise ValueError(f"decoder {name}: models = {said(models)}: give models by kind, {{'autoregressive': model}}")


@torch.inference_mode()
def serve(
    decoder: Decoder[State], requests: Sequence[Request], *, max_new_tokens: int, batch: int | None = None,
    on_result: OnResult | None = None, progress: Progress | None = None,
) -> list[Result]:
    """Run requests, which are checked; the other arguments, results and errors as `decode`."""
    if batch is not None:
        batch = whole_number("batch", batch, remedy="decode at least 1 prompt at a time, or None for all at once")
    check_callable("on_result", on_result, "a function of a prompt's place and its result")
    check_callable("progress", progress, "a function of the number of finished prompts")
    waiting = iter(requests)
    seated: list[Request | None] = list(islice(waiting, batch))
    begun: list[int] = []  # seats of prompts that had a step
    results: dict[int, Result] = {}
    state = decoder.open(seated, max_new_tokens)
    try:
        while any(request is not None for request in seated):
            state = decoder.step(state)
            begun = [seat for seat, request in enumerate(seated) if request is not None]
            if left := _finished(decoder, state, begun):
                for seat in left:
                    request = seated[seat]
                    assert request is not None
                    results[request.place] = result = _result(decoder, state, seat)
                    if on_result is not None:
                        on_result(request.place, result)
                begun = [seat for seat in begun if seat not in left]
                for seat in left:
                    seated[seat] = next(waiting, None)
                state = decoder.reseat(state, left, [seated[seat] for seat in left])
            if progress is not None:
                progress(len(results))
    except (KeyboardInterrupt, Exception) as error:
        partial = _partial(decoder, state, [(seat, seated[seat]) for seat in begun])
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted({**partial, **results}) from error
        _attach(error, results, partial)
        raise
    return [results[request.place] for request in requests]


def _finished(decoder: Decoder[State], state: State, seated: Sequence[int]) -> list[int]:
    """Seats that are finished, checked: each once, and of those where somebody sits."""
    remedy = f"return some of {list(seated)}, who are seated"
    left = whole_numbers(f"finished of decoder {decoder.name}", decoder.finished(state), remedy=remedy)
    if len(set(left)) < len(left) or not set(left) <= set(seated):
        raise ValueError(
            f"decoder {decoder.name}: finished returned {left} where {list(seated)} are seated: return some of these"
        )
    return left


def _result(decoder: Decoder[State], state: State, seat: int) -> Result:
    """The result of a seat; ValueError if the decoder returned anything else."""
    found: Any = decoder.result(state, seat)
    if not isinstance(found, Result):
        raise ValueError(f"decoder {decoder.name}: result returned {said(found)} for seat {seat}: return a Result")
    return found


def _partial(
    decoder: Decoder[State], state: State, seats: Sequence[tuple[int, Request | None]]
) -> dict[int, Result]:
    """What is known of prompts that were begun, by place. The error that brought us here matters more than theirs."""
    found: dict[int, Result] = {}
    for seat, request in seats:
        if request is not None:
            with suppress(Exception):
                found[request.place] = _result(decoder, state, seat)
    return found


def _attach(error: Exception, results: Mapping[int, Result], partial: Mapping[int, Result]) -> None:
    """Let an error carry what is done when it comes, as `results` (see `Interrupted`), and say so in a note."""
    unfinished = [place for place in sorted(partial) if place not in results]
    error.results = Interrupted({**partial, **results}).results  # type: ignore[attr-defined]
    error.add_note(
        f"while decoding prompts {', '.join(map(str, unfinished)) or 'that had no step yet'}; {len(results)} finished "
        f"and {len(unfinished)} unfinished results are in `results` of this error"
    )


class Seat(NamedTuple):
    """A prompt that one row decodes: what states of decoders with one continuation per prompt are made of.

    Attributes:
        request: who sits there.
        entered: when, seconds of `time.perf_counter`.
        tokens: the continuation so far.
        forwards: of the model so far.
        complete: whether it is finished.
    """

    request: Request
    entered: float
    tokens: tuple[int, ...] = ()
    forwards: int = 0
    complete: bool = False

    @classmethod
    def of(cls, request: Request | None) -> Seat | None:
        """The seat of a prompt that enters now, without a token yet."""
        return None if request is None else cls(request, time.perf_counter())

    def after(self, tokens: Sequence[int], *, complete: bool, forwards: int = 1) -> Seat:
        """The seat after more `forwards`, with the continuation `tokens` and whether it is `complete`."""
        return self._replace(tokens=tuple(tokens), forwards=self.forwards + forwards, complete=complete)

    def result(
        self, settings: dict[str, Any], *, forwards: Forwards, detokenize: Callable[[list[int]], str] | None = None,
        reasons: Sequence[str] = (),
    ) -> Result:
        """One continuation of weight one.

        Args:
            settings: how it was made; `settings["method"]` is the method's name.
            forwards: of both models.
            detokenize: from ids to text.
            reasons: why the weight is not proper, one line each; empty if it is.
        """
        tokens = list(self.tokens)
        return Result(
            prompt=self.request.prompt, sequences=[tokens], log_weights=[0.0],
            texts=texts_of(detokenize, [tokens], self.request.prompt),
            method=settings["method"], proper=not reasons, reasons=list(reasons), forwards=forwards,
            seconds=time.perf_counter() - self.entered, complete=self.complete,
            settings={**settings, **self.request.settings()},
        )
