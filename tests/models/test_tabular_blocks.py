"""The block-causal table: its marginals by a sum over everything it is not told, and what it is not told."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from smc_bridge.models.protocols import ABSENT, MASKED, within_block
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.models.tabular_blocks import TabularBlockDLM

A, DEPTH = 2, 5
AR = TabularAR.random(A, DEPTH, seed=4)
EXACT = TabularBlockDLM(AR, block_size=2)
NOISY = TabularBlockDLM(AR, block_size=2, noise=0.8, seed=3)


def joint(text: tuple[int, ...]) -> float:
    """`p(text)` of whole texts, from the tables themselves."""
    mass = 1.0
    for d, token in enumerate(text):
        row = 0
        for earlier in text[:d]:
            row = row * A + earlier
        mass *= float(AR.tables[d][row, token])
    return mass


def marginal(known: list[int], place: int, size: int) -> list[float]:
    """The law of a place given the known tokens (negative: none) up to the end of its block."""
    end = min(DEPTH, (place // size + 1) * size)
    mass = [0.0] * A
    for text in itertools.product(range(A), repeat=DEPTH):
        if all(known[i] < 0 or known[i] == text[i] for i in range(end)):
            mass[text[place]] += joint(text)
    return [m / sum(mass) for m in mass]


def scored(model: TabularDLM, prefix: list[int], canvas: list[int]) -> Tensor:
    session = model.session(torch.tensor([prefix], dtype=torch.long).reshape(1, -1), torch.tensor([len(prefix)]))
    return session.score(torch.tensor([0]), torch.tensor([canvas]))[0]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize(("prefix", "canvas"), [
    ([], [MASKED] * 5), ([1], [MASKED, 0, MASKED, 1]), ([0, 1], [MASKED, 1, 0]), ([1, 0, 1], [MASKED, 0]),
    ([], [0, MASKED, MASKED, 1, MASKED]), ([1], [1, MASKED, MASKED, 0]),
])
def test_a_place_is_told_what_stands_in_its_block_and_before(size: int, prefix: list[int], canvas: list[int]) -> None:
    found = scored(TabularBlockDLM(AR, block_size=size), prefix, canvas).exp()
    known = [*prefix, *canvas, *[MASKED] * (DEPTH - len(prefix) - len(canvas))]
    for i, token in enumerate(canvas):
        if token < 0:
            expected = marginal(known, len(prefix) + i, size)
            gap = max(abs(a - b) for a, b in zip(found[i].tolist(), expected, strict=True))
            assert gap < 1e-12, f"place {i}: {found[i].tolist()} of {expected}"


def test_a_token_says_the_same_in_the_prefix_and_in_the_canvas() -> None:
    for model in (EXACT, NOISY):
        for text in itertools.product(range(A), repeat=3):
            behind = scored(model, [0], [*text[:2], MASKED, MASKED])[2:]
            before = scored(model, [0, *text[:2]], [MASKED, MASKED])
            assert float((behind - before).abs().max()) < 1e-12


def test_a_later_block_tells_nothing_and_a_mask_beside_a_place_does() -> None:
    first = scored(NOISY, [0, 1], [MASKED, MASKED, MASKED])
    later = scored(NOISY, [0, 1], [MASKED, MASKED, 1])
    beside = scored(NOISY, [0, 1], [MASKED, 1, MASKED])
    absent = scored(NOISY, [0, 1], [MASKED, MASKED, ABSENT])
    assert torch.equal(first[:2], later[:2])
    assert torch.equal(first[:2], absent[:2])
    assert float((first[0] - beside[0]).abs().min()) > 1e-2
    assert float((first[2] - beside[2]).abs().min()) > 1e-2


def test_rows_of_a_batch_stand_in_blocks_of_their_own() -> None:
    tokens, length = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0]]), torch.tensor([1, 3, 2])
    canvas = torch.tensor([[MASKED, 1, MASKED], [MASKED, MASKED, ABSENT], [0, MASKED, 1]])
    found = NOISY.session(tokens, length).score(torch.arange(3), canvas)
    for r, n in enumerate(length.tolist()):
        own = scored(NOISY, tokens[r, :n].tolist(), canvas[r].tolist())
        here = canvas[r] != ABSENT
        assert torch.equal(found[r][here], own[here])


def test_states_that_are_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^ar has 9 places of 3 tokens or a mask: 262144 states are more than 65536"):
        TabularBlockDLM(TabularAR.random(3, 9, seed=1), block_size=2)
    with pytest.raises(ValueError, match=r"^block_size = 0: "):
        TabularBlockDLM(AR, block_size=0)


@pytest.mark.parametrize(("length", "places", "size", "expected"), [
    (0, 9, 4, 4), (3, 9, 4, 1), (4, 9, 4, 4), (5, 2, 4, 2), (6, 9, 1, 1), (6, 9, None, 9),
])
def test_what_is_left_of_a_block(length: int, places: int, size: int | None, expected: int) -> None:
    class Model:
        block_size = size

    given = torch.tensor([length]), torch.tensor([places])
    assert within_block(Model, *given).tolist() == [expected]
    assert within_block(Model, *(x.numpy() for x in given)).tolist() == [expected]
    assert within_block(object(), *given).tolist() == [places]


