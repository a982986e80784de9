"""The output head a few positions at a time, so that what it computes stays under a cap.

A head makes `[B, C, A]` logits of `[B, C, H]` states, and A is far larger than H: with 152,064 ids a position takes
600 KB. The body of a model is therefore run once, for all rows, and its last states go through the head in pieces,
each of which is written into the scores and forgotten. What a model's own forward does between body and head stays as
it is: the head hands its states on (`bypassed`), and so they come out in place of logits. That holds for a *plain*
head, whose outputs are the model's logits as they are; one whose outputs are then scaled, bounded or banned (Gemma 2,
Cohere, Granite) is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smc_bridge.models.huggingface.chunks import is_out_of_memory

#: Tokens of the row that tells whether a head is plain, at most.
PROBED = 4


def kept(states: Tensor, keep: int | Tensor) -> Tensor:
    """The wanted places of `[B, F, ...]`, `[B, C, ...]`; `keep` as in transformers: how many of the last (0: all), or
    which, `[C]` or `[B, C]`."""
    if isinstance(keep, int):
        return states[:, -keep:] if keep else states
    if keep.dim() == 1 or keep.dtype == torch.bool:
        return states[:, keep] if keep.dim() == 1 else states[keep]
    return states[torch.arange(len(keep), device=keep.device)[:, None], keep]


@contextmanager
def bypassed(head: nn.Module) -> Iterator[list[torch.dtype]]:
    """Let `head` return what it is given in the meantime; yields a list of the types of that, one for each call."""
    seen: list[torch.dtype] = []

    def same(states: Tensor) -> Tensor:
        seen.append(states.dtype)
        return states

    with _with_forward(head, same):
        yield seen


@contextmanager
def heard(head: nn.Module) -> Iterator[list[Tensor]]:
    """Yields a list of what `head` is given in the meantime, a tensor for each call."""
    seen: list[Tensor] = []
    forward = head.forward

    def noting(states: Tensor) -> Any:
        seen.append(states)
        return forward(states)

    with _with_forward(head, noting):
        yield seen


@contextmanager
def _with_forward(head: nn.Module, forward: Callable[[Tensor], Any]) -> Iterator[None]:
    """Let `head` have another forward in the meantime."""
    own = vars(head).get("forward")
    head.forward = forward
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


def in_pieces(head: Callable[[Tensor], Tensor], states: Tensor, out: Tensor, at_once: int) -> Tensor:
    """Fill `out: [B, C, A]` with the first A outputs of `head` on `states: [B, C, H]`, `at_once` positions at a time;
    returns it."""
    flat, into = states.flatten(0, 1)[None], out.flatten(0, 1)  # a view: places of a row follow each other
    for start in range(0, len(into), at_once):
        into[start : start + at_once] = head(flat[:, start : start + at_once])[0, :, : out.shape[-1]]
    return out


def plain_head(model: Any, run: Callable[[Tensor, Tensor], Tensor], *, positions: int) -> nn.Module | None:
    """The output embedding of a model if its outputs are the model's logits, bit by bit, else None.

    Two forwards over one short row tell, one as the model is and one with the head bypassed.

    Args:
        model: the transformers model.
        run: its logits `[1, F, columns]` from ids `[1, F]` and a mask, `[1, F]` of ones or additive `[1, 1, F, F]`.
        positions: that the head may compute at once.
    Raises:
        MemoryError or RuntimeError: there is no room for the row.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module) or head is model.get_input_embeddings():
        return None  # a table that is also read from cannot be bypassed
    if getattr(model, "_compiled_call_impl", None) is not None:
        return None
    count = torch.arange(min(PROBED, positions), device=model.device)
    ids = (7919 * count + 3)[None] % model.get_input_embeddings().weight.shape[0]
    additive = torch.zeros(1, 1, len(count), len(count), dtype=model.dtype, device=model.device)
    for mask in (torch.ones_like(ids), additive):
        try:
            expected = run(ids, mask)
            with bypassed(head) as seen:
                states = run(ids, mask)
            found = head(states.to(seen[0])) if len(seen) == 1 else states
            return head if found.shape == expected.shape and bool((found == expected).all()) else None
        except Exception as error:  # anything: the model's own code runs in here, on a mask that may be of another kind
            if is_out_of_memory(error):
                raise
    return None
