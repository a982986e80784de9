"""The tabular models are what enumeration in plain numpy, which shares no code with them, says they are."""

import itertools
import math

import numpy as np
import pytest
import torch

from smc_bridge.models.protocols import MASKED, CausalLM, MaskedDiffusionLM
from smc_bridge.models.tabular import TabularAR, TabularDLM

A, DEPTH = 3, 5
EXACT = {"rtol": 0.0, "atol": 1e-12}
PREFIXES = [[], [2], [0, 1], [1, 2, 2]]


@pytest.fixture
def ar(device: torch.device) -> TabularAR:
    return TabularAR.random(A, DEPTH, seed=3, device=device)


def conditional(model: TabularAR, prefix: list[int]) -> np.ndarray:
    """`p(. | prefix)` read from the tables; uniform past the last of them."""
    if len(prefix) >= len(model.tables):
        return np.full(A, 1 / A)
    row = int("".join(map(str, prefix)) or "0", A)
    return model.tables[len(prefix)][row].cpu().numpy()


def probability(model: TabularAR, prefix: list[int], continuation: tuple[int, ...]) -> float:
    value = 1.0
    for i, token in enumerate(continuation):
        value *= conditional(model, [*prefix, *continuation[:i]])[token]
    return value


def marginals(model: TabularAR, prefix: list[int], canvas: list[int]) -> np.ndarray:
    """`[M, A]`: law of each position given the prefix and the revealed entries of the canvas."""
    law = np.zeros((len(canvas), A))
    for continuation in itertools.product(range(A), repeat=len(canvas)):
        if all(c in (MASKED, x) for c, x in zip(canvas, continuation, strict=True)):
            for i, token in enumerate(continuation):
                law[i, token] += probability(model, prefix, continuation)
    return law / law.sum(-1, keepdims=True)


def ragged(device: torch.device, prefixes: list[list[int]] = PREFIXES) -> tuple[torch.Tensor, torch.Tensor]:
    """Prefixes as rows; the entries past their lengths are tokens, to show that nobody reads them."""
    width = max(map(len, prefixes))
    tokens = torch.tensor([[*p, *[2] * (width - len(p))] for p in prefixes], device=device)
    return tokens, torch.tensor([len(p) for p in prefixes], device=device)


def test_the_tabular_models_implement_the_protocols(ar):
    assert isinstance(ar, CausalLM)
    assert isinstance(TabularDLM(ar), MaskedDiffusionLM)


def test_scores_along_a_draft_are_the_tabulated_conditionals(ar, device):
    drafts = torch.tensor([[0, 1, 2], [2, 2, 0], [1, 0, 1], [0, 0, 2]], device=device)
    scores = ar.session(*ragged(device)).score(torch.arange(4, device=device), drafts).exp().cpu().numpy()
    for r, prefix in enumerate(PREFIXES):
        for i in range(3):
            expected = conditional(ar, [*prefix, *drafts[r, :i].tolist()])
            np.testing.assert_allclose(scores[r, i], expected, **EXACT)


def test_tables_give_a_law_over_whole_sequences(ar, device):
    every = torch.tensor(list(itertools.product(range(A), repeat=DEPTH)), device=device)
    start = torch.zeros(1, 0, dtype=torch.long, device=device), torch.zeros(1, dtype=torch.long, device=device)
    rows = torch.zeros(len(every), dtype=torch.long, device=device)
    log_p = ar.session(*start).score(rows, every).gather(-1, every[..., None])[..., 0].sum(-1)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert log_p.dtype == torch.float64


def test_marginals_equal_those_of_brute_force_enumeration(ar, device):
    lookahead = 4
    canvas = torch.full((4, lookahead), MASKED, device=device)
    scores = TabularDLM(ar).session(*ragged(device)).score(torch.arange(4, device=device), canvas)
    for r, prefix in enumerate(PREFIXES):
        law = scores[r].softmax(-1).cpu().numpy()
        np.testing.assert_allclose(law, marginals(ar, prefix, [MASKED] * lookahead), **EXACT)


