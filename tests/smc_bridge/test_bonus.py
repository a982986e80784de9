"""The bonus token: after a draft that was accepted whole one more token, drawn from the target at the next place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge import AcceptAll, Move, Rejection, TreeWalk, load_pair, smc
from smc_bridge.blocks import Horizon, truncate
from smc_bridge.distributions.law import Law
from smc_bridge.engine.pace import Pace
from smc_bridge.engine.weights import always
from smc_bridge.models.costs import Costs
from smc_bridge.models.tabular import TabularAR, TabularCausalSession, TabularDiffusionSession
from smc_bridge.names import INTERMEDIATES, RESAMPLERS
from smc_bridge.proposals.protocol import Draft
from smc_bridge.pyro_program.program import BridgeProgram
from smc_bridge.randomness import Randomness, as_source
from smc_bridge.tasks import TASKS
from smc_bridge.testing import assert_biased, assert_proper, enumerate_sampler, exact_law, tabular_pair
from tests.smc_bridge.programs import target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program

PAIR = tabular_pair(2, 3)
KERNELS = ("rejection", "block", "gumbel")
LISTED = ("rejection", "block")


def program(pair: Any = PAIR, particles: int = 2, **options: Any) -> Any:
    return smc(pair, particles, **{"window": 1, "lookahead": 1, "bonus": True, **options})


def assert_exact(sampler: Any) -> None:
    """The engine itself on every outcome, against the target; its kernel alone is tested elsewhere."""
    gap, where = worst(enumerate_sampler(sampler, 3).proper, exact_law(sampler.target, 3))
    assert gap < 1e-12, where


@pytest.mark.parametrize("kernel", LISTED)
@pytest.mark.parametrize("intermediate", INTERMEDIATES)
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_program_with_it_is_exact_on_every_outcome(kernel: str, intermediate: str, lanes: int) -> None:
    assert_exact(program(particles=3 - lanes, lanes=lanes, kernel=kernel, intermediate=intermediate))


@pytest.mark.parametrize("proposal", ["marginals", "chain", "path"])
@pytest.mark.parametrize("kernel", LISTED)
@pytest.mark.parametrize(("window", "lookahead"), [(2, 2), (1, 2)])
def test_every_proposal_can_be_followed_by_it(proposal: str, kernel: str, window: int, lookahead: int) -> None:
    assert_exact(program(
        tabular_pair(2, 3, seed=2), kernel=kernel, proposal=proposal, intermediate="mixture", window=window,
        lookahead=lookahead,
    ))


@pytest.mark.parametrize("lanes", [1, 2])
def test_plain_importance_sampling_can_end_with_it(lanes: int) -> None:
    assert_exact(program(particles=3 - lanes, lanes=lanes, kernel="accept-all"))


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_it_is_exact_under_every_resampler(resampler: str) -> None:
    assert_exact(program(resampler=resampler, trigger="always"))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("weight", ["own", "balance"])
@pytest.mark.parametrize(("window", "lookahead"), [(1, 1), (1, 2), (2, 2)])
def test_it_is_exact_by_the_kernels_closed_form(kernel: str, weight: str, window: int, lookahead: int) -> None:
    """Also of the coupling, whose noise cannot be listed, and of weights that read laws along other lanes' blocks."""
    sampler = program(
        particles=1, lanes=2, kernel=kernel, weight=weight, window=window, lookahead=lookahead, intermediate="mixture",
        proposal_temperature=[0.7, 1.4],
    )
    gap, where = worst(enumerate_program(sampler, 3).proper, target_law(sampler, 3))
    assert gap < 1e-12, where


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_retained_sequence_goes_through_it(kernel: str, lanes: int) -> None:
    """Conditional SMC with an exact retained draw: `E[1 / Z_hat] = 1`, and each particle has the target's law."""
    sampler = program(particles=3 - lanes, lanes=lanes, kernel=kernel, w=0.6)
    law = target_law(sampler, 3)
    found = enumerate_program(sampler, 3, retained=law)
    assert abs(found.inverse_evidence - 1.0) < 1e-12
    gap, where = worst(found.output, law)
    assert gap < 1e-12, where


def test_a_retained_sequence_of_a_chain_goes_through_it() -> None:
    sampler = program(proposal="chain", intermediate="mixture")
    law = target_law(sampler, 3)
    gap, where = worst(enumerate_program(sampler, 3, retained=law).output, law)
    assert gap < 1e-12, where


