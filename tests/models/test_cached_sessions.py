"""A cached session scores what a recomputing one does, whatever is scored, gathered, committed and cropped before."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from smc_bridge import Sampler, paper, smc, tree_walk
from smc_bridge.models.huggingface import HuggingFaceCausalLM, cached
from smc_bridge.models.huggingface.packing import chain_forest, group_lanes, tree_forest
from smc_bridge.models.huggingface.trees import longest_chain, longest_match, tree_structure
from smc_bridge.models.pairs import Pair, load_pair

A = 23
#: Float32 round-off of logits that spread over several nats.
CLOSE = {"rtol": 1e-4, "atol": 2e-4}
FEW = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
SHAPE = {
    "vocab_size": A, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}
SLIDES = {"sliding_window": 4}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}
#: Name, model type and configuration of every family; None: the default attention implementation.
FAMILIES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "qwen2": ("qwen2", None, {}),
    "qwen2-eager": ("qwen2", "eager", {}),
    "qwen2-sliding": ("qwen2", None, {**SLIDES, "use_sliding_window": True, "max_window_layers": 1}),
    "llama": ("llama", None, {}),
    "gpt2": ("gpt2", None, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "mistral-sliding": ("mistral", None, SLIDES),
    "gemma2": ("gemma2", None, {**GEMMA, **SLIDES, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", None, {**GEMMA, **SLIDES, "sliding_window_pattern": 2}),
}
#: Families that the project's other tests and the smaller claims below do not need again.
OTHERS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "biogpt": ("biogpt", None, {}),
    "cohere": ("cohere", None, {}),
    "ernie4_5": ("ernie4_5", None, {}),
    "falcon": ("falcon", None, {}),
    "glm": ("glm", None, {"head_dim": 8}),
    "gpt_bigcode": ("gpt_bigcode", None, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt_neox": ("gpt_neox", None, {}),
    "gptj": ("gptj", None, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8}),
    "helium": ("helium", None, {"head_dim": 8}),
    "mixtral": ("mixtral", None, {"num_local_experts": 2}),
    "opt": ("opt", None, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi": ("phi", None, {}),
    "qwen3_moe": (
        "qwen3_moe", None, {"num_experts": 2, "moe_intermediate_size": 16, "num_experts_per_tok": 1, "head_dim": 8},
    ),
    "xglm": ("xglm", None, {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}),
    "gemma": ("gemma", None, {"head_dim": 8}),
    "granite": ("granite", None, {}),
    "olmo": ("olmo", None, {}),
    "olmo2": ("olmo2", None, {}),
    "phi3-sliding": ("phi3", None, {"sliding_window": 5}),
    "qwen3": ("qwen3", None, {"head_dim": 8}),
    "smollm3": ("smollm3", None, {"head_dim": 8}),
    "stablelm": ("stablelm", None, {}),
    "starcoder2-sliding": ("starcoder2", None, SLIDES),
}
#: Types whose configurations name their sizes differently, and take no other names.
BY_OTHER_NAMES = ("gpt2", "gpt_bigcode", "gptj")


@lru_cache
def tiny(family: str, device: torch.device) -> Any:
    kind, attention, changes = (FAMILIES | OTHERS)[family]
    shape = {k: v for k, v in SHAPE.items() if kind not in BY_OTHER_NAMES or k.endswith("_id") or k == "vocab_size"}
    options = {} if attention is None else {"attn_implementation": attention}
    config = transformers.CONFIG_MAPPING[kind](**shape | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.to(device).eval()


def adapter(model: Any, **options: Any) -> HuggingFaceCausalLM:
    return HuggingFaceCausalLM(model, eos_id=2, **options)


def ids(rng: random.Random, *shape: int, device: torch.device, high: int = A) -> Tensor:
    flat = [rng.randrange(3, high) for _ in range(torch.Size(shape).numel())]
    return torch.tensor(flat, device=device).reshape(shape)


@contextmanager
def tokens_read(model: Any) -> Iterator[list[int]]:
    """Shapes of the model's inputs, as numbers of tokens, while the context is open."""
    read: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, options: read.append(options["input_ids"].numel()), with_kwargs=True
    )
    yield read
    hook.remove()


