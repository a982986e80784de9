"""A model without some sub-layers: the network that is left, its cache, its weights; and its stand-in among tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.models.huggingface import HuggingFaceCausalLM
from smc_bridge.models.huggingface.skipped import layers_of
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.tabular import TabularAR
from tests.models.test_cached_sessions import CLOSE, tiny

#: Families whose layers and sub-layers go by different names, or are put together differently.
FAMILIES = ("qwen2", "llama", "gpt2", "gemma2", "mistral-sliding", "gpt_neox", "falcon", "gptj", "olmo2", "granite")
SKIPS: tuple[tuple[list[int], list[int]], ...] = (([1], []), ([], [0]), ([0], [0, 1]))


@contextmanager
def silenced(model: Any, attention: list[int], mlp: list[int]) -> Iterator[None]:
    """The whole model with the outputs of these sub-layers set to zero: what the thinned one must equal."""
    found = layers_of(model)
    assert found is not None
    hooks = []
    for index, layer in enumerate(found[1]):
        for name, part in layer._modules.items():
            chosen = mlp if name == "mlp" else attention if "attn" in name or "attention" in name else []
            if part is None or index not in chosen or "norm" in name or "dropout" in name:
                continue

            def zero(module: Any, given: Any, out: Any) -> Any:
                return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)

            hooks.append(part.register_forward_hook(zero))
    assert len(hooks) == len(attention) + len(mlp)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def scored(model: HuggingFaceCausalLM, tokens: Tensor, length: Tensor, drafts: Tensor) -> Tensor:
    return model.session(tokens, length).score(torch.arange(length.numel(), device=length.device), drafts)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_is_the_model_with_silent_sub_layers(family: str, prefixes: tuple[Tensor, Tensor]) -> None:
    tokens, length = prefixes
    network = tiny(family, tokens.device)
    model = HuggingFaceCausalLM(network, eos_id=2)
    drafts = torch.randint(4, 23, (4, 3), generator=torch.Generator().manual_seed(3)).to(tokens.device)
    whole = scored(model, tokens, length, drafts)
    for attention, mlp in SKIPS:
        left = scored(model.without(attention, mlp), tokens, length, drafts)
        with silenced(network, attention, mlp):
            expected = scored(HuggingFaceCausalLM(network, eos_id=2), tokens, length, drafts)
        torch.testing.assert_close(left, expected, **CLOSE)
        assert float((left - whole).abs().max()) > 1e-2
    torch.testing.assert_close(scored(model, tokens, length, drafts), whole, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma2"])
def test_its_cache_is_exact(family: str, prefixes: tuple[Tensor, Tensor]) -> None:
    """Against a session that recomputes, after commits, a gather and a crop; layers without attention keep no keys."""
    tokens, length = prefixes
    network, device = tiny(family, tokens.device), tokens.device
    sessions = []
    for cache in (True, False):
        model = HuggingFaceCausalLM(network, eos_id=2)
        if not cache:
            model.attention = None
        sessions.append(model.without([0], [1]).session(tokens, length))
    rows = torch.arange(4, device=device)
    draft = torch.randint(4, 23, (4, 4), generator=torch.Generator().manual_seed(5)).to(device)
    for step in range(3):
        found = [session.score(rows, draft.roll(step, 1)) for session in sessions]
        torch.testing.assert_close(found[0], found[1], **CLOSE)
        tree = [
            session.score_tree(rows, draft[:, :3], torch.tensor([[0, 1, 0]] * 4, device=device)) for session in sessions
        ]
        torch.testing.assert_close(tree[0], tree[1], **CLOSE)
        for session in sessions:
            session.commit(draft.roll(step, 1), torch.tensor([2, 0, 4, 1], device=device))
            session.gather(torch.tensor([2, 1, 0, 2], device=device))
            session.crop((session.length - 1).clamp_min(1))


def test_weights_are_shared_and_the_whole_model_is_as_it_was(tiny_model: Callable[..., Any]) -> None:
    network = tiny_model("qwen2")
    model = HuggingFaceCausalLM(network, eos_id=2)
    left = model.without([1], [0])
    own = {id(parameter) for parameter in network.parameters()}
    assert {id(parameter) for parameter in left.model.parameters()} < own
    tokens, length = torch.full((1, 3), 5, device=network.device), torch.tensor([3], device=network.device)
    before = [scored(each, tokens, length, tokens) for each in (model, left)]
    with torch.no_grad():
        network.lm_head.weight.mul_(2.0)
    for each, old in zip((model, left), before, strict=True):
        torch.testing.assert_close(scored(each, tokens, length, tokens), 2 * old, **CLOSE)
    assert len(list(network.modules())) == len(list(tiny_model("qwen2").modules()))


def test_the_embedded_model_keeps_its_lean_forward() -> None:
    ar = load_pair("arithmetic").ar
    left = ar.without([1, 2], [2])
    assert ar.layers == 4
    assert left.lean is not None
    tokens = torch.randint(5, 600, (2, 12), generator=torch.Generator().manual_seed(1))
    length = torch.tensor([12, 7])
    quick = scored(left, tokens, length, tokens[:, :4])
    left._lean = (left._version(), None)
    torch.testing.assert_close(scored(left, tokens, length, tokens[:, :4]), quick, **CLOSE)
    torch.testing.assert_close(scored(ar.without([], []), tokens, length, tokens), scored(ar, tokens, length, tokens))


@pytest.mark.parametrize(("attention", "mlp", "message"), [
    ([0, 1], [], "leaves no attention: keep that of one layer"),
    ([2], [], r"attention = \[2\]: give layers from 0 to 1"),
    ([], [-1], r"mlp = \[-1\]: give layers from 0 to 1"), ([0.5], [], "attention = .*: give layers from 0 to 1"),
])
def test_bad_layers_are_one_line(tiny_model: Callable[..., Any], attention: Any, mlp: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HuggingFaceCausalLM(tiny_model("qwen2"), eos_id=2).without(attention, mlp)


def test_a_model_without_a_list_of_layers_says_so(device: torch.device) -> None:
    model = HuggingFaceCausalLM(tiny("opt", device), eos_id=2)  # its perceptron is no module of its own
    assert model.layers == 0
    with pytest.raises(ValueError, match=r"has no list of layers .*: give a decoder-only model"):
        model.without([0])


def test_tables_without_layers_are_as_worked_out_by_hand() -> None:
    tables = [np.array([[0.2, 0.8]]), np.array([[0.3, 0.7], [0.9, 0.1]]),
              np.array([[0.1, 0.9], [0.5, 0.5], [0.7, 0.3], [0.3, 0.7]])]
    model = TabularAR(tables)
    blind = model.without([0]).tables
    assert blind[0].tolist() == model.tables[0].tolist()
    assert torch.allclose(blind[1], torch.tensor([[0.6, 0.4]] * 2).double())
    assert torch.allclose(blind[2], torch.tensor([[0.3, 0.7]] * 2 + [[0.5, 0.5]] * 2).double())
    assert torch.allclose(model.without([1]).tables[2], torch.tensor([[0.4, 0.6], [0.4, 0.6]] * 2).double())
    root = torch.tensor([0.2, 0.8]).double().sqrt()
    flat = model.without([], [0, 7]).tables
    assert torch.allclose(flat[0][0], root / root.sum())
    assert flat[1].tolist() == model.tables[1].tolist()
