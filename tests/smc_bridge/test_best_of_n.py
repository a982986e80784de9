"""Best of n: the likeliest candidate under the AR model is kept, and all that it costs is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.rules import Ordered
from smc_bridge.decode import Interrupted, decode
from smc_bridge.distributions.target import ARTarget
from smc_bridge.methods.best_of_n import best_of_n
from smc_bridge.models.tabular import TabularCausalSession, TabularDiffusionSession
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.registry import METHODS, spelled
from smc_bridge.streams import seeds_apart
from smc_bridge.testing import exact_law, tabular_pair
from tests.smc_bridge.claims import chi_square, claim

PAIR = tabular_pair(3, 3)
PROMPTS: list[list[int]] = [[], [0], [1, 0], [0, 1]]


def test_the_best_of_ar_samples_has_the_law_of_the_greatest_of_n() -> None:
    """`P(best = s) = F(s)^n - F(s-)^n` with F the law's mass up to the probability of s; a distance of .08 is seen."""
    law, n, runs = exact_law(ARTarget(PAIR.ar), 3), 3, 2_000
    ranked = sorted(law, key=lambda s: law[s])
    below = np.cumsum([0.0, *(law[s] for s in ranked)])
    expected = np.diff(below**n)
    results = decode(best_of_n(PAIR, n=n, of="ar"), [[]] * runs, seed=range(runs), max_new_tokens=3)
    place = {s: i for i, s in enumerate(ranked)}
    counts = np.bincount([place[tuple(r.sequences[0])] for r in results], minlength=len(ranked))
    claim(chi_square(counts, expected), f"best of {n} AR samples, {runs} runs")
    assert abs(expected - np.array([law[s] for s in ranked])).sum() / 2 > 0.3, "it is no draw of the AR law"


def test_the_best_of_the_diffusion_models_candidates_is_kept() -> None:
    """Every candidate is decoded alone, with its own seed, and scored by the tables."""
    pair, n = tabular_pair(3, 6), 4
    results = decode(best_of_n(pair, n=n), PROMPTS, seed=7, max_new_tokens=4)
    kept = []
    for prompt, result in zip(PROMPTS, results, strict=True):
        inner = Canvas(DLMProposal(pair.dlm), Ordered(), 32)
        candidates = [
            decode(inner, [prompt], seed=seed, max_new_tokens=4)[0].sequences[0]
            for seed in seeds_apart([prompt] * n, 7)
        ]
        scores = []
        for text in candidates:
            rows = torch.tensor([prompt + text], dtype=torch.long)
            scores.append(sum(
                float(pair.ar.log_conditional(rows[:, :i], torch.tensor([i]))[0, rows[0, i]])
                for i in range(len(prompt), rows.shape[1])
            ))
        assert result.sequences == [candidates[int(np.argmax(scores))]]
        assert (result.log_weights, result.proper, result.exact) == ([0.0], False, False)
        kept.append(int(np.argmax(scores)))
    assert len(set(kept)) > 1, "not always the same one"


@pytest.mark.parametrize("of", ["dlm", "ar"])
def test_draws_do_not_depend_on_the_batch(of: Any) -> None:
    decoder = best_of_n(tabular_pair(3, 6), n=3, of=of, window=2)
    runs = [decode(decoder, PROMPTS, seed=5, max_new_tokens=4, batch=batch) for batch in (None, 1, 2, 3)]
    for place, prompt in enumerate(PROMPTS):
        [alone] = decode(decoder, [prompt], seed=5, max_new_tokens=4)
        for run in runs:
            assert (run[place].sequences, run[place].forwards) == (alone.sequences, alone.forwards)
            assert run[place].settings == alone.settings


@pytest.mark.parametrize("of", ["dlm", "ar"])
def test_every_forward_row_and_position_is_counted(of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[type, list[tuple[int, ...]]] = {TabularDiffusionSession: [], TabularCausalSession: []}
    for session, shapes in calls.items():
        def counting(
            self: Any, at: Tensor, given: Tensor, *, real: Any = session.score, shapes: list[Any] = shapes
        ) -> Tensor:
            shapes.append(tuple(given.shape))
            return real(self, at, given)

        monkeypatch.setattr(session, "score", counting)
    [result] = decode(best_of_n(PAIR, n=5, of=of, window=1), [[0]], seed=4, max_new_tokens=2)
    dlm, ar = calls.values()
    found = result.forwards
    assert (found.dlm_forwards, found.dlm_rows) == (len(dlm), sum(rows for rows, _ in dlm))
    assert (found.ar_forwards, found.ar_rows) == (len(ar), sum(rows for rows, _ in ar))
    assert found.ar_tokens == sum(rows * width for rows, width in ar)
    assert ar[-1][0] == 5, "candidates are compared by one forward"


def test_one_candidate_is_the_diffusion_models_own_continuation() -> None:
    own = decode(Canvas(DLMProposal(PAIR.dlm), Ordered(), 32), [[], [0]], seed=3, max_new_tokens=2)
    found = decode(best_of_n(PAIR, n=1), [[], [0]], seed=3, max_new_tokens=2)
    assert [r.sequences for r in found] == [r.sequences for r in own]


def test_an_interrupt_hands_over_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = best_of_n(tabular_pair(3, 6, eos=False), n=2)
    real, calls = type(decoder).step, []

    def step(self: Any, state: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return real(self, state)

    monkeypatch.setattr(type(decoder), "step", step)
    with pytest.raises(Interrupted) as caught:
        decode(decoder, [[0]], seed=1, max_new_tokens=4)
    [result] = caught.value.results.values()
    assert (result.complete, len(result.sequences[0])) == (False, 2)


@pytest.mark.parametrize(("options", "words"), [
    ({"n": 0}, "n = 0: compare at least 1 candidate"), ({"of": "llm"}, "of = 'llm': give dlm or ar"),
    ({"of": "ar", "tokens": 2}, "tokens = 2 with of = ar"), ({"of": "ar", "order": "entropy"}, "order = .entropy"),
    ({"tokens": 0}, "tokens"), ({"window": 0}, "^window = 0: open at least 1 place"),
    ({"of": "ar", "window": 0}, "^window = 0: open at least 1 place"),
])
def test_bad_options_are_named_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        best_of_n(PAIR, **options)
    assert "\n" not in str(caught.value)


def test_it_is_a_labelled_baseline() -> None:
    found = METHODS["best-of-n"]
    assert (found.role, found.proper) == ("baseline", False)
    assert [spelled(text).make(PAIR).name for text in found.examples] == ["best-of-4", "best-of-4,of=ar"]