# Equality with recomputing


def wander(rng: random.Random, session: Any, reference: Any, device: torch.device, steps: int) -> None:
    """Score, gather, commit, crop and refill at random in both sessions, and compare all scores."""
    for _ in range(steps):
        rows_of = session.length.shape[0]
        lanes = rng.randint(1, 4)
        match rng.randrange(3):
            case 0:
                rows = [r for r in range(rows_of) for _ in range(lanes)]
            case 1:
                rows = [r for r in rng.sample(range(rows_of), rng.randint(1, rows_of)) for _ in range(lanes)]
            case _:
                rows = [rng.randrange(rows_of) for _ in range(rng.randint(1, 5))]
        at, width, high = torch.tensor(rows, device=device), rng.randint(1, 6), rng.choice([4, 6, A])
        drafts = ids(rng, len(rows), width, device=device, high=high)
        if rng.random() < 0.5:
            cut = rng.randint(0, len(rows)) if rng.random() < 0.3 else 0  # in two calls
            parts = [session.score(at[:cut], drafts[:cut]), session.score(at[cut:], drafts[cut:])]
            scores, expected = torch.cat(parts), reference.score(at, drafts)
        else:
            parents = torch.tensor([[rng.randint(0, j) for j in range(width)] for _ in rows], device=device)
            scores, expected = session.score_tree(at, drafts, parents), reference.score_tree(at, drafts, parents)
        torch.testing.assert_close(scores, expected, **CLOSE)
        if rng.random() < 0.5:
            more = rows_of if rng.random() < 0.7 else rng.randint(1, 5)
            ancestors = torch.tensor([rng.randrange(rows_of) for _ in range(more)], device=device)
            for s in (session, reference):
                s.gather(ancestors)
            rows_of = more
        if rng.random() < 0.9:
            block = ids(rng, rows_of, rng.randint(1, 6), device=device, high=high)
            for row in block:  # most often a draft that was scored, of this row or of another
                if rng.random() < 0.7:
                    some = drafts[rng.randrange(len(drafts))][: len(row)]
                    row[: len(some)] = some
            count = torch.tensor([rng.randint(0, block.shape[1]) for _ in range(rows_of)], device=device)
            for s in (session, reference):
                s.commit(block, count)
        if rng.random() < 0.2:
            kept = torch.tensor([rng.randint(1, n) for n in session.length.tolist()], device=device)
            for s in (session, reference):
                s.crop(kept)
        if rng.random() < 0.2:  # the next prompt takes a row
            kept = session.length.clone()
            row = rng.randrange(rows_of)
            kept[row] = 0
            prompt = ids(rng, rows_of, rng.choice([2, 9]), device=device)
            count = torch.where(kept == 0, prompt.shape[1], 0)
            for s in (session, reference):
                s.crop(kept)
                s.commit(prompt, count)
        assert torch.equal(session.length, reference.length)
        assert all(held < n for held, n in zip(session.cached, session.lengths, strict=True))


def both(rng: random.Random, model: Any, device: torch.device, **options: Any) -> tuple[Any, Any]:
    rows = rng.randint(1, 4)
    tokens = ids(rng, rows, 12, device=device)
    length = torch.tensor([rng.randint(1, 12) for _ in range(rows)], device=device)
    if rng.random() < 0.3:  # particles of one prompt
        tokens, length = tokens[:1].expand(rows, -1), length[:1].expand(rows)
    made = adapter(model, **options)
    assert made.attention is not None
    if rng.random() < 0.3:
        made.chunks.max_tokens = 20
    return made.session(tokens, length), adapter(model, cache=False).session(tokens, length)


