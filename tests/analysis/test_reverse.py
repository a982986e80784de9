"""Both bounds against exact divergences: the forward one from free runs, the reverse one from conditional runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from smc_bridge.analysis.bounds import kl_certificate
from smc_bridge.analysis.exact_law import oracle
from smc_bridge.analysis.reverse import bidirectional, conditional_runs, reverse_certificate
from smc_bridge.engine.presets import smc
from smc_bridge.engine.resampling import Multinomial
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import EssBelow
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.methods import poe_bridge as presets
from smc_bridge.methods.released import released
from smc_bridge.methods.tree_walk import tree_walk
from smc_bridge.models.protocols import CausalSession
from smc_bridge.models.rows import Rows
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.testing import TabularPair
from tests.oracle import smc as numpy_oracle
from tests.smc_bridge.programs import program, target_law
from tests.smc_bridge.smc_enumeration import enumerate_program

LIMIT, RUNS = 3, 1000


@pytest.mark.parametrize(("particles", "lanes"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("w", [0.5, 1.0])
def test_both_bounds_hold_against_the_exact_divergences(particles: int, lanes: int, w: float) -> None:
    """KL(r || p) and KL(p || r) exactly, by enumerating all outcomes of the program; the bounds from 1,000 runs, at
    intervals that miss with probability 1e-5."""
    sampler = program(
        Rejection(), particles=particles, lanes=lanes, w=w, resampler=Multinomial(), trigger=EssBelow(0.9),
        temperature=1.2,
    )
    law = target_law(sampler, LIMIT)
    found = enumerate_program(sampler, LIMIT)
    forward, reverse = numpy_oracle.kl(found.output, law), numpy_oracle.kl(law, found.output)
    bounds = bidirectional(
        sampler, [[]] * RUNS, seed=list(range(RUNS)), max_new_tokens=LIMIT, level=1 - 1e-5
    )
    assert bounds.forward.low <= -found.log_evidence <= bounds.forward.high
    conditional = enumerate_program(sampler, LIMIT, retained=law).log_evidence
    assert bounds.reverse.low <= conditional <= bounds.reverse.high, (conditional, bounds.reverse)
    assert forward <= bounds.forward.high, f"KL(r || p) = {forward}, bound {bounds.forward}"
    assert reverse <= bounds.reverse.high, f"KL(p || r) = {reverse}, bound {bounds.reverse}"
    assert forward + reverse <= bounds.symmetric.high, (forward + reverse, bounds.symmetric)
    assert bounds.symmetric.kl > 0


def test_more_particles_tighten_the_reverse_bound() -> None:
    def bound(particles: int) -> float:
        sampler = program(Rejection(), particles=particles, w=0.8, resampler=Multinomial())
        found = bidirectional(sampler, [[]] * 1000, seed=list(range(1000)), max_new_tokens=LIMIT)
        return found.reverse.kl

    values = [bound(n) for n in (1, 4, 16)]
    assert values[0] > values[1] > values[2] > 0, values


def test_exact_samples_are_retained_and_follow_the_target() -> None:
    class Tables:
        """A tabular pair."""

        ar = TabularAR.random(3, LIMIT, seed=2, eos_id=1)
        dlm = TabularDLM(ar, noise=0.5)

    sampler = smc(Tables(), 2, w=0.5, window=2)
    runs = conditional_runs(sampler, [[]] * 2000, seed=list(range(2000)), max_new_tokens=LIMIT)
    exact = oracle(sampler.target, max_new_tokens=LIMIT).posterior()
    counts: dict[tuple[int, ...], int] = {}
    for run in runs:
        counts[tuple(run.sequences[0])] = counts.get(tuple(run.sequences[0]), 0) + 1
    for sequence, mass in exact.items():
        spread = math.sqrt(mass * (1 - mass) / 2000)
        assert abs(counts.get(sequence, 0) / 2000 - mass) < 5 * spread + 1e-3, sequence


def test_programs_without_a_reverse_bound_are_refused() -> None:
    class Tables:
        """A tabular pair."""

        ar = TabularAR.random(3, LIMIT, seed=2, eos_id=1)
        dlm = TabularDLM(ar, noise=0.5)

    with pytest.raises(ValueError, match="no reverse bound"):
        conditional_runs(released(Tables()), [[]], max_new_tokens=LIMIT)
    with_potential = smc(Tables(), 2, potential=lambda prefix: prefix.length.double())
    with pytest.raises(ValueError, match="potential"):
        conditional_runs(with_potential, [[]], max_new_tokens=LIMIT)
    with pytest.raises(ValueError, match="seeds of their own"):
        conditional_runs(smc(Tables(), 2), [[], []], seed=3, max_new_tokens=LIMIT)
    with pytest.raises(ValueError, match="seed has 1 entries"):
        conditional_runs(smc(Tables(), 2), [[], []], seed=[0], max_new_tokens=LIMIT)


def test_the_two_kinds_of_runs_are_not_mistaken_for_each_other() -> None:
    class Tables:
        """A tabular pair."""

        ar = TabularAR.random(3, LIMIT, seed=2, eos_id=1)
        dlm = TabularDLM(ar, noise=0.5)

    sampler = smc(Tables(), 2, w=0.5, window=2)
    free = sampler.run([[]] * 3, seed=[0, 1, 2], max_new_tokens=LIMIT)
    retained = conditional_runs(sampler, [[]] * 3, seed=[0, 1, 2], max_new_tokens=LIMIT)
    with pytest.raises(ValueError, match="give free runs"):
        kl_certificate(retained)
    with pytest.raises(ValueError, match="give conditional runs"):
        reverse_certificate(free)
    with pytest.raises(ValueError, match=r"results\[1\] repeats prompt and seed of results\[0\]"):
        kl_certificate([free[0], free[0]])
    with pytest.raises(ValueError, match="was interrupted"):
        kl_certificate([dataclasses.replace(free[0], complete=False)])


def test_the_reverse_bound_is_not_negative_where_a_mass_is_top_p() -> None:
    """Of p = (.2, .4, .4) exact samples and program keep the same two tokens, so an exact program's bound is 0."""
    row = torch.tensor([[0.2, 0.4, 0.4]], dtype=torch.float64)
    ar = TabularAR([row, row.expand(3, -1)])
    sampler = presets.speculative(SimpleNamespace(dlm=TabularDLM(ar), ar=ar), top_p=0.8)
    runs = conditional_runs(sampler, [[]] * 60, seed=list(range(60)), max_new_tokens=2)
    assert {run.log_evidence for run in runs} == {0.0}, [run.log_evidence for run in runs]


