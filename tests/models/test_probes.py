"""Models that do not see what they are told to see are refused as they are loaded, in a line that says what is wrong.

Each fault is made by patching a tiny model that has none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM
from smc_bridge.models.huggingface.causality import probe_causal
from smc_bridge.models.huggingface.probes import probe_masked
from smc_bridge.models.huggingface.unpadded import Unpadded
from smc_bridge.models.verdicts import unprobed

Patch = Callable[[Any], None]
LOW = torch.finfo(torch.float32).min


def masked(model: Any, shift: bool = True, **options: Any) -> HuggingFaceMaskedLM:
    """The adapter, which probes the model."""
    return HuggingFaceMaskedLM(model, **{"mask_id": 3, "shift": shift, "eos_id": 2} | options)


def causal(model: Any) -> HuggingFaceCausalLM:
    """The adapter, which probes the model."""
    return HuggingFaceCausalLM(model, eos_id=2)


def faults(verdicts: Any) -> dict[str, str]:
    """What is wrong, by the names of the verdicts."""
    return {verdict.name: verdict.fault for verdict in verdicts if verdict.fault is not None}


def patched(model: Any, change: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]) -> Any:
    """Let the model's forward see another mask and other positions."""
    forward = model.forward

    def other(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None, **rest: Any) -> Any:
        attention_mask, position_ids = change(attention_mask, position_ids)
        return forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **rest)

    model.forward = other
    return model


def without_positions(model: Any) -> Any:
    """Let the model count positions by itself, and say so."""
    forward = model.forward

    def implicit(input_ids: Tensor, attention_mask: Tensor) -> Any:
        return forward(input_ids=input_ids, attention_mask=attention_mask)

    model.forward = implicit
    return model


def stays_causal(mask: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor | None]:
    later = torch.ones(mask.shape[-2:], device=mask.device).triu(1).bool()
    return mask.masked_fill(later, LOW), position


#: What goes wrong with a mask or positions, and what the message says.
UNSEEN: dict[str, tuple[Callable[[Tensor, Tensor | None], Any], str]] = {
    "boolean mask": (
        lambda mask, position: (mask.bool(), position),
        r"takes the mask that is added to attention scores for one of booleans: it sees what is hidden \(padding\) and "
        "nothing else; load it natively",
    ),
    "positions ignored": (
        lambda mask, position: (mask, None),
        r"does not place tokens by position_ids but by where they stand in the row: .* change by \d.*; load it nat",
    ),
    "stays causal": (
        stays_causal,
        "is causal: a later token changes no earlier output, so that a masked place does not see .*attn_implementation",
    ),
    "mask ignored": (
        lambda mask, position: (torch.zeros_like(mask), position),
        "does not obey its attention mask: tokens that are hidden from it change its logits by",
    ),
}


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
@pytest.mark.parametrize("fault", UNSEEN)
def test_a_causal_backbone_that_misreads_mask_or_positions_is_refused(tiny_model, kind, shift, fault):
    change, message = UNSEEN[fault]
    with pytest.raises(ValueError, match=r"^dlm_model = (Qwen2ForCausalLM|GPT2LMHeadModel): ") as raised:
        masked(patched(tiny_model(kind), change), shift)
    assert raised.match(message)
    assert "\n" not in str(raised.value)


def nan_where_nothing_is_seen(model: Any) -> Any:
    """Read the mask as booleans, as attention kernels do that divide by the weight of what is seen."""
    forward = model.forward

    def spoil(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **rest: Any) -> Any:
        seen = attention_mask.bool()
        out = forward(input_ids=input_ids, attention_mask=seen, position_ids=position_ids, **rest).logits.clone()
        out[~seen[:, 0].any(-1)[:, -out.shape[1] :]] = torch.nan
        return SimpleNamespace(logits=out)

    model.forward = spoil
    return model


def test_a_boolean_mask_is_told_of_also_where_it_gives_nan(tiny_model):
    with pytest.raises(ValueError, match=r"dlm_model = Qwen2ForCausalLM: takes the mask .* one of booleans"):
        masked(nan_where_nothing_is_seen(tiny_model("qwen2")))


