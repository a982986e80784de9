"""Exact draws of the diffusion model's own joint: the law of its decoder of one token a forward, in fewer."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest
from torch import Tensor

from smc_bridge import ARTarget, load_pair
from smc_bridge.canvas.chain_sampling import ChainSampling
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.rules import Ordered
from smc_bridge.decode import decode
from smc_bridge.methods.canvas import dlm
from smc_bridge.methods.fef_dllm import fef_dllm
from smc_bridge.models.tabular import TabularDiffusionSession
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.registry import METHODS
from smc_bridge.requests import requests_of
from smc_bridge.streams import Role
from smc_bridge.tasks import TASKS
from smc_bridge.testing import chain_law, exact_law, outcomes, tabular_pair
from tests.smc_bridge.claims import chi_square, claim

PAIRS = {
    "plain": tabular_pair(2, 3), "without an end": tabular_pair(2, 3, eos=False), "three tokens": tabular_pair(3, 2),
    "blocks of two": tabular_pair(2, 3, block_size=2),
}
Law = dict[tuple[int, ...], float]


def law_of(decoder: ChainSampling, limit: int) -> Law:
    """The law of the decoder's continuations of the empty prompt, by all outcomes of its draws."""
    [request] = requests_of([[]], decoder.models, seed=1, max_new_tokens=limit, stream=Role.DLM)

    def run(source: Any) -> tuple[int, ...]:
        state = decoder.open([request], limit)
        draft, decide = source.categorical_stream(limit), source.categorical_stream(limit)
        while not decoder.finished(state):
            state = decoder.advance(state, [0], draft=draft, decide=decide)
        return tuple(decoder.result(state, 0).sequences[0])

    law: Law = defaultdict(float)
    for probability, sequence in outcomes(run):
        law[sequence] += probability
    return dict(law)


def assert_same(found: Law, expected: Law) -> None:
    for sequence in {*found, *expected}:
        left, right = found.get(sequence, 0.0), expected.get(sequence, 0.0)
        assert abs(left - right) < 1e-12, f"{sequence}: drawn with {left:.15f}, its law says {right:.15f}"


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("bonus", [True, False])
def test_it_draws_from_the_chain_rule_on_every_outcome(pair: str, window: int, bonus: bool) -> None:
    tables = PAIRS[pair]
    limit = tables.ar.depth
    assert_same(law_of(fef_dllm(tables, window=window, bonus=bonus), limit), chain_law(tables, limit))


@pytest.mark.parametrize(("temperature", "top_p", "lookahead"), [(0.6, 1.0, 256), (1.0, 0.7, 2), (0.0, 1.0, 3)])
def test_its_law_is_that_of_its_options(temperature: float, top_p: float, lookahead: int) -> None:
    tables = tabular_pair(3, 2, seed=5)
    decoder = fef_dllm(tables, window=2, temperature=temperature, top_p=top_p, lookahead=lookahead)
    proposal = DLMProposal(tables.dlm, temperature=temperature, top_p=top_p, lookahead=lookahead)
    expected = {s: p for s, p in chain_law(proposal, 2).items() if p}
    assert_same(law_of(decoder, 2), expected)
    assert (len(expected) == 1) == (temperature == 0.0)


def test_the_decoder_with_one_token_per_forward_has_that_law() -> None:
    """Real draws of both against the table: 6,000 each."""
    tables, runs, limit = PAIRS["three tokens"], 6_000, 2
    law = chain_law(tables, limit)
    for decoder in (dlm(tables), fef_dllm(tables, window=2)):
        results = decode(decoder, [[]] * runs, seed=range(runs), max_new_tokens=limit)
        counts = Counter(tuple(result.sequences[0]) for result in results)
        cells = sorted(law)
        statistic = chi_square([counts[c] for c in cells], [law[c] for c in cells])
        claim(statistic, f"{decoder.name}: {dict(counts)}")


def test_it_is_not_the_ar_law() -> None:
    """The two differ by far more than round-off, so that the tests above tell them apart."""
    tables = PAIRS["plain"]
    ar, own = exact_law(ARTarget(tables.ar), 3), chain_law(tables, 3)
    assert sum(abs(ar[s] - own[s]) for s in ar) / 2 > 0.05


def test_a_correction_from_the_law_itself_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that is followed by a draw from p, and not from what p has above q."""

    def wrong(log_q: Tensor, log_pi: Tensor, drafted: Tensor) -> Tensor:
        own = drafted[:, None]
        accept = (log_pi - log_q).gather(1, own).clamp_max(0.0).exp()
        return ((1.0 - accept) * log_pi.exp()).scatter_add(1, own, accept).log()

    monkeypatch.setattr("smc_bridge.proposals.self_speculation.log_committed", wrong)
    tables = PAIRS["plain"]
    found, expected = law_of(fef_dllm(tables), 3), chain_law(tables, 3)
    gap = max(abs(found.get(s, 0.0) - p) for s, p in expected.items())
    assert gap > 1e-3, gap


def test_one_row_with_all_filled_in_does_not_verify_a_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place read with its own and later drafted tokens in view has another law."""
    score = TabularDiffusionSession.score

    def whole(self: TabularDiffusionSession, rows: Tensor, canvas: Tensor) -> Tensor:
        if canvas.shape[0] == 1:
            return score(self, rows, canvas)
        most = (canvas >= 0).sum(1).argmax()
        return score(self, rows, canvas[most].expand_as(canvas))

    tables = PAIRS["without an end"]
    expected = chain_law(tables, 3)
    monkeypatch.setattr(TabularDiffusionSession, "score", whole)
    found = law_of(fef_dllm(tables), 3)
    assert max(abs(found.get(s, 0.0) - p) for s, p in expected.items()) > 1e-3