class Wavering(Rows):
    """A session whose logits differ in the last bits between forwards on one token and on several, as bfloat16's do."""

    def __init__(self, session: CausalSession) -> None:
        self.session, self.commit, self.gather, self.crop = session, session.commit, session.gather, session.crop
        self.nudge = torch.tensor([0.0, 2**-7, 0.0], dtype=torch.float64)

    def score(self, rows: Tensor, drafts: Tensor) -> Tensor:
        scores = self.session.score(rows, drafts)
        return scores if drafts.shape[1] == 1 else scores + self.nudge

    def score_tree(self, rows: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        return self.session.score_tree(rows, tokens, parents) + self.nudge


class WaveringModel:
    """Of tokens 0 and 1, equally likely, `top_k = 1` keeps token 0 in a forward on one token, else token 1."""

    vocab_size, eos_id, banned_ids, device = 3, None, (), torch.device("cpu")
    max_length, min_length = None, 0
    tables = TabularAR([torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64).expand(3**d, -1) for d in range(2)])

    def session(self, tokens: Tensor, length: Tensor) -> Wavering:
        return Wavering(self.tables.session(tokens, length))


@pytest.mark.parametrize("method", [smc, tree_walk], ids=["smc", "tree-walk"])
def test_an_exact_sample_that_the_run_finds_impossible_is_told_and_not_averaged(method: Callable[..., Sampler]) -> None:
    models = SimpleNamespace(dlm=TabularDLM(WaveringModel.tables), ar=WaveringModel())
    options = {"seed": [0, 1], "max_new_tokens": 2}
    with pytest.raises(ValueError, match=r"retained\[0\] has probability 0 .* token 0 .*float32, or do not truncate"):
        bidirectional(method(models, particles=2, w=0.3, window=2, top_k=1), [[], []], **options)
    found = bidirectional(method(models, particles=2, w=0.3, window=2), [[], []], **options)
    assert math.isfinite(found.reverse.kl), "without truncation the last bits move the bound by next to nothing"


def test_a_retained_sequence_outside_of_the_targets_law_is_told() -> None:
    ar = TabularAR([torch.tensor([[0.4, 0.6, 0.0]], dtype=torch.float64)])
    sampler = smc(SimpleNamespace(dlm=TabularDLM(ar), ar=ar), 2, w=0.0, window=1)
    with pytest.raises(ValueError, match=r"retained\[1\] has probability 0 .*: retain a sequence that the target can"):
        sampler.run([[], []], seed=[0, 1], max_new_tokens=1, retained=[[1], [2]])


def test_a_conditional_run_without_weight_is_in_no_bound() -> None:
    ar = TabularAR.random(3, LIMIT, seed=2, eos_id=1)
    sampler = smc(SimpleNamespace(dlm=TabularDLM(ar), ar=ar), 2, w=0.5, window=2)
    runs = conditional_runs(sampler, [[]] * 2, seed=[0, 1], max_new_tokens=LIMIT)
    lost = dataclasses.replace(runs[1], log_weights=[-math.inf, -math.inf])
    with pytest.raises(ValueError, match=r"results\[1\] has log_evidence = -inf"):
        reverse_certificate([runs[0], lost])


def test_there_is_no_reverse_bound_where_the_intermediate_leaves_out_what_is_retained() -> None:
    """The program says that it is proper; that the proposal has holes is found out while it runs."""
    ar = TabularAR.random(3, 4, seed=3, eos_id=2)
    dlm = TabularDLM(ar)
    dlm._flat[:, 1:, 1] = -math.inf
    sampler = smc(TabularPair(dlm, ar), 2, window=2, lookahead=3)
    assert sampler.proper
    with pytest.raises(ValueError, match="probability 0 where the target has not"):
        conditional_runs(sampler, [[]] * 20, seed=list(range(20)), max_new_tokens=4)
