"""A token tree scores, at every node, as the path that ends there does: packed into one row or path by path."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.models.huggingface import HuggingFaceCausalLM
from smc_bridge.models.huggingface.attention import attention_of
from smc_bridge.models.huggingface.trees import leaf_paths, tree_structure

A = 23
#: Float32 round-off of logits that spread over several nats.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
#: Two trees of seven nodes: a branching one, and one with several children of the root.
PARENTS = [[0, 1, 1, 2, 2, 3, 6], [0, 0, 0, 2, 4, 1, 5]]


def random_ids(*shape: int, device: torch.device, seed: int = 2) -> Tensor:
    return torch.randint(4, A, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def causal(model: Any, **options: Any) -> HuggingFaceCausalLM:
    return HuggingFaceCausalLM(model, eos_id=2, **options)


def test_tree_structure_finds_every_ancestor_of_a_node():
    lineage, depth = tree_structure(np.array(PARENTS))
    for parents, reached, deep in zip(PARENTS, lineage, depth, strict=True):
        for j in range(len(parents)):
            way, node = [], j + 1
            while node:
                way.append(node - 1)
                node = parents[node - 1]
            assert sorted(way) == np.flatnonzero(reached[j]).tolist()
            assert len(way) == int(deep[j])


def test_leaf_paths_spell_the_tokens_from_the_root_to_each_leaf():
    tree, paths, path_of, depth = leaf_paths(np.array([range(10, 17)] * 2), np.array(PARENTS))
    spelled = [(t, [x for x in path if x]) for t, path in zip(tree.tolist(), paths.tolist(), strict=True)]
    assert sorted(spelled) == [
        (0, [10, 11, 13]), (0, [10, 11, 14]), (0, [10, 12, 15, 16]),
        (1, [10, 15]), (1, [11, 13, 14, 16]), (1, [12]),
    ]  # fmt: skip
    for b in range(2):
        for j in range(7):
            assert int(paths[path_of[b, j], depth[b, j] - 1]) == 10 + j


@pytest.mark.parametrize("kind", ["qwen2", "llama", "mistral", "gpt2"])
def test_a_packed_tree_scores_as_its_paths_do_on_ragged_prefixes(tiny_model, prefixes, device, kind):
    model = tiny_model(kind)
    tokens, length = prefixes
    rows = torch.tensor([0, 1, 2, 3], device=device)
    nodes = random_ids(4, 7, device=device)
    parents = torch.tensor(PARENTS * 2, device=device)
    torch.testing.assert_close(
        causal(model).session(tokens, length).score_tree(rows, nodes, parents),
        causal(model, cache=False).session(tokens, length).score_tree(rows, nodes, parents),
        **CLOSE,
    )


@pytest.mark.parametrize(("kind", "cache"), [("qwen2", True), ("llama", True), ("qwen2", False), ("gpt2", False)])
def test_a_chain_scores_as_the_draft_it_is(tiny_model, prefixes, device, kind, cache):
    model = causal(tiny_model(kind), cache=cache)
    tokens, length = prefixes
    rows = torch.tensor([3, 0, 1], device=device)
    drafts = random_ids(3, 6, device=device)
    session = model.session(tokens, length)
    tree = session.score_tree(rows, drafts, torch.arange(6, device=device).expand(3, 6))
    assert tree.shape == (3, 7, A)
    torch.testing.assert_close(tree[:, :6], session.score(rows, drafts), **CLOSE)
    longer = torch.cat([drafts, drafts[:, :1]], dim=1)
    torch.testing.assert_close(tree, session.score(rows, longer), **CLOSE)


@pytest.mark.parametrize("cache", [True, False])
def test_a_tree_without_nodes_scores_the_prefix_alone(tiny_model, prefixes, device, cache):
    session = causal(tiny_model("qwen2"), cache=cache).session(*prefixes)
    rows = torch.tensor([1, 2], device=device)
    none = torch.zeros(2, 0, dtype=torch.long, device=device)
    expected = session.score(rows, torch.zeros(2, 1, dtype=torch.long, device=device))
    torch.testing.assert_close(session.score_tree(rows, none, none), expected, **CLOSE)


def test_models_that_are_not_known_to_take_our_masks_recompute(tiny_model):
    assert attention_of(tiny_model("mistral", sliding_window=4)).window == 4
    assert attention_of(tiny_model("gpt2")).window is None
    moving = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert attention_of(tiny_model("llama", rope_parameters=moving)) is None
    flash = tiny_model("qwen2")
    flash.config._attn_implementation = "flash_attention_2"
    assert attention_of(flash) is None
    unknown = tiny_model("qwen2")
    unknown.config.model_type = "unknown"
    with pytest.warns(UserWarning, match="cache of its type 'unknown'"):
        assert causal(unknown).attention is None
    distances = tiny_model("llama")
    distances.config.alibi = True
    assert attention_of(distances) is None


@pytest.mark.parametrize("cache", [True, False])
def test_trees_of_a_sliding_window_model_score_as_transformers_does(tiny_model, device, cache):
    model = tiny_model("mistral", sliding_window=3)
    tokens = random_ids(1, 6, device=device)
    nodes = random_ids(1, 7, device=device, seed=3)
    parents = torch.tensor(PARENTS[:1], device=device)
    session = causal(model, cache=cache).session(tokens, torch.tensor([6], device=device))
    scores = session.score_tree(torch.tensor([0], device=device), nodes, parents)
    path = torch.cat([tokens[0], nodes[0, [0, 2, 5, 6]]])[None]
    with torch.no_grad():
        own = model(input_ids=path).logits[0, 5:]
    torch.testing.assert_close(scores[0, [0, 1, 3, 6, 7]], own, **CLOSE)


def test_a_parent_after_its_child_is_refused(tiny_model, prefixes, device):
    session = causal(tiny_model("qwen2")).session(*prefixes)
    nodes = random_ids(1, 3, device=device)
    with pytest.raises(ValueError, match=r"parents\[0, 1\] = 3: a parent stands before its child"):
        session.score_tree(torch.tensor([0], device=device), nodes, torch.tensor([[0, 3, 1]], device=device))
