"""Cache policies of a diffusion model's sessions against their definitions, carried out row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.models.caches import CachePolicy, Dual, FinishedBlocks, FreeCache, Refreshed, Window, cache_named
from smc_bridge.models.huggingface import HuggingFaceMaskedLM
from smc_bridge.models.huggingface.masked_cache import PrefixCache
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.protocols import ABSENT, MASKED
from tests.models.cache_reference import ByDefinition

A, MASK_ID = 23, 3
POLICIES = ["prefix", "freecache:3", "refresh:3", "dual:3", "window:2"]
TOLERANCE = 1e-10


def masked(model: Any, shift: bool, **options: Any) -> HuggingFaceMaskedLM:
    return HuggingFaceMaskedLM(model, mask_id=MASK_ID, shift=shift, eos_id=2, **options)


def canvases(draw: np.random.Generator, count: int) -> Tensor:
    """Masks, some of them filled in, and places that a row does not have."""
    width = int(draw.integers(1, 9))
    canvas = np.full((count, width), MASKED)
    for row in canvas:
        if draw.random() < 0.4:
            filled = draw.random(width) < 0.3
            row[filled] = draw.integers(4, A, filled.sum())
        if draw.random() < 0.3:
            row[draw.integers(1, width + 1):] = ABSENT
    return torch.tensor(canvas)


def play(sessions: list[Any], seed: int, steps: int = 8) -> tuple[float, float]:
    """Greatest gap between the scores of two sessions, and of two of them with those of the third."""
    draw = np.random.default_rng(seed)
    lengths, worst, apart = [5, 2, 8, 2], 0.0, 0.0
    event: tuple[Any, ...]
    for _ in range(steps):
        rows, what = len(lengths), draw.choice(["commit"] * 4 + ["gather", "crop", "refill", "nothing"])
        if what == "commit":
            block = torch.tensor(draw.integers(4, A, (rows, 4)))
            block[-1] = block[1]
            count = draw.integers(0, 5, rows)
            if rows > 1 and draw.random() < 0.5:
                count[-1] = count[1]
            event = "commit", block, torch.tensor(count)
            lengths = [n + int(c) for n, c in zip(lengths, count, strict=True)]
        elif what == "gather":
            source = draw.integers(0, rows, draw.choice([rows, rows, 3, 5]))
            event, lengths = ("gather", torch.tensor(source)), [lengths[a] for a in source]
        elif what == "crop":
            left = [int(draw.integers(max(1, n - 4), n + 1)) for n in lengths]
            event, lengths = ("crop", torch.tensor(left)), left
        elif what == "refill":
            for session in sessions:
                session.crop(torch.tensor([0, *lengths[1:]]))
            prompt = torch.tensor(draw.integers(4, A, 4)).expand(rows, -1)
            event, lengths = ("commit", prompt, torch.tensor([4] + [0] * (rows - 1))), [4, *lengths[1:]]
        else:
            event = ()
        for session in sessions:
            if event:
                getattr(session, event[0])(*event[1:])
        asked = torch.tensor(draw.integers(0, len(lengths), draw.integers(1, 5)))
        canvas = canvases(draw, len(asked))
        scores = [session.score(asked, canvas)[canvas != ABSENT] for session in sessions]
        worst = max(worst, float((scores[0] - scores[1]).abs().max()))
        apart = max(apart, float((scores[0] - scores[2]).abs().max()))
    return worst, apart


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_session_equals_the_policy_by_definition(tiny_model, policy, shift):
    """Over commits, gathers, crops, refills, rows given twice, tokens filled in and canvases of all widths."""
    network = tiny_model("qwen2").double()
    tokens = torch.randint(4, A, (4, 8), generator=torch.Generator().manual_seed(4))
    tokens[3] = tokens[1]
    length = torch.tensor([5, 2, 8, 2])
    plain = masked(network, shift)
    models = [plain.with_cache(policy), ByDefinition(plain, policy), plain]
    gaps = [play([model.session(tokens, length) for model in models], seed) for seed in range(2)]
    assert max(gap for gap, _ in gaps) < TOLERANCE, gaps
    assert max(apart for _, apart in gaps) > 1e-2, "the case does not tell the cache from recomputation"


@pytest.mark.parametrize(("policy", "mutant"), [
    ("freecache:3", "gather"), ("dual:3", "gather"), ("dual:3", "crop"), ("freecache:3", "mark"),
])
def test_a_cache_that_does_not_follow_its_rows_is_caught(tiny_model, monkeypatch, policy, mutant):
    """Ancestors that are not gathered, rejected tokens that are not forgotten, equal rows that are not kept equal."""
    plain = masked(tiny_model("qwen2").double(), False)
    tokens, length = torch.randint(4, A, (4, 8), generator=torch.Generator().manual_seed(4)), torch.tensor([5, 2, 8, 2])
    models = [plain.with_cache(policy), ByDefinition(plain, policy), plain]
    right = getattr(PrefixCache, mutant)

    def wrong(self: PrefixCache, *arguments: Any) -> None:
        match mutant:
            case "gather":
                source, device = arguments
                if len(source) != self.keys_values.rows:
                    right(self, source, device)
            case "crop":
                before = [*self._parts], [*self._block]
                right(self, *arguments)
                self._parts, self._block = before
            case "mark":
                rows, plan, texts, lengths, device = arguments
                right(self, rows, plan, np.random.default_rng(0).integers(0, 9, texts.shape), lengths, device)

    monkeypatch.setattr(PrefixCache, mutant, wrong)

    def caught(seed: int) -> bool:
        try:
            return play([model.session(tokens, length) for model in models], seed)[0] > 1e-3
        except (ValueError, RuntimeError, IndexError):  # it reads columns that there are not
            return True

    assert any(caught(seed) for seed in range(4))


@pytest.mark.parametrize("pair", [
    ("prefix", "window:0"), ("prefix", "freecache:1"), ("refresh:3", "dual:3"), ("prefix", "refresh:3"),
    ("freecache:3", "refresh:3"), ("prefix", "window:2"),
], ids=" ".join)
def test_which_policies_are_the_same(tiny_model, pair):
    """FreeCache with blocks of one token, and a window of none, are the cache of what was committed once."""
    network = tiny_model("qwen2").double()
    tokens, length = torch.randint(4, A, (4, 8), generator=torch.Generator().manual_seed(4)), torch.tensor([5, 2, 8, 2])
    one, other = (masked(network, False, cache=name) for name in pair)
    models = [one, other, other]
    gap = max(play([model.session(tokens, length) for model in models], seed)[0] for seed in range(2))
    same = pair in (("prefix", "window:0"), ("prefix", "freecache:1"))
    assert (gap < TOLERANCE) == same, gap


@pytest.mark.parametrize("cache", ["prefix", "freecache", "freecache:4"])
def test_of_a_block_causal_model_freecache_is_exact(tiny_model, cache):
    """Cached scores are those of recomputation through commits, gathers, crops and refills."""
    network = tiny_model("qwen2").double()
    tokens, length = torch.randint(4, A, (4, 8), generator=torch.Generator().manual_seed(4)), torch.tensor([5, 2, 8, 2])
    plain = masked(network, False, block_size=4)
    kept = plain.with_cache(cache)
    assert isinstance(kept.policy, FinishedBlocks)
    assert kept.policy.exact
    models = [kept, plain, masked(network, False, cache="freecache:4")]
    sessions = [model.session(tokens, length) for model in models]
    assert [session.has_history for session in sessions] == [False, False, True]
    gap, apart = play(sessions, seed=1)
    assert gap < TOLERANCE
    assert apart > 1e-2, "the case does not tell the block-causal model from the other"


@pytest.mark.parametrize(("cache", "policy"), [
    ("freecache", FreeCache(32)), ("freecache:8", FreeCache(8)), ("refresh:16", Refreshed(16)), ("dual", Dual()),
    ("window:0", Window(0)), (Window(3), Window(3)),
], ids=str)
def test_a_cache_is_asked_for_by_name_or_as_an_object(tiny_model, cache, policy):
    model = masked(tiny_model("qwen2"), True, cache=cache)
    assert (model.policy, model.cache, cache_named(model.cache)) == (policy, str(policy), policy)
    assert not model.policy.exact


def test_a_pair_is_loaded_with_any_policy():
    dlm: Any = load_pair("arithmetic", device="cpu", dlm_cache=FreeCache(8)).dlm
    assert (dlm.policy, dlm.cache) == (FreeCache(8), "freecache:8")
    assert dlm.with_cache("dual:16").policy == Dual(16)


class Half(CachePolicy):
    """A user's own: every second token."""

    name = "half"

    def kept(self, length: int, place: int, prompt: int) -> int:
        return length // 2


