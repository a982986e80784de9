"""Several tokens end a sequence: each of them, whatever draws it, and nothing follows any of them.

Of the three tokens of these tables, 0 and 2 end a sequence. Every claim is by enumeration against an oracle that knows
of both ends, or of draws against it; and each part that must know of the ends is shown to be caught when it forgets the
second one.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge import ARTarget, DLMProposal, ar_sampling, diffusion, smc
from smc_bridge.analysis.exact_law import oracle as exact_result
from smc_bridge.blocks import Horizon
from smc_bridge.canvas.state import extent
from smc_bridge.distributions.intermediate import Mixture, Target
from smc_bridge.distributions.table import Dense
from smc_bridge.engine.conditional import check_whole
from smc_bridge.engine.resampling import Multinomial
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import EssBelow, always
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.gumbel import GumbelCoupling
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.kernels.tree_build import Tree, best_first
from smc_bridge.methods.released import ReleasedRejection
from smc_bridge.models import ends as ends_module
from smc_bridge.models.ends import as_eos_id, ends_of, is_end
from smc_bridge.models.host import known
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.chain import PrefixFilled
from smc_bridge.proposals.protocol import Draft
from smc_bridge.pyro_program.inference import enumerate_program as enumerate_pyro
from smc_bridge.pyro_program.inference import score
from smc_bridge.pyro_program.program import BridgeProgram
from smc_bridge.pyro_program.stopped import StoppedPrefix
from smc_bridge.randomness import PromptSource
from smc_bridge.testing import (
    TabularPair,
    assert_proper,
    block_law,
    check,
    enumerate_sampler,
    exact_law,
    kernel_law,
    kernel_table,
    stopping_gap,
)
from smc_bridge.testing.statistics import chi_square
from tests.oracle import smc as oracle
from tests.smc_bridge.programs import TEMPERATURE, program, target_law, worst
from tests.smc_bridge.pyro_enumeration import enumerate_filter
from tests.smc_bridge.smc_enumeration import enumerate_program

ENDS, LIMIT = (0, 2), 3
AR = TabularAR.random(3, LIMIT + 1, seed=3, concentration=1.5, eos_id=ENDS)
PAIR = TabularPair(TabularDLM(AR, noise=0.9, seed=4), AR)
LAW = oracle.sequence_law([table.numpy() for table in AR.tables], LIMIT, ENDS)
KERNELS: dict[str, Kernel] = {
    "rejection": Rejection(), "block-verification": BlockVerification(), "gumbel": GumbelCoupling(),
    "tree": TreeWalk(2),
}
TOLERANCE = 1e-12
RUNS = 3_000


def test_ids_are_as_users_and_configurations_give_them() -> None:
    assert [ends_of(x) for x in (None, [], 5, [5], (7, 5, 7), {5, 7}, np.array([7, 5]), torch.tensor([7, 5]))] == [
        (), (), (5,), (5,), (5, 7), (5, 7), (5, 7), (5, 7),
    ]  # fmt: skip
    assert [as_eos_id(x) for x in ((), (5,), (5, 7))] == [None, 5, (5, 7)]


@pytest.mark.parametrize("wrong", [-1, True, 1.0, "2", [2, -1], [True], [[1]], [2, "x"], {"x"}])
def test_what_is_no_id_is_refused_in_one_line(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^eos_id = .*: give an id, a number from 0, several of them, or None$"):
        ends_of(wrong)
    with pytest.raises(ValueError, match=r"^eos_id = \[1, 3\]: give an id from 0 to 2, several of them, or None$"):
        TabularAR([[[0.2, 0.3, 0.5]]], eos_id=[1, 3])


@pytest.mark.parametrize("ends", [(), (2,), (0, 2)])
def test_tensors_and_arrays_are_compared_with_every_end(ends: tuple[int, ...]) -> None:
    tokens = [[-1, 0, 1], [2, 3, 2]]
    expected = [[token in ends for token in row] for row in tokens]
    assert is_end(torch.tensor(tokens), ends).tolist() == expected
    assert is_end(np.array(tokens), ends).tolist() == expected


def test_the_models_say_all_of_their_ends() -> None:
    assert (AR.eos_id, PAIR.dlm.eos_id, TabularAR(AR.tables, eos_id=[2, 2]).eos_id) == (ENDS, ENDS, 2)


def test_a_users_model_may_list_its_ends_in_any_order_and_must_list_ids() -> None:
    ar = TabularAR(AR.tables)
    ar.eos_id = [2, 0]  # type: ignore[assignment]
    same = smc(TabularPair(PAIR.dlm, ar), 2, w=0.5, window=2).run([[]], seed=1, max_new_tokens=LIMIT)
    assert same[0].sequences == smc(PAIR, 2, w=0.5, window=2).run([[]], seed=1, max_new_tokens=LIMIT)[0].sequences
    ar.eos_id = (0, 1)
    with pytest.raises(ValueError, match=r"alphabets differ: 3 tokens ending with \(0, 2\) against 3 ending with \("):
        smc(TabularPair(PAIR.dlm, ar))
    ar.eos_id = [0, 3]  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"^eos_id = \[0, 3\]: give an id from 0 to 2"):
        ARTarget(ar)


class WhenEnded:
    """A potential that is 1 until a sequence ends, and then depends on its last token and length."""

    def __call__(self, prefix: Prefix) -> Tensor:
        last = prefix.tokens.gather(1, (prefix.length - 1).clamp_min(0)[:, None])[:, 0]
        return torch.where(prefix.done, -0.4 * last.double() - 0.2 * prefix.length.double(), 0.0)


def prescribed(kernel: Kernel, *, eos: tuple[int, ...] = ENDS, **parts: Any) -> Sampler:
    """A sampler of the tables whose model has these ends."""
    ar = TabularAR(AR.tables, eos_id=eos)
    return program(kernel, ar=ar, trigger=EssBelow(0.95), resampler=Multinomial(), **parts)


def claim_program(kernel: str) -> None:
    """`E[Z_hat sum W 1] = p`, for every sequence."""
    sampler = prescribed(KERNELS[kernel])
    found = enumerate_program(sampler, LIMIT)
    law = oracle.sequence_law([t.numpy() for t in AR.tables], LIMIT, ENDS, temperature=TEMPERATURE)
    gap, message = worst(found.proper, law)
    assert gap < TOLERANCE, message
    assert abs(found.evidence - 1.0) < TOLERANCE, found.evidence


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_program_is_properly_weighted(kernel: str) -> None:
    claim_program(kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_shipped_checks_take_such_a_pair(kernel: str) -> None:
    assert_proper(smc(PAIR, 2, w=0.5, kernel=KERNELS[kernel]))


def test_more_lanes_and_a_chain_of_drafts_are_properly_weighted() -> None:
    assert check(smc(PAIR, 1, lanes=2, w=0.5)).proper
    proposal = PrefixFilled(DLMProposal(PAIR.dlm, lookahead=LIMIT))
    chain = Sampler(proposal, ARTarget(AR), Mixture(0.5), Rejection(), window=2)
    gap, message = worst(enumerate_sampler(chain, LIMIT).proper, LAW)
    assert gap < TOLERANCE, message


def claim_potential() -> None:
    """A potential is told of every end."""
    sampler = smc(PAIR, 2, w=0.5, window=2, potential=WhenEnded())
    end = {s: float(np.exp(-0.4 * s[-1] - 0.2 * len(s))) for s in LAW}
    gap, message = worst(enumerate_sampler(sampler, LIMIT).proper, {s: p * end[s] for s, p in LAW.items()})
    assert gap < TOLERANCE, message


def claim_kernel_law() -> None:
    """On tables with two ends a kernel's stopping times are normalised."""
    table = kernel_table(3, 3, seed=6, eos_id=ENDS)
    assert {block for block in table.blocks() if len(block) > 1} == {
        (1, *rest) for rest in [(0,), (1,), (2,), (1, 0), (1, 1), (1, 2)]
    }
    for name in ("rejection", "block-verification", "tree"):  # the Gumbel coupling has no outcomes to list
        gap, message = stopping_gap(block_law(kernel_law(KERNELS[name], table)), table)
        assert gap < TOLERANCE, message


