"""Block-causal diffusion models in the program: drafts end with the block, and all of it is exact by enumeration."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from smc_bridge import (
    ARTarget,
    BlockVerification,
    DLMProposal,
    GumbelCoupling,
    Mixture,
    ProductOfExperts,
    Rejection,
    Sampler,
    TreeWalk,
    paper,
    smc,
    tree_walk,
)
from smc_bridge.canvas import decoder as canvas_module
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.rules import AllAtOnce, CommitRule, Ordered, Reconsider
from smc_bridge.decode import decode
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM
from smc_bridge.models.protocols import MASKED
from smc_bridge.prefix import Prefix
from smc_bridge.proposals import mean_field
from smc_bridge.proposals.chain import PrefixFilled
from smc_bridge.proposals.path import MostLikelyPath
from smc_bridge.proposals.protocol import Asked
from smc_bridge.pyro_program.program import BridgeProgram
from smc_bridge.randomness import PromptSource
from smc_bridge.testing import TabularPair, assert_proper, outcomes, tabular_pair
from tests.smc_bridge.programs import target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program

PAIR = tabular_pair(2, 3, block_size=2, noise=1.2)
FORMS: dict[str, Callable[[DLMProposal], Any]] = {
    "marginals": lambda base: base, "chain": PrefixFilled, "path": MostLikelyPath,
}


def program(form: str, pair: TabularPair = PAIR, **options: Any) -> Sampler:
    given: dict[str, Any] = {"window": 3, "particles": 2, "intermediate": Mixture(0.5), **options}
    return Sampler(FORMS[form](DLMProposal(pair.dlm, lookahead=3)), ARTarget(pair.ar), **given)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("window", [1, 3])
def test_drafts_end_with_the_block_of_their_row(form: str, window: int) -> None:
    pair = tabular_pair(2, 8, block_size=3)
    proposal = FORMS[form](DLMProposal(pair.dlm, lookahead=4))
    prefix = Prefix.of([[0] * n for n in range(7)])
    rows = torch.arange(7)
    asked = Asked(rows, prefix, torch.full_like(rows, 4), 1, window, Chunks())
    source = PromptSource([torch.Generator().manual_seed(i) for i in range(7)], 1)
    draft = proposal.draft(proposal.open(prefix, particles=1), asked, source=source)
    assert draft.width.tolist() == [min(window, 3 - n % 3) for n in range(7)]


@pytest.mark.parametrize("name", ["smc", "paper", "tree", "poe", "block verification"])
def test_programs_are_proper_on_every_outcome(name: str) -> None:
    assert_proper({
        "smc": lambda: smc(PAIR, 2, w=0.4, window=3, lookahead=3),
        "paper": lambda: paper(PAIR, lanes=2, w=0.5, window=3, lookahead=3, temperature=1.0),
        "tree": lambda: tree_walk(PAIR, particles=2, nodes=3, w=0.5, window=3, lookahead=3),
        "poe": lambda: program("marginals", intermediate=ProductOfExperts(0.4), lanes=2, particles=1),
        "block verification": lambda: program("marginals", kernel=BlockVerification()),
    # Cold lanes weigh tokens that they hardly draw by thousands: round-off of the sum is so much greater, more on one
    # processor than on another (3e-12 seen).
    }[name](), tolerance=1e-11 if name == "paper" else 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", [Rejection, BlockVerification])
def test_every_proposal_is_exact_on_every_outcome(form: str, kernel: Callable[[], Any]) -> None:
    assert_proper(program(form, kernel=kernel()))


@pytest.mark.parametrize("kernel", [Rejection(), GumbelCoupling(), TreeWalk(3)], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_blocks_of_every_size_are_exact_by_the_kernels_closed_form(size: int, kernel: Any) -> None:
    """Over the ends of blocks: three places of blocks of one, of two, and one block."""
    sampler = program("marginals", tabular_pair(2, 3, block_size=size, noise=1.2), kernel=kernel)
    gap, where = worst(enumerate_program(sampler, 3).proper, target_law(sampler, 3))
    assert gap < 1e-12, where


def test_a_draft_past_the_block_is_worse_and_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights account for whatever was drafted: the end of the block is a matter of acceptance alone."""
    seen: list[int] = []

    def past(model: Any, length: Any, places: Any) -> Any:
        seen.append(int(places.max()))
        return places

    monkeypatch.setattr(mean_field, "within_block", past)
    assert_proper(program("marginals"))
    assert max(seen) == 3, "nothing was drafted past the block"