def test_a_policy_of_ones_own_is_a_class_with_one_method(tiny_model):
    session = masked(tiny_model("qwen2"), True, cache=Half()).session(torch.full((1, 6), 5), torch.tensor([6]))
    canvas = torch.full((1, 3), MASKED)
    session.score(torch.tensor([0]), canvas)
    assert session._cache.known == [3]
    assert session.has_history


@pytest.mark.parametrize(("cache", "message"), [
    ("freecache:0", "cache = 'freecache:0': give the tokens of a block, a whole number of at least 1"),
    ("window", r"cache = 'window': give one of auto, none, prefix, freecache\[:B\]"),
    ("window:-1", "cache = 'window:-1': give one of auto, none, prefix"),
    ("prefix:3", "cache = 'prefix:3': give one of auto, none, prefix"),
    (3, "cache = 3: give one of auto, none, prefix"),
    (FinishedBlocks(4), "cache = prefix: the model has no blocks; use cache = 'freecache'"),
])
def test_a_policy_that_does_not_exist_is_refused_in_one_line(tiny_model, cache, message):
    with pytest.raises(ValueError, match=message) as error:
        masked(tiny_model("qwen2"), True, cache=cache)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cache", ["dual", "refresh:4", "window:4", "freecache:3"])
def test_nothing_approximate_is_taken_for_a_block_causal_model(tiny_model, cache):
    message = f"cache = '{cache}' of a block-causal model with block_size = 4: its finished blocks are kept, exactly"
    with pytest.raises(ValueError, match=message):
        masked(tiny_model("qwen2"), True, cache=cache, block_size=4)


