"""Features are what a diffusion model's head reads of each place, whatever the model; scores stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge import load_pair
from smc_bridge.analysis.cache_errors import CacheMeter
from smc_bridge.models.huggingface import HuggingFaceMaskedLM
from smc_bridge.models.protocols import ABSENT, MASKED, FeaturedLM, Scored
from smc_bridge.models.tabular import LEAST_FEATURE, TabularAR, TabularDLM
from smc_bridge.models.tabular_blocks import TabularBlockDLM
from tests.models.families import FAMILIES, Family
from tests.models.test_cache_policies import POLICIES
from tests.models.test_families import load
from tests.models.test_head import MASKED_MODELS, POSITION, A, diffusion, network

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
#: Models whose logits are their head's outputs, and two whose are not: a bound, and log-probabilities.
PLAIN = [kind for kind in MASKED_MODELS if kind not in ("headless", "normalised")]
CHANGED = ["gemma2", "normalised"]
TOKENS, LENGTH = torch.randint(6, A, (3, 9), generator=torch.Generator().manual_seed(1)), torch.tensor([9, 2, 6])
CANVAS = torch.tensor([[MASKED] * 5, [MASKED, 7, MASKED, MASKED, ABSENT], [MASKED, MASKED, 8, ABSENT, ABSENT]])
ROWS, REAL = torch.arange(3), CANVAS != ABSENT


def scored(model: Any, **session: Any) -> Scored:
    return model.session(TOKENS, LENGTH).score(ROWS, CANVAS, hidden=True)


@pytest.mark.parametrize("cap", [None, 2 * POSITION])
@pytest.mark.parametrize("kind", PLAIN)
def test_the_head_makes_the_logits_of_the_features(kind: str, cap: int | None) -> None:
    model = diffusion(kind, cap=cap)
    logits, hidden = scored(model)
    assert isinstance(model, FeaturedLM)
    assert hidden.shape == (*CANVAS.shape, model.hidden_size)
    torch.testing.assert_close(logits[REAL], model.session(TOKENS, LENGTH).score(ROWS, CANVAS)[REAL], **CLOSE)
    torch.testing.assert_close(model.head(hidden)[REAL], logits[REAL], **CLOSE)


@pytest.mark.parametrize("cap", [None, 2 * POSITION])
@pytest.mark.parametrize("kind", CHANGED)
def test_where_logits_are_changed_features_are_still_what_the_head_reads(kind: str, cap: int | None) -> None:
    model = diffusion(kind, cap=cap)
    logits, hidden = scored(model)
    torch.testing.assert_close(logits[REAL], model.session(TOKENS, LENGTH).score(ROWS, CANVAS)[REAL], **CLOSE)
    read = model.model.get_output_embeddings()(hidden)
    read = 2 * torch.tanh(read / 2) if kind == "gemma2" else read.log_softmax(-1)
    torch.testing.assert_close(read[REAL], logits[REAL], **CLOSE)
    with pytest.raises(ValueError, match="its logits are not what its head gives"):
        model.head(hidden)


def test_features_are_the_last_hidden_states_at_the_column_that_predicts_the_place() -> None:
    own = network("qwen2")
    hidden = diffusion("qwen2", own).session(TOKENS, LENGTH).score(ROWS[:1], CANVAS[:1], hidden=True).hidden
    ids = torch.cat([TOKENS[0], torch.full((5,), 5)])[None]
    seen = torch.zeros(1, 1, 14, 14)
    with torch.no_grad():
        states = own(input_ids=ids, attention_mask=seen, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(hidden[0], states[0, 8:13], **CLOSE)  # shifted


def test_a_head_that_is_no_module_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^hidden = True: Unpadded has no head that is a module of its own"):
        scored(diffusion("headless"))


@pytest.mark.parametrize("kind", ["qwen2", "dit", "bert", "unpadded", "normalised"])
def test_a_row_has_the_features_that_it_has_alone(kind: str) -> None:
    """In another order, beside other rows, and where memory allows one row at a time."""
    model = diffusion(kind)
    session, hidden = model.session(TOKENS, LENGTH), scored(model).hidden
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(session.score(order, CANVAS[order], hidden=True).hidden[REAL[order]],
                               hidden[order][REAL[order]], **CLOSE)
    model.chunks.max_tokens = 1
    torch.testing.assert_close(scored(model).hidden[REAL], hidden[REAL], **CLOSE)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_features(name: str, tmp_path: Path) -> None:
    family: Family = FAMILIES[name]
    pair, _ = load(family, tmp_path, dlm_cache="prefix")
    prompt = torch.tensor([[4, 9, 5, 12, 7, 10, 15, 6, 13, 8]] * 2)
    dlm: Any = pair.dlm
    session = dlm.session(prompt, torch.tensor([10, 3]))
    for _ in range(2):
        canvas = torch.tensor([[MASKED, 5, MASKED, MASKED], [MASKED, MASKED, MASKED, ABSENT]])
        logits, hidden = session.score(ROWS[:2], canvas, hidden=True)
        assert hidden.shape == (2, 4, dlm.hidden_size)
        torch.testing.assert_close(dlm.head(hidden)[canvas != ABSENT], logits[canvas != ABSENT], **CLOSE)
        session.commit(torch.tensor([[5, 9], [6, 0]]), torch.tensor([2, 1]))


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("policy", ["none", *POLICIES])
def test_caches_keep_features_with_scores(tiny_model: Any, policy: str, shift: bool) -> None:
    """Over commits, gathers, crops and rows given twice; a session that was asked for features all along tells."""
    model = HuggingFaceMaskedLM(tiny_model("qwen2").double(), mask_id=3, shift=shift, eos_id=2, cache=policy)
    draw = np.random.default_rng(0)
    tokens, length = torch.tensor(draw.integers(4, 23, (3, 8))), torch.tensor([5, 2, 8])
    session, plain = model.session(tokens, length), model.session(tokens, length)
    for step in range(8):
        rows = torch.tensor(draw.integers(0, 3, 3))
        canvas = torch.tensor(np.where(draw.random((3, 6)) < 0.2, 7, MASKED))
        logits, hidden = session.score(rows, canvas, hidden=True)
        torch.testing.assert_close(logits, plain.score(rows, canvas), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.head(hidden), logits, rtol=1e-9, atol=1e-9)
        source = torch.tensor(draw.integers(0, 3, 3)) if step % 3 == 0 else torch.arange(3)
        left = torch.tensor([max(1, n - int(draw.integers(0, 2))) for n in (session.lengths[a] for a in source)])
        for each in (session, plain):
            each.gather(source)
            each.crop(left)
            each.commit(canvas.clamp_min(4), torch.tensor([step % 3, 1, 2]))


def test_a_dual_cache_that_is_asked_late_computes_its_blocks_anew(tiny_model: Any) -> None:
    model = HuggingFaceMaskedLM(tiny_model("qwen2").double(), mask_id=3, shift=True, eos_id=2, cache="dual:3")
    session = model.session(TOKENS.clamp_max(22), LENGTH)
    masks = torch.full((3, 7), MASKED)
    session.score(ROWS, masks)
    session.commit(torch.tensor([[7]] * 3), torch.ones(3, dtype=torch.long))
    logits, hidden = session.score(ROWS, masks, hidden=True)
    torch.testing.assert_close(model.head(hidden), logits, rtol=1e-9, atol=1e-9)
    exact = model.with_cache("none").session(session.tokens, session.length).score(ROWS, masks)
    torch.testing.assert_close(logits, exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(session.score(ROWS, masks), logits, rtol=1e-9, atol=1e-9)


def test_the_features_of_a_table_are_its_log_marginals() -> None:
    ar = TabularAR.random(3, 5, seed=1)
    rows, canvas = torch.tensor([1, 0]), torch.tensor([[MASKED, 2, MASKED]] * 2)
    for dlm in (TabularDLM(ar, noise=0.5), TabularBlockDLM(ar, block_size=2, noise=0.5)):
        session = dlm.session(torch.tensor([[0, 1]] * 2), torch.tensor([2, 1]))
        logits, hidden = session.score(rows, canvas, hidden=True)
        assert hidden.shape[-1] == dlm.hidden_size == 3
        assert torch.equal(logits, session.score(rows, canvas))
        assert torch.equal(dlm.head(hidden), logits.clamp_min(LEAST_FEATURE))
        assert hidden.isfinite().all()
        assert dlm.embed(canvas)[0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_what_stands_before_a_model_hands_features_on() -> None:
    dlm = load_pair("arithmetic", device="cpu").dlm
    meter = CacheMeter(dlm.with_cache("freecache:4"))
    logits, hidden = meter.session(TOKENS[:1].clamp_max(30), LENGTH[:1]).score(ROWS[:1], CANVAS[:1], hidden=True)
    torch.testing.assert_close(dlm.head(hidden), logits, **CLOSE)


def test_a_gradient_flows_to_the_features_and_to_no_weight(tiny_model: Any) -> None:
    model = HuggingFaceMaskedLM(tiny_model("qwen2"), mask_id=3, shift=True, eos_id=2)
    hidden: Tensor = torch.randn(2, 32, requires_grad=True)
    model.head(hidden).sum().backward()
    assert hidden.grad is not None
    assert bool(hidden.grad.any())
    assert all(weight.grad is None for weight in model.model.parameters())
    assert not model.embed(torch.tensor([4, MASKED])).requires_grad