class FromTheDraft(Rejection):
    """The bonus token is drawn from the last marginal of the draft, and weighed as one of the target."""

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        source = as_source(source, pi.rows)
        move = super().__call__(draft, pi, source=source, horizon=horizon)
        if draft.bonus is None:
            return move
        last = draft.q.row((draft.bonus - 1).clamp_min(0))
        other = source.categorical(last)
        place = torch.arange(move.block.shape[1]) == draft.bonus[:, None]
        return move._replace(block=torch.where(place & (move.block >= 0), other[:, None], move.block))


class AfterRefusal(Rejection):
    """A refusal too is followed by a token of the target, as if its law there were that along the draft (C4)."""

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        source = as_source(source, pi.rows)
        move = super().__call__(draft, pi, source=source, horizon=horizon)
        if draft.bonus is None:
            return move
        refused = (move.accepted < move.length) & (move.length < horizon.end(move.block))
        more = source.categorical(pi.row(move.length.clamp_max(pi.shape[1] - 1)))
        place = torch.arange(move.block.shape[1]) == move.length[:, None]
        block = torch.where(place & refused[:, None], more[:, None], move.block)
        length = move.length + refused
        return Move(truncate(block, length), length, move.accepted + refused)


@pytest.mark.parametrize("mutant", [FromTheDraft, AfterRefusal])
def test_a_bonus_token_of_another_law_is_caught(mutant: type[Rejection]) -> None:
    right, wrong = (
        program(tabular_pair(2, 3, eos=False), 1, intermediate="target", kernel=kernel)
        for kernel in (Rejection(), mutant())
    )
    assert_proper(right)
    assert_biased(wrong, least=1e-3)


def test_an_intermediate_of_ones_own_needs_not_know_of_it() -> None:
    """It is shown the target in place of a law without mass."""

    class Half:
        def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
            assert bool((log_q > -torch.inf).all())
            return (0.5 * log_q.exp() + 0.5 * log_p.exp()).log()

    assert_proper(program(intermediate=Half()))


