"""SpecDiff: exact with one denoising step and with several from left to right; the naive form is told apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from smc_bridge import load_pair
from smc_bridge.methods.specdiff import specdiff
from smc_bridge.models.tabular import TabularAR, TabularCausalSession, TabularDiffusionSession, TabularDLM
from smc_bridge.tasks import TASKS
from smc_bridge.testing import assert_biased, assert_proper, enumerate_sampler, exact_law, tabular_pair
from tests.smc_bridge.programs import target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program

PAIR = tabular_pair(3, 3)
#: The diffusion model takes two places for nearly equal, which are independent.
FREE, TIED = (TabularAR([[[0.5, 0.5]], [[a, 1 - a], [1 - a, a]]]) for a in (0.5, 0.99))
TIED_PAIR: Any = SimpleNamespace(dlm=TabularDLM(TIED), ar=FREE)


def distance(sampler: Any, limit: int) -> float:
    """Total variation between the law of its output and the AR law, exact."""
    found, law = enumerate_sampler(sampler, limit).output, exact_law(sampler.target, limit)
    return sum(abs(found.get(s, 0.0) - law.get(s, 0.0)) for s in {*found, *law}) / 2


@pytest.mark.parametrize("kernel", ["rejection", "block"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("window", [3, 2])
def test_it_draws_from_the_ar_law_on_every_outcome(kernel: str, steps: int, window: int) -> None:
    sampler = specdiff(PAIR, window=window, steps=min(steps, window), kernel=kernel)
    assert sampler.exact
    assert sampler.bonus
    assert distance(sampler, 3) < 1e-12
    assert_proper(sampler)


@pytest.mark.parametrize("steps", [1, 2])
def test_with_the_coupling_too(steps: int) -> None:
    sampler = specdiff(tabular_pair(2, 3), window=2, steps=steps, kernel="gumbel")
    gap, where = worst(enumerate_program(sampler, 3).proper, target_law(sampler, 3))
    assert gap < 1e-12, where


@pytest.mark.parametrize(("steps", "window"), [(2, 2), (2, 3), (3, 3)])
def test_the_naive_form_is_biased_and_says_so(steps: int, window: int) -> None:
    sampler = specdiff(tabular_pair(3, 3, eos=False), window=window, steps=steps, form="naive")
    assert sampler.why_improper() == ["proposal RandomSteps is not proper"]
    assert_biased(sampler, least=1e-3)


def test_how_far_the_naive_form_is_off() -> None:
    """Exact, no draws. Where the second place comes first, the first one's draft looks like it and is accepted half of
    the time; then the second is held against its marginal, as if it had not been looked at."""
    found = {
        form: distance(specdiff(TIED_PAIR, window=2, steps=2, **({"form": form} if form == "naive" else {})), 2)
        for form in ("exact", "naive")
    }
    assert found["exact"] < 1e-12
    assert found["naive"] > 0.05, found


def test_a_step_is_a_forward_of_the_diffusion_model(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, list[tuple[int, int]]] = {"dlm": [], "ar": []}
    depth = [0]
    for name, session in (("dlm", TabularDiffusionSession), ("ar", TabularCausalSession)):
        real = session.score

        def score(self: Any, rows: Tensor, tokens: Tensor, name: str = name, real: Any = real) -> Tensor:
            if not depth[0]:  # a table's conditional marginals look up its AR model
                calls[name].append((rows.numel(), tokens.shape[1]))
            depth[0] += 1
            try:
                return real(self, rows, tokens)
            finally:
                depth[0] -= 1

        monkeypatch.setattr(session, "score", score)
    pair = tabular_pair(2, 8, eos=False)
    for steps, form in ((1, "exact"), (2, "exact"), (4, "exact"), (2, "naive")):
        for made in calls.values():
            del made[:]
        sampler = specdiff(pair, window=4, steps=steps, form=form)  # type: ignore[arg-type]
        [result] = sampler.run([[]], seed=3, max_new_tokens=8)
        asked, used = len(result.trace), result.forwards
        assert (used.dlm_forwards, used.dlm_rows) == (len(calls["dlm"]), sum(rows for rows, _ in calls["dlm"]))
        assert (used.ar_forwards, used.ar_tokens) == (asked, sum(rows * places for rows, places in calls["ar"]))
        # A draft that is nearer to the limit has fewer places, and so fewer steps of as many places.
        assert len(calls["dlm"]) <= steps * asked, (steps, form)
        assert form == "naive" or max(places for _, places in calls["dlm"]) <= 4


def test_draws_do_not_depend_on_the_batch() -> None:
    pair, prompts = tabular_pair(3, 6, seed=1), [[], [0], [1], [0, 1], [1, 1]]
    for form in ("exact", "naive"):
        sampler = specdiff(pair, window=3, steps=2, form=form)  # type: ignore[arg-type]
        together = sampler.run(prompts, seed=3, max_new_tokens=4, batch=2)
        for place, prompt in enumerate(prompts):
            [alone] = sampler.run([prompt], seed=3, max_new_tokens=4)
            assert (alone.sequences, alone.forwards) == (together[place].sequences, together[place].forwards)


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": 9}, "steps = 9 with window = 8: give at most one step per place"),
    ({"steps": 0}, "steps = 0: "),
    ({"window": 0}, "window = 0: "),
    ({"form": "naive"}, "form = naive with steps = 1, which is exact: leave it out"),
    ({"form": "random"}, "form = 'random': give exact or naive"),
    ({"kernel": "tree"}, "bonus = True with kernel = TreeWalk"),
])
def test_bad_parameters_are_told_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        specdiff(PAIR, **options)
    assert "\n" not in str(caught.value)


def test_it_runs_on_the_embedded_pair() -> None:
    pair, task = load_pair("arithmetic"), TASKS["arithmetic"]
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(2)]
    for steps in (1, 2):
        results = specdiff(pair, steps=steps).run(prompts, seed=1, max_new_tokens=24)
        assert all(result.exact and result.log_evidence == 0.0 for result in results)
        assert sum(r.tokens for r in results) > 1.5 * sum(r.forwards.ar_forwards for r in results)