def test_every_forward_and_every_row_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    score = TabularDiffusionSession.score

    def counting(self: TabularDiffusionSession, rows: Tensor, canvas: Tensor) -> Tensor:
        calls.append(rows.numel())
        return score(self, rows, canvas)

    monkeypatch.setattr(TabularDiffusionSession, "score", counting)
    tables = tabular_pair(2, 6, eos=False)
    for bonus in (True, False):
        del calls[:]
        [result] = decode(fef_dllm(tables, window=3, bonus=bonus), [[]], seed=5, max_new_tokens=6)
        assert (result.forwards.dlm_forwards, result.forwards.dlm_rows) == (len(calls), sum(calls))
        assert result.forwards.ar_forwards == result.forwards.ar_rows == result.forwards.ar_tokens == 0


def test_a_window_of_one_is_the_plain_decoder_and_a_wide_one_saves_forwards() -> None:
    tables, prompts = tabular_pair(2, 6, eos=False, noise=0.2), [[]] * 40
    used = [
        sum(r.forwards.dlm_forwards for r in decode(decoder, prompts, seed=range(40), max_new_tokens=6))
        for decoder in (dlm(tables), fef_dllm(tables, window=1), fef_dllm(tables, window=3, bonus=False),
                        fef_dllm(tables, window=3))
    ]
    assert used[0] == used[1] == 240
    assert used[3] < used[2] < used[1], used


def test_a_window_wider_than_the_canvas_is_the_canvas() -> None:
    tables = tabular_pair(3, 5, seed=2)
    few, many = (
        decode(fef_dllm(tables, window=window), [[], [0]], seed=range(2), max_new_tokens=4) for window in (4, 10**15)
    )
    assert [(r.sequences, r.forwards) for r in many] == [(r.sequences, r.forwards) for r in few]


def test_draws_and_costs_do_not_depend_on_the_batch() -> None:
    tables = tabular_pair(3, 5, seed=2)
    prompts: list[list[int]] = [[], [0], [1], [0, 1], [1, 1], [0, 0]]
    together = decode(fef_dllm(tables, window=2), prompts, seed=4, max_new_tokens=3, batch=2)
    for place, prompt in enumerate(prompts):
        [alone] = decode(fef_dllm(tables, window=2), [prompt], seed=4, max_new_tokens=3)
        assert (alone.sequences, alone.forwards) == (together[place].sequences, together[place].forwards)


def test_its_results_claim_no_bound_for_the_ar_law() -> None:
    [result] = decode(fef_dllm(PAIRS["plain"]), [[]], seed=1, max_new_tokens=3)
    assert not result.exact
    assert not result.proper
    assert result.reasons == ["an exact draw of the diffusion model's own law, not of the AR law"]
    assert "target" not in result.settings
    assert "chain rule" in result.settings["law"]
    found = METHODS["fef-dllm"]
    assert (found.role, found.targets) == ("exact", "DLM")


def test_on_the_embedded_pair_it_takes_fewer_forwards_than_tokens() -> None:
    pair, task = load_pair("arithmetic"), TASKS["arithmetic"]
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(2)]
    results = decode(fef_dllm(pair, lookahead=32), prompts, seed=1, max_new_tokens=24)
    forwards, tokens = sum(r.forwards.dlm_forwards for r in results), sum(r.tokens for r in results)
    assert forwards < 0.7 * tokens, (forwards, tokens)
    greedy = [
        [r.sequences for r in decode(fef_dllm(pair, window=v, temperature=0.0), prompts, seed=1, max_new_tokens=12)]
        for v in (1, 8)
    ]
    assert greedy[0] == greedy[1]  # point masses: whatever was drafted, the chain's own tokens


REFUSED: dict[str, tuple[Any, str]] = {
    "window": (lambda: fef_dllm(PAIRS["plain"], window=0), "window = 0: "),
    "bonus": (lambda: fef_dllm(PAIRS["plain"], bonus=2), "bonus = 2: "),  # type: ignore[arg-type]
    "rule": (lambda: ChainSampling(Canvas(DLMProposal(PAIRS["plain"].dlm), Ordered("entropy"))), "plain = Ordered"),
    "pair": (lambda: fef_dllm("arithmetic"), "pair = 'arithmetic': give a pair"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_parameters_are_told_in_one_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_draws_are_of_the_places_and_not_of_the_rounds() -> None:
    """A seed's first token is drawn by the first place's two numbers, whatever the window."""
    tables = tabular_pair(3, 5, seed=2)
    first = [
        [r.sequences[0][0] for r in decode(fef_dllm(tables, window=v), [[]] * 50, seed=range(50), max_new_tokens=4)]
        for v in (2, 4)
    ]
    assert first[0] == first[1]
    assert len(set(first[0])) == 3
