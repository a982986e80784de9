"""Anchors: tokens that stand in a canvas before anything is decoded, and stay there (structure priors, constraints).

Dimple (arXiv 2505.16990) and Prophet (arXiv 2508.19982) plant text such as "The answer is" at places of the response;
the model then fills the rest around it. As a law this is conditioning on the tokens of these places.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from smc_bridge.models.arguments import said, whole_number
from smc_bridge.models.protocols import MASKED, LanguageModel

#: How anchors are written.
FORM = "write place:text with | between them, as in 8:The|9: answer, or give tokens by their places"


def read_anchors(anchors: str | Mapping[int, int] | None, tokenizer: Any = None) -> dict[int, int]:
    """Tokens by their places, of a mapping or of a text such as "200:The|201:answer".

    Args:
        anchors: in a text each piece stands as it is written, a space before it included ("201: answer" goes on behind
            "200:The"), and takes as many places as it has tokens.
        tokenizer: encodes the pieces; without one they are ids.
    Raises:
        ValueError: it is something else, or two pieces claim one place.
    """
    if anchors is None or isinstance(anchors, Mapping):
        return dict(anchors or {})
    if not isinstance(anchors, str):
        raise ValueError(f"anchors = {said(anchors)}: {FORM}")
    found: dict[int, int] = {}
    for piece in filter(str.strip, anchors.split("|")):
        place, sign, text = piece.partition(":")
        if not (sign and place.strip().isdecimal() and text.strip()):
            raise ValueError(f"anchors = {said(anchors)}: {FORM}")
        for at, token in enumerate(_ids(text, tokenizer, anchors), int(place)):
            if at in found:
                raise ValueError(f"anchors = {said(anchors)}: two tokens claim place {at}; move one of them")
            found[at] = token
    return found


def _ids(text: str, tokenizer: Any, anchors: str) -> list[int]:
    """Ids of a piece, without the tokens that begin and end a sequence."""
    if tokenizer is None:
        if not text.strip().isdecimal():
            raise ValueError(f"anchors = {said(anchors)}: there is no tokenizer for {said(text)}; write ids")
        return [int(text)]
    with suppress(TypeError):  # of tokenizers that add none and have no word for it
        return [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]
    return [int(i) for i in tokenizer.encode(text)]


def check_anchors(anchors: Any, model: LanguageModel) -> dict[int, int]:
    """The anchors by whole numbers; ValueError unless they are places and tokens that the model has."""
    if not isinstance(anchors, Mapping):
        raise ValueError(f"anchors = {said(anchors)}: give tokens by their places, such as {{8: 17}}")
    found: dict[int, int] = {}
    for place, token in anchors.items():
        at = whole_number("anchors", place, least=0, remedy="count places of the continuation from 0")
        kept = whole_number("anchors", token, least=0, remedy="give ids of tokens")
        if kept >= model.vocab_size or kept in model.banned_ids:
            raise ValueError(f"anchors = {said(dict(anchors))}: {kept} is no token of the model; give another")
        found[at] = kept
    return found


def planted(anchors: Mapping[int, int], limit: int, *, device: torch.device) -> Tensor:
    """A canvas of `limit` places with nothing but the anchors in it, `[T]`.

    Raises:
        ValueError: one lies past the limit, or they leave no place.
    """
    if anchors and max(anchors) >= limit:
        raise ValueError(f"anchors at place {max(anchors)} with max_new_tokens = {limit}: plant it before that place")
    if len(anchors) == limit:
        raise ValueError(f"anchors at all {limit} places: leave one to be filled")
    canvas = torch.full((limit,), MASKED, dtype=torch.long, device=device)
    for place, token in anchors.items():
        canvas[place] = token
    return canvas
