"""Block-causal diffusion models: the mask against transformers under a mask made here, and a cache that is exact.

Place i sees place j iff `j // size <= i // size`, blocks counted from the first token of the prompt.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from smc_bridge.models.caches import FinishedBlocks
from smc_bridge.models.huggingface import HuggingFaceMaskedLM
from smc_bridge.models.pair import pair_from_models
from smc_bridge.models.protocols import ABSENT, MASKED
from tests.models.checkpoints import make_tokenizer

A = 23
MASK_ID = 3
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
SIZES = [1, 3, 4, 32]


def blocks(model: Any, shift: bool, size: int, **options: Any) -> HuggingFaceMaskedLM:
    return HuggingFaceMaskedLM(model, mask_id=MASK_ID, shift=shift, eos_id=2, block_size=size, **options)


def ids(*shape: int, seed: int, device: torch.device) -> Tensor:
    return torch.randint(4, A, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def alone(model: Any, shift: bool, size: int, prefix: Tensor, canvas: Tensor) -> Tensor:
    """transformers' logits of a row's canvas, `[M, A]`, by one forward of all its tokens under a mask written out."""
    shown = torch.cat([prefix, canvas.masked_fill(canvas == MASKED, MASK_ID)])
    total = len(shown)
    mask = torch.full((1, 1, total, total), torch.finfo(torch.float32).min, device=shown.device)
    for i in range(total):
        for j in range(total):
            if j // size <= i // size:
                mask[0, 0, i, j] = 0.0
    with torch.no_grad():
        out = model(input_ids=shown[None], attention_mask=mask, use_cache=False).logits[0]
    first = len(prefix) - int(shift)
    return out[first : first + len(canvas)]


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_a_place_sees_its_own_block_and_those_before(tiny_model, prefixes, device, kind, size, shift, cache):
    """Ragged rows, tokens filled in, places that a row does not have, and a canvas across the ends of blocks."""
    model = tiny_model(kind)
    tokens, length = prefixes
    canvas = torch.full((4, 6), MASKED, device=device)
    canvas[1:3, 4], canvas[0, 1], canvas[3, 5] = 9, 7, ABSENT
    session = blocks(model, shift, size, cache=cache).session(tokens, length)
    for _ in range(2):
        scores = session.score(torch.arange(4, device=device), canvas)
        for r, n in enumerate(length.tolist()):
            row = canvas[r][canvas[r] != ABSENT]
            own = alone(model, shift, size, tokens[r, :n], row)
            torch.testing.assert_close(scores[r, : len(row)], own, **CLOSE)


def test_the_block_mask_tells_from_full_attention(tiny_model, prefixes, device):
    model = tiny_model("qwen2")
    tokens, length = prefixes
    rows, canvas = torch.arange(4, device=device), torch.full((4, 6), MASKED, device=device)
    block, full = (
        HuggingFaceMaskedLM(model, mask_id=MASK_ID, shift=True, eos_id=2, block_size=size)
        .session(tokens, length).score(rows, canvas) for size in (4, None)
    )
    assert float((block - full).abs().max()) > 1e-2


def test_the_last_token_of_a_finished_block_predicts_the_next_and_does_not_see_it(tiny_model, device):
    """Shifted outputs (Fast-dLLM v2): what the new block holds changes every place of it but the first."""
    tokens, row = ids(1, 8, seed=1, device=device), torch.tensor([0], device=device)
    session = blocks(tiny_model("qwen2"), True, 4, cache="prefix").session(tokens, torch.tensor([8], device=device))
    blank, revealed = torch.full((1, 4), MASKED, device=device), torch.tensor([[MASKED, 9, MASKED, 5]], device=device)
    gap = (session.score(row, blank) - session.score(row, revealed)).abs().amax(-1)[0]
    assert float(gap[0]) < 1e-5
    assert float(gap[1:].min()) > 1e-3


class Keeping(FinishedBlocks):
    """Wrong: an unfinished block is taken for final."""

    def kept(self, length: int, place: int, prompt: int) -> int:
        return length


def play(model: HuggingFaceMaskedLM, size: int, data: Any, device: torch.device) -> float:
    """Greatest gap between a session's scores and those of recomputing them, over commits, crops and gathers."""
    tokens, start = ids(4, 8, seed=4, device=device), [5, 1, 8, 1]
    tokens[3] = tokens[1]  # two equal rows
    session = model.session(tokens, torch.tensor(start, device=device))
    texts = [tokens[r, :n] for r, n in enumerate(start)]
    worst = 0.0
    for step in range(7):
        rows = len(texts)
        match data.draw(st.sampled_from(["commit", "commit", "gather", "crop", "reseat", "nothing"])):
            case "commit":
                block = ids(rows, 5, seed=10 + step, device=device)
                block[-1] = block[0]
                count = data.draw(st.lists(st.integers(0, 5), min_size=rows, max_size=rows))
                session.commit(block, torch.tensor(count, device=device))
                texts = [torch.cat([t, block[r, : count[r]]]) for r, t in enumerate(texts)]
            case "gather":
                many = data.draw(st.sampled_from([rows, rows, 3, 5]))
                source = data.draw(st.lists(st.integers(0, rows - 1), min_size=many, max_size=many))
                session.gather(torch.tensor(source, device=device))
                texts = [texts[a] for a in source]
            case "crop":
                left = [data.draw(st.integers(1, len(t))) for t in texts]
                session.crop(torch.tensor(left, device=device))
                texts = [t[:n] for t, n in zip(texts, left, strict=True)]
            case "reseat":
                prompt = ids(6, seed=20 + step, device=device)
                session.crop(torch.tensor([0, *map(len, texts[1:])], device=device))
                session.commit(prompt.expand(rows, -1), torch.tensor([6] + [0] * (rows - 1), device=device))
                texts[0] = prompt
        asked = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=5))
        width = data.draw(st.integers(1, size + 2))
        canvas = torch.full((len(asked), width), MASKED, device=device)
        canvas[0, 0] = data.draw(st.sampled_from([MASKED, 9]))
        canvas[-1, width - 1] = data.draw(st.sampled_from([MASKED, ABSENT])) if width > 1 else MASKED
        scores = session.score(torch.tensor(asked, device=device), canvas)
        for b, r in enumerate(asked):
            row = canvas[b][canvas[b] != ABSENT]
            own = alone(model.model, model.shift, size, texts[r], row)
            worst = max(worst, float((scores[b, : len(row)] - own).abs().max()))
    return worst


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("size", [1, 3, 4])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_finished_blocks_are_cached_exactly(tiny_model, device, size, shift, data):
    """Commits of all sizes, crops into blocks, gathers, new prompts in a row, rows given twice: to round-off."""
    assert play(blocks(tiny_model("qwen2"), shift, size, cache="prefix"), size, data, device) < 1e-4


