"""The tree of the tree walk: the likeliest continuations, found best first, and walks that stay on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.tabular import TabularAR
from smc_bridge.kernels.protocol import Horizon
from smc_bridge.kernels.tree import Edges, Tree, TreeWalk, best_first
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
    tree = best_first(log_q_of(toy), budget, horizon_of(toy))
    found, expected = nodes_of(tree), laws.tree_nodes(toy, budget)
    assert len(found) == len(set(found)), f"a continuation is listed twice: {found}"
    assert set(found) == expected, f"tree {sorted(found)}, likeliest {sorted(expected)}"


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.name)
def test_parents_stand_before_their_children_at_the_right_depth(toy: laws.Toy, budget: int) -> None:
    tree = best_first(log_q_of(toy), budget, horizon_of(toy))
    assert tree.tokens.shape[1] <= budget
    for j in range(tree.tokens.shape[1]):
        parent, depth = int(tree.parents[0, j]), int(tree.depth[0, j])
        assert parent <= j, f"node {j + 1} stands before its parent {parent}"
        above = 0 if parent == 0 else int(tree.depth[0, parent - 1])
        assert depth == above + 1, f"node {j + 1} has depth {depth} below one of depth {above}"


def test_ties_give_a_tree_all_the_same() -> None:
    uniform = torch.full((2, 4, 3), 1 / 3, dtype=torch.float64).log()
    for budget in (1, 4, 5, 11, 30):
        tree = best_first(uniform, budget, Horizon(torch.tensor([4, 3]), None))
        for row in range(2):
            found = nodes_of(tree, row)
            assert len(set(found)) == len(found)
            assert all(path[:-1] == () or path[:-1] in found for path in found), f"a parent is missing in {found}"
            assert len(found) == min(budget, 39 if row == 0 else 12)


def test_rows_have_their_own_trees() -> None:
    q = torch.log_softmax(torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1)).double(), -1)
    window = torch.tensor([4, 1, 3, 2, 4])
    together = best_first(q, 6, Horizon(window, 2))
    for row in range(5):
        alone = best_first(q[row : row + 1], 6, Horizon(window[row : row + 1], 2))
        assert nodes_of(together, row) == nodes_of(alone), f"row {row}"
    assert nodes_of(together, 1) == [], "a window of one token needs no nodes"


def test_edges_follow_tokens_and_know_what_is_not_there() -> None:
    toy = laws.random_toy(3, 3, seed=5)
    tree = best_first(log_q_of(toy), 4, horizon_of(toy))
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
    tree = best_first(q, 6, Horizon(torch.tensor([3, 3]), None))
    assert nodes_of(tree, 0) == [(1,), (1, 1)]
    row, node, token = (np.array(x) for x in zip((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 2, 0), (0, 0, -1), strict=True))
    assert Edges(tree, 2).follow(row, node, token).tolist() == [-1, 1, 2, -1, -1]
    assert len(nodes_of(tree, 1)) == 6


def test_scores_of_a_tree_are_the_scores_along_its_paths() -> None:
    ar = TabularAR.random(3, 5, seed=2)
    session = ar.session(torch.tensor([[1, 2], [0, 0]]), torch.tensor([2, 1]))
    q = torch.log_softmax(torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1)).double(), -1)
    rows = torch.tensor([0, 1])
    tree = best_first(q, 7, Horizon(torch.tensor([3, 3]), None))
    scores = session.score_tree(rows, tree.tokens, tree.parents)
    for row in range(2):
        for j, path in enumerate([(), *nodes_of(tree, row)]):
            drafts = torch.tensor([[*path, 0]])
            along = session.score(rows[row : row + 1], drafts)[0, len(path)]
            assert torch.equal(scores[row, j], along), f"row {row}, after {path}"


def walk(forced: Tensor | None, *, walks: int = 1, seed: int = 1) -> tuple[Tensor, Tensor, list[tuple[int, ...]]]:
    toy = laws.random_toy(3, 4, seed=6)
    kernel = TreeWalk(6)
    tree = kernel.tree(log_q_of(toy), horizon=horizon_of(toy))
    node_law = torch.stack([log(toy.pi[path]) for path in [(), *nodes_of(tree)]])
    move, before = kernel.walk(
        tree, node_law[None], walks=walks, generator=torch.Generator().manual_seed(seed), window=4,
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


def test_a_budget_below_one_node_is_refused() -> None:
    with pytest.raises(ValueError, match="nodes = 0"):
        TreeWalk(0)