@pytest.mark.parametrize("lanes", ["packed", "copied"])
@pytest.mark.parametrize("family", FAMILIES)
@FEW
@given(rng=st.randoms(use_true_random=False), worth=st.sampled_from([0, 5, 64]))
def test_cached_scores_are_the_recomputed_ones(monkeypatch, device, family, lanes, rng, worth):
    monkeypatch.setattr(cached, "WORTH_A_FORWARD", worth)
    session, reference = both(rng, tiny(family, device), device, lanes=lanes)
    wander(rng, session, reference, device, steps=4)


@pytest.mark.parametrize("family", OTHERS)
def test_every_model_type_that_is_listed_scores_over_its_cache(device, family):
    for seed in range(3):
        rng = random.Random(seed)
        wander(rng, *both(rng, tiny(family, device), device), device, steps=4)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma3"])
def test_prompts_in_a_batch_score_as_each_does_alone(device, family):
    rng = random.Random(1)
    model = adapter(tiny(family, device))
    tokens, length = ids(rng, 4, 20, device=device), torch.tensor([20, 3, 11, 1], device=device)
    drafts = ids(rng, 8, 5, device=device)
    rows = torch.arange(4, device=device)
    whole = model.session(tokens, length)
    alone = [model.session(tokens[r : r + 1, :n], length[r : r + 1]) for r, n in enumerate(length.tolist())]
    for count in ([2, 5, 1, 3], [1, 1, 4, 0], [3, 2, 2, 2]):
        scores = whole.score(rows.repeat_interleave(2), drafts)
        for r, session in enumerate(alone):
            own = session.score(rows[:1].repeat(2), drafts[2 * r : 2 * r + 2])
            torch.testing.assert_close(scores[2 * r : 2 * r + 2], own, **CLOSE)
            session.commit(drafts[2 * r : 2 * r + 1], torch.tensor(count[r : r + 1], device=device))
        whole.commit(drafts[::2], torch.tensor(count, device=device))


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma2", "mistral-sliding"])
def test_greedy_decoding_over_the_cache_is_that_of_generate(device, family):
    model = tiny(family, device)
    prompt = ids(random.Random(2), 1, 6, device=device)
    expected = model.generate(
        prompt, max_new_tokens=10, do_sample=False, eos_token_id=None, attention_mask=torch.ones_like(prompt)
    )[0, 6:]
    session = adapter(model).session(prompt, torch.tensor([6], device=device))
    one, drawn = torch.ones(1, dtype=torch.long, device=device), []
    for _ in range(10):
        token = session.score(one - 1, one[None]).argmax(-1)
        session.commit(token, one)
        drawn.append(int(token))
    assert drawn == expected.tolist()


# What is read, and what is kept


def test_tokens_of_a_block_that_was_scored_are_not_read_again(device):
    model = tiny("qwen2", device)
    rng = random.Random(3)
    session = adapter(model).session(ids(rng, 2, 30, device=device), torch.tensor([30, 30], device=device))
    rows, drafts = torch.tensor([0, 0, 1, 1], device=device), ids(rng, 4, 6, device=device)
    session.score(rows, drafts)
    session.gather(torch.tensor([1, 1], device=device))
    session.commit(drafts[[2, 3]], torch.tensor([4, 6], device=device))  # both lanes of row 1
    assert session.cached == [33, 35]
    with tokens_read(model) as read:
        session.score(rows, drafts)
    assert read == [2 * (1 + 2 * 5)]


def test_a_block_that_was_not_scored_stays_pending(device):
    rng = random.Random(4)
    session = adapter(tiny("qwen2", device)).session(
        torch.full((1, 5), 3, device=device), torch.tensor([5], device=device)
    )
    session.score(torch.tensor([0], device=device), torch.full((1, 4), 4, device=device))
    session.commit(ids(rng, 1, 4, device=device) * 0 + 9, torch.tensor([4], device=device))
    assert session.cached == [5]