def claim_no_node_is_an_end() -> None:
    """No end stands in a tree, not as a leaf either: nothing follows it, so no forward reads it."""
    q = torch.tensor([[[0.4, 0.2, 0.4], [0.3, 0.3, 0.4], [0.4, 0.3, 0.3], [0.1, 0.1, 0.8]]]).log()
    tree = best_first(Dense(q), 9, Horizon(torch.tensor([4]), ENDS))
    assert tree.tokens[tree.real].tolist() == [1, 1, 1], tree


def claim_walk_ends() -> None:
    """A walk ends with an end, also on a tree of somebody else's in which an end has a child."""
    tree = Tree(torch.tensor([[2, 1]]), torch.tensor([[0, 1]]), torch.tensor([[1, 2]]), torch.tensor([[True, True]]))
    pi = Dense(torch.tensor([[[0.0, 0.0, 1.0]] * 3]).log())
    move, _ = TreeWalk(2).walk(
        tree, pi, walks=1, source=torch.Generator().manual_seed(0), window=3, horizon=Horizon(torch.tensor([3]), ENDS)
    )
    assert (move.length.tolist(), move.accepted.tolist(), move.block[0, 0].tolist()) == ([1], [1], 2)


def claim_draft_ends() -> None:
    """A chain of drafts takes no forward for what is behind an end."""
    from tests.smc_bridge.test_proposals import asked_for

    chain = PrefixFilled(DLMProposal(PAIR.dlm, lookahead=3))
    prefix = Prefix.of([[] for _ in range(60)])
    asked = asked_for(prefix, lanes=1, window=3)
    generators = [torch.Generator().manual_seed(i) for i in range(60)]
    draft = chain.draft(chain.open(prefix, particles=1), asked, source=PromptSource(generators, 1))
    assert draft.cost is not None
    tokens = known(draft.tokens).tolist()
    needed = sum(1 + (row[0] == 1) + (row[:2] == [1, 1]) for row in tokens)
    firsts = {row[0] for row in tokens}
    assert firsts == {0, 1, 2}
    assert len(draft.cost[0]) == needed, f"{len(draft.cost[0])} rows for {needed} that are needed"