@pytest.mark.parametrize("form", FORMS)
def test_a_retained_sequence_is_drafted_along_its_own_laws(form: str) -> None:
    """Conditional SMC with an exact retained draw: `E[1 / Z_hat] = 1`, and particle Gibbs keeps the target."""
    sampler = program(form)
    law = target_law(sampler, 3)
    found = enumerate_program(sampler, 3, retained=law)
    assert abs(found.inverse_evidence - 1.0) < 1e-12
    gap, where = worst(found.output, law)
    assert gap < 1e-12, where


def test_the_program_in_pyro_drafts_to_the_end_of_the_block() -> None:
    for prompt, width in (([], 2), ([1], 1)):
        written = BridgeProgram(smc(PAIR, 2, w=0.5, window=2, lookahead=3), prompt, max_new_tokens=2)
        assert written._refresh(written.start(2)).width.tolist() == [width, width]


def test_a_pace_reckons_with_drafts_of_a_block_at_most() -> None:
    assert smc(PAIR, 1, window="auto", lookahead="auto").sizes.lookahead == 2
    assert smc(tabular_pair(2, 3), 1, window="auto", lookahead="auto").sizes.lookahead > 2


# The decoder of the diffusion model alone


class Walk:
    """The law of block-wise decoding by listing its draws, in plain Python: a block is filled, then the next."""

    def __init__(self, pair: TabularPair, order: str, tokens: int, limit: int) -> None:
        self.pair, self.order, self.tokens, self.limit = pair, order, tokens, limit
        self.size: int = pair.dlm.block_size  # type: ignore[attr-defined]

    def laws(self, known: list[int], block: list[int | None]) -> list[list[float]]:
        """Of the places of a block, what is known before it being the prefix."""
        prefix = torch.tensor([known], dtype=torch.long).reshape(1, -1)
        session = self.pair.dlm.session(prefix, torch.tensor([len(known)]))
        shown = torch.tensor([[MASKED if x is None else x for x in block]])
        return torch.softmax(session.score(torch.tensor([0]), shown)[0], -1).tolist()  # type: ignore[no-any-return]

    def block(self, known: list[int], block: list[int | None]) -> dict[tuple[int, ...], float]:
        """Probability of every way to fill a block."""
        empty = [i for i, x in enumerate(block) if x is None]
        if not empty:
            return {tuple(x for x in block if x is not None): 1.0}
        laws = self.laws(known, block)
        if self.order == "confidence":
            empty.sort(key=lambda i: -max(laws[i]))
        drawn = [(block, 1.0)]
        for i in empty[: self.tokens]:
            drawn = [
                ([*filled[:i], token, *filled[i + 1 :]], mass * share)
                for filled, mass in drawn for token, share in enumerate(laws[i])
            ]
        found: dict[tuple[int, ...], float] = defaultdict(float)
        for filled, mass in drawn:
            for whole, share in self.block(known, filled).items():
                found[whole] += mass * share
        return found

    def law(self, prompt: list[int]) -> dict[tuple[int, ...], float]:
        """Probability of every continuation."""
        growing: dict[tuple[int, ...], float] = {(): 1.0}
        while len(next(iter(growing))) < self.limit:
            before = len(next(iter(growing)))
            place = len(prompt) + before
            width = min(self.size - place % self.size, self.limit - before)
            growing = {
                (*text, *block): mass * share
                for text, mass in growing.items()
                for block, share in self.block([*prompt, *text], [None] * width).items()
            }
        return growing


def decoder_law(decoder: Canvas, prompt: list[int], limit: int) -> dict[tuple[int, ...], float]:
    """The law of the real decoder: every token that it draws is a branch."""
    found: dict[tuple[int, ...], float] = defaultdict(float)

    def run(source: Any) -> tuple[int, ...]:
        with mock.patch.object(canvas_module, "inverse_cdf", lambda log_q, uniform: source.categorical(log_q)):
            [result] = decode(decoder, [prompt], max_new_tokens=limit)
        return tuple(result.sequences[0])

    for probability, text in outcomes(run):
        found[text] += probability
    return found