def test_numbers_of_a_policy_are_checked():
    with pytest.raises(ValueError, match="block of the cache dual = 0: give the tokens of a block, a whole number"):
        Dual(0)
    with pytest.raises(ValueError, match="tokens of the cache window = -1: give the committed tokens"):
        Window(-1)


@pytest.mark.parametrize(("cache", "widths"), [
    ("none", [14, 15, 16, 17, 18]), ("prefix", [14, 7, 7, 7, 7]), ("freecache:4", [14, 7, 8, 9, 10]),
    ("refresh:4", [14, 7, 8, 9, 18]), ("dual:4", [14, 5, 6, 7, 18]), ("window:2", [14, 8, 8, 8, 8]),
])
def test_tokens_run_by_each_forward(tiny_model, monkeypatch, cache, widths):
    """What the caches are for: a row of 8 tokens that grows by one each time, with 6 masks behind; of them one that
    the dual cache has not met."""
    model = masked(tiny_model("qwen2"), False, cache=cache)
    found, run = [], HuggingFaceMaskedLM.outputs

    def watched(self: HuggingFaceMaskedLM, fresh: Any, keep: int, cache: Any = None, **options: Any) -> Tensor:
        found.append(fresh.ids.shape[1])
        return run(self, fresh, keep, cache, **options)

    monkeypatch.setattr(HuggingFaceMaskedLM, "outputs", watched)
    session = model.session(torch.full((1, 8), 5), torch.tensor([8]))
    for _ in widths:
        session.score(torch.tensor([0]), torch.full((1, 6), MASKED))
        session.commit(torch.tensor([[6]]), torch.tensor([1]))
    assert found == widths