def claim_released() -> None:
    """The released code's rule: an end in the draft of any lane forces the first token of all lanes of a particle."""
    q = torch.tensor([[0.05, 0.9, 0.05]] * 2).log().expand(4, 2, 3)
    pi = torch.tensor([[1.0, 0.0, 0.0]] * 2).log().expand(4, 2, 3)  # refuses the token 1, unless it is forced
    tokens = torch.tensor([[1, 2], [1, 1], [1, 1], [1, 1]])
    width = torch.full((4,), 2)
    move = ReleasedRejection(2)(
        Draft(tokens, Dense(q), width), Dense(pi), source=torch.Generator().manual_seed(0), horizon=Horizon(width, ENDS)
    )
    assert move.block[:, 0].tolist() == [1, 1, 0, 0]


def claim_canvas() -> None:
    """How far a canvas is filled, and whether that is all: up to the first of any end."""
    canvas = torch.tensor([[1, 2, 1, MASKED], [1, 1, 0, MASKED], [1, MASKED, 2, 1], [1, 1, 1, 1], [0, 2, 1, 1]])
    end, whole = extent(canvas, ENDS)
    assert (end.tolist(), whole.tolist()) == ([2, 3, 1, 4, 1], [True, True, False, True, True])


def fits(sequences: list[list[int]]) -> None:
    """Check draws against the exact law of the target."""
    counts = Counter(map(tuple, sequences))
    assert set(counts) <= set(LAW), f"not whole, or longer: {set(counts) - set(LAW)}"
    p = chi_square(np.array([counts[s] for s in LAW]), np.array(list(LAW.values())))
    assert p > 1e-6, f"p = {p}: {counts}"


def claim_ar() -> None:
    """Ancestral samples end with any end."""
    fits([r.sequences[0] for r in ar_sampling(ARTarget(AR), [[]] * RUNS, seed=list(range(RUNS)), max_new_tokens=LIMIT)])


@pytest.mark.parametrize("options", [{}, {"window": 1, "tokens_per_forward": 3}])
def test_the_diffusion_models_own_decoder_ends_with_any_end(options: Any) -> None:
    """With the exact marginals, left to right and one token a forward, it draws from the AR law."""
    dlm, seeds = TabularDLM(AR), list(range(RUNS))
    results = diffusion(DLMProposal(dlm, lookahead=1), [[]] * RUNS, seed=seeds, max_new_tokens=LIMIT, **options)
    fits([result.sequences[0] for result in results])


def claim_whole() -> None:
    """A retained sequence ends with any end, and nothing follows one."""
    check_whole([[0], [2], [1, 2], [1, 1, 1]], ends=ENDS, max_new_tokens=LIMIT)
    for wrong in ([1], [1, 1]):
        with pytest.raises(ValueError, match="give a whole one"):
            check_whole([wrong], ends=ENDS, max_new_tokens=LIMIT)
    for wrong in ([2, 0], [0, 2], [1, 2, 1]):
        with pytest.raises(ValueError, match="goes on after the end of sequence"):
            check_whole([wrong], ends=ENDS, max_new_tokens=LIMIT)


def test_conditional_runs_keep_a_sequence_with_any_end() -> None:
    sampler = prescribed(Rejection())
    law = target_law(sampler, LIMIT)
    found = enumerate_program(sampler, LIMIT, retained=law)
    assert abs(found.inverse_evidence - 1.0) < TOLERANCE, found.inverse_evidence
    gap, message = worst(found.output, law)
    assert gap < TOLERANCE, message
    for wrong in ([2, 1], [1]):
        with pytest.raises(ValueError, match=r"retained\[0\]"):
            sampler.run([[]], max_new_tokens=LIMIT, retained=[wrong])