def counted(sampler: Any, prompts: list[list[int]], limit: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Results, and rows and places of every call of either model."""
    calls: dict[str, list[tuple[int, int]]] = {"dlm": [], "ar": []}
    for name, session in (("dlm", TabularDiffusionSession), ("ar", TabularCausalSession)):
        real = session.score

        def score(self: Any, rows: Tensor, tokens: Tensor, name: str = name, real: Any = real) -> Tensor:
            calls[name].append((rows.numel(), tokens.shape[1]))
            return real(self, rows, tokens)

        monkeypatch.setattr(session, "score", score)
    return sampler.run(prompts, seed=3, max_new_tokens=limit), calls


def test_it_costs_one_more_place_of_the_same_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is accepted: three tokens by a window of two, and no other forward."""
    sampler = smc(tabular_pair(2, 9, eos=False), 1, window=2, lookahead=2, bonus=True, intermediate="proposal")
    [result], calls = counted(sampler, [[]], 9, monkeypatch)
    assert [step.length[0][0] for step in result.trace] == [3, 3, 3]
    assert calls == {"dlm": [(1, 2)] * 3, "ar": [(1, 3)] * 3}
    assert (result.forwards.ar_forwards, result.forwards.ar_rows, result.forwards.ar_tokens) == (3, 3, 9)
    assert result.forwards.dlm_forwards == 3


def test_where_marginals_are_left_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookahead of two windows: the first goes on with its marginals, the second ends with a bonus token."""
    pair = tabular_pair(2, 5, eos=False)
    [result], calls = counted(
        smc(pair, 1, window=2, lookahead=4, bonus=True, intermediate="proposal"), [[]], 5, monkeypatch
    )
    assert [(step.length[0][0], step.accepted[0][0]) for step in result.trace] == [(2, 2), (3, 2)]
    assert calls == {"dlm": [(1, 4)], "ar": [(1, 2), (1, 3)]}
    assert (result.forwards.dlm_forwards, result.forwards.ar_tokens) == (1, 5)


def test_it_stops_at_the_length_limit_and_at_the_end_of_sequence() -> None:
    pair = tabular_pair(3, 4)
    for result in program(pair, window=2, lookahead=2, lanes=2).run([[]] * 200, seed=range(200), max_new_tokens=3):
        for sequence in result.sequences:
            assert len(sequence) <= 3
            assert pair.ar.eos_id not in sequence[:-1]


def test_a_block_causal_model_is_followed_into_the_next_block() -> None:
    pair = tabular_pair(2, 3, block_size=2)
    sampler = smc(pair, 2, window=2, lookahead=3, bonus=True, w=0.5)
    assert_proper(sampler)
    runs = sampler.run([[]] * 50, seed=range(50), max_new_tokens=3)
    assert any(step.length[0][0] == 3 for run in runs for step in run.trace), "no block of 2 was followed by a token"


def test_a_model_without_another_position_is_not_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tabular_pair(2, 6, eos=False)
    monkeypatch.setattr(TabularAR, "max_length", 6)
    real = TabularCausalSession.score

    def score(self: TabularCausalSession, rows: Tensor, drafts: Tensor) -> Tensor:
        # The last token of a draft is never read.
        assert int(self.length[rows].max()) + drafts.shape[1] - 1 < 6, "a position past the last one"
        return real(self, rows, drafts)

    monkeypatch.setattr(TabularCausalSession, "score", score)
    sampler = smc(pair, 2, window=2, lookahead=2, bonus=True, lanes=2)
    for result in sampler.run([[], [0], [0, 1]], seed=1, max_new_tokens=3):
        assert result.complete


def test_it_is_proper_where_sizes_follow_the_past_and_is_no_trial_of_them() -> None:
    costs = Costs.linear(dlm=(0.05, 0.01), ar=(0.9, 0.65))
    sampler = program(window=3, lookahead=3, w=0.5)
    sampler.pace, sampler.trigger = Pace(costs=costs, acceptance=(0.75,), trust=0.5), always
    assert_proper(sampler)
    # Everything is accepted: no place has a refusal, whatever the windows.
    plain = smc(tabular_pair(2, 6, eos=False), 1, window="auto", lookahead="auto", bonus=True, costs=costs,
                intermediate="proposal")
    state = plain.start([[]], seed=1, max_new_tokens=6)
    while not state.finished():
        state = plain.step(state)
    assert (state.seen[:, 0] == state.seen[:, 1]).all(), state.seen


def test_draws_and_costs_do_not_depend_on_the_batch() -> None:
    sampler = program(tabular_pair(3, 6, seed=1), lanes=2, window=2, lookahead=2)
    prompts: list[list[int]] = [[], [0], [1], [0, 1], [1, 1]]
    together = sampler.run(prompts, seed=3, max_new_tokens=4, batch=2)
    for place, prompt in enumerate(prompts):
        [alone] = sampler.run([prompt], seed=3, max_new_tokens=4)
        assert (alone.sequences, alone.forwards) == (together[place].sequences, together[place].forwards)
        assert alone.log_weights == pytest.approx(together[place].log_weights, abs=1e-12)


def test_parts_of_the_particles_draw_what_the_whole_draws() -> None:
    pair = tabular_pair(3, 6, seed=1)
    whole, parts = (
        program(pair, particles=4, window=2, lookahead=2, max_logit_bytes=cap).run([[0]], seed=5, max_new_tokens=5)[0]
        for cap in (None, 1)
    )
    assert whole.sequences == parts.sequences
    assert whole.log_weights == pytest.approx(parts.log_weights, abs=1e-12)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "accept-all": (
        {"kernel": AcceptAll(), "intermediate": "proposal"},
        r"bonus = True with kernel = AcceptAll.*: give AcceptAll\(bonus=True\)",
    ),
    "tree": ({"kernel": TreeWalk(3)}, r"bonus = True with kernel = TreeWalk\(3.*leave it out"),
    "kind": ({"bonus": 3}, "bonus = 3: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_have_it_says_so_in_one_line(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        program(**options)
    assert "\n" not in str(caught.value)


def test_settings_tell_of_it_and_the_pyro_program_refuses_it() -> None:
    sampler = program(particles=1)
    assert sampler.settings(max_new_tokens=3)["bonus"] is True
    assert "bonus" not in smc(PAIR).settings(max_new_tokens=3)
    with pytest.raises(ValueError, match="bonus = True: the Pyro program"):
        BridgeProgram(sampler, [0], max_new_tokens=2)


def test_it_saves_forwards_of_the_target_on_the_embedded_pair() -> None:
    pair, task = load_pair("arithmetic"), TASKS["arithmetic"]
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(2)]
    per_step = []
    for bonus in (False, True):
        runs = smc(pair, 1, window=4, lookahead=4, w=0.5, bonus=bonus).run(prompts, seed=1, max_new_tokens=24)
        per_step.append(sum(r.tokens for r in runs) / sum(len(r.trace) for r in runs))
    assert per_step[1] > per_step[0] + 0.3, per_step
