"""Which tokens end a sequence: none, one, or several, as transformers' generation configurations name them.

A chat model ends a turn with one token and a text with another. Each of them ends a sequence here: it is committed, it
is the last token, and nothing follows it. What users and models say, `eos_id`, is a number, several, or None; inside,
every comparison goes through `ends_of` and `is_end`.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import reduce
from operator import or_
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.models.arguments import is_list, said, whole_numbers
from smc_bridge.models.host import Index

#: As users and models say it: the id that ends a sequence, several of them, or None if only the length limit does.
EosId: TypeAlias = int | Sequence[int] | None
#: Inside: the ids that end a sequence, distinct and sorted.
Ends: TypeAlias = tuple[int, ...]


def ends_of(eos_id: Any, size: int | None = None) -> Ends:
    """The ids that end a sequence, distinct and sorted; none for None and for an empty list.

    Args:
        eos_id: an id, several of them (a list, an array, a tensor or a set), or None.
        size: alphabet size A, which the ids must be below; None for any.
    Raises:
        ValueError: it is something else, or an id is out of range.
    """
    if eos_id is None:
        return ()
    one = "an id, a number from 0" if size is None else f"an id from 0 to {size - 1}"
    remedy = f"give {one}, several of them, or None"
    listed = eos_id if is_list(eos_id) else list(eos_id) if isinstance(eos_id, Set) else [eos_id]
    try:
        ids = whole_numbers("eos_id", listed, remedy=remedy)
    except ValueError:
        ids = [-1]
    if any(i < 0 or (size is not None and i >= size) for i in ids):
        raise ValueError(f"eos_id = {said(eos_id)}: {remedy}")
    return tuple(sorted(set(ids)))


def as_eos_id(ends: Ends) -> int | Ends | None:
    """What a model says of its ends: None, the one id, or all of them."""
    return ends if len(ends) > 1 else ends[0] if ends else None


@overload
def is_end(tokens: Tensor, ends: Ends) -> Tensor: ...
@overload
def is_end(tokens: Index, ends: Ends) -> npt.NDArray[np.bool_]: ...
def is_end(tokens: Any, ends: Ends) -> Any:
    """Whether each token ends its sequence, `[...]` -> bools `[...]`: one comparison for one end.

    Args:
        tokens: a tensor, or an array on the host; padding is no end.
        ends: as `ends_of` gives them.
    """
    if ends:
        return reduce(or_, [tokens == end for end in ends])
    return torch.zeros_like(tokens, dtype=torch.bool) if isinstance(tokens, Tensor) else np.zeros(tokens.shape, bool)
