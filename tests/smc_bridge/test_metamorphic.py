"""What must not change, and what must change in a known way: relations between runs of the real engine."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge.distributions.intermediate import Defensive, Intermediate, Mixture, ProductOfExperts, Proposal, Target
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import always, never
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.gumbel import GumbelCoupling
from smc_bridge.kernels.importance import AcceptAll, BalanceHeuristic
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.rows import Rows
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.result import Result

DEPTH, EOS = 6, 1
AR = TabularAR.random(3, DEPTH, seed=1, eos_id=EOS)
DLM = TabularDLM(AR, noise=0.5)
KERNELS: dict[str, Kernel] = {
    "rejection": Rejection(), "block": BlockVerification(), "gumbel": GumbelCoupling(), "tree": TreeWalk(3),
}
DRAFTED = ["rejection", "block", "gumbel"]
PROMPTS = [[], [0], [2, 0], [1], [2], [0, 2], [2, 0, 0]]
SEEDS = [3, 3, 5, 8, 13, 21, 34]
#: Programs that differ in every part.
PROGRAMS: dict[str, dict[str, Any]] = {
    "rejection": {"window": 2, "particles": 3, "trigger": always},
    "rejection lanes": {"window": 3, "particles": 2, "lanes": 2, "temperature": [0.6, 1.4]},
    "block": {"kernel": BlockVerification(), "window": 3, "particles": 3},
    "gumbel": {"kernel": GumbelCoupling(), "window": 3, "particles": 2, "lanes": 2},
    "tree": {"kernel": TreeWalk(4), "window": 3, "particles": 3, "trigger": always},
    "tree lanes": {"kernel": TreeWalk(4), "window": 3, "lanes": 2, "temperature": [0.6, 1.4]},
    "plain": {"kernel": AcceptAll(), "intermediate": Proposal(), "window": 2, "particles": 3},
    "balance": {"weight": BalanceHeuristic(), "window": 3, "lanes": 3, "temperature": [0.6, 1.0, 1.4]},
    "short lookahead": {"window": 3, "particles": 3, "lookahead": 2, "trigger": never},
}


def sampler(*, ar: Any = AR, dlm: Any = DLM, temperature: Any = 1.0, lookahead: int = 256, **parts: Any) -> Sampler:
    parts.setdefault("intermediate", ProductOfExperts(0.5))
    return Sampler(DLMProposal(dlm, temperature=temperature, lookahead=lookahead), ARTarget(ar), **parts)


def fields(result: Result) -> dict[str, Any]:
    """All of a result but the wall time."""
    return {**result.to_dict(), "seconds": 0.0}


def decode(program: Sampler, *, prompts: list[list[int]] = PROMPTS, seed: Any = None, limit: int = 3) -> list[Result]:
    return program.run(
        prompts, seed=SEEDS[: len(prompts)] if seed is None else seed, max_new_tokens=limit, keep_drafts=True
    )


def lanes_of(results: list[Result]) -> list[tuple[int, int, float]]:
    """(length, accepted, log increment) of every lane that moved."""
    return [
        lane
        for result in results
        for step in result.trace
        for lane in zip(
            itertools.chain(*step.length), itertools.chain(*step.accepted), itertools.chain(*step.log_increments),
            strict=True,
        )
        if lane[0] > 0
    ]


@pytest.mark.parametrize("intermediate", [ProductOfExperts(0.0), Target(), Mixture(0.0)], ids=repr)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 3)])
def test_weight_zero_on_the_diffusion_model_gives_weights_of_exactly_one(
    kernel: str, intermediate: Intermediate, shape: tuple[int, int]
) -> None:
    program = sampler(
        kernel=KERNELS[kernel], intermediate=intermediate, particles=shape[0], lanes=shape[1], window=3
    )
    results = decode(program)
    assert all(w == 0.0 for r in results for w in r.log_weights), f"log weights {[r.log_weights for r in results]}"
    assert all(increment == 0.0 for _, _, increment in lanes_of(results))
    assert all(abs(r.log_evidence) < 1e-15 for r in results)
    assert all(abs(r.ess - shape[0]) < 1e-12 for r in results)


@pytest.mark.parametrize("intermediate", [ProductOfExperts(1.0), Proposal(), Mixture(1.0)], ids=repr)
@pytest.mark.parametrize("kernel", DRAFTED)
def test_weight_one_on_the_diffusion_model_accepts_everything(kernel: str, intermediate: Intermediate) -> None:
    program = sampler(
        kernel=KERNELS[kernel], intermediate=intermediate, particles=2, lanes=2, window=3, temperature=[0.7, 1.3]
    )
    lanes = lanes_of(decode(program, prompts=[[]] * 40, seed=list(range(40))))
    assert all(length == accepted for length, accepted, _ in lanes)
    assert any(increment != 0.0 for _, _, increment in lanes)


def test_accept_all_commits_what_rejection_commits_at_weight_one() -> None:
    """Both commit the draft; the draft comes first in the stream, so the first step's blocks are equal."""
    one, other = (
        decode(sampler(kernel=kernel, intermediate=Proposal(), particles=2, window=3))
        for kernel in (AcceptAll(), Rejection())
    )
    for left, right in zip(one, other, strict=True):
        assert left.trace[0].blocks == right.trace[0].blocks
        assert left.trace[0].log_increments == right.trace[0].log_increments