def test_a_prompt_is_read_once_for_all_of_its_particles(device):
    model = tiny("qwen2", device)
    rng = random.Random(5)
    prompts = ids(rng, 2, 40, device=device)
    rows = torch.arange(8, device=device)
    session = adapter(model).session(prompts.repeat_interleave(4, 0), torch.full((8,), 40, device=device))
    with tokens_read(model) as read:
        session.score(rows, ids(rng, 8, 3, device=device))
    assert read == [2 * 39, 8 * 3]
    fresh = ids(rng, 1, 30, device=device).expand(8, -1)  # a new prompt takes rows 4 to 7
    kept = torch.tensor([40] * 4 + [0] * 4, device=device)
    session.crop(kept)
    session.commit(fresh, torch.where(kept == 0, 30, 0))
    with tokens_read(model) as read:
        session.score(rows, ids(rng, 8, 3, device=device))
    assert read == [29, 8 * 3]


def test_memory_grows_with_the_rows_and_not_with_the_lanes(device):
    def held(rows: int, lanes: int) -> int:
        model = adapter(tiny("qwen2", device))
        tokens = torch.full((rows, 90), 5, device=device)
        session = model.session(tokens, torch.full((rows,), 90, device=device))
        at = torch.arange(rows, device=device).repeat_interleave(lanes)
        session.score(at, ids(random.Random(6), rows * lanes, 2, device=device))
        return session.cache.bytes

    one, rows, lanes = held(2, 1), held(8, 1), held(2, 8)
    assert rows == 4 * one
    assert lanes < 1.2 * one, f"{lanes} bytes with eight lanes, {one} with one"


def test_gathering_the_identity_copies_nothing(device, monkeypatch):
    session = adapter(tiny("qwen2", device)).session(
        torch.full((3, 5), 3, device=device), torch.tensor([5, 4, 3], device=device)
    )
    rows, drafts = torch.arange(3, device=device), torch.full((3, 4), 4, device=device)
    session.score(rows, drafts)
    monkeypatch.setattr(session.cache, "move", lambda *arguments: pytest.fail("rows were copied"))
    session.gather(rows)
    session.commit(drafts, rows)


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_bfloat16_models_give_finite_float32(device, family):
    rng = random.Random(7)
    config = tiny(family, device).config
    model = transformers.AutoModelForCausalLM.from_config(config).to(device, torch.bfloat16)
    session = adapter(model).session(ids(rng, 2, 9, device=device), torch.tensor([9, 4], device=device))
    for _ in range(3):
        drafts = ids(rng, 4, 4, device=device)
        scores = session.score(torch.tensor([0, 0, 1, 1], device=device), drafts)
        assert scores.dtype == torch.float32
        assert bool(scores.isfinite().all())
        session.commit(drafts[::2], torch.tensor([3, 1], device=device))


def test_a_session_may_be_used_inside_and_outside_of_inference_mode(device):
    rng = random.Random(8)
    session, reference = both(rng, tiny("qwen2", device), device)
    with torch.inference_mode():
        wander(rng, session, reference, device, steps=2)
    wander(rng, session, reference, device, steps=2)
    with torch.inference_mode():
        wander(rng, session, reference, device, steps=2)


@pytest.mark.parametrize("lanes", ["packed", "copied"])
def test_where_memory_runs_out_fewer_rows_are_scored_at_once(device, lanes):
    model = tiny("llama", device)
    rng = random.Random(9)
    session, reference = both(rng, model, device, lanes=lanes)

    def allocate(module: Any, arguments: Any, options: Any) -> None:
        if options["input_ids"].shape[0] > 4 and options.get("past_key_values") is not None:
            raise torch.cuda.OutOfMemoryError("out of memory")

    hook = model.register_forward_pre_hook(allocate, with_kwargs=True)
    try:
        rows = torch.tensor([r for r in range(len(session.length)) for _ in range(4)], device=device)
        session.gather(rows)
        reference.gather(rows)
        everyone = torch.arange(len(rows), device=device)
        for _ in range(3):
            drafts = ids(rng, len(rows), 5, device=device)
            torch.testing.assert_close(session.score(everyone, drafts), reference.score(everyone, drafts), **CLOSE)
            for s in (session, reference):
                s.commit(drafts, torch.full_like(rows, 3))
        assert session.chunks.max_tokens is not None
    finally:
        hook.remove()


# The parts


