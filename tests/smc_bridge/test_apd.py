"""APD: the exact coupling form draws from the product of experts; the published forms do not, each in its own way."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.blocks import full_horizon
from smc_bridge.decode import decode
from smc_bridge.distributions.table import Dense
from smc_bridge.engine.weights import never
from smc_bridge.kernels.agreement import Agreement
from smc_bridge.methods.apd import apd
from smc_bridge.models.tabular import TabularCausalSession, TabularDiffusionSession
from smc_bridge.prefix import PAD
from smc_bridge.proposals.protocol import Draft
from smc_bridge.registry import METHODS, spelled
from smc_bridge.testing import assert_biased, tabular_pair
from tests.smc_bridge.claims import chi_square, claim
from tests.smc_bridge.programs import target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program

PAIR = tabular_pair(3, 3, eos=False, noise=1.5)
W = 0.7
#: Draws of a form; a distance of .02 to its law has a p-value below 1e-10.
ROWS = 40_000


def marginals(temperature: float = 1.0) -> Tensor:
    """`log q_1, log q_2` of the DLM after the empty prompt, `[2, A]`."""
    empty = torch.zeros(1, 0, dtype=torch.long)
    scores = PAIR.dlm.session(empty, torch.tensor([0])).score(torch.tensor([0]), torch.full((1, 3), -1))[0, :2]
    return torch.log_softmax(scores / temperature, -1)


def product(log_q: Tensor, log_p: Tensor) -> np.ndarray:
    """The product of experts in plain numpy."""
    found = np.exp(W * log_q.numpy() + (1 - W) * log_p.numpy())
    return found / found.sum(-1, keepdims=True)


def conditional(*prefix: int) -> Tensor:
    """`log p( . | prefix)`, `[A]`."""
    tokens = torch.tensor([prefix], dtype=torch.long).reshape(1, -1)
    return PAIR.ar.log_conditional(tokens, torch.tensor([len(prefix)]))[0]


def first_blocks(form: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first block of many independent rows: tokens `[R, 2]`, `PAD` past its end, and lengths."""
    sampler = replace(apd(PAIR, form=form, window=2, lookahead=3), particles=ROWS, trigger=never)
    state = sampler.step(sampler.start([[]], seed=seed, max_new_tokens=3))
    length = state.prefix.length.numpy()
    tokens = np.full((ROWS, 2), PAD)
    tokens[:, : state.prefix.tokens.shape[1]] = state.prefix.tokens.numpy()
    return tokens, length


def distance(tokens: np.ndarray, law: np.ndarray) -> float:
    """Total variation between what was drawn and a law."""
    return float(abs(np.bincount(tokens, minlength=law.size) / tokens.size - law).sum() / 2)


def test_every_token_of_the_exact_form_is_a_draw_of_the_product() -> None:
    """The first one, and the second given that the first agreed; distances are those of noise."""
    tokens, length = first_blocks("exact", 1)
    q, cells = marginals(), []
    first = product(q[0], conditional())
    cells.append((tokens[:, 0], first, "first token"))
    for a in range(3):
        agreed = (tokens[:, 0] == a) & (length == 2)
        cells.append((tokens[agreed, 1], product(q[1], conditional(a)), f"second token after {a}"))
    for drawn, law, what in cells:
        claim(chi_square(np.bincount(drawn, minlength=3), law), f"apd, exact form, {what}, {drawn.size} draws")
        assert distance(drawn, law) < 2.5 / drawn.size**0.5
    assert distance(tokens[:, 0], q[0].exp().numpy()) > 0.03, "noise is small against the distance of the experts"


def test_the_first_token_of_the_papers_form_is_the_diffusion_models() -> None:
    tokens, _ = first_blocks("as-published", 2)
    q = marginals()[0].exp().numpy()
    first = product(marginals()[0], conditional())
    claim(chi_square(np.bincount(tokens[:, 0], minlength=3), q), "apd, paper's form, first token is the DLM's")
    apart = abs(q - first).sum() / 2
    assert distance(tokens[:, 0], first) == pytest.approx(apart, abs=0.01)
    assert apart > 0.03


def test_the_papers_form_goes_on_as_far_as_the_exact_one_agrees() -> None:
    """P(more than one token) is the chance that both the first and the second draft agree with the sample."""
    q = marginals().exp().numpy()
    pi = product(marginals()[0], conditional())
    one = [1 / np.maximum(pi / pi[a], q[0] / q[0][a]).sum() for a in range(3)]
    follow = [product(marginals()[1], conditional(a)) for a in range(3)]
    two = [sum(1 / np.maximum(r / r[b], q[1] / q[1][b]).sum() for b in range(3)) for r in follow]
    expected = np.array([a * b for a, b in zip(one, two, strict=True)])
    tokens, length = first_blocks("as-published", 3)
    counts = np.bincount(tokens[length == 2, 0], minlength=3)
    observed = np.array([*counts, ROWS - counts.sum()])
    claim(chi_square(observed, np.array([*expected, 1 - expected.sum()])), "apd, paper's form, blocks of two tokens")


def test_the_first_token_of_the_released_form_is_drawn_at_the_squared_temperature() -> None:
    sampler = apd(PAIR, form="as-released", temperature=0.6, window=2, lookahead=3)
    sampler = replace(sampler, particles=ROWS, trigger=never)
    state = sampler.step(sampler.start([[]], seed=4, max_new_tokens=3))
    law = marginals(0.36)[0].exp().numpy()
    observed = np.bincount(state.prefix.tokens[:, 0].numpy(), minlength=3)
    claim(chi_square(observed, law), "apd, released form, first token at T^2")
    assert distance(state.prefix.tokens[:, 0].numpy(), marginals(0.6)[0].exp().numpy()) > 0.03


