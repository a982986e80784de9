"""One layer over hidden states: a proposal that is exact with every kernel, and a canvas decoder that is biased."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge import ARTarget, DLMProposal, Mixture, ProductOfExperts, Sampler, load_pair, smc
from smc_bridge.canvas.adjusted import AdjustedCanvas
from smc_bridge.decode import decode
from smc_bridge.methods.adjust import adjust
from smc_bridge.methods.canvas import dlm
from smc_bridge.models.arithmetic import problems
from smc_bridge.models.arithmetic.wording import DRAFTED
from smc_bridge.models.learned.adjust import Refiner, columns
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.training import adjust as training
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.adjust import Adjusted, last_of, refreshed
from smc_bridge.proposals.protocol import Draft
from smc_bridge.testing import assert_biased, assert_proper, exact_law, tabular_pair
from smc_bridge.testing.parts import proposal_fault
from tests.smc_bridge.claims import chi_square, claim
from tests.smc_bridge.smc_enumeration import assert_exact_around_retained
from tests.toys import bare_pair


def layer(size: int, seed: int = 1, *, places: int = 16) -> Refiner:
    """A layer of random weights for a table of `size` tokens, whose laws are far from the marginals."""
    torch.manual_seed(seed)
    made = Refiner(hidden=size, embedding=size, heads=2, key_heads=1, size=4, inner=6, places=places).double()
    torch.nn.init.normal_(made.join.weight)
    return made.eval().requires_grad_(False)


def program(pair: Any, *, temperature: Any = 1.0, places: int = 16, **options: Any) -> Sampler:
    given: dict[str, Any] = {"window": 3, "particles": 1, "intermediate": ProductOfExperts(0.4), **options}
    base = DLMProposal(pair.dlm, temperature=temperature, lookahead=3)
    return Sampler(Adjusted(base, head=layer(pair.dlm.vocab_size, places=places)), ARTarget(pair.ar), **given)


@pytest.mark.parametrize("kernel", ["rejection", "block"])
def test_the_proposal_is_exact_on_every_outcome(kernel: str) -> None:
    assert_proper(program(tabular_pair(3, 3), kernel=kernel))
    assert_proper(program(tabular_pair(2, 3), kernel=kernel, lanes=2, temperature=[0.6, 1.4]))


def test_it_is_exact_where_everything_is_accepted_and_with_several_particles() -> None:
    pair = tabular_pair(2, 3)
    assert_proper(smc(pair, 2, proposal="adjust", head=layer(2), kernel="accept-all", window=2, lookahead=3))
    assert_proper(program(pair, particles=2, window=1, intermediate=Mixture(0.5)))


def test_it_is_exact_where_the_layer_sees_fewer_places_than_are_drafted() -> None:
    assert_proper(program(tabular_pair(2, 3), places=2))
    long = Adjusted(DLMProposal(tabular_pair(3, 5, seed=3).dlm, lookahead=5), head=layer(3, places=2))
    assert proposal_fault(long, lanes=2, limit=4) is None


@pytest.mark.parametrize("kernel", ["rejection", "block", "gumbel"])
def test_it_is_exact_by_the_kernels_closed_form_and_along_a_retained_sequence(kernel: str) -> None:
    sampler = program(tabular_pair(2, 3), kernel=kernel, particles=2, intermediate=Mixture(0.5))
    assert_exact_around_retained(sampler, 3)


@pytest.mark.parametrize("temperature", [1.0, [0.7, 1.3]])
def test_laws_along_a_block_are_those_that_it_was_drafted_from(temperature: Any) -> None:
    pair = tabular_pair(3, 5, seed=3)
    proposal = Adjusted(DLMProposal(pair.dlm, temperature=temperature, lookahead=5), head=layer(3))
    assert proposal_fault(proposal, lanes=2, limit=4) is None


def test_a_draft_that_is_scored_by_its_marginals_is_caught() -> None:
    class Marginals(Adjusted):
        def draft(self, state: Any, asked: Any, *, source: Any) -> Draft:
            found = super().draft(state, asked, source=source)
            lane = torch.arange(found.tokens.shape[0])
            scores = state.scored.logits[lane // asked.lanes, : asked.window]
            scores = torch.nn.functional.pad(scores, (0, 0, 0, asked.window - scores.shape[1]))
            return found._replace(q=self.law(scores, asked, lane))

    pair = tabular_pair(2, 3, eos=False)
    proposal = Marginals(DLMProposal(pair.dlm, lookahead=3), head=layer(2))
    assert_biased(Sampler(proposal, ARTarget(pair.ar), window=3, particles=1), least=1e-3)


def test_a_draft_takes_one_forward_for_all_lanes_and_draws_do_not_depend_on_the_batch() -> None:
    pair = tabular_pair(3, 6, seed=1)
    prompts: list[list[int]] = [[], [0], [1], [0, 1]]
    several = smc(pair, 2, proposal="adjust", head=layer(3), lanes=2, window=3, lookahead=4)
    for decoder in (several, adjust(pair, head=layer(3), tokens=2, lookahead=3), adjust(pair, head=layer(3), tokens=3)):
        together = decode(decoder, prompts, seed=3, max_new_tokens=4, batch=3)
        for place, prompt in enumerate(prompts):
            [alone] = decode(decoder, [prompt], seed=3, max_new_tokens=4)
            assert (alone.sequences, alone.forwards) == (together[place].sequences, together[place].forwards)
    one = smc(tabular_pair(3, 6, eos=False), 1, proposal="adjust", head=layer(3), lanes=3, window=6, w=1.0)
    [result] = decode(one, [[]], seed=0, max_new_tokens=6)
    assert result.forwards.dlm_forwards == result.forwards.dlm_rows == 1


# The published decoder.


def test_one_token_per_forward_is_the_plain_decoder() -> None:
    pair = tabular_pair(3, 5, seed=2)
    prompts: list[list[int]] = [[], [0], [1, 1]]
    for order in ("entropy", "confidence", "left_to_right"):
        own = decode(adjust(pair, head=layer(3), tokens=1, order=order), prompts, seed=5, max_new_tokens=4)  # type: ignore[arg-type]
        plain_one = dlm(pair, tokens=1, order=order, lookahead=16)  # type: ignore[arg-type]
        plain = decode(plain_one, prompts, seed=5, max_new_tokens=4)
        assert [r.sequences for r in own] == [r.sequences for r in plain]


def law_of(pair: Any, head: Refiner, temperature: float, places: int) -> list[float]:
    """Probability of every continuation under entropy-first draws of one forward, by the formulas."""
    session = pair.dlm.session(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    start = session.score(torch.tensor([0]), torch.full((1, places), MASKED), hidden=True)
    every = torch.ones(1, places, dtype=torch.bool)

    def after(canvas: list[int], logits: Tensor, hidden: Tensor) -> dict[tuple[int, ...], float]:
        """Of what is filled in from here."""
        laws = logits[0].log_softmax(-1)
        nats = [-float((laws[i].exp() * laws[i]).sum()) for i in range(places)]
        left = [i for i in range(places) if canvas[i] == MASKED]
        if not left:
            return {tuple(canvas): 1.0}
        i = min(left, key=lambda place: nats[place])
        drawn, found = (logits[0, i] / temperature).softmax(-1), dict[tuple[int, ...], float]()
        for token, chance in enumerate(drawn.tolist()):
            shown = [*canvas[:i], token, *canvas[i + 1 :]]
            canvas_now, before = torch.tensor([shown]), torch.tensor([MASKED])
            states, scores = refreshed(head, pair.dlm, canvas_now, hidden, every, before=before)
            found |= {x: chance * p for x, p in after(shown, scores, states).items()}
        return found

    law = after([MASKED] * places, *start)
    return [law[cell] for cell in itertools.product(range(pair.dlm.vocab_size), repeat=places)]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_forward_is_drawn_in_order_of_entropy_from_refreshed_laws(temperature: float) -> None:
    pair, head, runs = tabular_pair(2, 3, eos=False), layer(2), 3_000
    decoder = adjust(pair, head=head, tokens=3, temperature=temperature)
    counts = Counter(tuple(r.sequences[0]) for r in decode(decoder, [[]] * runs, seed=range(runs), max_new_tokens=3))
    cells = list(itertools.product(range(2), repeat=3))
    law = law_of(pair, head, temperature, 3)
    claim(chi_square([counts[cell] for cell in cells], law), f"adjust at {temperature}: {dict(counts)}")


def test_it_is_biased_for_the_target() -> None:
    """Its law, which real draws follow (above), is neither the target's nor the diffusion model's own."""
    pair = tabular_pair(2, 3, eos=False)
    own, exact = law_of(pair, layer(2), 1.0, 3), exact_law(ARTarget(pair.ar), 3)
    cells = list(itertools.product(range(2), repeat=3))
    assert sum(abs(p - exact[x]) for x, p in zip(cells, own, strict=True)) > 0.1
    [result] = decode(adjust(pair, head=layer(2), tokens=2), [[]], max_new_tokens=3)
    assert not result.proper
    assert result.forwards.dlm_forwards == result.forwards.dlm_rows == 2
    assert result.forwards.ar_forwards == 0


def test_it_stays_within_the_blocks_of_a_block_causal_model() -> None:
    from smc_bridge.models.tabular_blocks import TabularBlockDLM

    class Blocks:
        def __init__(self, pair: Any) -> None:
            self.ar, self.dlm = pair.ar, TabularBlockDLM(pair.ar, block_size=2, noise=0.5)

    pair = Blocks(tabular_pair(2, 6, eos=False))
    [result] = decode(adjust(pair, head=layer(2), tokens=4), [[0]], max_new_tokens=5)
    assert len(result.sequences[0]) == 5
    assert result.forwards.dlm_forwards == 3  # places 1, 2 and 3, 4 and 5


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no part": (lambda: adjust(bare_pair()), "adjust needs a trained network, which this pair does not have"),
    "another size": (lambda: adjust(tabular_pair(), head=layer(3)), "head reads 3 features and 3 numbers"),
    "no layer": (lambda: smc(tabular_pair(), proposal="adjust", head=torch.nn.Linear(2, 2)), "give a Refiner"),
    "head of none": (lambda: smc(tabular_pair(), head=layer(2)), "head = .* with proposal = 'marginals', which has"),
    "tokens": (lambda: adjust(tabular_pair(), head=layer(2), tokens=0), "tokens = 0: commit at least 1"),
    "odd": (lambda: Refiner(hidden=2, embedding=2, size=3), "size = 3 with heads = 4 and key_heads = 2: give an even"),
    "rule": (
        lambda: AdjustedCanvas(dlm(tabular_pair(), tokens=None, lookahead=None), layer(2)), "plain = .*Ordered"
    ),
    "reuse": (
        lambda: Adjusted(DLMProposal(tabular_pair().dlm, reuse=0.5), head=layer(2)), "reuse = 0.5 of a chain's"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_parameters_are_told_in_one_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# The layer and its training.


@pytest.fixture(scope="module")
def paths() -> tuple[Any, training.Trajectories]:
    """The embedded pair, and four short trajectories of its diffusion model."""
    pair = load_pair("arithmetic", device="cpu")
    prompts = [pair.encode(problem.prompt) for problem in problems.splits(4, DRAFTED).train]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LIMIT", 24)
        return pair, training.written(pair, prompts, seed=0)


def test_the_layer_sees_all_places_that_are_there_and_no_other() -> None:
    head, generator = layer(3), torch.Generator().manual_seed(0)
    embedded, hidden = (torch.randn(1, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    there = torch.tensor([[True, True, True, False, True]])
    plain = head(embedded, hidden, there)
    assert torch.equal(layer(3, places=3)(embedded, hidden, there)[:, 3:], hidden[:, 3:])
    for j in range(5):
        other = embedded.clone()
        other[0, j] += torch.tensor([1.0, -1.0, 0.5])
        moved = (head(other, hidden, there) - plain).abs().amax(-1)[0] > 1e-9
        assert moved.tolist() == [i == j or bool(there[0, j]) for i in range(5)]


def test_a_place_stands_beside_the_token_of_the_column_whose_output_it_is() -> None:
    canvas, before = torch.tensor([[4, MASKED, 6]]), torch.tensor([9])
    assert columns(canvas, before, shift=False).tolist() == [[4, MASKED, 6]]
    assert columns(canvas, before, shift=True).tolist() == [[9, 4, MASKED]]
    assert last_of(Prefix.of([[5, 7], [], [8]])).tolist() == [7, MASKED, 8]


@pytest.mark.filterwarnings("ignore:intermediate Proposal has probability 0")
def test_both_forms_read_the_token_before_a_shifted_window(paths: tuple[Any, training.Trajectories]) -> None:
    """The first two tokens of a forward, drawn greedily, by the layer itself on the embedded pair."""
    pair, _ = paths
    torch.manual_seed(0)
    head = Refiner.untrained(pair.dlm).requires_grad_(False)
    torch.nn.init.constant_(head.norm_out.weight, 20.0)
    prompt = pair.encode("Ann has 3 apples. Ann buys 4. How many has Ann now?")
    session = pair.dlm.session(prompt[None], torch.tensor([len(prompt)]))
    start = session.score(torch.tensor([0]), torch.full((1, 4), MASKED), hidden=True)
    ban = torch.zeros(pair.dlm.vocab_size).index_fill(0, torch.tensor(pair.dlm.banned_ids), -torch.inf)
    one = int((start.logits[0, 0] + ban).argmax())
    shown = pair.dlm.embed(torch.tensor([[int(prompt[-1]), one, MASKED, MASKED]]))
    states = head(shown, start.hidden, torch.ones(1, 4, dtype=torch.bool))
    expected = [one, int((pair.dlm.head(states)[0, 1] + ban).argmax())]
    assert expected[1] != int((start.logits[0, 1] + ban).argmax())
    decoder = adjust(pair, head=head, tokens=2, order="left_to_right", lookahead=4, temperature=0)
    chain = smc(pair, 1, proposal="adjust", head=head, kernel="accept-all", window=4, lookahead=4,
                proposal_temperature=0.01)
    for each in (decoder, chain):
        [result] = decode(each, [prompt.tolist()], seed=0, max_new_tokens=4)
        assert result.sequences[0][:2] == expected


def test_states_of_a_trajectory_are_the_models_own(paths: tuple[Any, training.Trajectories]) -> None:
    """One token more after every forward, in the row's order; features of the canvas that is known then."""
    pair, own = paths
    prompts = [pair.encode(problem.prompt).tolist() for problem in problems.splits(4, DRAFTED).train]
    for r, prompt in enumerate(prompts):
        begin = torch.tensor([6])
        row = torch.tensor([r])
        canvas, ahead = own.canvas(row, begin, 0)
        start = int(own.start[r, 6])
        assert int((own.time[r] < 6).sum()) == 6
        assert ((canvas == MASKED) == (ahead >= 0)).all()
        text = torch.tensor([prompt + own.tokens[r, :start].tolist()])
        found = pair.dlm.session(text, torch.tensor([text.shape[1]])).score(torch.tensor([0]), canvas, hidden=True)
        states, known = own.states(row, begin, 0)
        assert known.all()
        if r in (0, 1):  # those rows were shown no masks behind, or few: the cache and half precision remain
            law, held = pair.dlm.head(found.hidden).softmax(-1), pair.dlm.head(states).softmax(-1)
            assert float((law - held).abs().sum(-1).mean()) < 0.5
        later, there = own.states(row, begin, 3)
        moved = int(own.start[r, 9]) - start
        assert torch.equal(later[0, moved:], own.hidden[r, 9, : training.PLACES - moved].float())
        assert there[0].tolist() == [i >= moved for i in range(training.PLACES)]


def test_a_reduced_training_learns_and_repeats(
    paths: tuple[Any, training.Trajectories], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On four short trajectories: the layer says more of the states reached than the marginals do."""
    pair, own = paths
    monkeypatch.setattr(training, "written", lambda *_, **__: own)
    for name, value in {"EXAMPLES": 8, "DEPTH": 4, "KEPT": 2, "PROBLEMS": 4, "RATE": 5e-3}.items():
        monkeypatch.setattr(training, name, value)
    trained = training.train(pair, seed=1, steps=50)
    with torch.no_grad():
        rows, begin = torch.tensor([1, 3]).repeat(8), torch.arange(16)
        found = training.losses_of(trained.module, pair, own, rows, begin, 3)
    assert found.law < 0.8 * found.before, found
    again, once_more, other = (training.train(pair, seed=seed, steps=2) for seed in (0, 0, 2))
    assert again.loss == once_more.loss != other.loss
    assert all(torch.equal(x, y) for x, y in zip(again.module.parameters(), once_more.module.parameters(), strict=True))
