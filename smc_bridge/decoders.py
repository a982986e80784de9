"""Ordinary decoders to compare with: sampling from the AR model, and the diffusion model's own decoders.

They return the same `Result` as the sampler. AR sampling is exact, with weight one. The DLM's decoders do not target
the AR law at all: `proper` is False.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from models.protocols import ABSENT, MASKED
from smc_bridge.distributions.proposal import DLMProposal
from smc_bridge.distributions.target import ARTarget
from smc_bridge.prefix import Prefix
from smc_bridge.randomness import PromptSource, inverse_cdf, prompt_generator
from smc_bridge.result import Forwards, Result

#: In which order a diffusion model's decoder commits positions.
Order = Literal["left_to_right", "entropy", "confidence"]

Detokenize = Callable[[list[int]], str] | None


def _start(
    prompts: Sequence[Sequence[int]], seed: int, max_new_tokens: int, device: torch.device
) -> tuple[Prefix, list[torch.Generator]]:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}: allow at least 1 token")
    return Prefix.of(prompts, device=device), [prompt_generator(seed, p) for p in prompts]


@torch.inference_mode()
def ar_sampling(
    target: ARTarget, prompts: Sequence[Sequence[int]], *, seed: int = 0, max_new_tokens: int = 256,
    detokenize: Detokenize = None, name: str = "AR",
) -> list[Result]:
    """Exact ancestral samples of the target, one per prompt and one token per forward.

    Raises:
        ValueError: the target has a potential (ancestral sampling cannot follow it), or an argument is out of range.
    """
    if target.potential is not None:
        raise ValueError("target has a potential: ancestral samples do not follow it, use smc")
    model = target.model
    prefix, generators = _start(prompts, seed, max_new_tokens, model.device)
    start, limit = prefix.length, prefix.length + max_new_tokens
    session = model.session(prefix.tokens.clamp_min(0), prefix.length)
    forwards, seconds = [0] * len(prompts), [0.0] * len(prompts)
    began = time.perf_counter()
    while not bool(prefix.done.all()):
        rows = (~prefix.done).nonzero().flatten()
        blank = torch.zeros(rows.numel(), 1, dtype=torch.long, device=rows.device)
        law = target.log_probs(session.score(rows, blank)[:, 0])
        token = PromptSource([generators[i] for i in rows.tolist()], device=rows.device).categorical(law)
        block = torch.zeros(len(prompts), 1, dtype=torch.long, device=rows.device).index_copy(0, rows, token[:, None])
        count = (~prefix.done).long()
        session.commit(block, count)
        prefix = prefix.extend(block, count, eos_id=model.eos_id, limit=limit)
        now = time.perf_counter() - began
        for i in rows.tolist():
            forwards[i] += 1
            seconds[i] = now
    return [
        Result(
            prompt=list(map(int, prompt)), sequences=[sequence[int(start[i]) :]], log_weights=[0.0],
            texts=None if detokenize is None else [detokenize(sequence[int(start[i]) :])], method=name,
            forwards=Forwards(ar_forwards=forwards[i], ar_rows=forwards[i], ar_tokens=forwards[i]), seconds=seconds[i],
        )
        for i, (prompt, sequence) in enumerate(zip(prompts, prefix.lists(), strict=True))
    ]


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
    raise ValueError(f"order = {order!r}: give one of {', '.join(get_args(Order))}")


@torch.inference_mode()
def diffusion(
    proposal: DLMProposal, prompts: Sequence[Sequence[int]], *, tokens_per_forward: int | None = 1,
    order: Order = "left_to_right", window: int = 32, seed: int = 0, max_new_tokens: int = 256,
    detokenize: Detokenize = None, name: str = "DLM",
) -> list[Result]:
    """The diffusion model's standard decoder: per forward, draw some masked positions and keep them.

    Positions are committed within consecutive windows; a row ends when everything before its first end of sequence is
    committed.

    Args:
        proposal: its first lane's law is decoded; `lookahead` masks stand behind what is committed.
        tokens_per_forward: positions committed per forward; None commits all `lookahead` positions at once.
        order: which positions come first within the window.
        window: positions that are open at a time (all of them if `tokens_per_forward` is None).
    Raises:
        ValueError: an argument out of range.
    """
    if tokens_per_forward is not None and tokens_per_forward < 1:
        raise ValueError(f"tokens_per_forward = {tokens_per_forward}: commit at least 1, or None for all")
    if window < 1:
        raise ValueError(f"window = {window}: open at least 1 position")
    model = proposal.model
    prefix, generators = _start(prompts, seed, max_new_tokens, model.device)
    start = prefix.length
    session = model.session(prefix.tokens.clamp_min(0), prefix.length)
    total, device = len(prompts), prefix.length.device
    canvas = torch.full((total, max_new_tokens), MASKED, dtype=torch.long, device=device)
    end = torch.zeros(total, dtype=torch.long, device=device)  # length of the continuation, 0 while it is not known
    forwards, seconds = [0] * total, [0.0] * total
    began = time.perf_counter()
    while bool((end == 0).any()):
        rows = (end == 0).nonzero().flatten()
        open_ = canvas[rows] == MASKED
        first = open_.to(torch.uint8).argmax(1)  # committed without a gap, [R]
        width = int((first + proposal.lookahead).clamp_max(max_new_tokens).max())
        place = torch.arange(width, device=device)
        visible = place < (first + proposal.lookahead)[:, None]
        shown = torch.where(visible, canvas[rows, :width], ABSENT)
        log_q = proposal.log_probs(session.score(rows, shown), proposal.lanes)[:, 0]
        reach = proposal.lookahead if tokens_per_forward is None else window
        base = first if tokens_per_forward is None else first // window * window
        eligible = open_[:, :width] & visible & (place < (base + reach)[:, None])
        scores = commit_scores(log_q, order).masked_fill(~eligible, -torch.inf)
        count = min(width, width if tokens_per_forward is None else tokens_per_forward)
        chosen = scores.topk(count, dim=-1)
        uniform = PromptSource([generators[i] for i in rows.tolist()], device=device).uniform((max_new_tokens,))
        law = log_q.gather(1, chosen.indices[..., None].expand(-1, -1, log_q.shape[-1]))
        token = inverse_cdf(law, uniform.gather(1, chosen.indices))
        before = canvas[rows].gather(1, chosen.indices)
        after = torch.where(chosen.values > -torch.inf, token, before)
        canvas[rows] = canvas[rows].scatter(1, chosen.indices, after)
        end[rows] = _ends(canvas[rows], model.eos_id)
        now = time.perf_counter() - began
        for i in rows.tolist():
            forwards[i] += 1
            seconds[i] = now
    texts = [canvas[i, : int(end[i])].tolist() for i in range(total)]
    return [
        Result(
            prompt=prefix.tokens[i, : int(start[i])].tolist(), sequences=[texts[i]], log_weights=[0.0],
            texts=None if detokenize is None else [detokenize(texts[i])], method=name, proper=False,
            reasons=["the diffusion model's own decoder does not target the AR law"],
            forwards=Forwards(dlm_forwards=forwards[i], dlm_rows=forwards[i]), seconds=seconds[i],
        )
        for i in range(total)
    ]


def _ends(canvas: Tensor, eos_id: int | None) -> Tensor:
    """Length of each continuation of `canvas: [R, T]` if everything before it is committed, else 0."""
    columns = canvas.shape[1]
    gap = torch.where((canvas == MASKED).any(1), (canvas == MASKED).to(torch.uint8).argmax(1), columns)
    if eos_id is None:
        return torch.where(gap == columns, columns, 0)
    ended = canvas == eos_id
    stop = torch.where(ended.any(1), ended.to(torch.uint8).argmax(1) + 1, columns)
    return torch.where(gap >= stop, stop, 0)