def claim_pyro() -> None:
    """The Pyro program under its filter has the engine's law."""
    sampler = program(Rejection(), ar=AR, particles=1, trigger=always, resampler=Multinomial(), lookahead=2)
    found, engine = enumerate_filter(sampler, LIMIT), enumerate_program(sampler, LIMIT)
    for ours, theirs in ((found.output, engine.output), (found.proper, target_law(sampler, LIMIT))):
        gap, message = worst(ours, theirs)
        assert gap < TOLERANCE, message


def claim_support() -> None:
    """The site of a block has no value with a token behind an end."""
    program = BridgeProgram(smc(PAIR, 1), [], max_new_tokens=2)
    laws = program.laws(program.start(1), 0)
    law = StoppedPrefix(laws.target, Rejection(), laws.proposal, laws.intermediate, Horizon(torch.tensor([2]), ENDS))
    every = law.enumerate_support()[:, 0]
    assert {tuple(i for i in row if i >= 0) for row in every.tolist()} == {(0,), (1,), (2,), (1, 0), (1, 1), (1, 2)}
    wrong = torch.full_like(every[:2], -1)
    wrong[:, :2] = torch.tensor([[2, 1], [1, 2]])
    assert law.support.check(wrong).tolist() == [False, True]


def claim_score() -> None:
    """A continuation is scored up to its end, and refused behind one."""
    sampler = smc(PAIR, 2)
    assert abs(score(sampler, [], [1, 2]) - float(np.log(LAW[1, 2]))) < TOLERANCE
    for wrong in ([0, 1], [1, 2, 1]):
        with pytest.raises(ValueError, match="goes on after the end of sequence"):
            score(sampler, [], wrong)


def test_the_pyro_program_enumerates_to_the_target() -> None:
    sampler = program(Rejection(), ar=AR, particles=1, intermediate=Target(), lookahead=2)
    gap, message = worst(enumerate_pyro(sampler, [], max_new_tokens=2), target_law(sampler, 2))
    assert gap < TOLERANCE, message


def claim_exact_law() -> None:
    """Both enumerations of the target's law, the one for users' models and the one for tests."""
    found = exact_law(ARTarget(AR), LIMIT)
    gap, message = worst(found, LAW)
    assert gap < TOLERANCE, message


def claim_exact_result() -> None:
    """The exact law as a result."""
    result = exact_result(ARTarget(AR), [], max_new_tokens=LIMIT)
    weights = torch.tensor(result.log_weights, dtype=torch.float64).softmax(-1).tolist()
    gap, message = worst(dict(zip(map(tuple, result.sequences), weights, strict=True)), LAW)
    assert gap < TOLERANCE, message


#: Where the second end may be forgotten, and the claim that notices.
CLAIMS: dict[str, tuple[Callable[[], None], str]] = {
    "smc_bridge.blocks": (lambda: claim_program("rejection"), "is_end"),
    "smc_bridge.engine.survivors": (lambda: claim_program("rejection"), "is_end"),
    "smc_bridge.engine.steps": (lambda: claim_program("block-verification"), "ends_of"),
    "smc_bridge.engine.sampler": (claim_potential, "ends_of"),
    "smc_bridge.prefix": (claim_potential, "is_end"),
    "smc_bridge.engine.conditional": (claim_whole, ""),
    "smc_bridge.kernels.tree": (claim_walk_ends, "is_end"),
    "smc_bridge.kernels.tree_build": (claim_no_node_is_an_end, "is_end"),
    "smc_bridge.testing.kernel_tables": (claim_kernel_law, "ends_of"),
    "smc_bridge.proposals.chain": (claim_draft_ends, "is_end"),
    "smc_bridge.methods.released": (claim_released, "is_end"),
    "smc_bridge.canvas.state": (claim_canvas, "is_end"),
    "smc_bridge.methods.ar": (claim_ar, "ends_of"),
    "smc_bridge.pyro_program.program": (claim_pyro, "ends_of"),
    "smc_bridge.pyro_program.stopped": (claim_support, "is_end"),
    "smc_bridge.pyro_program.inference": (claim_score, "ends_of"),
    "smc_bridge.testing.tabular": (claim_exact_law, "ends_of"),
    "smc_bridge.analysis.exact_law": (claim_exact_result, "ends_of"),
}


@pytest.mark.parametrize("where", CLAIMS)
def test_all_parts_know_of_the_second_end_and_one_that_forgets_it_is_caught(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, name = CLAIMS[where]
    claim()
    if not name:
        return
    forgetful = {
        "is_end": lambda tokens, ends: ends_module.is_end(tokens, ends[:1]),
        "ends_of": lambda eos_id, size=None: ends_module.ends_of(eos_id, size)[:1],
    }
    monkeypatch.setattr(importlib.import_module(where), name, forgetful[name])
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        claim()
