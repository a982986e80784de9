"""The diffusion session: exact without a cache, and with one a function of each row's own history.

The caches are approximate, so what is tested is what must hold all the same: where they leave nothing out they are the
plain forward; a row of a batch scores as it does alone; and a sampler with them keeps its exact expectations.
"""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from smc_bridge.distributions.intermediate import ProductOfExperts
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import always
from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM
from smc_bridge.models.protocols import ABSENT, MASKED
from smc_bridge.proposals.mean_field import DLMProposal
from tests.smc_bridge.claims import claim, mean_test

A = 23
MASK_ID = 3
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
CACHES: dict[str, dict[str, Any]] = {
    "none": {}, "prefix": {"cache": "prefix"}, "blocks": {"block_size": 3},
    "prefix of blocks": {"block_size": 3, "cache": "prefix"},
    **{name: {"cache": name} for name in ("freecache:3", "refresh:3", "dual:3", "window:2")},
}


def masked(model: Any, shift: bool, **options: Any) -> HuggingFaceMaskedLM:
    return HuggingFaceMaskedLM(model, mask_id=MASK_ID, shift=shift, eos_id=2, **options)


def ids(*shape: int, seed: int, device: torch.device) -> Tensor:
    return torch.randint(4, A, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def blank(rows: int, lookahead: int, device: torch.device) -> Tensor:
    return torch.full((rows, lookahead), MASKED, device=device)


def everything(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[0], device=tokens.device)


def plain(model: Any, shift: bool, shown: Tensor, position: Tensor, lookahead: int) -> Tensor:
    """transformers' logits of the last `lookahead` places of one row, all of it visible."""
    mask = torch.zeros(1, 1, len(shown), len(shown), device=shown.device)
    with torch.no_grad():
        out = model(input_ids=shown[None], attention_mask=mask, position_ids=position[None]).logits[0]
    return out[-lookahead - 1 : -1] if shift else out[-lookahead:]


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
@pytest.mark.parametrize("ragged", [True, False])
def test_without_a_cache_scores_are_transformers_own(tiny_model, prefixes, device, kind, shift, ragged):
    model = tiny_model(kind)
    tokens, length = prefixes
    length = length if ragged else torch.full_like(length, 7)
    canvas = blank(4, 6, device)
    canvas[1:3, 4] = 9
    if ragged:
        canvas[3, 5] = ABSENT
    scores = masked(model, shift).session(tokens, length).score(everything(tokens), canvas)
    for r, n in enumerate(length.tolist()):
        row = canvas[r][canvas[r] != ABSENT]
        shown = torch.cat([tokens[r, :n], row.masked_fill(row == MASKED, MASK_ID)])
        own = plain(model, shift, shown, torch.arange(len(shown), device=device), len(row))
        torch.testing.assert_close(scores[r, : len(row)], own, **CLOSE)


@pytest.mark.parametrize("shift", [True, False])
def test_a_cache_that_leaves_nothing_out_is_no_approximation(tiny_model, prefixes, device, shift):
    model = tiny_model("qwen2")
    tokens, length = prefixes
    rows, canvas = everything(tokens), blank(4, 5, device)
    exact = masked(model, shift).session(tokens, length).score(rows, canvas)
    session = masked(model, shift, cache="prefix").session(tokens, length)
    for _ in range(2):  # nothing is committed in between
        torch.testing.assert_close(session.score(rows, canvas), exact, **CLOSE)


@pytest.mark.parametrize("shift", [True, False])
def test_the_prefix_cache_keeps_what_the_first_forward_over_committed_tokens_computed(tiny_model, device, shift):
    """The cached scores are transformers' own, with its own cache filled by the earlier forward."""
    from transformers import DynamicCache

    model = tiny_model("qwen2")
    tokens, block = ids(1, 8, seed=1, device=device), ids(1, 3, seed=2, device=device)
    session = masked(model, shift, cache="prefix").session(tokens, torch.tensor([8], device=device))
    row = torch.tensor([0], device=device)
    session.score(row, blank(1, 5, device))
    session.commit(block, torch.tensor([3], device=device))
    scores = session.score(row, blank(1, 5, device))

    masks = torch.full((1, 5), MASK_ID, device=device)
    kept = DynamicCache()
    with torch.no_grad():
        model(
            input_ids=torch.cat([tokens, masks], 1), attention_mask=torch.zeros(1, 1, 13, 13, device=device),
            past_key_values=kept, use_cache=True,
        )
        kept.crop(-5)
        again = torch.cat([block, masks], 1)
        own = model(
            input_ids=again, attention_mask=torch.zeros(1, 1, 8, 16, device=device), past_key_values=kept,
            position_ids=torch.arange(8, 16, device=device)[None],
        ).logits
    torch.testing.assert_close(scores, own[:, -6:-1] if shift else own[:, -5:], **CLOSE)
    whole = torch.cat([tokens, block], 1)
    exact = masked(model, shift).session(whole, torch.tensor([11], device=device)).score(row, blank(1, 5, device))
    assert float((scores - exact).abs().max()) > 1e-3, "the case does not tell the cache from the plain forward"


class Alone:
    """One row in a session of its own, which a copy starts from scratch: what a batched session must agree with."""

    def __init__(self, model: HuggingFaceMaskedLM, events: list[tuple[str, Any]]) -> None:
        self.model, self.events = model, list(events)
        self.one = torch.tensor([0], device=model.device)
        self.session = model.session(self.one[None, :0], self.one)
        self.seen: list[tuple[int, int]] = []  # each token, and which call first scored it (0 for none)
        for event in events:
            self.play(*event)

    def play(self, what: str, value: Any, call: int = 0) -> Tensor:
        if what == "commit":
            self.session.commit(value[None], self.one + len(value))
            self.seen += [(token, 0) for token in value.tolist()]
        elif what == "crop":
            self.session.crop(self.one + value)
            self.seen = self.seen[:value]
        else:
            again = len(self.seen) - int(self.model.shift)  # a shifted model reads the last token again
            self.seen = [(t, call if not c or i >= again else c) for i, (t, c) in enumerate(self.seen)]
            return self.session.score(self.one, value[None])[0]
        return value

    def do(self, *event: Any) -> Tensor:
        self.events.append(event)
        return self.play(*event)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("options", CACHES.values(), ids=CACHES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_a_row_of_a_batch_scores_as_its_own_history_alone(tiny_model, device, shift, options, data):
    model = masked(tiny_model("qwen2"), shift, **options)
    tokens = ids(4, 8, seed=4, device=device)
    tokens[3] = tokens[1]  # two equal rows, of which the caller scores either
    start = [5, 2, 8, 2]
    session = model.session(tokens, torch.tensor(start, device=device))
    alone = [Alone(model, [("commit", tokens[r, :n])]) for r, n in enumerate(start)]
    canvas = blank(1, 4, device)[0]
    for step in range(6):
        rows = len(alone)
        match data.draw(st.sampled_from(["score only", "commit", "commit", "gather", "crop", "refill"])):
            case "commit":
                block = ids(rows, 3, seed=10 + step, device=device)
                count = data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
                session.commit(block, torch.tensor(count, device=device))
                for r, n in enumerate(count):
                    alone[r].do("commit", block[r, :n])
            case "gather":
                size = data.draw(st.sampled_from([rows, rows, 3, 5]))
                ancestors = data.draw(st.lists(st.integers(0, rows - 1), min_size=size, max_size=size))
                session.gather(torch.tensor(ancestors, device=device))
                alone = [Alone(model, alone[a].events) for a in ancestors]
            case "crop":
                keep = [data.draw(st.integers(1, len(row.seen))) for row in alone]
                session.crop(torch.tensor(keep, device=device))
                for row, n in zip(alone, keep, strict=True):
                    row.do("crop", n)
            case "refill":  # another prompt takes row 0
                prompt = ids(6, seed=20 + step, device=device)
                session.crop(torch.tensor([0, *(len(row.seen) for row in alone[1:])], device=device))
                count = [6] + [0] * (rows - 1)
                session.commit(prompt.expand(rows, -1), torch.tensor(count, device=device))
                alone[0].do("crop", 0)
                alone[0].do("commit", prompt)
        twins: dict[Any, list[int]] = {}
        for r, row in enumerate(alone):
            twins.setdefault(tuple(row.seen), []).append(r)
        wanted = data.draw(st.lists(st.sampled_from([True, True, False]), min_size=len(twins), max_size=len(twins)))
        groups = [group for group, want in zip(twins.values(), wanted, strict=True) if want]
        scored = torch.tensor([group[-1] for group in groups], dtype=torch.long, device=device)
        scores = session.score(scored, canvas.expand(len(groups), -1))
        for b, group in enumerate(groups):
            for r in group:  # equal rows are served by one forward
                expected = alone[r].do("score", canvas, 100 * step + b + 1)
                torch.testing.assert_close(scores[b], expected, **CLOSE)


@pytest.mark.parametrize("options", CACHES.values(), ids=CACHES)
def test_nothing_of_a_former_prompt_is_left_when_another_takes_its_row(tiny_model, device, options):
    model = masked(tiny_model("qwen2"), True, **options)
    rows, canvas, block = torch.arange(2, device=device), blank(2, 4, device), ids(2, 6, seed=3, device=device)
    start = torch.tensor([7, 5], device=device)

    def scores(former: Tensor) -> Tensor:
        session = model.session(former, start)
        session.score(rows, canvas)
        session.crop(torch.tensor([0, 5], device=device))
        session.commit(block, torch.tensor([6, 1], device=device))
        return session.score(rows, canvas)[0]

    one, other = ids(2, 7, seed=1, device=device), ids(2, 7, seed=2, device=device)
    torch.testing.assert_close(scores(one), scores(other), **CLOSE)


@pytest.mark.parametrize("options", CACHES.values(), ids=CACHES)
def test_row_chunks_and_running_out_of_memory_change_no_score(tiny_model, prefixes, device, options):
    tokens, length = prefixes
    rows, canvas, block = everything(tokens), blank(4, 5, device), ids(4, 2, seed=3, device=device)

    def scores(model: HuggingFaceMaskedLM) -> list[Tensor]:
        session = model.session(tokens, length)
        first = session.score(rows, canvas)
        session.commit(block, torch.tensor([2, 0, 1, 2], device=device))
        return [first, session.score(rows, canvas)]

    whole = scores(masked(tiny_model("qwen2"), True, **options))
    capped = scores(masked(tiny_model("qwen2"), True, max_logit_bytes=2 * 6 * A * 4, **options))
    short = tiny_model("qwen2")
    forward, tried = short.forward, []

    def narrow(input_ids: Tensor, **rest: Any) -> Any:
        tried.append(len(input_ids))
        if len(input_ids) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return forward(input_ids=input_ids, **rest)

    adapter = masked(short, True, **options)
    short.forward = narrow
    halved = scores(adapter)
    assert tried[:6] == [4, 2, 1, 1, 1, 1]
    assert max(tried[6:]) <= 2, "what fitted is remembered, in tokens"
    for a, b, c in zip(whole, capped, halved, strict=True):
        torch.testing.assert_close(b, a, **CLOSE)
        torch.testing.assert_close(c, a, **CLOSE)


def test_one_row_that_does_not_fit_says_how_large_it_is(tiny_model, prefixes, device):
    model = tiny_model("qwen2")
    adapter = masked(model, True)

    def full(**_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    model.forward = full
    tokens, length = prefixes
    with pytest.raises(MemoryError, match=r"one row: 14 tokens, 552 bytes of logits; shorten the prompt"):
        adapter.session(tokens, length).score(everything(tokens), blank(4, 5, device))


@pytest.mark.parametrize("options", CACHES.values(), ids=CACHES)
def test_bfloat16_models_give_finite_float32_scores(tiny_model, prefixes, device, options):
    tokens, length = prefixes
    session = masked(tiny_model("qwen2").to(torch.bfloat16), True, **options).session(tokens, length)
    rows, canvas = everything(tokens), blank(4, 5, device)
    session.score(rows, canvas)
    session.commit(ids(4, 2, seed=3, device=device), torch.tensor([2, 0, 1, 2], device=device))
    scores = session.score(rows, canvas)
    assert scores.dtype == torch.float32
    assert bool(scores.isfinite().all())


@pytest.mark.parametrize("options", CACHES.values(), ids=CACHES)
def test_a_session_is_used_inside_and_outside_of_inference_mode(tiny_model, prefixes, device, options):
    tokens, length = prefixes
    rows, canvas = everything(tokens), blank(4, 5, device)
    with torch.inference_mode():
        session = masked(tiny_model("qwen2"), True, **options).session(tokens, length)
        inside = session.score(rows, canvas)
        session.gather(torch.tensor([1, 1, 2, 3], device=device))
    session.gather(torch.tensor([1, 1, 3, 2], device=device))
    outside = session.score(rows, canvas)
    torch.testing.assert_close(outside[0], inside[1], **CLOSE)
    torch.testing.assert_close(outside[2], inside[3], **CLOSE)


@pytest.mark.parametrize("options", CACHES.values(), ids=CACHES)
def test_a_row_given_twice_in_a_call_is_scored_for_each_canvas(tiny_model, prefixes, device, options):
    tokens, length = prefixes
    model = masked(tiny_model("qwen2"), True, **options)
    rows = torch.tensor([2, 0, 2], device=device)
    scores = model.session(tokens, length).score(rows, blank(3, 4, device))
    torch.testing.assert_close(scores[0], scores[2], **CLOSE)
    recomputed = masked(tiny_model("qwen2"), True, **{**options, "cache": "none"})
    exact = recomputed.session(tokens, length).score(rows, blank(3, 4, device))
    torch.testing.assert_close(scores, exact, **CLOSE)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bert", {"cache": "prefix"}, "cache = 'prefix' needs a causal backbone .* BertForMaskedLM is not"),
        ("bert", {"block_size": 4}, "block_size = 4 needs a causal backbone .* BertForMaskedLM is not: leave it out"),
        ("qwen2", {"block_size": 0}, "block_size = 0: give a block's tokens, a whole number, or None"),
        ("qwen2", {"cache": "all"}, "cache = 'all': give one of auto, none, prefix"),
    ],
)
def test_a_cache_or_a_mask_that_the_model_cannot_have_is_refused(tiny_model, kind, options, message):
    with pytest.raises(ValueError, match=message):
        masked(tiny_model(kind), False, **options)


def test_a_backbone_whose_caching_is_not_known_is_refused(tiny_model):
    model = tiny_model("qwen2")
    model.config.model_type = "unheard_of"
    with pytest.raises(ValueError, match="not known how a model of type 'unheard_of' keeps keys and values"):
        masked(model, True, cache="prefix")
    assert masked(model, True, cache="auto").cache == "none"


def test_the_cache_is_the_one_that_there_is_where_it_is_left_to_the_model(tiny_model):
    causal, bidirectional = tiny_model("qwen2"), tiny_model("bert")
    assert [masked(causal, True, cache="auto").cache, masked(bidirectional, False, cache="auto").cache] == [
        "prefix", "none"]
    assert masked(causal, True).cache == "none", "the adapter approximates nothing unasked"
    assert masked(causal, True).with_cache("auto").cache == "prefix"


PROMPT, LIMIT, RUNS = [1, 4, 5, 5, 4, 4, 5], 4, 300


def law_of_sequences(target: ARTarget) -> dict[tuple[int, ...], float]:
    """`p(x)` of every continuation of `PROMPT` with the letters 4 and 5, ended by 2 or cut at `LIMIT`."""
    whole = list(product((2, 4, 5), repeat=LIMIT))
    law: dict[tuple[int, ...], float] = {}
    rows = torch.arange(len(whole), device=target.model.device)
    prompt = torch.tensor(PROMPT, device=rows.device).expand(len(whole), -1)
    session = target.model.session(prompt, torch.full_like(rows, len(PROMPT)))
    drafts = torch.tensor(whole, device=rows.device)
    log_p = target.log_probs(session.score(rows, drafts)).gather(-1, drafts[..., None])[..., 0].double()
    for x, row in zip(whole, log_p, strict=True):
        length = x.index(2) + 1 if 2 in x else LIMIT
        law[x[:length]] = float(row[:length].sum().exp())
    return law


@pytest.mark.parametrize("options", CACHES.values(), ids=CACHES)
def test_a_sampler_keeps_its_expectations_with_every_cache(tiny_model, options):
    """`E[Z_hat sum_k W_k 1[x_k = s]] = p(s)` for every s, with steps that reuse, gather and regrow what is kept."""
    alphabet: dict[str, Any] = {"eos_id": 2, "banned_ids": (0, 1, 3)}
    dlm = HuggingFaceMaskedLM(tiny_model("qwen2", vocab_size=6), mask_id=3, shift=True, **alphabet, **options)
    target = ARTarget(HuggingFaceCausalLM(tiny_model("qwen2", vocab_size=6, seed=1), **alphabet), temperature=3.0)
    program = Sampler(
        DLMProposal(dlm, temperature=6.0, lookahead=3), target, ProductOfExperts(0.3), trigger=always, particles=2,
        window=2,
    )
    results = program.run([PROMPT] * RUNS, seed=list(range(RUNS)), max_new_tokens=LIMIT)
    law = law_of_sequences(target)
    assert abs(sum(law.values()) - 1.0) < 1e-5
    place = {x: i for i, x in enumerate(law)}
    values = np.zeros((RUNS, len(law)))
    for run, result in zip(values, results, strict=True):
        for x, log_weight in zip(result.sequences, result.log_weights, strict=True):
            run[place[tuple(x)]] += np.exp(log_weight) / len(result.sequences)
    assert values.sum(1).max() < 8, f"largest total weight {values.sum(1).max()}: the test assumes moderate weights"
    claim(mean_test(values, np.array(list(law.values()))), f"law of sequences with {options or 'no cache'}")
