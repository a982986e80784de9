"""The tree of the tree walk: the likeliest continuations, found best first, and walks that stay on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.blocks import Horizon
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.logits import LogitLaw
from smc_bridge.distributions.table import Dense
from smc_bridge.engine.presets import tree_kernel
from smc_bridge.kernels.tree import Edges, Tree, TreeWalk, best_first
from smc_bridge.models.tabular import TabularAR
from tests.oracle import laws
from tests.smc_bridge.enumeration import horizon_of, log, log_q_of

BUDGETS = [1, 2, 3, 4, 6, 9, 20, 200]
TOYS = [
    *laws.toys(),
    laws.random_toy(4, 4, seed=20, eos=3),
    laws.random_toy(3, 5, seed=21, allowed=4, zeros=True, eos=0),
]


def nodes_of(tree: Tree, row: int = 0) -> list[tuple[int, ...]]:
    """The continuation of every real node, in the tree's order."""
    paths: list[tuple[int, ...]] = [()]
    for parent, token in zip(tree.parents[row].tolist(), tree.tokens[row].tolist(), strict=True):
        paths.append((*paths[parent], token))
    return [path for path, real in zip(paths[1:], tree.real[row].tolist(), strict=True) if real]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_tree_holds_the_likeliest_continuations(toy: laws.Toy, budget: int) -> None:
    tree = best_first(Dense(log_q_of(toy)), budget, horizon_of(toy))
    found, expected = nodes_of(tree), laws.tree_nodes(toy, budget)
    assert len(found) == len(set(found)), f"a continuation is listed twice: {found}"
    assert set(found) == expected, f"tree {sorted(found)}, likeliest {sorted(expected)}"


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_parents_stand_before_their_children_at_the_right_depth(toy: laws.Toy, budget: int) -> None:
    tree = best_first(Dense(log_q_of(toy)), budget, horizon_of(toy))
    assert tree.tokens.shape[1] <= budget
    for j in range(tree.tokens.shape[1]):
        parent, depth = int(tree.parents[0, j]), int(tree.depth[0, j])
        assert parent <= j, f"node {j + 1} stands before its parent {parent}"
        above = 0 if parent == 0 else int(tree.depth[0, parent - 1])
        assert depth == above + 1, f"node {j + 1} has depth {depth} below one of depth {above}"


def test_ties_give_a_tree_all_the_same() -> None:
    uniform = torch.full((2, 4, 3), 1 / 3, dtype=torch.float64).log()
    for budget in (1, 4, 5, 11, 30):
        tree = best_first(Dense(uniform), budget, Horizon(torch.tensor([4, 3]), ()))
        for row in range(2):
            found = nodes_of(tree, row)
            assert len(set(found)) == len(found)
            assert all(path[:-1] == () or path[:-1] in found for path in found), f"a parent is missing in {found}"
            assert len(found) == min(budget, 39 if row == 0 else 12)


def test_rows_have_their_own_trees() -> None:
    q = torch.log_softmax(torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1)).double(), -1)
    window = torch.tensor([4, 1, 3, 2, 4])
    together = best_first(Dense(q), 6, Horizon(window, (2,)))
    for row in range(5):
        alone = best_first(Dense(q[row : row + 1]), 6, Horizon(window[row : row + 1], (2,)))
        assert nodes_of(together, row) == nodes_of(alone), f"row {row}"
    assert nodes_of(together, 1) == [], "a window of one token needs no nodes"


def test_edges_follow_tokens_and_know_what_is_not_there() -> None:
    toy = laws.random_toy(3, 3, seed=5)
    tree = best_first(Dense(log_q_of(toy)), 4, horizon_of(toy))
    found = nodes_of(tree)
    for j, path in enumerate([(), *found]):
        for token in range(3):
            there = (*path, token)
            expected = found.index(there) + 1 if there in found else -1
            got = int(Edges(tree, 3).follow(*(np.array([x]) for x in (0, j, token)))[0])
            assert got == expected, f"token {token} after {path}: node {got}, expected {expected}"


def test_fill_nodes_are_never_walked_on() -> None:
    """A rectangle of trees has rows with fewer real nodes; their fill must not catch tokens."""
    q = log(np.array([[[0.0, 1.0], [0.0, 1.0], [0.5, 0.5]], [[0.4, 0.6], [0.3, 0.7], [0.5, 0.5]]]))
    tree = best_first(Dense(q), 6, Horizon(torch.tensor([3, 3]), ()))
    assert nodes_of(tree, 0) == [(1,), (1, 1)]
    row, node, token = (np.array(x) for x in zip((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 2, 0), (0, 0, -1), strict=True))
    assert Edges(tree, 2).follow(row, node, token).tolist() == [-1, 1, 2, -1, -1]
    assert len(nodes_of(tree, 1)) == 6


