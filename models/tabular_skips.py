"""Tables in the place of a model without some of its layers, so that what is said of such models can be enumerated.

A table has no layers. What is left out in their place has the same effects in kind: of layer l

    attention   conditionals no longer see the token l + 1 places back: they are averaged over it
    mlp         conditionals after l tokens are flatter: their square roots, normalised

A table of D depths changes with its first D layers only; there are as many more as one likes, which say nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from smc_bridge.models.arguments import said, whole_numbers


def check_layers(name: str, layers: Iterable[int], count: int | None = None) -> frozenset[int]:
    """Layers of a model that has so many, counted from 0; None for any number.

    Raises:
        ValueError: one is none of them.
    """
    remedy = "give layers, counted from 0" if count is None else f"give layers from 0 to {count - 1}"
    found = frozenset(whole_numbers(name, layers, remedy=remedy))
    if any(layer < 0 or (count is not None and layer >= count) for layer in found):
        raise ValueError(f"{name} = {said(sorted(found))}: {remedy}")
    return found


def thinned(tables: Sequence[Tensor], attention: Iterable[int], mlp: Iterable[int]) -> list[Tensor]:
    """Tables `[A**d, A]` of d = 0 .. D - 1 tokens without these layers (module docstring).

    Raises:
        ValueError: there is no such layer.
    """
    size = tables[0].shape[1]
    unseen, flat = check_layers("attention", attention), check_layers("mlp", mlp)
    found = []
    for d, table in enumerate(tables):
        law = table.reshape((size,) * (d + 1))
        for axis in (d - 1 - layer for layer in unseen if layer < d):
            law = law.mean(axis, keepdim=True).expand_as(law)
        law = law.sqrt() if d in flat else law
        found.append((law / law.sum(-1, keepdim=True)).reshape(size**d, size))
    return found