@pytest.mark.parametrize("canvas", [[MASKED, 1, MASKED], [MASKED, MASKED, 2], [0, MASKED, 1], [2, 0, 1]])
def test_a_canvas_conditions_as_brute_force_enumeration_does(ar, device, canvas):
    session = TabularDLM(ar).session(*ragged(device))
    scores = session.score(torch.arange(4, device=device), torch.tensor([canvas] * 4, device=device))
    for r, prefix in enumerate(PREFIXES):
        np.testing.assert_allclose(scores[r].softmax(-1).cpu().numpy(), marginals(ar, prefix, canvas), **EXACT)


def test_blank_and_revealed_canvases_may_share_a_call(ar, device):
    session = TabularDLM(ar).session(*ragged(device))
    rows = torch.tensor([3, 1, 3], device=device)
    canvas = torch.tensor([[MASKED, 1], [MASKED, MASKED], [MASKED, MASKED]], device=device)
    law = session.score(rows, canvas).softmax(-1).cpu().numpy()
    for b, (r, c) in enumerate(zip(rows.tolist(), canvas.tolist(), strict=True)):
        np.testing.assert_allclose(law[b], marginals(ar, PREFIXES[r], c), **EXACT)


def test_a_lookahead_past_the_tables_reads_uniform_marginals(ar, device):
    canvas = torch.full((1, DEPTH + 2), MASKED, device=device)
    law = TabularDLM(ar).session(*ragged(device)).score(torch.tensor([2], device=device), canvas).softmax(-1)
    np.testing.assert_allclose(law[0, DEPTH - 2 :].cpu().numpy(), np.full((4, A), 1 / A), **EXACT)


def test_a_canvas_too_long_to_enumerate_is_refused(ar, device):
    canvas = torch.full((1, 12), MASKED, device=device)
    canvas[0, 0] = 1
    with pytest.raises(ValueError, match="531441 continuations, more than 65536: shorten the lookahead"):
        TabularDLM(ar).session(*ragged(device)).score(torch.tensor([0], device=device), canvas)


def test_a_tree_scores_as_the_paths_to_its_nodes(ar, device):
    session = ar.session(*ragged(device))
    rows = torch.tensor([1, 3, 0], device=device)
    tokens = torch.tensor([[0, 1, 2, 0, 1, 2]] * 3, device=device)
    parents = torch.tensor([[0, 1, 1, 2, 3, 0], [0, 0, 2, 2, 3, 5], [0, 1, 2, 3, 4, 5]], device=device)
    scores = session.score_tree(rows, tokens, parents)
    assert scores.shape == (3, 7, A)
    for b in range(3):
        for j in range(7):
            path, node = [], j
            while node:
                path.insert(0, int(tokens[b, node - 1]))
                node = int(parents[b, node - 1])
            draft = torch.tensor([[*path, 0]], device=device)
            expected = session.score(rows[b : b + 1], draft)[0, -1]
            assert torch.equal(scores[b, j], expected), f"tree {b}, node {j}"


@pytest.mark.parametrize("kind", ["ar", "dlm"])
def test_commit_gather_and_crop_equal_a_session_opened_on_the_result(ar, device, kind):
    model = ar if kind == "ar" else TabularDLM(ar)
    session = model.session(*ragged(device))
    block = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2]], device=device)
    session.commit(block, torch.tensor([2, 0, 1, 1], device=device))
    session.gather(torch.tensor([3, 0, 0, 2, 1], device=device))
    session.crop(torch.tensor([4, 1, 2, 0, 1], device=device))
    result = [[1, 2, 2, 0], [0], [0, 1], [], [2]]
    rows = torch.arange(5, device=device)
    argument = torch.full((5, 3), MASKED if kind == "dlm" else 1, device=device)
    fresh = model.session(*ragged(device, result)).score(rows, argument)
    assert torch.equal(session.score(rows, argument), fresh)


def test_noise_is_deterministic_and_follows_its_seed(ar, device):
    def score(**options: float) -> torch.Tensor:
        canvas = torch.full((4, 3), MASKED, device=device)
        return TabularDLM(ar, **options).session(*ragged(device)).score(torch.arange(4, device=device), canvas)

    assert torch.equal(score(noise=0.5, seed=1), score(noise=0.5, seed=1))
    assert not torch.allclose(score(noise=0.5, seed=1), score(noise=0.5, seed=2))
    assert not torch.allclose(score(noise=0.5, seed=1), score())
    assert torch.equal(score(noise=0.0, seed=1), score())