@pytest.mark.parametrize(("rule", "order", "tokens"), [
    (Ordered(), "left_to_right", 1), (Ordered(tokens=2), "left_to_right", 2),
    (Ordered("confidence"), "confidence", 1), (Ordered("confidence", 2), "confidence", 2),
    (AllAtOnce(), "left_to_right", 9),
], ids=str)
@pytest.mark.parametrize("prompt", [[], [1], [0, 1]])
@pytest.mark.parametrize("lookahead", [3, 8])
def test_the_decoder_decodes_block_after_block(
    rule: CommitRule, order: str, tokens: int, prompt: list[int], lookahead: int
) -> None:
    pair = tabular_pair(2, 6, eos=False, block_size=3, noise=1.0)
    expected = Walk(pair, order, tokens, 4).law(prompt)
    found = decoder_law(Canvas(DLMProposal(pair.dlm, lookahead=lookahead), rule, None), prompt, 4)
    assert len(found) == 16
    gap = max(abs(found[x] - mass) for x, mass in expected.items())
    assert gap < 1e-12, f"{gap} with {rule}"


def test_a_span_is_narrower_than_a_block_or_ends_with_it() -> None:
    """Places that a rule may fill: with blocks of 3, after a prompt of one token, in spans of 2."""
    pair = tabular_pair(2, 6, eos=False, block_size=3)
    looks: list[list[list[int]]] = []

    class Watching(AllAtOnce):
        def __call__(self, look: Any) -> Any:
            looks.append([look.open[0].nonzero().flatten().tolist(), [look.canvas.shape[1]]])
            return super().__call__(look)

    decode(Canvas(DLMProposal(pair.dlm, lookahead=8), Watching(), 2), [[1]], max_new_tokens=5)
    assert looks == [[[0, 1], [2]], [[2, 3], [5]], [[4], [5]]]


@functools.cache
def networks() -> tuple[Any, Any]:
    """A causal and a bidirectional network in float64."""
    config = Qwen2Config(
        vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.4,
    )
    torch.manual_seed(3)
    return Qwen2ForCausalLM(config).double().eval(), Qwen2ForCausalLM(config).double().eval()


def network_pair(cache: Any, *, shift: bool) -> tuple[HuggingFaceMaskedLM, HuggingFaceCausalLM]:
    alphabet: dict[str, Any] = {"eos_id": 1, "vocab_size": 6}
    causal, bidirectional = networks()
    dlm = HuggingFaceMaskedLM(bidirectional, mask_id=6, shift=shift, block_size=3, cache=cache, **alphabet)
    return dlm, HuggingFaceCausalLM(causal, **alphabet)


PROMPTS = [[2], [0, 2, 3, 4], [5, 5, 2], [2], [3, 4, 0, 2, 2]]
RULES = {
    "in order": Ordered(), "two by confidence": Ordered("confidence", 2), "all": AllAtOnce(),
    "reconsidered": Reconsider(Ordered("confidence"), tokens=1, forwards=6),
}


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_a_decoder_with_the_exact_cache_draws_what_it_draws_without(rule: str, shift: bool) -> None:
    """Also under a rule that masks tokens of finished blocks again; prompts follow one another in a batch of two."""
    found = []
    for cache in ("none", "prefix"):
        dlm, _ = network_pair(cache, shift=shift)
        decoder = Canvas(DLMProposal(dlm, lookahead=8), RULES[rule], None)
        found.append(decode(decoder, PROMPTS, seed=range(5), max_new_tokens=9, batch=2))
    plain, cached = found
    assert [r.sequences for r in cached] == [r.sequences for r in plain]
    assert max(len(r.sequences[0]) for r in plain) > 6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shift", [True, False])
def test_a_program_with_the_exact_cache_draws_and_weighs_as_without(form: str, shift: bool) -> None:
    found = []
    for cache in ("none", "prefix"):
        dlm, ar = network_pair(cache, shift=shift)
        sampler = Sampler(
            FORMS[form](DLMProposal(dlm, lookahead=8)), ARTarget(ar), Mixture(0.5), particles=3, window=4
        )
        found.append(sampler.run(PROMPTS, seed=range(5), max_new_tokens=9, batch=2))
    for plain, cached in zip(*found, strict=True):
        assert cached.sequences == plain.sequences
        assert cached.log_weights == pytest.approx(plain.log_weights, abs=1e-9)
