"""DiffuSpec: lossless at temperature 0, exact at any other; the ratio form is not, and says so."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from smc_bridge import load_pair
from smc_bridge.decode import decode
from smc_bridge.distributions.target import ARTarget
from smc_bridge.methods.ar import ar_sampling
from smc_bridge.methods.diffuspec import diffuspec
from smc_bridge.models.tabular import TabularCausalSession, TabularDiffusionSession
from smc_bridge.proposals.ngram import NGram
from smc_bridge.registry import METHODS, spelled
from smc_bridge.tasks import TASKS
from smc_bridge.testing import assert_biased, assert_proper, tabular_pair

SIZES = {"shortest": 1, "longest": 3, "step": 1}


def test_it_is_exact_and_says_so() -> None:
    sampler = diffuspec(tabular_pair(3, 3), shortest=3, longest=3)
    assert (sampler.proper, sampler.exact) == (True, True)
    assert_proper(diffuspec(tabular_pair(3, 3), **SIZES), runs=500)
    result = sampler.run([[]], seed=1, max_new_tokens=3)[0]
    assert result.log_weights == [0.0]


def test_the_ratio_form_is_biased_and_says_so() -> None:
    sampler = diffuspec(tabular_pair(3, 3), form="ratio", **SIZES)
    assert sampler.why_improper() == ["proposal PathSearch is not proper"]
    assert_biased(sampler, least=0.05, runs=300)


def test_at_temperature_zero_every_token_is_the_greedy_decoders() -> None:
    pair = tabular_pair(4, 9, seed=2, eos=False)
    prompts = [[a, b] for a in range(4) for b in range(4)]
    greedy = ar_sampling(ARTarget(pair.ar, temperature=0.0), prompts, max_new_tokens=6)
    for sizes in (SIZES, {}):
        found = diffuspec(pair, temperature=0.0, **sizes).run(prompts, max_new_tokens=6)
        assert [r.sequences for r in found] == [r.sequences for r in greedy]
    ratio = diffuspec(pair, form="ratio", temperature=0.0).run(prompts, max_new_tokens=6)
    assert [r.sequences for r in ratio] == [r.sequences for r in greedy], "a greedy target takes nothing else"


def test_on_the_embedded_pair_it_is_lossless_and_takes_fewer_forwards_than_tokens() -> None:
    pair, task = load_pair("arithmetic"), TASKS["arithmetic"]
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(2)]
    greedy = ar_sampling(ARTarget(pair.ar, temperature=0.0), prompts, max_new_tokens=30)
    found = diffuspec(pair, temperature=0.0).run(prompts, max_new_tokens=30)
    assert [r.sequences for r in found] == [r.sequences for r in greedy]
    assert all(r.forwards.ar_forwards < r.tokens / 2 for r in found), [r.forwards for r in found]


def test_draws_do_not_depend_on_the_batch() -> None:
    sampler = diffuspec(tabular_pair(3, 8), particles=2, **SIZES)
    prompts: list[list[int]] = [[], [0], [1, 0], [0, 1, 0]]
    runs = [decode(sampler, prompts, seed=3, max_new_tokens=5, batch=batch) for batch in (None, 2)]
    for place, prompt in enumerate(prompts):
        [alone] = decode(sampler, [prompt], seed=3, max_new_tokens=5)
        for run in runs:
            assert (run[place].sequences, run[place].forwards) == (alone.sequences, alone.forwards)


def test_every_row_and_position_is_counted_and_masks_follow_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[type, list[tuple[int, ...]]] = {TabularDiffusionSession: [], TabularCausalSession: []}
    for session, shapes in calls.items():
        def counting(
            self: Any, at: Tensor, given: Tensor, *, real: Any = session.score, shapes: list[Any] = shapes
        ) -> Tensor:
            shapes.append(tuple(given.shape))
            return real(self, at, given)

        monkeypatch.setattr(session, "score", counting)
    pair = tabular_pair(3, 9, eos=False)
    [result] = diffuspec(pair, shortest=2, longest=4, step=2).run([[]], seed=2, max_new_tokens=9)
    dlm, ar = calls.values()
    found = result.forwards
    assert (found.dlm_forwards, found.dlm_rows) == (len(dlm), sum(rows for rows, _ in dlm))
    assert (found.ar_forwards, found.ar_rows) == (len(ar), sum(rows for rows, _ in ar))
    assert found.ar_tokens == sum(rows * width for rows, width in ar)
    masks = [width for _, width in dlm]
    assert masks[0] == 2
    assert set(masks) - {1} <= {2, 3, 4}
    assert len(set(masks)) > 1, masks


def test_a_given_ngram_law_decides_between_candidates() -> None:
    """With all of the score, texts that go on with one token make the path of that token."""
    pair = tabular_pair(4, 5, eos=False)
    for token in range(4):
        sampler = diffuspec(pair, share=0.0, mass=1.0, ngram=NGram([[token] * 9], 4), shortest=3, longest=3)
        [result] = sampler.run([[]], seed=1, max_new_tokens=3, keep_drafts=True)
        assert result.trace[0].drafts[0][0] == [token] * 3
    assert result.settings["proposal"]["ngram"] == "of 1 texts"


@pytest.mark.parametrize(("options", "words"), [
    ({"form": "exakt"}, "form = 'exakt': give exact or ratio"), ({"shortest": 9, "longest": 8}, "longest = 8"),
    ({"beam": 0}, "beam = 0"), ({"share": 2}, "share = 2"), ({"mass": 2}, "mass = 2"), ({"most": 0}, "most = 0"),
    ({"order": 0}, "order = 0"), ({"order": 3, "share": 1}, "order = 3 with share = 1, which asks no n-gram law"),
    ({"ngram": NGram([[0]], 3), "share": 1.0}, "ngram = .* with share = 1, which asks no n-gram law: leave it out"),
    ({"ngram": NGram([[0]], 3), "order": 3}, "order = 3 with ngram = .*, which has its own: leave it out"),
])
def test_bad_options_are_named_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        diffuspec(tabular_pair(), **options)
    assert "\n" not in str(caught.value)


def test_it_says_what_it_is() -> None:
    found = METHODS["diffuspec"]
    assert (found.role, found.targets, found.proper) == ("exact", "AR", True)
    assert not {"w", "intermediate", "proposal", "places", "entropy"} & {option.name for option in found.options}
    assert [spelled(text).make(tabular_pair()).proper for text in found.examples] == [True, False]
