"""Ordinary decoders to compare with: sampling from the AR model, and the diffusion model's own decoders.

They return the same `Result` as the sampler, and refill their batch as it does (`smc_bridge.engine.queue`). AR
sampling is exact, with weight one. The DLM's decoders do not target the AR law at all: `proper` is False.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from smc_bridge.describe import name_of
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.queue import OnResult, Queue, Request, prompts_of, reseat_sessions
from smc_bridge.engine.validation import as_proposal, as_target, check_limit, requests_of
from smc_bridge.models.arguments import check_callable, check_text, said, whole_number
from smc_bridge.models.protocols import ABSENT, MASKED, ModelPair, Session
from smc_bridge.plugins import texts_of
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.randomness import PromptSource, inverse_cdf
from smc_bridge.result import Forwards, Result
from smc_bridge.streams import Role

#: In which order a diffusion model's decoder commits positions.
Order = Literal["left_to_right", "entropy", "confidence"]

Detokenize = Callable[[list[int]], str] | None

#: From a seat to the result of whoever sits there.
Finish = Callable[["Seat"], Result]


@dataclass
class Seat:
    """A prompt that is being decoded, by one row.

    Attributes:
        request: who sits there.  generator: its draws.
        entered: when, seconds of `time.perf_counter`.
        forwards: of the model so far.
        tokens: the continuation, as far as it is committed without a gap.
        complete: whether it is finished.
    """

    request: Request
    generator: torch.Generator
    entered: float = field(default_factory=time.perf_counter)
    forwards: int = 0
    tokens: list[int] = field(default_factory=list)
    complete: bool = False


def _seat(request: Request | None) -> Seat | None:
    return None if request is None else Seat(request, request.generator())


def _refill(queue: Queue, seats: list[Seat | None], length: Tensor, session: Session, finish: Finish) -> list[int]:
    """Report finished seats and let the next prompts take them; returns these seats.

    Args:
        length: tokens that the session holds in each row, `[P]`.
    """
    left = [place for place, seat in enumerate(seats) if seat is not None and seat.complete]
    for place in left:
        seat = seats[place]
        assert seat is not None
        queue.report(seat.request, finish(seat))
    if left:
        requests = queue.admit(len(left))
        rows = torch.tensor(left, device=length.device)
        reseat_sessions([session], length, rows, prompts_of(requests, device=length.device))
        for place, request in zip(left, requests, strict=True):
            seats[place] = _seat(request)
    return left


def _unfinished(seats: Sequence[Seat | None], finish: Finish) -> list[tuple[Request, Result]]:
    """What is known of those who are seated."""
    return [(seat.request, finish(seat)) for seat in seats if seat is not None and seat.forwards]


@torch.inference_mode()
def ar_sampling(
    target: ARTarget | ModelPair, prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int] = 0,
    max_new_tokens: int = 256, batch: int | None = None, on_result: OnResult | None = None,
    detokenize: Detokenize = None, name: str = "AR",
) -> list[Result]:
    """Exact ancestral samples of the target, one per prompt and one token per forward.

    Args:
        target: or a pair of models, whose AR model at temperature 1 is it (and whose `decode` makes texts).
        seed, batch, on_result: as for `Sampler.run`; under one seed the samples are independent of a sampler's runs.
    Raises:
        ValueError: the target has a potential (ancestral sampling cannot follow it), or an argument is out of range.
        Interrupted: see `Sampler.run`, also for other errors.
    """
    detokenize = _checked(name, detokenize, target)
    target = as_target(target)
    if target.potential is not None:
        raise ValueError("target has a potential: ancestral samples do not follow it, use smc")
    model = target.model
    max_new_tokens = check_limit(max_new_tokens)
    requests = requests_of(prompts, {"autoregressive": model}, seed=seed, max_new_tokens=max_new_tokens, role=Role.AR)
    queue = Queue(requests, batch=batch, on_result=on_result)
    settings = {
        "method": name, "target": target.shaping.settings(), "models": {"ar": name_of(model)}, "exact": True,
        "max_new_tokens": max_new_tokens,
    }

    def finish(seat: Seat) -> Result:
        return _result(seat, settings, detokenize, Forwards(0, 0, seat.forwards, seat.forwards, seat.forwards))

    admitted = queue.admit(queue.seats)
    seats, prefix = [_seat(request) for request in admitted], prompts_of(admitted, device=model.device)
    session, length = model.session(prefix.tokens.clamp_min(0), prefix.length), prefix.length.clone()
    blank = torch.zeros(len(seats), 1, dtype=torch.long, device=model.device)
    used = torch.zeros_like(length)
    uniforms = torch.empty(len(seats), max_new_tokens, dtype=torch.float64)  # all of a prompt's draws, made at once
    for own, seat in zip(uniforms, seats, strict=True):
        _draw(own, seat)
    rows = torch.arange(len(seats), device=model.device)
    try:
        while rows.numel():
            law = target.log_probs(session.score(rows, blank[rows])[:, 0])
            token = inverse_cdf(law, uniforms[rows.cpu(), used[rows].cpu()].to(model.device))
            count = torch.zeros_like(length).index_fill_(0, rows, 1)
            session.commit(blank.index_copy(0, rows, token[:, None]), count)
            length, used = length + count, used + count
            seated = [seat for seat in seats if seat is not None]
            for seat, drawn in zip(seated, token.tolist(), strict=True):
                seat.tokens.append(drawn)
                seat.forwards += 1
                seat.complete = drawn == model.eos_id or len(seat.tokens) == max_new_tokens
            if any(seat.complete for seat in seated):
                for place in _refill(queue, seats, length, session, finish):
                    seat_now, used[place] = seats[place], 0
                    length[place] = 0 if seat_now is None else len(seat_now.request.prompt)
                    _draw(uniforms[place], seat_now)
                rows = torch.tensor(
                    [i for i, seat in enumerate(seats) if seat is not None], dtype=torch.long, device=model.device
                )
    except KeyboardInterrupt as interrupt:
        raise queue.interrupted(_unfinished(seats, finish)) from interrupt
    except Exception as error:
        queue.failed(error, _unfinished(seats, finish))
        raise
    return queue.ordered()


def _checked(name: Any, detokenize: Any, law: Any) -> Detokenize:
    """What turns ids into text: as given, else a pair's own; ValueError if it or the name is none."""
    check_text("name", name)
    check_callable("detokenize", detokenize, "a function of a list of ids")
    return getattr(law, "decode", None) if detokenize is None else detokenize


