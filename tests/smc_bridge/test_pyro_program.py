"""The program as Pyro model and guide: proper by enumeration, and equal in law to the batched engine."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine

from smc_bridge.distributions.intermediate import (
    Chernoff,
    Clamp,
    Defensive,
    Intermediate,
    Mixture,
    ProductOfExperts,
    Proposal,
)
from smc_bridge.engine.resampling import SSP, Multinomial, Resampler, Residual, Stratified
from smc_bridge.engine.weights import EssBelow, always, never
from smc_bridge.kernels.importance import AcceptAll, BalanceHeuristic
from smc_bridge.prefix import PAD
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.pyro_program import BridgeProgram, enumerate_program, importance_baseline, run_program, score
from smc_bridge.pyro_program.stopped import StoppedPrefix, stopped_length
from smc_bridge.result import Result
from tests.smc_bridge.claims import chi_square, claim, mean_test
from tests.smc_bridge.programs import KERNELS, TablePotential, program, target_law, worst
from tests.smc_bridge.pyro_enumeration import enumerate_filter
from tests.smc_bridge.smc_enumeration import enumerate_program as enumerate_engine

REJECTION = KERNELS["rejection"]


# --- the pair of programs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("potential", [None, TablePotential(2, 3, dead=(0, 1))], ids=["plain", "potential"])
@pytest.mark.parametrize("name", KERNELS)
def test_every_execution_of_the_guide_gives_the_target_in_expectation(
    name: str, potential: TablePotential | None
) -> None:
    sampler = program(KERNELS[name], potential=potential)
    gap, line = worst(enumerate_program(sampler, [], max_new_tokens=3), target_law(sampler, 3))
    assert gap < 1e-12, line


@pytest.mark.parametrize("intermediate", [Mixture(0.4), Chernoff(), Clamp(2.0), ProductOfExperts(0.6, 0.8)], ids=repr)
def test_the_intermediate_is_pluggable(intermediate: Intermediate) -> None:
    sampler = program(REJECTION, intermediate=intermediate, lookahead=2, eos=None)
    gap, line = worst(enumerate_program(sampler, [], max_new_tokens=3), target_law(sampler, 3))
    assert gap < 1e-12, line


def test_a_target_without_the_stopping_law_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, real = program(REJECTION), StoppedPrefix.log_prob

    def without_kappa(self: StoppedPrefix, value: torch.Tensor) -> torch.Tensor:
        if self.base is self.intermediate:
            return real(self, value)
        return self.base.prefix_log_prob(value, stopped_length(value))

    monkeypatch.setattr(StoppedPrefix, "log_prob", without_kappa)
    gap, line = worst(enumerate_program(sampler, [], max_new_tokens=3), target_law(sampler, 3))
    assert gap > 0.01, line


def test_a_truncated_proposal_loses_mass_unless_it_is_defended() -> None:
    for intermediate, lost in ((ProductOfExperts(0.5), True), (Defensive(ProductOfExperts(0.5), 0.1), False)):
        sampler = program(REJECTION, intermediate=intermediate)
        sampler.proposal = DLMProposal(sampler.proposal.model, top_p=0.5)
        assert sampler.proper is not lost
        gap, line = worst(enumerate_program(sampler, [], max_new_tokens=2), target_law(sampler, 2))
        assert (gap > 0.01) if lost else (gap < 1e-12), line


def test_a_text_has_the_targets_probability_whatever_its_blocks() -> None:
    sampler = program(REJECTION, lookahead=2, eos=None)
    bridge = BridgeProgram(sampler, [], max_new_tokens=3)
    model = bridge.unrolled(is_target=True)
    text = (1, 0, 1)
    total = 0.0
    for lengths in [(1, 1, 1), (1, 2), (2, 1)]:
        for accepted in itertools.product((0, 1), repeat=len(lengths)):
            sites, start = {}, 0
            for step, length in enumerate(lengths):
                tokens = [*text[start : start + length], *[PAD] * (2 - length)]
                sites[f"block_{step}"] = torch.tensor([tokens])
                sites[f"accepted_{step}"] = torch.tensor([accepted[step]])
                start += length
            total += float(poutine.trace(poutine.condition(model, data=sites)).get_trace().log_prob_sum().exp())
    assert abs(total - math.exp(score(sampler, [], text))) < 1e-12, (total, math.exp(score(sampler, [], text)))


# --- scoring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2])
def test_conditioning_on_a_text_gives_its_log_probability_under_the_target(lanes: int) -> None:
    sampler = program(REJECTION, lanes=lanes)
    for text, probability in target_law(sampler, 3).items():
        assert abs(score(sampler, [], text) - math.log(probability)) < 1e-12, text
        if len(text) > 1:
            expected = math.log(probability) - score(sampler, [], text[:1])
            assert abs(score(sampler, text[:1], text[1:]) - expected) < 1e-12, text


def test_scores_carry_the_potential() -> None:
    potential = TablePotential(2, 3, seed=4)
    sampler = program(REJECTION, potential=potential)
    for text, mass in target_law(sampler, 3).items():
        assert abs(score(sampler, [], text) - math.log(mass)) < 1e-12, text


def test_texts_that_cannot_be_scored_are_refused() -> None:
    sampler = program(REJECTION)
    for text, what in (([], "at least 1 token"), ([2], "outside 0..1"), ([1, 0], "after the end of sequence")):
        with pytest.raises(ValueError, match=what):
            score(sampler, [], text)


# --- the filter against the engine ---------------------------------------------------------------------------------


def same_law(limit: int, **parts: Any) -> None:
    """All that the two programs can draw, compared: output law, evidence, properness."""
    sampler = program(**parts)
    found, engine = enumerate_filter(sampler, limit), enumerate_engine(sampler, limit)
    assert abs(found.probability - 1) < 1e-12
    gap, line = worst(found.output, engine.output)
    assert gap < 1e-12, f"output law, {line}"
    gap, line = worst(found.proper, target_law(sampler, limit))
    assert gap < 1e-12, f"E[Z_hat sum W 1], {line}"
    for name in ("evidence", "log_evidence"):
        a, b = getattr(found, name), getattr(engine, name)
        assert abs(a - b) < 1e-12, f"E[{name}] is {a} in Pyro and {b} in the engine"
    if parts["trigger"] is not never:
        assert found.resampled > 0, "particles never interacted: the comparison says little"


@pytest.mark.parametrize("name", KERNELS)
def test_filter_and_engine_have_one_law_for_every_kernel(name: str) -> None:
    # Kernels that reach the end of a window of two in one step interact in a window of one only.
    same_law(2, kernel=KERNELS[name], trigger=always, window=1 if name in ("accept-all", "tree-walk") else 2)


@pytest.mark.parametrize("resampler", [Multinomial(), Stratified(), Residual(), SSP()], ids=lambda r: type(r).__name__)
def test_filter_and_engine_have_one_law_for_every_resampler(resampler: Resampler) -> None:
    same_law(2, kernel=AcceptAll(), eos=None, window=1, trigger=always, resampler=resampler)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param({"window": 1, "eos": None, "trigger": always}, id="elastic-window"),
        pytest.param({"trigger": EssBelow(0.97)}, id="ess"),
        pytest.param({"trigger": never}, id="never"),
        pytest.param({"trigger": always, "potential": TablePotential(2, 2, dead=(0, 1))}, id="potential"),
        pytest.param({"trigger": always, "weight": BalanceHeuristic()}, id="balance"),
    ],
)
def test_filter_and_engine_have_one_law_for_every_part(parts: dict[str, Any]) -> None:
    same_law(2, kernel=REJECTION, **parts)


def test_filter_and_engine_have_one_law_over_three_steps() -> None:
    same_law(3, kernel=AcceptAll(), window=1, lookahead=2, trigger=always)


@pytest.mark.parametrize("name", KERNELS)
def test_random_runs_estimate_the_target(name: str) -> None:
    sampler = program(KERNELS[name], particles=3000, trigger=never)
    result = run_program(sampler, [], seed=7, max_new_tokens=3)
    law = target_law(sampler, 3)
    hits = np.array([[tuple(s) == text for text in law] for s in result.sequences])
    claim(mean_test(hits * np.exp(result.log_weights)[:, None], np.array(list(law.values()))), f"Pyro runs of {name}")


def test_resampled_random_runs_estimate_the_target() -> None:
    sampler = program(REJECTION, particles=2, trigger=always, resampler=Multinomial())
    law = target_law(sampler, 3)
    pyro.set_rng_seed(8)
    rows = []
    for _ in range(200):
        result = run_program(sampler, [], max_new_tokens=3)
        hits = np.array([[tuple(s) == text for text in law] for s in result.sequences])
        rows.append((hits * np.exp(result.log_weights)[:, None]).mean(0))
    claim(mean_test(np.array(rows), np.array(list(law.values()))), "resampled Pyro runs")


@pytest.mark.parametrize("name", ["rejection", "block-verification", "gumbel", "tree-walk"])
def test_weights_are_exactly_one_without_the_diffusion_model(name: str) -> None:
    result = run_program(program(KERNELS[name], w=0.0, particles=20), [], seed=1, max_new_tokens=3)
    assert result.log_weights == [0.0] * 20
    assert abs(result.log_evidence) < 1e-12


# --- results -------------------------------------------------------------------------------------------------------


def test_results_say_what_happened(tmp_path: Any) -> None:
    sampler = program(REJECTION, particles=6, trigger=never, lookahead=2, name="pyro", detokenize=str)
    result = run_program(sampler, [0], seed=3, max_new_tokens=2)
    assert result.prompt == [0]
    assert result.method == "pyro"
    assert result.proper
    assert result.texts == [str(s) for s in result.sequences]
    lengths = np.array([step.length for step in result.trace])[..., 0]
    assert lengths.sum(0).tolist() == [len(s) for s in result.sequences]
    accepted = np.array([step.accepted for step in result.trace])[..., 0]
    assert set((lengths - accepted).flatten().tolist()) <= {0, 1}
    earned = np.array([step.log_increments for step in result.trace])[..., 0].sum(0)
    assert np.abs(earned - result.log_weights).max() < 1e-12
    for s, w in zip(result.sequences, result.log_weights, strict=True):
        assert len(s) == 2 or s[-1] == 1, s
        assert math.isfinite(w)
    assert sum(step.dlm_rows for step in result.trace) == result.forwards.dlm_rows
    assert sum(step.ar_rows for step in result.trace) == result.forwards.ar_rows
    assert result.trace[0].dlm_rows == 1, "one forward row for the one unique prefix"
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == result


def test_seeds_decide_the_draws_and_none_goes_on() -> None:
    sampler = program(REJECTION, particles=8)
    first = run_program(sampler, [], seed=5, max_new_tokens=3)
    assert run_program(sampler, [], seed=5, max_new_tokens=3).sequences == first.sequences
    assert any(run_program(sampler, [], max_new_tokens=3).sequences != first.sequences for _ in range(3))
    assert first.settings == {"seed": 5, "stream": "pyro"}, "so that `Result.sample` and averages know the run"
    for other in (5 + 2**32, 5 + 2**64):
        assert run_program(sampler, [], seed=other, max_new_tokens=3).sequences != first.sequences, other


def test_the_resampler_has_its_own_generator() -> None:
    sampler = program(REJECTION, particles=8, trigger=always, resampler=Multinomial())
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    runs = [run_program(sampler, [], seed=5, max_new_tokens=3, generator=g) for g in generators]
    assert runs[0].trace[0].ancestors == runs[1].trace[0].ancestors
    assert runs[0].trace[0].ancestors != runs[2].trace[0].ancestors
    assert runs[0].trace[0].log_increments == runs[2].trace[0].log_increments


def test_accepted_windows_save_forwards_of_the_diffusion_model() -> None:
    few, many = (
        run_program(program(AcceptAll(), particles=4, window=1, lookahead=m, eos=None), [], seed=1, max_new_tokens=3)
        for m in (3, 1)
    )
    assert (few.forwards.dlm_forwards, many.forwards.dlm_forwards) == (1, 3)


def test_evidence_can_be_zero() -> None:
    class Impossible:
        def __call__(self, prefix: Any) -> torch.Tensor:
            return torch.full(prefix.length.shape, -torch.inf)

    result = run_program(program(REJECTION, potential=Impossible()), [], seed=1, max_new_tokens=3)
    assert result.log_evidence == -math.inf
    assert len(result.trace) == 1


def test_what_is_no_model_and_guide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lanes = 2: .* use lanes = 1"):
        run_program(program(REJECTION, lanes=2), [])

    class Greedy:
        proper, lanewise = False, True

        def __call__(self, lanes: Any, *, kernel: Any, intermediate: Any) -> torch.Tensor:
            return torch.zeros(lanes.move.length.shape)

    with pytest.raises(ValueError, match=r"weight Greedy: .* proper weights"):
        run_program(program(REJECTION, weight=Greedy()), [])
    with pytest.raises(ValueError, match="max_new_tokens = 0"):
        run_program(program(REJECTION), [], max_new_tokens=0)
    with pytest.raises(ValueError, match=r"prompts\[0\] has a token outside"):
        run_program(program(REJECTION), [5])
    with pytest.raises(ValueError, match="potential <lambda> returned nan for row 0"):
        run_program(program(REJECTION, potential=lambda prefix: prefix.length * math.nan), [], max_new_tokens=2)


# --- plain importance sampling -------------------------------------------------------------------------------------


def test_importance_baseline_is_plain_importance_sampling() -> None:
    sampler = program(REJECTION, lookahead=3, window=2)
    result = importance_baseline(sampler, [], 250, seed=2, max_new_tokens=3)
    assert result.method == "importance"
    engine = program(AcceptAll(), lookahead=3, window=2, trigger=never, particles=4000)
    reference = engine.run([[]], seed=0, max_new_tokens=3)[0]
    weight = {tuple(s): w for s, w in zip(reference.sequences, reference.log_weights, strict=True)}
    for s, w in zip(result.sequences, result.log_weights, strict=True):
        assert abs(weight[tuple(s)] - w) < 1e-12, f"{s}: {w} against {weight[tuple(s)]}"
    # A draft's weight is p / q, so p and the weights give q.
    law = {s: p / math.exp(weight[s]) for s, p in target_law(sampler, 3).items()}
    assert abs(sum(law.values()) - 1) < 1e-12
    counts = np.array([result.sequences.count(list(s)) for s in law])
    claim(chi_square(counts, np.array(list(law.values()))), "drafts of the importance baseline")


def test_importance_baseline_is_proper_with_renewed_marginals() -> None:
    sampler = program(AcceptAll(), lookahead=1, intermediate=Proposal())
    gap, line = worst(enumerate_program(sampler, [], max_new_tokens=3), target_law(sampler, 3))
    assert gap < 1e-12, line


def test_importance_baseline_reports_impossible_drafts() -> None:
    sampler = program(REJECTION, potential=lambda prefix: torch.full(prefix.length.shape, -torch.inf))
    assert importance_baseline(sampler, [], 3, seed=0, max_new_tokens=2).log_evidence == -math.inf
    with pytest.raises(ValueError, match="num_samples = 0"):
        importance_baseline(sampler, [], 0)