@pytest.mark.parametrize("shift", [True, False])
def test_scores_are_a_function_of_tokens_and_an_unfinished_block_that_is_kept_is_caught(
    tiny_model, device, shift, monkeypatch
):
    model = blocks(tiny_model("qwen2"), shift, 4, cache="prefix")
    tokens, row = ids(1, 9, seed=1, device=device), torch.tensor([0], device=device)

    def gap() -> float:
        """Between a session that scored the row at 6 tokens, in a block, and recomputation."""
        session = model.session(tokens[:, :6], torch.tensor([6], device=device))
        assert not session.has_history
        canvas = torch.full((1, 3), MASKED, device=device)
        session.score(row, canvas)
        session.commit(tokens[:, 6:], torch.tensor([3], device=device))
        own = alone(model.model, shift, 4, tokens[0], canvas[0])
        return float((session.score(row, canvas)[0] - own).abs().max())

    assert gap() < 1e-4
    monkeypatch.setattr(model, "policy", Keeping(4))
    assert gap() > 1e-3


@pytest.mark.parametrize("shift", [True, False])
def test_a_forward_is_over_the_unfinished_block_and_the_canvas(tiny_model, device, shift, monkeypatch):
    """What the exact cache is for: tokens run by each forward, a row at 9, 11, 12 and 14 tokens, blocks of 4."""
    model = blocks(tiny_model("qwen2"), shift, 4, cache="prefix")
    widths, forward = [], HuggingFaceMaskedLM.forward

    def watched(self: HuggingFaceMaskedLM, fresh: Any, lookahead: int, cache: Any = None, **options: Any) -> Tensor:
        widths.append(fresh.ids.shape[1])
        return forward(self, fresh, lookahead, cache, **options)

    monkeypatch.setattr(HuggingFaceMaskedLM, "forward", watched)
    tokens, row = ids(1, 14, seed=1, device=device), torch.tensor([0], device=device)
    session = model.session(tokens[:, :9], torch.tensor([9], device=device))
    for before, after in ((9, 9), (9, 11), (11, 12), (12, 12), (12, 14)):
        session.commit(tokens[:, before:after], torch.tensor([after - before], device=device))
        session.score(row, torch.full((1, 4 - after % 4), MASKED, device=device))
    last = int(shift)
    assert widths == [12, 4, 8, 4 + last, 4]


def test_a_pair_of_models_that_are_loaded_has_the_blocks_and_the_cache_that_it_is_given(tiny_model):
    two = tiny_model("qwen2", vocab_size=22), tiny_model("llama", vocab_size=22), make_tokenizer()
    plain: Any = pair_from_models(*two, shift=False)
    assert (plain.dlm.block_size, plain.dlm.cache) == (None, "none")
    block: Any = pair_from_models(*two, shift=False, block_size=4, dlm_cache="auto")
    assert (block.dlm.block_size, block.dlm.cache) == (4, "prefix")