def _draw(uniforms: Tensor, seat: Seat | None) -> None:
    """Fill `uniforms: [T]` with the seat's draws."""
    if seat is not None:
        uniforms.uniform_(generator=seat.generator)


def _result(
    seat: Seat, settings: dict[str, Any], detokenize: Detokenize, forwards: Forwards, *, reasons: Sequence[str] = ()
) -> Result:
    return Result(
        prompt=seat.request.prompt, sequences=[seat.tokens], log_weights=[0.0],
        texts=texts_of(detokenize, [seat.tokens]), method=settings["method"],
        proper=not reasons, reasons=list(reasons), forwards=forwards, seconds=time.perf_counter() - seat.entered,
        complete=seat.complete, settings={**settings, **seat.request.settings()},
    )


def commit_scores(log_q: Tensor, order: Order) -> Tensor:
    """How eagerly each position is committed, `[R, T, A]` -> `[R, T]`: before any token is drawn there.

    `entropy`: least entropy first; `confidence`: greatest top probability first; `left_to_right`: by place.
    """
    if order == "entropy":
        probs = log_q.exp()
        return (probs * torch.where(probs > 0, log_q, 0.0)).sum(-1)
    if order == "confidence":
        return log_q.amax(-1)
    if order == "left_to_right":
        return -torch.arange(log_q.shape[1], device=log_q.device, dtype=log_q.dtype).expand(log_q.shape[:2])
    raise ValueError(f"order = {said(order)}: give one of {', '.join(get_args(Order))}")