def test_random_tables_follow_their_seed_and_are_asymmetric():
    first, again, other = (TabularAR.random(A, 3, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(first.tables, again.tables, strict=True))
    assert not torch.equal(first.tables[2], other.tables[2])
    law = first.tables[2]
    assert all(not torch.allclose(law[i], law[j]) for i, j in itertools.combinations(range(len(law)), 2))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "tables is empty: give at least the table of the first token"),
        ([[[0.5, 0.5]], [[0.5, 0.5]]], r"tables\[1\] has shape \(1, 2\): give \[2, 2\]"),
        ([[[0.5, 0.6]]], r"tables\[0\] has rows that are not probabilities: normalise them in float64"),
    ],
)
def test_bad_tables_are_refused(tables, message):
    with pytest.raises(ValueError, match=message):
        TabularAR([torch.tensor(table, dtype=torch.float64) for table in tables])


@pytest.mark.parametrize("kind", [list, np.array, lambda x: torch.tensor(x, dtype=torch.float64)])
def test_tables_may_be_lists_or_arrays_and_have_an_axis_for_each_token(kind):
    ar = TabularAR.random(2, 3, seed=4)
    rows = TabularAR([kind(table.tolist()) for table in ar.tables], banned_ids=np.array([1]))
    axes = TabularAR([kind(table.reshape([2] * (d + 1)).tolist()) for d, table in enumerate(ar.tables)])
    for other in (rows, axes):
        assert all(torch.equal(x, y) for x, y in zip(ar.tables, other.tables, strict=True))
    assert rows.banned_ids == (1,)


@pytest.mark.parametrize(("call", "line"), [
    (lambda: TabularAR(0.5), "tables = 0.5: give a list"),
    (lambda: TabularAR([[["a", "b"]]]), r"tables\[0\] = .*: give numbers"),
    (lambda: TabularAR([[[0.5, 0.5], [1.0]]]), r"tables\[0\] = .*: give numbers, rows of one length"),
    (lambda: TabularAR([[[math.nan, 1.0]]]), r"tables\[0\] has rows that are not probabilities"),
    (lambda: TabularAR([[[0.5, 0.5]], [[1.0]]]), r"tables\[1\] (has shape|is over)"),
    (lambda: TabularAR([[[0.5, 0.5]]], eos_id=2), "eos_id = 2: give an id from 0 to 1, several of them, or None"),
    (lambda: TabularAR([[[0.5, 0.5]]], eos_id=0.0), "eos_id = 0.0: give an id from 0 to 1"),
    (lambda: TabularAR([[[0.5, 0.5]]], banned_ids=[2]), r"banned_ids = \[2\]: give ids from 0 to 1"),
    (lambda: TabularAR.random(2.5, 2, seed=0), "vocab_size = 2.5"),
    (lambda: TabularDLM([[0.5, 0.5]]), r"ar = \[\[0.5, 0.5\]\]: give a TabularAR"),
    (lambda: TabularDLM(TabularAR([[1.0]]), noise=math.nan), "noise = nan: give a standard deviation"),
])
def test_what_is_no_table_is_refused_in_one_line(call, line):
    with pytest.raises(ValueError, match=f"^{line}"):
        call()


def test_a_negative_noise_is_refused(ar):
    with pytest.raises(ValueError, match="noise = -1: give a standard deviation of at least 0"):
        TabularDLM(ar, noise=-1)


def test_a_crop_past_the_end_is_refused(ar, device):
    with pytest.raises(ValueError, match=r"crop length \[1, 1, 1, 1\] for rows of \[0, 1, 2, 3\] tokens"):
        ar.session(*ragged(device)).crop(torch.tensor([1, 1, 1, 1], device=device))


def test_tokens_and_lengths_that_do_not_match_are_refused(ar, device):
    with pytest.raises(ValueError, match=r"give tokens \[R, S\] and length \[R\]"):
        ar.session(torch.zeros(2, 3, dtype=torch.long, device=device), torch.tensor([1], device=device))