def test_entries_of_a_call_are_grouped_by_their_row():
    assert group_lanes([3, 3, 1, 1]) == ([3, 1], 2, None)
    assert group_lanes([2, 0, 1]) == ([2, 0, 1], 1, None)
    assert group_lanes([0, 1, 0, 0]) == ([0, 1], 3, [[0, 2, 3], [1, 1, 1]])


@FEW
@given(rng=st.randoms(use_true_random=False))
def test_lanes_merged_into_a_trie_read_the_tokens_of_their_own_beginnings(rng):
    drafts = ids(rng, 3, 4, 6, device=torch.device("cpu"), high=5).numpy()
    forest = chain_forest(drafts)
    assert forest.wanted is not None
    wanted = np.broadcast_to(forest.wanted, (3, 24)).reshape(3, 4, 6)
    lineage, depth = (np.broadcast_to(x, (3, *x.shape[1:])) for x in (forest.lineage, forest.depth))
    for g in range(3):
        for k in range(4):
            for i in range(6):
                node = int(wanted[g, k, i]) - 1
                if i == 0:
                    assert node == -1
                    continue
                sees = lineage[g, node]
                order = depth[g, sees].argsort()
                assert forest.tokens[g, sees][order].tolist() == drafts[g, k, :i].tolist()


def test_trees_of_one_row_do_not_see_each_other():
    parents = np.array([[[0, 1, 1], [0, 0, 2]]])
    forest = tree_forest(np.array([[[5, 6, 7], [8, 9, 4]]]), parents)
    assert forest.lineage.shape == (1, 6, 6)
    assert not forest.lineage[0, :3, 3:].any()
    assert not forest.lineage[0, 3:, :3].any()
    assert np.array_equal(forest.lineage[0, 3:, 3:], tree_structure(parents[:, 1])[0][0])
    assert forest.wanted.tolist() == [[0, 1, 2, 3, 0, 4, 5, 6]]


def test_the_longest_path_that_a_block_begins_with_is_found():
    tokens = np.array([[5, 6, 7, 5, 8], [5, 6, 7, 5, 8]])
    lineage, depth = tree_structure(np.array([[0, 1, 2, 0, 4]]))  # 5 6 7 and 5 8
    path = longest_match(tokens, depth, lineage, np.array([[5, 8, 7], [5, 6, 7]]))
    assert path.tolist() == [[3, 4, -1], [3, 1, 2]]


def test_the_chain_that_a_block_begins_with_is_found():
    tokens = np.array([[5, 6, 7, 5, 8, 7], [5, 6, 7, 5, 8, 7]])  # 5 6 7 and 5 8 7
    path = longest_chain(tokens, 2, np.array([[5, 8, 4, 1], [5, 6, 7, 3]]))
    assert path.tolist() == [[3, 4, -1, -1], [0, 1, 2, -1]]


# The engine


PROGRAMS: dict[str, Callable[[Pair], Sampler]] = {
    "smc": lambda pair: smc(pair, particles=3),
    "paper": paper,
    "tree walk": lambda pair: tree_walk(pair, nodes=24, particles=2),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_over_the_cache_gives_the_texts_of_one_that_recomputes(program):
    pair = load_pair("arithmetic")
    ar: Any = pair.ar
    recomputing = HuggingFaceCausalLM(
        ar.model, eos_id=ar.eos_id, banned_ids=ar.banned_ids, vocab_size=ar.vocab_size, cache=False
    )
    texts = [
        "Anna has 25 apples. She gives 7 to Ben. How many apples does she have now?",
        "There are 6 boxes with 8 balls each. How many balls are there?",
    ]
    prompts = [pair.encode(text).tolist() for text in texts]
    fast, slow = (
        PROGRAMS[program](p).run(prompts, seed=3, max_new_tokens=16) for p in (pair, replace(pair, ar=recomputing))
    )
    for quick, reference in zip(fast, slow, strict=True):
        assert quick.sequences == reference.sequences
        assert quick.log_evidence == pytest.approx(reference.log_evidence, abs=1e-3)