@pytest.mark.parametrize("fault", ["boolean mask", "stays causal", "mask ignored"])
def test_a_backbone_that_counts_positions_itself_is_probed_too(tiny_model, fault):
    change, message = UNSEEN[fault]
    with pytest.raises(ValueError, match=message):
        masked(without_positions(patched(tiny_model("gpt2"), change)))
    masked(without_positions(tiny_model("gpt2")))


def test_a_bidirectional_model_that_ignores_its_padding_is_refused_and_passes_unpadded(tiny_model):
    def blind() -> Any:
        model = tiny_model("bert")
        forward = model.forward
        model.forward = lambda input_ids, attention_mask=None: forward(input_ids=input_ids)
        return model

    with pytest.raises(ValueError, match=r"BertForMaskedLM: does not obey the mask of its padding: .*\.Unpadded, whi"):
        masked(blind(), False)
    masked(Unpadded(blind()), False)


@pytest.mark.parametrize("wrap", [Unpadded, lambda model: model])
def test_a_causal_model_in_the_place_of_a_bidirectional_one_is_refused(tiny_model, wrap):
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel: is causal: .* or causal_backbone = True if it is one of a"):
        masked(wrap(tiny_model("gpt2")), causal_backbone=False)


def test_a_model_that_cannot_be_run_says_so_before_anything_is_decoded(tiny_model):
    def broken(**_: Any) -> Any:
        raise KeyError("default")

    model = tiny_model("qwen2")
    model.forward = broken
    with pytest.raises(ValueError, match=r"dlm_model = Qwen2ForCausalLM: cannot be run on token ids, .*KeyError: 'def"):
        masked(model)

    def full(**_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    model.forward = full
    with pytest.raises(MemoryError, match="Qwen2ForCausalLM: load it with a narrower dtype"):
        masked(model)


def in_blocks(size: int) -> Callable[[Tensor, Tensor | None], Any]:
    """Let the model see its own block and those before it, by position."""

    def change(mask: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert position is not None
        block = position // size
        later = block[:, None, None, :] > block[:, None, :, None]
        return mask.masked_fill(later, LOW), position

    return change


def full_whatever_the_mask(mask: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Obey the mask of padding alone."""
    return mask.amax(2, keepdim=True).expand_as(mask), position


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 32, 500])
def test_blocks_are_looked_into_and_beyond(tiny_model, size, shift):
    def found(change: Callable[[Tensor, Tensor | None], Any]) -> dict[str, str]:
        with unprobed():
            adapter: Any = masked(patched(tiny_model("qwen2"), change), shift)
        adapter.block_size = size
        return faults(probe_masked(adapter))

    assert found(in_blocks(size)) == {}
    beyond, within = found(full_whatever_the_mask), found(stays_causal)
    if size <= 64 and (size > 1 or shift):  # unshifted outputs of blocks of one token: nothing stands before in view
        assert f"run with block_size = {size}, but a token changes outputs of an earlier block" in (
            beyond["no token changes an output of an earlier block"]
        )
    if size > 1:
        [message] = within.values()
        assert message.startswith("is causal: a later token changes no earlier output")


def test_a_model_without_attention_is_warned_of_and_a_constant_one_passes(tiny_model):
    model = tiny_model("qwen2")
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    with pytest.warns(UserWarning, match="Qwen2ForCausalLM: no token changes the output at another place: drafts will"):
        masked(model)
    torch.nn.init.zeros_(model.lm_head.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        masked(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "mistral", "gpt2", "bert", "modernbert"])
def test_good_models_pass_in_every_type(tiny_model, kind, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for seed in range(3):
            model = tiny_model(kind, seed=seed).to(dtype)
            for shift in (True, False):
                masked(model, shift)
            if kind not in ("bert", "modernbert"):
                masked(without_positions(tiny_model(kind, seed=seed).to(dtype)))
                assert faults(probe_causal(causal(tiny_model(kind, seed=seed).to(dtype)))) == {}
            else:
                masked(Unpadded(model), False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qwen2", "bert"])
def test_a_model_with_its_initial_weights_passes(tiny_model, kind, dtype):
    model = type(tiny_model(kind))(tiny_model(kind).config).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        masked(model, False)


@pytest.mark.parametrize("seed", range(8))
def test_a_model_whose_tokens_see_less_than_its_type_can_hold_is_not_called_causal(tiny_model, seed):
    """Of a change that is rounded away nothing is told: not that it went one way alone."""
    torch.manual_seed(seed)
    model = type(tiny_model("bert"))(tiny_model("bert").config)
    for layer in model.bert.encoder.layer:
        layer.attention.self.value.weight.data *= 0.03
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing is told
        assert masked(model.to(torch.bfloat16), False).mask_id == 3


@pytest.mark.parametrize("limit", range(1, 16))
def test_a_model_of_few_positions_passes(tiny_model, limit):
    masked(tiny_model("qwen2", max_position_embeddings=limit))
    masked(tiny_model("bert", max_position_embeddings=limit), False)


@pytest.mark.parametrize("limit", [4, 6, 9, 12])
def test_a_causal_backbone_of_few_positions_is_seen_to_stay_causal(tiny_model, limit):
    with pytest.raises(ValueError, match="is causal: a later token"):
        masked(patched(tiny_model("qwen2", max_position_embeddings=limit), stays_causal))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_model_of_few_ids_passes(tiny_model, size):
    masked(tiny_model("qwen2", vocab_size=size), mask_id=1, eos_id=None)


# What a model holds


def setting(name: str, value: Callable[[Tensor], Tensor]) -> Patch:
    """Give a parameter or a buffer another value."""

    def spoil(model: Any) -> None:
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        new = value(getattr(module, last).detach().clone())
        if last in module._parameters:
            module._parameters[last] = torch.nn.Parameter(new, requires_grad=False)
        else:
            module._buffers[last] = new

    return spoil


def with_one(number: float) -> Callable[[Tensor], Tensor]:
    return lambda value: value.index_fill(-1, torch.tensor([1], device=value.device), number)


def with_buffer(name: str, value: Tensor) -> Patch:
    return lambda model: model.register_buffer(name, value, persistent=False)


_ANGLES = torch.arange(6)[:, None] * torch.tensor([1.0, 0.1])
_HEAD, _ROTARY = "lm_head.weight", "model.rotary_emb.inv_freq"
_BUFFER = "loading left unset what the checkpoint's own code computes when it is made: load it without trust_remote"
HELD: dict[str, tuple[Patch, str]] = {
    "NaN": (setting(_HEAD, with_one(torch.nan)), r"its parameter lm_head\.weight holds NaN; copy the checkpoint's w"),
    "infinite": (setting(_HEAD, with_one(torch.inf)), r"its parameter lm_head\.weight holds inf; copy"),
    "memory": (setting(_HEAD, with_one(4e30)), r"lm_head\.weight holds 4e\+30, as memory does that was never written"),
    "negative": (setting(_HEAD, with_one(-4e30)), r"lm_head\.weight holds -4e\+30, as memory does"),
    "no memory": (setting(_HEAD, lambda v: v.to("meta")), r"lm_head\.weight was never given a value \(it is on the me"),
    "frequency": (setting(_ROTARY, with_one(4e30)), rf"rotary_emb\.inv_freq holds 4e\+30.*{_BUFFER}"),
    "zeros": (setting(_ROTARY, torch.zeros_like), rf"inv_freq is not a falling row of rotary frequencies.*{_BUFFER}"),
    "other weights": (setting(_ROTARY, lambda v: v.flip(-1)), "inv_freq is not a falling row of rotary frequencies"),
    "too large": (setting(_ROTARY, lambda v: 3 * v), "inv_freq is not a falling row of rotary frequencies from at mo"),
    "places": (with_buffer("position_ids", torch.zeros(1, 8).long()), "position_ids is not a row of consecutive plac"),
    "cosines": (with_buffer("cos_cached", _ANGLES.sin()), "cos_cached is not a table of cosines that begins with the"),
    "sines": (with_buffer("sin_cached", _ANGLES.cos()), "sin_cached is not a table of sines that begins with the ang"),
    "unwritten": (with_buffer("table", torch.tensor([-3e20, -2e20])), "its buffer table holds -3e.20, as memory does"),
}


@pytest.mark.parametrize("kind", ["dlm", "ar"])
@pytest.mark.parametrize("fault", HELD)
def test_what_holds_no_numbers_that_it_could_have_is_refused(tiny_model, fault, kind):
    spoil, message = HELD[fault]
    model = tiny_model("qwen2")
    spoil(model)
    with pytest.raises(ValueError, match=f"^{kind}_model = Qwen2ForCausalLM: its ") as raised:
        masked(model) if kind == "dlm" else causal(model)
    assert raised.match(message)


def test_masks_tables_and_places_as_models_have_them_pass(tiny_model):
    model = tiny_model("qwen2")
    for name, value in {
        "low": torch.full((3, 3), LOW).triu(1), "endless": torch.full((3, 3), -torch.inf).triu(1),
        "position_ids": torch.arange(8)[None], "cos_cached": 1.2 * _ANGLES.cos(), "sin_cached": _ANGLES.sin(),
        "flags": torch.ones(3, dtype=torch.bool), "none": torch.zeros(0),
    }.items():
        model.register_buffer(name, value, persistent=False)
    model.model.rotary_emb.inv_freq[-1] = 0.0  # as of dimensions that do not turn
    masked(model)
    causal(model)


# Causal models


def scaled_by_the_batch(model: Any) -> Any:
    """Round what enters every product to 8 bits, scaled by the greatest of the whole batch."""

    def rounded(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        step = inputs[0].abs().max() / 127
        return ((inputs[0] / step).round() * step, *inputs[1:])

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounded)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_law_that_depends_on_the_batch_is_warned_of(tiny_model, dtype):
    with pytest.warns(UserWarning, match=r"ar_model = Qwen2ForCausalLM: the logits of a row change by \d.* with"):
        adapter = causal(scaled_by_the_batch(tiny_model("qwen2").to(dtype)))
    assert list(faults(probe_causal(adapter))) == ["rows beside it change no output"]


def test_a_diffusion_model_that_depends_on_the_batch_is_warned_of_and_not_refused(tiny_model):
    """Its draws and their density come from the same logits, so that weights are proper all the same."""
    with pytest.warns(UserWarning, match="dlm_model = Qwen2ForCausalLM: the logits of a row change by"):
        masked(scaled_by_the_batch(tiny_model("qwen2")))


def test_a_model_that_is_not_causal_is_refused_by_its_probe(tiny_model):
    model = patched(tiny_model("qwen2"), lambda mask, position: (
        torch.zeros(1, 1, mask.shape[-1], mask.shape[-1]) if mask.dim() == 2 else mask, position
    ))
    with pytest.raises(ValueError, match="ar_model = Qwen2ForCausalLM: is not causal: its logits at a position change"):
        causal(model)


def test_models_are_not_probed_within_unprobed(tiny_model):
    change, _ = UNSEEN["stays causal"]
    with unprobed():
        adapter = masked(patched(tiny_model("qwen2"), change))
    assert list(faults(probe_masked(adapter))) == ["a later token changes earlier outputs"]


@pytest.mark.parametrize("kind", ["dlm", "ar"])
def test_a_good_model_costs_two_forwards(tiny_model, kind):
    model = tiny_model("gpt2")  # of no shape that has a forward in fewer operations
    forward, calls = model.forward, []

    def counted(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **rest: Any) -> Any:
        calls.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **rest)

    model.forward = counted
    masked(model) if kind == "dlm" else causal(model)
    assert len(calls) == 2
    assert sum(rows * width for rows, width in calls) <= 64, f"a tiny forward is meant, not {calls}"