def test_scores_of_a_tree_are_the_scores_along_its_paths() -> None:
    ar = TabularAR.random(3, 5, seed=2)
    session = ar.session(torch.tensor([[1, 2], [0, 0]]), torch.tensor([2, 1]))
    q = torch.log_softmax(torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1)).double(), -1)
    rows = torch.tensor([0, 1])
    tree = best_first(Dense(q), 7, Horizon(torch.tensor([3, 3]), ()))
    scores = session.score_tree(rows, tree.tokens, tree.parents)
    for row in range(2):
        for j, path in enumerate([(), *nodes_of(tree, row)]):
            drafts = torch.tensor([[*path, 0]])
            along = session.score(rows[row : row + 1], drafts)[0, len(path)]
            assert torch.equal(scores[row, j], along), f"row {row}, after {path}"


def walk(forced: Tensor | None, *, walks: int = 1, seed: int = 1) -> tuple[Tensor, Tensor, list[tuple[int, ...]]]:
    toy = laws.random_toy(3, 4, seed=6)
    kernel = TreeWalk(6)
    tree = kernel.tree(Dense(log_q_of(toy)), horizon=horizon_of(toy))
    node_law = torch.stack([log(toy.pi[path]) for path in [(), *nodes_of(tree)]])
    move, before = kernel.walk(
        tree, Dense(node_law[None]), walks=walks, source=torch.Generator().manual_seed(seed), window=4,
        horizon=horizon_of(toy), forced=forced,
    )
    return move.block, before, nodes_of(tree)


def test_the_node_before_each_token_is_the_path_so_far() -> None:
    block, before, nodes = walk(None, walks=200)
    paths = [(), *nodes]
    for tokens, visited in zip(block.tolist(), before.tolist(), strict=True):
        committed = [t for t in tokens if t >= 0]
        for i in range(len(committed)):
            assert paths[visited[i]] == tuple(committed[:i]), f"before {committed[i]} of {committed}: node {visited[i]}"


def test_a_walk_stops_after_its_first_token_off_the_tree() -> None:
    block, _, nodes = walk(None, walks=200)
    for tokens in block.tolist():
        committed = tuple(t for t in tokens if t >= 0)
        assert all(committed[:i] in nodes for i in range(1, len(committed))), f"{committed} goes on off the tree"
        assert committed not in nodes, f"{committed} stops on the tree"


def test_a_forced_walk_takes_the_given_tokens() -> None:
    for given in ([2, 1, 0, 1], [0, 0, 0, 0], [1, 2, 2, 2]):
        block, _, nodes = walk(torch.tensor([given]))
        stop = next((i for i in range(1, 5) if tuple(given[:i]) not in nodes), 4)
        found = block[0].tolist()
        assert found == [*given[:stop], *[-1] * (4 - stop)], f"forced {given}: committed {found}"


def test_a_free_walk_beside_a_forced_one_keeps_its_draws() -> None:
    free, _, _ = walk(None, walks=2, seed=3)
    forced = torch.tensor([[0, 0, 0, 0], [-1, -1, -1, -1]])
    assert torch.equal(walk(forced, walks=2, seed=3)[0][1], free[1])


def test_a_walk_draws_the_same_node_by_node_and_from_all_nodes_at_once() -> None:
    generator = torch.Generator().manual_seed(2)
    q, pi = (torch.log_softmax(2 * torch.randn(shape, generator=generator), -1) for shape in ((5, 6, 70), (5, 41, 70)))
    kernel, horizon = TreeWalk(40), Horizon(torch.tensor([6, 6, 1, 3, 6]), (7,))
    tree = kernel.tree(Dense(q), horizon=horizon)
    nodes = pi[:, : tree.tokens.shape[1] + 1].contiguous()
    for walks in (1, 3):
        moves = []
        for law in (Dense(nodes), LogitLaw(nodes, None)):
            source = torch.Generator().manual_seed(4)
            moves.append(kernel.walk(tree, law, walks=walks, source=source, window=6, horizon=horizon))
        (left, left_nodes), (right, right_nodes) = moves
        assert int(left.length.max()) > 1, "the walks stay on the tree for a while"
        for a, b in zip((*left, left_nodes), (*right, right_nodes), strict=True):
            assert torch.equal(a, b), f"{walks} walks: {a} at once, {b} node by node"


def test_marginals_of_a_model_give_the_tree_of_those_that_a_tensor_holds() -> None:
    logits = 3 * torch.randn(3, 9, 300, generator=torch.Generator().manual_seed(5))
    horizon = Horizon(torch.tensor([9, 2, 6]), (64,))
    place = torch.arange(27).reshape(3, 9)
    for temperature in (0.4, 1.0):
        held = Dense(torch.log_softmax(logits / temperature, -1))
        read = LogitLaw(logits, place, temperature=temperature, chunks=Chunks(bytes=2400))
        for exponent, threshold in ((1.0, 0.0), (0.6, 0.0), (1.7, 0.01)):
            expected, found = (
                best_first(law, 50, horizon, exponent=exponent, min_probability=threshold) for law in (held, read)
            )
            for row in range(3):
                assert nodes_of(found, row) == nodes_of(expected, row), f"row {row}, exponent {exponent}"