def independent_ar() -> TabularAR:
    """Tokens do not depend on the past, so that the exact marginals are the conditionals."""
    generator = torch.Generator().manual_seed(3)
    laws = torch.softmax(torch.randn(DEPTH, 3, generator=generator, dtype=torch.float64), -1)
    return TabularAR([laws[d].expand(3**d, 3) for d in range(DEPTH)], eos_id=EOS)


@pytest.mark.parametrize("w", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("kernel", DRAFTED)
def test_a_perfect_proposal_is_accepted_whole_with_weight_one(kernel: str, w: float) -> None:
    """q = p: of independent tokens in a window, and of any model in windows of one token."""
    perfect = independent_ar()
    cases = [
        sampler(ar=perfect, dlm=TabularDLM(perfect), kernel=KERNELS[kernel], intermediate=ProductOfExperts(w),
                particles=2, window=3),
        sampler(ar=AR, dlm=TabularDLM(AR), kernel=KERNELS[kernel], intermediate=ProductOfExperts(w), particles=2,
                window=1, lookahead=1),
    ]
    for program in cases:
        lanes = lanes_of(decode(program, prompts=[[]] * 30, seed=list(range(30))))
        assert all(length == accepted for length, accepted, _ in lanes)
        worst = max(abs(increment) for _, _, increment in lanes)
        assert worst < 1e-13, f"a log increment of {worst}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_batch_and_loop_are_bit_equal(name: str, device: str) -> None:
    """Prompts of different lengths together, and each alone: the same draws, weights, traces and counts."""
    ar = TabularAR.random(3, DEPTH, seed=1, eos_id=EOS, device=device)
    program = sampler(ar=ar, dlm=TabularDLM(ar, noise=0.5), **PROGRAMS[name])
    together = decode(program)
    for prompt, seed, result in zip(PROMPTS, SEEDS, together, strict=True):
        alone = decode(program, prompts=[prompt], seed=[seed])[0]
        assert fields(alone) == fields(result), f"prompt {prompt} differs in a batch"


@pytest.mark.parametrize("name", PROGRAMS)
def test_prompts_that_continue_each_other_do_not_meet(name: str) -> None:
    """[0] may grow into [0, 2]: equal prefixes of prompts with different limits are different states."""
    program = sampler(**PROGRAMS[name])
    prompts = [[], [0], [0, 2], [0], [2], [2, 2], []]
    for first in range(0, 70, 7):
        seeds = list(range(first, first + 7))
        together = decode(program, prompts=prompts, seed=seeds)
        for prompt, seed, result in zip(prompts, seeds, together, strict=True):
            alone = decode(program, prompts=[prompt], seed=[seed])[0]
            assert fields(alone) == fields(result), f"prompt {prompt} with seed {seed} differs in a batch"


@pytest.mark.parametrize("name", PROGRAMS)
def test_permuted_prompts_permute_results(name: str) -> None:
    program, order = sampler(**PROGRAMS[name]), [4, 0, 6, 2, 5, 1, 3]
    plain = decode(program)
    permuted = decode(program, prompts=[PROMPTS[i] for i in order], seed=[SEEDS[i] for i in order])
    for i, result in zip(order, permuted, strict=True):
        assert fields(result) == fields(plain[i]), f"prompt {i} differs in another place"


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_seed_gives_the_same_run_and_another_seed_another(name: str) -> None:
    program = sampler(**PROGRAMS[name])
    prompts = [[]] * 20
    first, again, other = (decode(program, prompts=prompts, seed=[s + i for i in range(20)]) for s in (0, 0, 100))
    assert [fields(r) for r in first] == [fields(r) for r in again]
    assert [r.sequences for r in first] != [r.sequences for r in other]


class Shifted:
    """A model whose logits carry an arbitrary constant per position."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.vocab_size, self.eos_id = model.vocab_size, model.eos_id
        self.banned_ids, self.device = model.banned_ids, model.device
        self.max_length, self.min_length = model.max_length, model.min_length

    def session(self, tokens: Tensor, length: Tensor) -> ShiftedSession:
        return ShiftedSession(self.model.session(tokens, length))


class ShiftedSession:
    """Adds 3, 3.5, 4, .. to the scores of successive positions or nodes."""

    has_history = False

    def __init__(self, session: Rows) -> None:
        self.session = session
        self.commit, self.gather, self.crop = session.commit, session.gather, session.crop

    def _shift(self, scores: Tensor) -> Tensor:
        return scores + 3 + torch.arange(scores.shape[1])[:, None] / 2

    def score(self, rows: Tensor, tokens: Tensor) -> Tensor:
        return self._shift(self.session.score(rows, tokens))

    def score_tree(self, rows: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        return self._shift(self.session.score_tree(rows, tokens, parents))


@pytest.mark.parametrize("name", PROGRAMS)
def test_shifted_logits_change_nothing(name: str) -> None:
    plain = decode(sampler(**PROGRAMS[name]))
    shifted = decode(sampler(ar=Shifted(AR), dlm=Shifted(DLM), **PROGRAMS[name]))
    for left, right in zip(plain, shifted, strict=True):
        assert left.sequences == right.sequences
        gap = max(abs(a - b) for a, b in zip(left.log_weights, right.log_weights, strict=True))
        assert gap < 1e-12, f"log weights move by {gap}"


def test_padding_of_a_session_is_never_read() -> None:
    """Rows with arbitrary tokens past their length score as rows without."""
    tight, length = torch.tensor([[2, 0], [1, 0]]), torch.tensor([2, 1])
    wide = torch.tensor([[2, 0, 1, 1], [1, 2, 2, 0]])
    drafts, rows = torch.tensor([[0, 2, 1], [2, 2, 0]]), torch.tensor([0, 1])
    assert torch.equal(AR.session(tight, length).score(rows, drafts), AR.session(wide, length).score(rows, drafts))
    canvas = torch.full((2, 3), -1)
    assert torch.equal(DLM.session(tight, length).score(rows, canvas), DLM.session(wide, length).score(rows, canvas))


@pytest.mark.parametrize(("particles", "lanes"), [(1, 1), (1, 3), (4, 1), (3, 2)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_results_have_the_shapes_of_particles_and_lanes(kernel: str, particles: int, lanes: int) -> None:
    for result in decode(sampler(kernel=KERNELS[kernel], particles=particles, lanes=lanes, window=2)):
        assert len(result.sequences) == len(result.log_weights) == particles
        for sequence in result.sequences:
            assert 1 <= len(sequence) <= 3
            assert EOS not in sequence[:-1], f"{sequence} goes on after the end of sequence"
            assert len(sequence) == 3 or sequence[-1] == EOS, f"{sequence} stops before its end"
        for step in result.trace:
            for table in (step.length, step.accepted, step.log_increments, step.blocks):
                assert table is not None
                assert [len(row) for row in table] == [lanes] * particles
            assert len(step.ancestors) == len(step.lanes) == len(step.log_weights) == particles
            assert all(0 <= a < particles for a in step.ancestors)
            assert all(0 <= k < lanes for k in step.lanes)
        assert result.trace[-1].log_weights == result.log_weights


def replay(result: Result) -> list[list[tuple[list[int], bool]]]:
    """Every particle's continuation and whether it is done, before each step and after the last, from the trace."""
    particles: list[tuple[list[int], bool]] = [([], False)] * len(result.sequences)
    states = [particles]
    for step in result.trace:
        assert step.blocks is not None
        grown = []
        for ancestor, lane in zip(step.ancestors, step.lanes, strict=True):
            tokens, done = particles[ancestor]
            block = [] if done else step.blocks[ancestor][lane]
            tokens = [*tokens, *block]
            grown.append((tokens, done or len(tokens) == 3 or tokens[-1] == EOS))
        particles = grown
        states.append(particles)
    return states


@pytest.mark.parametrize("name", PROGRAMS)
def test_finished_particles_absorb(name: str) -> None:
    """They stay in the pool, never grow, and earn nothing (condition C5)."""
    results, finished = decode(sampler(**PROGRAMS[name]), prompts=[[]] * 30, seed=list(range(30))), 0
    for result in results:
        states = replay(result)
        assert [tokens for tokens, _ in states[-1]] == result.sequences, "the trace does not lead to the sequences"
        for step, before in zip(result.trace, states[:-1], strict=True):
            for n, (_, done) in enumerate(before):
                assert all((length == 0) == done for length in step.length[n]), f"particle {n}: {step.length[n]}"
                if done:
                    finished += 1
                    assert set(step.log_increments[n]) == {0.0}
    assert finished > 0 or PROGRAMS[name].get("particles", 1) == 1


def test_weights_that_never_interact_are_sums_of_increments() -> None:
    """K = 1 without resampling: independent importance sampling of whole sequences."""
    for result in decode(sampler(window=2, particles=3, trigger=never), prompts=[[]] * 20, seed=list(range(20))):
        total = [math.fsum(step.log_increments[n][0] for step in result.trace) for n in range(3)]
        gap = max(abs(a - b) for a, b in zip(total, result.log_weights, strict=True))
        assert gap < 1e-12, f"log weights {result.log_weights}, sums of increments {total}"
        assert all(step.ancestors == [0, 1, 2] and not step.resampled for step in result.trace)


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_diffusion_row_per_unique_prefix(name: str) -> None:
    """Without marginals to reuse, every step scores each distinct growing prefix of a prompt once."""
    options = {**PROGRAMS[name], "lookahead": PROGRAMS[name]["window"]}
    shared = 0
    for result in decode(sampler(**options), prompts=[[]] * 20, seed=list(range(20))):
        for step, before in zip(result.trace, replay(result)[:-1], strict=True):
            growing = [tuple(tokens) for tokens, done in before if not done]
            assert step.dlm_rows == len(set(growing)), f"{step.dlm_rows} rows for prefixes {growing}"
            assert step.ar_rows == len(growing) * options.get("lanes", 1)
            shared += len(growing) - step.dlm_rows
        forwards = result.forwards
        assert forwards.dlm_rows == sum(step.dlm_rows for step in result.trace)
        assert forwards.dlm_forwards == sum(step.dlm_rows > 0 for step in result.trace)
        assert forwards.ar_rows == sum(step.ar_rows for step in result.trace)
        assert forwards.ar_forwards == len(result.trace)
    assert shared > 0 or options.get("particles", 1) == 1


def test_elastic_windows_reuse_marginals() -> None:
    """An accepted window needs no new forward of the diffusion model until its lookahead is used up."""
    free = TabularAR.random(3, DEPTH, seed=1)
    for window, lookahead, dlm_forwards, ar_forwards in ((2, 6, 1, 3), (2, 2, 3, 3), (1, 6, 1, 6), (2, 4, 2, 3),
                                                         (3, 4, 2, 3), (6, 6, 1, 1), (9, 9, 1, 1)):
        program = sampler(
            ar=free, dlm=TabularDLM(free, noise=0.5), intermediate=Proposal(), kernel=AcceptAll(), window=window,
            lookahead=lookahead, particles=2, trigger=never,
        )
        for result in program.run([[], []], seed=[1, 2], max_new_tokens=6):
            found = (result.forwards.dlm_forwards, result.forwards.ar_forwards)
            assert found == (dlm_forwards, ar_forwards), f"V={window}, M={lookahead}: DLM and AR forwards {found}"


@pytest.mark.parametrize("kernel", DRAFTED)
def test_marginals_are_kept_exactly_when_a_whole_window_was_accepted(kernel: str) -> None:
    free = TabularAR.random(3, DEPTH, seed=1)
    program = sampler(ar=free, dlm=TabularDLM(free, noise=0.3), kernel=KERNELS[kernel], window=2)
    kept = 0
    for result in program.run([[]] * 60, seed=list(range(60)), max_new_tokens=6):
        for step, after in itertools.pairwise(result.trace):
            whole = step.accepted[0][0] == step.length[0][0] == 2
            kept += whole
            assert after.dlm_rows == (0 if whole else 1), f"accepted {step.accepted} of {step.length}: {after.dlm_rows}"
    assert kept > 10


def test_a_window_beyond_the_limit_changes_no_law_only_its_draws() -> None:
    """The window is cut at the length limit; a longer one commits legal blocks of the same sequences."""
    for result in decode(sampler(window=10, particles=2, intermediate=Defensive(Proposal(), 0.2))):
        assert all(len(sequence) <= 3 for sequence in result.sequences)


class Broken(Shifted):
    """A model with NaN logits at one position."""

    def session(self, tokens: Tensor, length: Tensor) -> Any:
        session = ShiftedSession(self.model.session(tokens, length))
        session._shift = lambda scores: scores.index_fill(1, torch.tensor(1), math.nan)  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize("which", ["ar", "dlm"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_logits_are_refused_with_their_place(kernel: str, which: str) -> None:
    models = {"ar": AR, "dlm": DLM}
    models[which] = Broken(models[which])  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"NaN at .*logits"):
        decode(sampler(**models, kernel=KERNELS[kernel], window=3))