@pytest.mark.parametrize("temperature", [0.2, 0.6, 1.0, 3.0])
def test_the_released_form_accepts_by_the_argmax_of_the_raw_product(temperature: float) -> None:
    raw_q, raw_p = torch.randn(2, 500, 7, generator=torch.Generator().manual_seed(1)).double() * 2
    law = apd(PAIR, form="as-released", temperature=temperature).intermediate
    found = law.log_prob(torch.log_softmax(raw_q / temperature**2, -1), torch.log_softmax(raw_p / temperature, -1))
    assert torch.equal(found.argmax(-1), (W * raw_q + (1 - W) * raw_p).argmax(-1))


def test_the_greedy_kernel_commits_what_agrees_and_at_least_one_token() -> None:
    """All drafts of three tokens, and those without a first one."""
    pi = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]).log()
    drafts = torch.tensor([*itertools.product(range(3), repeat=3)])
    laws = Dense(pi.expand(len(drafts), 3, 3))
    horizon = full_horizon(len(drafts), 3)
    draft = Draft(drafts, laws, horizon.window)
    move = Agreement()(draft, laws, source=torch.Generator(), horizon=horizon)
    for drafted, block, length, accepted in zip(*(x.tolist() for x in (drafts, *move)), strict=True):
        agreed = next((i for i, token in enumerate(drafted) if token != (1, 0, 2)[i]), 3)
        kept = max(1, agreed)
        assert (block[:kept], length, accepted) == (drafted[:kept], kept, agreed), drafted


@pytest.mark.parametrize("eos", [None, 1])
def test_the_exact_form_is_properly_weighted_for_the_ar_law(eos: int | None) -> None:
    """By the coupling's closed form, on every path."""
    sampler = apd(tabular_pair(2, 3, eos=eos is not None), window=2, lookahead=3)
    gap, where = worst(enumerate_program(sampler, 3).proper, target_law(sampler, 3))
    assert gap < 1e-12, where
    assert sampler.proper
    assert not sampler.exact, "weights are p / pi"


@pytest.mark.parametrize("form", ["as-published", "as-released"])
def test_the_published_forms_are_biased_and_say_so(form: str) -> None:
    sampler = apd(tabular_pair(3, 3), form=form)
    assert ("Agreement" if form == "as-released" else "FirstForced") in sampler.why_improper()[0]
    assert_biased(sampler, least=0.02, runs=1_000)


@pytest.mark.parametrize("form", ["exact", "as-published", "as-released"])
def test_draws_do_not_depend_on_the_batch(form: str) -> None:
    sampler = apd(tabular_pair(3, 6), form=form, window=2, lookahead=4, temperature=0.8)
    prompts: list[list[int]] = [[], [0], [1, 0], [0, 1]]
    together = [decode(sampler, prompts, seed=5, max_new_tokens=4, batch=batch) for batch in (None, 2)]
    for place, prompt in enumerate(prompts):
        [alone] = decode(sampler, [prompt], seed=5, max_new_tokens=4)
        for found in together:
            assert found[place].sequences == alone.sequences
            assert found[place].forwards == alone.forwards


@pytest.mark.parametrize("form", ["exact", "as-published", "as-released"])
def test_every_forward_is_counted(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[type, list[int]] = {TabularDiffusionSession: [], TabularCausalSession: []}
    for session, rows in calls.items():
        def counting(self: Any, at: Tensor, *given: Any, real: Any = session.score, rows: list[int] = rows) -> Tensor:
            rows.append(at.numel())
            return real(self, at, *given)

        monkeypatch.setattr(session, "score", counting)
    [result] = apd(PAIR, form=form, window=2, lookahead=3).run([[]], seed=1, max_new_tokens=3)
    dlm, ar = calls.values()
    found = result.forwards
    assert (found.dlm_forwards, found.dlm_rows, found.ar_forwards, found.ar_rows) == (
        len(dlm), sum(dlm), len(ar), sum(ar))


@pytest.mark.parametrize(("options", "words"), [
    ({"form": "papr"}, "form = 'papr': give exact, as-published or as-released"),
    ({"w": 1.5}, "w = 1.5"),
    ({"form": "as-released", "temperature": -1}, "^temperature = -1: give 0 for"),
    ({"form": "as-released", "temperature": float("nan")}, "^temperature = nan: give 0 for"),
    ({"form": "as-released", "temperature": 1e200}, r"^temperature = 1e\+200: give 0 for"),
    ({"form": "as-released", "temperature": 1e30}, r"^temperature = 1e\+30 with form = as-released.*: give a number"),
    ({"form": "as-released", "temperature": 1e-30}, r"^temperature = 1e-30 with form = as-released.*: give a number"),
    ({"form": "as-released", "temperature": 0}, "temperature = 0 with form = as-released.*: give a positive"),
])
def test_bad_options_are_named_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        apd(PAIR, **options)
    assert "\n" not in str(caught.value)


def test_it_says_what_it_is() -> None:
    found = METHODS["apd"]
    assert (found.role, found.targets, found.proper) == ("exact", "PoE", True)
    without = {"particles", "lanes", "kernel", "intermediate", "places", "entropy"}
    assert not without & {option.name for option in found.options}
    assert [spelled(text).make(PAIR).proper for text in found.examples] == [True, False, False]