@pytest.mark.parametrize("size", [2, 63, 64, 65, 200])
def test_the_tree_does_not_depend_on_how_the_alphabet_falls_into_chunks(size: int) -> None:
    """Against a beam over all tokens, with one and several ends of sequence in any place."""
    generator = torch.Generator().manual_seed(size)
    for ends in ((0,), (size // 2,), (size - 1,), tuple(sorted({0, size // 2, size - 1}))):
        q = torch.log_softmax(2 * torch.randn(1, 4, size, generator=generator, dtype=torch.float64), -1)
        score: dict[tuple[int, ...], float] = {(): 0.0}
        for depth in range(3):
            level = {path: s for path, s in score.items() if len(path) == depth}
            grown = {
                (*path, token): s + float(q[0, depth, token])
                for path, s in sorted(level.items(), key=lambda x: -x[1])[:25]
                for token in range(size) if token not in ends
            }
            score |= grown
        del score[()]
        expected = sorted(score, key=lambda path: -score[path])[:25]
        found = nodes_of(best_first(Dense(q), 25, Horizon(torch.tensor([4]), ends)))
        assert found == expected, f"alphabet {size}, ends of sequence {ends}"


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_a_threshold_leaves_out_what_is_less_likely(toy: laws.Toy) -> None:
    for threshold in (0.02, 0.1, 0.3, 0.9):
        likely = laws.tree_nodes(toy, 10_000, at_least=threshold)
        kernel = TreeWalk(10_000, min_probability=threshold)
        found = nodes_of(kernel.tree(Dense(log_q_of(toy)), horizon=horizon_of(toy)))
        assert set(found) == likely, f"at least {threshold}: tree {sorted(found)}, expected {sorted(likely)}"


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_an_exponent_ranks_by_powers_of_the_marginals(toy: laws.Toy) -> None:
    for exponent in (0.3, 2.5):
        for budget in (2, 5, 9):
            found = nodes_of(TreeWalk(budget, exponent=exponent).tree(Dense(log_q_of(toy)), horizon=horizon_of(toy)))
            assert set(found) == laws.tree_nodes(toy, budget, power=exponent), f"exponent {exponent}, budget {budget}"


def test_nodes_with_and_without_company_are_the_same() -> None:
    """A row alone, in a batch, repeated, and beside a row that needs more depths: one tree."""
    generator = torch.Generator().manual_seed(6)
    confident = torch.log_softmax(torch.eye(90)[torch.randint(90, (1, 20), generator=generator)] * 12, -1)
    doubtful = torch.log_softmax(torch.randn(1, 20, 90, generator=generator), -1)
    horizon = Horizon(torch.full((4,), 20), ())
    together = best_first(Dense(torch.cat([doubtful, confident, doubtful, confident])), 30, horizon)
    for row, q in enumerate((doubtful, confident, doubtful, confident)):
        alone = best_first(Dense(q), 30, Horizon(horizon.window[:1], ()))
        assert nodes_of(together, row) == nodes_of(alone), f"row {row}"


@pytest.mark.parametrize(
    "arguments", [{"nodes": 0}, {"min_probability": 1.0}, {"min_probability": -0.1}, {"exponent": 0.0},
                  {"exponent": math.inf}], ids=str)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    (name, value), = arguments.items()
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        TreeWalk(**arguments)  # type: ignore[arg-type]


def test_marginals_with_nan_are_refused_by_place() -> None:
    q = torch.zeros(2, 3, 4)
    q[1, 1, 2] = math.nan
    with pytest.raises(ValueError, match=r"NaN at \(row, position\) \[1, 1\]"):
        best_first(Dense(q), 3, Horizon(torch.tensor([3, 3]), ()))


def test_the_presets_tree_is_the_same_at_every_proposal_temperature() -> None:
    logits = 3 * torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    horizon = Horizon(torch.tensor([8, 5]), (3,))
    trees = [
        tree_kernel(20, proposal_temperature=t).tree(Dense(torch.log_softmax(logits / t, -1)), horizon=horizon)
        for t in (0.2, 0.65, 1.0)
    ]
    assert nodes_of(trees[0]) != nodes_of(trees[0], 1), "two rows of other logits have one tree"
    for row in range(2):
        found = [nodes_of(tree, row) for tree in trees]
        assert found[0] == found[1] == found[2], f"row {row}: {found}"
