"""Slots of k places of a canvas: which of them are chosen, what an AR model reads of them, and which are whole.

A slot is the places `n k .. n k + k - 1` of a canvas; it is filled at once, so that what of it is masked and shown to a
model is its rest. What is finished and what is drafted makes a text, in order of the places, masked slots left out.

Shapes: R rows, T places of a canvas, C columns of a text, n rests of slots, k places, A alphabet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Text(NamedTuple):
    """What an autoregressive model reads of a canvas, places in increasing order.

    Attributes:
        place: in the canvas, `[R, C]`.
        tokens: there, `[R, C]`.
        length: columns that count, `[R]`.
    """

    place: Tensor
    tokens: Tensor
    length: Tensor

    @classmethod
    def of(cls, tokens: Tensor, finished: Tensor, drafted: Tensor) -> Text:
        """The tokens `[R, T]` that are finished or drafted, bool `[R, T]` each, up to the last drafted one."""
        last = tokens.shape[1] - drafted.flip(1).to(torch.uint8).argmax(1, keepdim=True)
        shown = (finished | drafted) & (torch.arange(tokens.shape[1], device=tokens.device) < last)
        length = shown.sum(1)
        place = (~shown).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(1, int(length.max()))]
        return cls(place, tokens.gather(1, place).clamp_min(0), length)


class Rests(NamedTuple):
    """Rests of chosen slots, one row each.

    Attributes:
        row: of which canvas, `[n]`.
        place: in it, `[n, k]`; past the end of a rest its last place.
        size: places that count, `[n]`.
    """

    row: Tensor
    place: Tensor
    size: Tensor

    @classmethod
    def of(cls, chosen: Tensor, slot: int) -> Rests:
        """Those of the chosen places, bool `[R, T]`."""
        row, place = chosen.nonzero(as_tuple=True)
        both, size = torch.unique_consecutive(torch.stack([row, place // slot]), dim=1, return_counts=True)
        first = place[size.cumsum(0) - size]
        nth = torch.arange(slot, device=chosen.device)
        return cls(both[0], first[:, None] + torch.minimum(nth, size[:, None] - 1), size)


def first_of(masked: Tensor, slot: int) -> Tensor:
    """The first masked place of each slot, bool `[R, T]` of `masked: [R, T]`."""
    index = torch.arange(masked.shape[1], device=masked.device) // slot
    goes_on = masked[:, :-1] & (index[1:] == index[:-1])
    return masked & ~torch.nn.functional.pad(goes_on, (1, 0))


def planned(log_q: Tensor, drafted: Tensor, masked: Tensor, slot: int, threshold: float) -> Tensor:
    """Places of the slots whose first drafted token is likelier than the threshold, or else of the likeliest one.

    Args:
        log_q: laws, `[R, T, A]`.
        drafted: tokens, `[R, T]`.
        masked: places that may be filled, bool `[R, T]`, at least one in each row.
    Returns:
        bool `[R, T]`.
    """
    first = first_of(masked, slot)
    sure = log_q.gather(2, drafted[..., None])[..., 0].exp().masked_fill(~first, -1.0)
    good = sure > threshold
    best = torch.nn.functional.one_hot(sure.argmax(1), sure.shape[1]).bool()
    return masked & of_slots(torch.where(good.any(1, keepdim=True), good & first, best), slot)


def of_slots(places: Tensor, slot: int) -> Tensor:
    """All places of the slots that have one of `places`, bool `[R, T]` of bool `[R, T]`."""
    index = torch.arange(places.shape[1], device=places.device) // slot
    count = places.new_zeros(len(places), int(index[-1]) + 1, dtype=torch.long).index_add(1, index, places.long())
    return count[:, index] > 0