@torch.inference_mode()
def diffusion(
    proposal: DLMProposal | ModelPair, prompts: Sequence[Sequence[int]], *, tokens_per_forward: int | None = 1,
    order: Order = "left_to_right", window: int = 32, seed: int | Sequence[int] = 0, max_new_tokens: int = 256,
    batch: int | None = None, on_result: OnResult | None = None, detokenize: Detokenize = None, name: str = "DLM",
) -> list[Result]:
    """The diffusion model's standard decoder: per forward, draw some masked positions and keep them.

    Positions are committed within consecutive windows; a row ends when everything before its first end of sequence is
    committed.

    Args:
        proposal: its first lane's law is decoded; `lookahead` masks stand behind what is committed. Or a pair of
            models, whose diffusion model at temperature 1 is it (and whose `decode` makes texts).
        tokens_per_forward: positions committed per forward; None commits all `lookahead` positions at once.
        order: which positions come first within the window.
        window: positions that are open at a time (all of them if `tokens_per_forward` is None).
        seed, batch, on_result: as for `Sampler.run`; under one seed it is independent of other methods.
    Raises:
        ValueError: an argument out of range.
        Interrupted: see `Sampler.run`; of an unfinished continuation it holds what is committed without a gap.
    """
    if tokens_per_forward is not None:
        remedy = "commit at least 1, a whole number, or None for all"
        tokens_per_forward = whole_number("tokens_per_forward", tokens_per_forward, remedy=remedy)
    window = whole_number("window", window, remedy="open at least 1 position, a whole number")
    detokenize = _checked(name, detokenize, proposal)
    proposal = as_proposal(proposal)
    model = proposal.model
    max_new_tokens = check_limit(max_new_tokens)
    requests = requests_of(prompts, {"diffusion": model}, seed=seed, max_new_tokens=max_new_tokens, role=Role.DLM)
    queue = Queue(requests, batch=batch, on_result=on_result)
    settings = {
        "method": name, "tokens_per_forward": tokens_per_forward, "order": order, "window": window,
        "lookahead": proposal.lookahead, "proposal": proposal.shaping.settings(), "models": {"dlm": name_of(model)},
        "max_new_tokens": max_new_tokens,
    }

    def finish(seat: Seat) -> Result:
        why = ["the diffusion model's own decoder does not target the AR law"]
        return _result(seat, settings, detokenize, Forwards(seat.forwards, seat.forwards), reasons=why)

    admitted = queue.admit(queue.seats)
    seats, prefix = [_seat(request) for request in admitted], prompts_of(admitted, device=model.device)
    session, length, device = model.session(prefix.tokens.clamp_min(0), prefix.length), prefix.length, model.device
    canvas = torch.full((len(seats), max_new_tokens), MASKED, dtype=torch.long, device=device)
    try:
        while seated := [(place, seat) for place, seat in enumerate(seats) if seat is not None]:
            rows = torch.tensor([place for place, _ in seated], device=device)
            shown, eligible = _open_positions(canvas[rows], proposal.lookahead, tokens_per_forward, window)
            log_q = proposal.log_probs(session.score(rows, shown), proposal.lanes)[:, 0]
            scores = commit_scores(log_q, order).masked_fill(~eligible, -torch.inf)
            width = shown.shape[1]
            chosen = scores.topk(min(width, width if tokens_per_forward is None else tokens_per_forward), dim=-1)
            source = PromptSource([seat.generator for _, seat in seated], device=device)
            law = log_q.gather(1, chosen.indices[..., None].expand(-1, -1, log_q.shape[-1]))
            token = inverse_cdf(law, source.uniform((max_new_tokens,)).gather(1, chosen.indices))
            before = canvas[rows].gather(1, chosen.indices)
            after = torch.where(chosen.values > -torch.inf, token, before)
            canvas[rows] = canvas[rows].scatter(1, chosen.indices, after)
            end, whole = _ends(canvas[rows], model.eos_id)
            for (place, seat), tokens, complete in zip(seated, end.tolist(), whole.tolist(), strict=True):
                seat.tokens, seat.complete = canvas[place, :tokens].tolist(), complete
                seat.forwards += 1
            if any(seat.complete for _, seat in seated):
                left = _refill(queue, seats, length, session, finish)
                canvas[left] = MASKED
                length = prompts_of([None if seat is None else seat.request for seat in seats], device=device).length
    except KeyboardInterrupt as interrupt:
        raise queue.interrupted(_unfinished(seats, finish)) from interrupt
    except Exception as error:
        queue.failed(error, _unfinished(seats, finish))
        raise
    return queue.ordered()


def _open_positions(
    canvas: Tensor, lookahead: int, tokens_per_forward: int | None, window: int
) -> tuple[Tensor, Tensor]:
    """What the model is shown of `canvas: [R, T]`, and where tokens may be committed, both `[R, width]`."""
    masked = canvas == MASKED
    first = masked.to(torch.uint8).argmax(1)  # committed without a gap, [R]
    width = int((first + lookahead).clamp_max(canvas.shape[1]).max())
    place = torch.arange(width, device=canvas.device)
    visible = place < (first + lookahead)[:, None]
    reach = lookahead if tokens_per_forward is None else window
    base = first if tokens_per_forward is None else first // window * window
    eligible = masked[:, :width] & visible & (place < (base + reach)[:, None])
    return torch.where(visible, canvas[:, :width], ABSENT), eligible


def _ends(canvas: Tensor, eos_id: int | None) -> tuple[Tensor, Tensor]:
    """How many tokens of each continuation of `canvas: [R, T]` are committed without a gap, up to the end of sequence,
    and whether that is all of it."""
    columns = canvas.shape[1]
    gap = torch.where((canvas == MASKED).any(1), (canvas == MASKED).to(torch.uint8).argmax(1), columns)
    if eos_id is None:
        return gap, gap == columns
    ended = canvas == eos_id
    stop = torch.where(ended.any(1), ended.to(torch.uint8).argmax(1) + 1, columns)
    return torch.minimum(gap, stop), gap >= stop
