"""Continuous refill: prompts wait in a queue, and when one finishes, the next takes its *seat* in the batch.

A seat is the rows of one prompt, N of them. The sessions need no more for it than what a step asks of them: `crop` to
length 0 and `commit` of the next prompt on those rows. A prompt's draws come from a generator of its own, so they are
the same whatever the seat, and whoever sits beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smc_bridge.models.arguments import check_callable, whole_number
from smc_bridge.models.protocols import Session
from smc_bridge.prefix import Prefix
from smc_bridge.result import Result
from smc_bridge.streams import Role, prompt_generator

#: Told the place of a prompt among those of the run, and its result, as soon as it is finished.
OnResult = Callable[[int, Result], None]


class Interrupted(KeyboardInterrupt):
    """A run was interrupted (Ctrl-C).

    Attributes:
        results: by the prompt's place in the run: what is finished, and for prompts that were being decoded the
            particles, weights and trace of the last whole step (`complete` is False). Prompts that had no step are
            missing.
    """

    def __init__(self, results: Mapping[int, Result]) -> None:
        self.results = dict(sorted(results.items()))
        whole = sum(result.complete for result in self.results.values())
        super().__init__(f"{whole} finished and {len(self.results) - whole} unfinished results are in `results`")


class Request(NamedTuple):
    """A prompt of a run.

    Attributes:
        place: in the run.  prompt: token ids.
        seed: with the prompt and the role, decides its draws.  role: what is run.
        retained: for conditional SMC, the continuation to follow.
    """

    place: int
    prompt: list[int]
    seed: int
    role: Role
    retained: list[int] | None = None

    def generator(self) -> torch.Generator:
        """Its draws, from the first on."""
        return prompt_generator(self.seed, self.prompt, role=self.role)

    def settings(self) -> dict[str, Any]:
        """What its result's settings say of its draws."""
        retained = {} if self.retained is None else {"retained": True}
        return {"seed": self.seed, "stream": self.role.value, **retained}


class Queue:
    """Requests that wait, in order, and the results of those that are finished.

    Args:
        requests: of the run.
        batch: prompts that are decoded at a time; None for all.
        on_result: see `OnResult`.
    Raises:
        ValueError: no requests, or `batch` below 1.
    """

    def __init__(
        self, requests: Sequence[Request], *, batch: int | None = None, on_result: OnResult | None = None
    ) -> None:
        if not requests:
            raise ValueError("prompts is empty: give at least one")
        if batch is not None:
            batch = whole_number("batch", batch, remedy="decode at least 1 prompt at a time, or None for all at once")
        check_callable("on_result", on_result, "a function of a prompt's place and its result")
        self.seats = len(requests) if batch is None else min(batch, len(requests))
        self.results: dict[int, Result] = {}
        self._total = len(requests)
        self._waiting = iter(requests)
        self._on_result = on_result

    def admit(self, count: int) -> list[Request | None]:
        """The next `count` requests; None where nobody waits any more."""
        return [next(self._waiting, None) for _ in range(count)]

    def report(self, request: Request, result: Result) -> None:
        """Take down the result of a finished request and tell the caller."""
        self.results[request.place] = result
        if self._on_result is not None:
            self._on_result(request.place, result)

    def interrupted(self, partial: Iterable[tuple[Request, Result]]) -> Interrupted:
        """What to raise when the run is interrupted, with the unfinished results of those who are seated."""
        return Interrupted({**{request.place: result for request, result in partial}, **self.results})

    def failed(self, error: Exception, partial: Iterable[tuple[Request, Result]]) -> None:
        """Attach to an error what is done when it comes, as `results` (see `Interrupted`), and say so in a note.

        Args:
            error: goes on to the caller as what it is.
            partial: unfinished results of those who are seated.
        """
        results = self.interrupted(partial).results
        places = ", ".join(str(place) for place in results if place not in self.results)
        error.results = results  # type: ignore[attr-defined]
        error.add_note(
            f"while decoding prompts {places or 'that had no step yet'}; {len(self.results)} finished and "
            f"{len(results) - len(self.results)} unfinished results are in `results` of this error"
        )

    def ordered(self) -> list[Result]:
        """All results in the order of the prompts."""
        return [self.results[i] for i in range(self._total)]


def prompts_of(requests: Sequence[Request | None], *, device: torch.device) -> Prefix:
    """One row for each seat, `[P]`: the prompt, or where nobody sits an empty row that is done."""
    prefix = Prefix.of([[] if request is None else request.prompt for request in requests], device=device)
    return prefix._replace(done=torch.tensor([request is None for request in requests], device=device))


def reseat_sessions(sessions: Iterable[Session], length: Tensor, rows: Tensor, fresh: Prefix) -> None:
    """Let some rows of sessions hold other prefixes.

    Args:
        sessions: of R rows.
        length: tokens of every row now, `[R]`.
        rows: which rows, `[B]`.
        fresh: what they hold afterwards, B rows.
    """
    kept = length.index_fill(0, rows, 0)
    blocks = fresh.tokens.new_zeros(length.numel(), fresh.tokens.shape[1])
    blocks = blocks.index_copy(0, rows, fresh.tokens.clamp_min(0))
    counts = torch.zeros_like(length).index_copy(0, rows, fresh.length)
    for session in sessions:
        session.crop(kept)
        if bool(counts.any()):
            session.commit(blocks, counts)
