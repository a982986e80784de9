"""The calls that a run makes on its models' sessions, written down, timed, and made again without the run.

`observe(pair, tape)` is a pair whose sessions put every call on the tape. `replay(pair, tape)` opens fresh sessions of
the plain pair and makes the same calls with the same inputs in the same order: what the run would cost if all that is
not the models' took no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.harness import clock
from smc_bridge.models.huggingface.adapter import HuggingFaceAdapter
from smc_bridge.models.pairs import Pair

#: A pair of models, the project's own or a stand-in: a dataclass.
AnyPair = TypeVar("AnyPair", bound=Any)
#: What a session is asked to do.
CALLS = frozenset({"score", "score_tree", "commit", "gather", "crop"})


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        model: "dlm" or "ar".
        session: which session of the tape, in the order of opening.
        name: of the method; "session" opens it.
        arguments: copies of its tensors; empty on a tape that does not keep them.
        seconds: it took when it was recorded.
    """

    model: str
    session: int
    name: str
    arguments: tuple[Any, ...]
    seconds: float


@dataclass
class Tape:
    """The calls of a run in order.

    Attributes:
        keep: whether copies of their arguments are kept, for a replay.
        calls: the calls.
        sessions: how many sessions were opened.
    """

    keep: bool = True
    calls: list[Call] = field(default_factory=list)
    sessions: int = 0

    def seconds(self, model: str | None = None) -> float:
        """Time spent in the calls of one model, or of both."""
        return sum(call.seconds for call in self.calls if model in (None, call.model))

    def forwards(self, model: str) -> int:
        """Scores of one model."""
        return sum(call.model == model and call.name in ("score", "score_tree") for call in self.calls)

    def record(self, model: str, session: int, name: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Do `work(*arguments)` and write it down."""
        copies = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments) if self.keep else ()
        began = clock()
        value = work(*arguments)
        self.calls.append(Call(model, session, name, copies, clock() - began))
        return value


class Observed:
    """A model or a session that records what is asked of it; anything else is passed through."""

    def __init__(self, inner: Any, tape: Tape, model: str, session: int | None = None) -> None:
        self._inner, self._tape, self._model, self._session = inner, tape, model, session

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        session = self._session
        if session is None:
            return self._open if name == "session" else value
        if name not in CALLS:
            return value
        return lambda *arguments: self._tape.record(self._model, session, name, value, arguments)

    def _open(self, tokens: Tensor, length: Tensor) -> Observed:
        index = self._tape.sessions
        self._tape.sessions += 1
        opened = self._tape.record(self._model, index, "session", self._inner.session, (tokens, length))
        return Observed(opened, self._tape, self._model, index)


def observe(pair: AnyPair, tape: Tape) -> AnyPair:
    """The pair, its sessions' calls recorded on the tape."""
    return replace(
        pair, dlm=cast(Any, Observed(pair.dlm, tape, "dlm")), ar=cast(Any, Observed(pair.ar, tape, "ar"))
    )


@torch.inference_mode()
def replay(pair: Pair, tape: Tape, *, told: Callable[[int], None] = lambda number: None) -> None:
    """Make the tape's calls on fresh sessions.

    Args:
        told: called with the number of each call before it is made.
    Raises:
        ValueError: the tape kept no arguments.
    """
    if not tape.keep:
        raise ValueError("tape.keep = False: record with a tape that keeps the arguments")
    sessions: dict[int, Any] = {}
    for number, call in enumerate(tape.calls):
        told(number)
        if call.name == "session":
            sessions[call.session] = getattr(pair, call.model).session(*call.arguments)
        else:
            getattr(sessions[call.session], call.name)(*call.arguments)


class Stopwatch:
    """Seconds that the networks themselves were at work."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def start(self, *_: Any) -> None:
        """Called before a network runs."""
        self._began = clock()

    def stop(self, *_: Any) -> None:
        """Called after a network has run."""
        self.seconds += clock() - self._began


@contextmanager
def networks_watched(pair: Any, start: Callable[..., None], stop: Callable[..., None]) -> Iterator[None]:
    """Call `start` before and `stop` after every forward of the transformers networks of a pair.

    What is watched is the adapters' method that makes them all. Hooks on the networks' modules would not do: a network
    with hooks is not run in the lean way (`smc_bridge.models.huggingface.lean`), so another program would be measured.
    """
    adapters = [model._inner if isinstance(model, Observed) else model for model in (pair.dlm, pair.ar)]
    with ExitStack() as watched:
        for adapter in {id(each): each for each in adapters if isinstance(each, HuggingFaceAdapter)}.values():
            watched.enter_context(patch.object(adapter, "network", _between(start, adapter.network, stop)))
        yield


def _between(start: Callable[..., None], work: Callable[..., Any], stop: Callable[..., None]) -> Callable[..., Any]:
    def watched(*arguments: Any, **options: Any) -> Any:
        start()
        try:
            return work(*arguments, **options)
        finally:
            stop()

    return watched


@contextmanager
def networks_timed(pair: Pair) -> Iterator[Stopwatch]:
    """Time the transformers networks of a pair alone, without what its sessions do around them."""
    watch = Stopwatch()
    with networks_watched(pair, watch.start, watch.stop):
        yield watch
