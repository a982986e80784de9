"""The lean forward: the model's own logits whatever the mask, cache and places wanted; elsewhere the model itself."""

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicCache

from benchmarks.replay import networks_timed
from smc_bridge import load_pair
from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM
from smc_bridge.models.huggingface import lean as module
from smc_bridge.models.huggingface.adapter import additive_mask
from smc_bridge.models.huggingface.cache import KeyValues, Span
from smc_bridge.models.huggingface.lean import Lean, lean
from smc_bridge.models.protocols import MASKED

A = 29
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
#: Shapes that have a lean forward.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped": ("Qwen2", {}),
    "ungrouped": ("Qwen2", {"num_key_value_heads": 4}),
    "tied": ("Qwen2", {"tie_word_embeddings": True}),
    "llama": ("Llama", {}),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "wide heads": ("Llama", {"head_dim": 12}),
    "normed": ("Qwen3", {"head_dim": 16}),
}
#: Relative to the greatest logit.
ROUND_OFF = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 3e-2}


def build(name: str = "grouped", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model, its norms and biases too, with wide weights, so that a wrong mask or position shows."""
    kind, options = MODELS[name]
    sizes = {
        "vocab_size": A, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = getattr(transformers, f"{kind}Config")(**sizes | options | changes)
    model = getattr(transformers, f"{kind}ForCausalLM")._from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1))
    return model.to(dtype).eval()


def own(model: Any, ids: Tensor, mask: Any, position: Tensor, cache: Any = None, keep: Any = 0) -> Tensor:
    """transformers' logits."""
    with torch.no_grad():
        out: Tensor = model(
            input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache,
            use_cache=cache is not None, logits_to_keep=keep,
        ).logits
    return out


def same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= ROUND_OFF[expected.dtype] * expected.abs().max()


def inputs(rows: int, width: int, held: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, a mask with a third of the places hidden, and positions of nodes of trees: ragged, some twice."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, A, (rows, width), generator=generator)
    allowed = torch.rand(rows, width, held + width, generator=generator) < 0.7
    allowed[:, torch.arange(width), held + torch.arange(width)] = True
    position = held + torch.randint(0, width, (rows, width), generator=generator)
    return ids, additive_mask(allowed, dtype), position


KEEPS: dict[str, Any] = {
    "all": 0, "last": 2, "one": 1, "full": 5, "more": 9, "columns": torch.tensor([3, 0, 3]),
    "repeated": torch.tensor([0, 1, 2, 2, 3, 4, 4]), "by row": torch.tensor([[0, 4], [1, 1], [3, 2]]),
    "many by row": torch.arange(18).view(3, 6) % 5,
}


@pytest.mark.parametrize("dtype", list(ROUND_OFF), ids=str)
@pytest.mark.parametrize("name", list(MODELS))
def test_logits_are_the_models_own(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype)
    quick = lean(model)
    assert quick is not None
    first = inputs(3, 7, 0, dtype)
    caches = DynamicCache(), DynamicCache()
    with torch.no_grad():
        same(quick(*first), own(model, *first))
        same(quick(*first, caches[0], 1), own(model, *first, caches[1], 1))
        for held, keep in ((7, 0), (12, torch.tensor([4, 0]))):
            given = inputs(3, 5, held, dtype, seed=held)
            same(quick(*given, caches[0], keep), own(model, *given, caches[1], keep))
    for layer, expected in zip(caches[0].layers, caches[1].layers, strict=True):
        same(layer.keys, expected.keys)
        same(layer.values, expected.values)


@pytest.mark.parametrize("keep", list(KEEPS))
@pytest.mark.parametrize("one_mask", [False, True])
def test_every_way_of_wanting_places(keep: str, one_mask: bool) -> None:
    model = build()
    quick = lean(model)
    assert quick is not None
    ids, mask, position = inputs(3, 5, 0, torch.float32)
    if one_mask:
        mask, position = mask[:1], position[:1]
    with torch.no_grad():
        found = quick(ids, {"full_attention": mask}, position, None, KEEPS[keep])
    same(found, own(model, ids, mask, position, None, KEEPS[keep]))


def test_over_the_projects_cache() -> None:
    model = build()
    quick = lean(model)
    assert quick is not None
    caches = KeyValues(4), KeyValues(4)
    for base, rows in ((0, slice(0, 4)), (6, slice(1, 4)), (11, torch.tensor([0, 2]))):
        count = 4 if base == 0 else 3 if base == 6 else 2
        given = inputs(count, 6 if base == 0 else 5, base, torch.float32, seed=base)
        out = []
        for cache, forward in zip(caches, (quick, lambda *x: own(model, *x)), strict=True):
            cache.reserve(base + 6)
            cache.span = Span(rows, base, 0, 1)
            with torch.no_grad():
                out.append(forward(*given, cache, 3))
            cache.settle()
        same(*out)


def plainly(monkeypatch: pytest.MonkeyPatch, adapter: Any) -> None:
    """Let an adapter call its model itself."""
    monkeypatch.setattr(type(adapter), "lean", property(lambda self: None))


def ragged(rows: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, A, (rows, 9), generator=generator), torch.tensor([9, 2, 6, 4][:rows])


def masked_scores(adapter: Any) -> list[Tensor]:
    """Of a session over ragged rows, before and after commits; of canvases with known places."""
    session, rows = adapter.session(*ragged(4)), torch.arange(4)
    canvas = torch.full((4, 5), MASKED)
    found = [session.score(rows, canvas)]
    session.commit(torch.full((4, 2), 7), torch.tensor([2, 1, 2, 0]))
    canvas[:, 1] = 8
    return [*found, session.score(rows, canvas), session.score(rows[1:3], canvas[1:3])]


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("options", [{}, {"cache": "prefix"}, {"block_size": 3, "cache": "prefix"}], ids=str)
def test_sessions_of_the_diffusion_model(
    monkeypatch: pytest.MonkeyPatch, shift: bool, options: dict[str, Any]
) -> None:
    adapter = HuggingFaceMaskedLM(build(), mask_id=3, shift=shift, eos_id=2, **options)
    found = masked_scores(adapter)
    assert adapter.lean is not None
    plainly(monkeypatch, adapter)
    for ours, expected in zip(found, masked_scores(adapter), strict=True):
        same(ours, expected)


def causal_scores(adapter: Any) -> list[Tensor]:
    """Of a session over ragged rows: lanes packed into one row, trees, and after a commit."""
    session, rows = adapter.session(*ragged(4)), torch.arange(4)
    drafts = torch.randint(4, A, (8, 4), generator=torch.Generator().manual_seed(5))
    tree, parents = drafts[:4, :4], torch.tensor([[0, 0, 1, 2]]).expand(4, -1)
    found = [session.score(rows.repeat_interleave(2), drafts), session.score_tree(rows, tree, parents)]
    session.commit(drafts[::2, :2], torch.tensor([2, 1, 0, 2]))
    return [*found, session.score(rows, drafts[:4]), session.score_tree(rows[1:3], tree[:2], parents[:2])]


@pytest.mark.parametrize("lanes", ["packed", "copied"])
@pytest.mark.parametrize("name", ["grouped", "llama", "normed"])
def test_sessions_of_the_causal_model(monkeypatch: pytest.MonkeyPatch, name: str, lanes: Any) -> None:
    adapter = HuggingFaceCausalLM(build(name), eos_id=2, lanes=lanes)
    found = causal_scores(adapter)
    assert adapter.lean is not None
    plainly(monkeypatch, adapter)
    for ours, expected in zip(found, causal_scores(adapter), strict=True):
        same(ours, expected)


class Scaled(torch.nn.Linear):
    """A product of another kind."""


def with_part(make: Any) -> Any:
    """A model whose second layer has another product of keys."""
    model = build()
    attention = model.model.layers[1].self_attn
    attention.k_proj = make(attention.k_proj)
    return model


UNUSUAL: dict[str, Any] = {
    "another class": lambda: type("Own", (transformers.Qwen2ForCausalLM,), {})(build().config),
    "another type": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=A, n_embd=32, n_layer=1, n_head=4)
    ),
    "sliding": lambda: build(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "yarn": lambda: build("llama", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
    "dynamic": lambda: build("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}),
    "dropout": lambda: build(attention_dropout=0.1),
    "activation": lambda: build(hidden_act="gelu"),
    "adapted": lambda: with_part(lambda old: Scaled(old.in_features, old.out_features)),
    "several": lambda: with_part(lambda old: torch.nn.Sequential(old)),
    "quantised": lambda: torch.ao.quantization.quantize_dynamic(build(), {torch.nn.Linear}),
    "two types": lambda: with_part(lambda old: old.double()),
}


@pytest.mark.filterwarnings("ignore")  # of quantisation
@pytest.mark.parametrize("name", list(UNUSUAL))
def test_unusual_models_have_none(name: str) -> None:
    model = UNUSUAL[name]()
    assert lean(model) is None
    with pytest.raises(ValueError, match=f"model = {type(model).__name__}"):
        Lean(model)


def hooked(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)


def before(model: Any) -> None:
    model.register_forward_pre_hook(lambda *_: None)


def replaced(model: Any) -> None:
    model.model.layers[0].mlp.forward = model.model.layers[0].mlp.forward


def another_part(model: Any) -> None:
    model.lm_head = Scaled(32, A, bias=False)


def parametrised(model: Any) -> None:
    torch.nn.utils.parametrize.register_parametrization(model.lm_head, "weight", torch.nn.Identity())


def eager(model: Any) -> None:
    model.set_attn_implementation("eager")


def training(model: Any) -> None:
    model.train()


def shortened(model: Any) -> None:
    model.config.num_hidden_layers = 2


def compiled(model: Any) -> None:
    model._compiled_call_impl = model._call_impl


@pytest.mark.parametrize(
    "change",
    [hooked, before, replaced, another_part, parametrised, eager, training, shortened, compiled],
    ids=lambda change: change.__name__,
)
def test_what_is_changed_later_goes_the_models_own_way(change: Any) -> None:
    model = build()
    adapter = HuggingFaceCausalLM(model, eos_id=2)
    ids, mask, position = inputs(3, 5, 0, torch.float32)
    assert adapter.lean is not None
    assert adapter.lean.fits(mask)
    change(model)
    assert not adapter.lean.fits(mask)
    torch.testing.assert_close(adapter.network(ids, mask=mask, position=position), own(model, ids, mask, position))


def test_hooks_of_all_modules_are_run() -> None:
    adapter, called = HuggingFaceCausalLM(build(), eos_id=2), []
    ids, mask, position = inputs(3, 5, 0, torch.float32)
    adapter.network(ids, mask=mask, position=position)
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: called.append(1))
    try:
        adapter.network(ids, mask=mask, position=position)
    finally:
        hook.remove()
    assert called


def test_weights_are_read_when_they_are_needed() -> None:
    model = build()
    adapter = HuggingFaceCausalLM(model, eos_id=2)
    ids, mask, position = inputs(3, 5, 0, torch.float32)
    before = adapter.network(ids, mask=mask, position=position)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.flip(0)
    model.model.norm.weight = torch.nn.Parameter(torch.rand(32))
    found = adapter.network(ids, mask=mask, position=position)
    same(found, own(model, ids, mask, position))
    assert (found - before).abs().max() > 0.1
    model.double()
    same(adapter.network(ids, mask=mask.double(), position=position), own(model, ids, mask.double(), position))
    assert adapter.lean is not None


def test_a_model_with_other_logits_is_called_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model, turned = build(), module._turned
    assert lean(model) is not None
    monkeypatch.setattr(module, "_turned", lambda states, cos, sin: turned(states, cos, -sin))
    assert lean(model) is None
    ids, mask, position = inputs(3, 5, 0, torch.float32)
    adapter = HuggingFaceCausalLM(model, eos_id=2)
    torch.testing.assert_close(adapter.network(ids, mask=mask, position=position), own(model, ids, mask, position))


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_reads_its_own_weights(twin: Any) -> None:
    adapter = HuggingFaceCausalLM(build(), eos_id=2)
    ids, mask, position = inputs(3, 5, 0, torch.float32)
    adapter.network(ids, mask=mask, position=position)
    other = twin(adapter)
    assert other.lean is not adapter.lean
    with torch.no_grad():
        other.model.lm_head.weight.mul_(2)
    same(other.network(ids, mask=mask, position=position), 2 * adapter.network(ids, mask=mask, position=position))
    other.model.lm_head.register_forward_hook(lambda *_: None)
    assert not other.lean.fits(mask)
    assert adapter.lean is not None
    assert adapter.lean.fits(mask)


def test_gradients_and_scores_in_place_are_not_in_the_way() -> None:
    adapter = HuggingFaceCausalLM(build(), eos_id=2)
    ids, mask, position = inputs(3, 5, 0, torch.float32)
    out = adapter.network(ids, mask=mask, position=position)
    assert not out.requires_grad
    out += 1


def test_a_benchmark_times_the_forward_that_a_run_makes() -> None:
    pair = load_pair("arithmetic")
    dlm: Any = pair.dlm
    session = dlm.session(torch.tensor([[1, 5, 6]]), torch.tensor([3]))
    canvas, row = torch.full((1, 8), MASKED), torch.tensor([0])
    expected = session.score(row, canvas)
    with networks_timed(pair) as watch:
        assert torch.equal(session.score(row, canvas), expected)
        assert dlm.lean.fits(torch.zeros(1, 1, 1, 1))
    seconds = watch.seconds
    assert seconds > 0
    session.score(row, canvas)
    assert watch.seconds == seconds
