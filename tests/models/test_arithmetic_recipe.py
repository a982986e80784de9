"""The shipped weights come from the shipped recipe, and do what the model card says they do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from smc_bridge.models.arithmetic.architecture import (
    ARCHITECTURE,
    DIFFUSION,
    WEIGHTS,
    bidirectional_mask,
    build,
    load,
    masked_logits,
)
from smc_bridge.models.arithmetic.batches import Schedule, encode
from smc_bridge.models.arithmetic.evaluate import SUBSET, ar_loss, decode_dlm, dlm_losses, figures, sample_ar
from smc_bridge.models.arithmetic.muon import Muon, orthogonal
from smc_bridge.models.arithmetic.problems import generate, held_out
from smc_bridge.models.arithmetic.recipe import Recipe, fingerprint, fingerprint_ar
from smc_bridge.models.arithmetic.tokenizer import BOS_ID, EOS_ID, MASK_ID, PAD_ID, format_prompt, load_tokenizer
from smc_bridge.models.arithmetic.train import loss_of, prepare, rate

METRICS = Path(WEIGHTS).with_name("metrics.json")


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(METRICS.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer()


@pytest.fixture(scope="module")
def ar() -> Qwen2ForCausalLM:
    return load("ar")


@pytest.fixture(scope="module")
def dlm() -> Qwen2ForCausalLM:
    return load("dlm")


def test_the_weights_were_trained_by_this_very_recipe(metrics: dict[str, Any]) -> None:
    assert metrics["recipe"] == fingerprint(Recipe()), "the recipe changed since: run `make train PART=pair`"


def test_any_change_of_the_recipe_changes_its_fingerprint() -> None:
    recipe = Recipe()
    others = [
        replace(recipe, seed=1),
        replace(recipe, dlm=replace(recipe.dlm, steps=recipe.dlm.steps + 1)),
        replace(recipe, ar_result_weight=1.0),
    ]
    assert len({fingerprint(r) for r in [recipe, *others]}) == 4


def test_the_causal_network_does_not_depend_on_the_diffusion_stage() -> None:
    recipe = Recipe()
    same = [replace(recipe, dlm=replace(recipe.dlm, steps=1)), replace(recipe, dlm_random_share=0.0)]
    other = [replace(recipe, seed=1), replace(recipe, ar_prompt_weight=0.0), replace(recipe, ar=recipe.dlm)]
    assert [fingerprint_ar(r) == fingerprint_ar(recipe) for r in same + other] == [True, True, False, False, False]


@pytest.mark.parametrize("kind", ["ar", "dlm"])
def test_the_shipped_configuration_is_that_of_the_architecture(kind: str) -> None:
    shipped = json.loads((WEIGHTS / kind / "config.json").read_text(encoding="utf-8"))
    for name, value in ARCHITECTURE.items():
        assert shipped[name] == value, name
    assert shipped.get("diffusion") == (DIFFUSION if kind == "dlm" else None)
    fresh, trained = build(kind).state_dict(), load(kind).state_dict()
    assert {name: t.shape for name, t in fresh.items()} == {name: t.shape for name, t in trained.items()}
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in trained.values())


def test_losses_and_accuracies_recomputed_from_the_weights_are_those_recorded(
    metrics: dict[str, Any], ar: Qwen2ForCausalLM, dlm: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    recorded, found = metrics["subset"], figures(ar, dlm, tokenizer, SUBSET)
    assert found["losses"] == pytest.approx(recorded["losses"], rel=1e-4), (found["losses"], recorded["losses"])
    for name, entry in recorded["accuracy"].items():
        # Another processor rounds differently, and one token drawn at a near-tie may change one answer.
        slack = 1.0 / entry["problems"] + 1e-9
        now = found["accuracy"][name]
        assert now["problems"] == entry["problems"]
        assert now["accuracy"] == pytest.approx(entry["accuracy"], abs=slack), (name, now, entry)


def test_the_recorded_diffusion_model_falls_apart_with_more_tokens_per_forward(metrics: dict[str, Any]) -> None:
    """The gap that the bridge closes. The recorded figures themselves are checked against the weights above."""
    share = {name: entry["accuracy"] for name, entry in metrics["held_out"]["accuracy"].items()}
    assert share["ar_temperature_0.2"] >= 0.97, share
    assert 0.75 <= share["dlm_left_to_right_1"] <= 0.92, share
    assert share["dlm_left_to_right_8"] < share["dlm_left_to_right_4"] < share["dlm_left_to_right_2"], share
    assert share["dlm_left_to_right_4"] <= 0.40, share


def test_the_network_is_far_better_than_an_untrained_one(
    ar: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(0)
    data = encode(tokenizer, held_out()[:10])
    assert ar_loss(ar, data) < 0.1 * ar_loss(build("ar").eval(), data)


def test_batched_sampling_is_the_same_as_one_by_one_at_low_temperature(
    ar: Qwen2ForCausalLM, dlm: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = [format_prompt(tokenizer, p.prompt) for p in held_out()[:3]]
    assert len({len(p) for p in prompts}) > 1, "the prompts should differ in length"
    together = sample_ar(ar, prompts, temperature=1e-4)
    assert together == [sample_ar(ar, [p], temperature=1e-4)[0] for p in prompts]
    together = decode_dlm(dlm, prompts, per_forward=2, order="left", temperature=1e-4)
    alone = [decode_dlm(dlm, [p], per_forward=2, order="left", temperature=1e-4)[0] for p in prompts]
    assert together == alone


def test_the_diffusion_network_sees_both_sides_and_ignores_padding(dlm: Qwen2ForCausalLM) -> None:
    tokens = torch.tensor([[BOS_ID, 40, MASK_ID, 50, 60]])
    with torch.no_grad():
        plain = masked_logits(dlm, tokens, torch.tensor([5]))
        changed = masked_logits(dlm, tokens.clone().index_fill(1, torch.tensor([4]), 70), torch.tensor([5]))
        padded = masked_logits(dlm, torch.cat([tokens, torch.full((1, 4), PAD_ID)], 1), torch.tensor([5]))
    assert (plain[0, 2] - changed[0, 2]).abs().max() > 1e-3
    torch.testing.assert_close(padded[:, :5], plain, rtol=1e-4, atol=1e-4)


def test_masked_losses_repeat_under_the_fixed_masking(
    dlm: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = encode(tokenizer, held_out()[:5])
    assert dlm_losses(dlm, data, seed=3) == dlm_losses(dlm, data, seed=3)
    assert dlm_losses(dlm, data, seed=3) != dlm_losses(dlm, data, seed=4)


@pytest.mark.parametrize("call", [lambda: build("rnn"), lambda: load("ar", Path("/nowhere"))])
def test_a_network_that_does_not_exist_is_refused(call: Any) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=r"kind='rnn'|weights=/nowhere/ar"):
        call()


def test_an_unknown_decoding_order_is_refused(dlm: Qwen2ForCausalLM) -> None:
    with pytest.raises(ValueError, match="order='right'"):
        decode_dlm(dlm, [[BOS_ID, 40]], per_forward=1, order="right", temperature=1.0)


@pytest.fixture(scope="module")
def schedule(tokenizer: PreTrainedTokenizerFast) -> Schedule:
    return Schedule(encode(tokenizer, generate(2_500, seed=1)), tokenizer, Recipe())


def test_a_batch_depends_on_seed_and_step_alone(schedule: Schedule) -> None:
    order = schedule.order("dlm", 3, 48)
    assert order == schedule.order("dlm", 3, 48)
    for first, again in zip(schedule.dlm_batch(1, order[1], 0.1), schedule.dlm_batch(1, order[1], 0.1), strict=True):
        assert torch.equal(first, again)
    assert not torch.equal(schedule.dlm_batch(1, order[1], 0.1).inputs, schedule.dlm_batch(2, order[1], 0.1).inputs)


def test_diffusion_batches_score_exactly_the_masked_positions(schedule: Schedule) -> None:
    for step, rows in enumerate(schedule.order("dlm", 8, 48)):
        batch = schedule.dlm_batch(step, rows, progress=step / 8)
        masked = batch.inputs == MASK_ID
        assert torch.equal(masked, batch.weights > 0)
        assert torch.equal(batch.inputs[~masked], batch.targets[~masked])
        assert masked.any(1).all()
        assert not (batch.targets[masked] == MASK_ID).any()
        assert not (batch.targets[masked] == PAD_ID).any()


def test_causal_batches_weigh_result_digits_most_and_padding_nothing(schedule: Schedule) -> None:
    recipe, rows = schedule.recipe, schedule.order("ar", 1, 48)[0]
    batch = schedule.ar_batch(0, rows, progress=0.0)
    assert (batch.weights[batch.targets == PAD_ID] == 0).all()
    assert (batch.weights[batch.targets == EOS_ID] == 1).all()
    assert batch.weights.max() == recipe.ar_result_weight
    weighted = batch.targets[batch.weights == recipe.ar_result_weight]
    assert {int(t) for t in weighted} <= schedule.digits
    with_eos = (batch.targets == EOS_ID).any(1).sum()
    assert with_eos == 48 - round(recipe.ar_drills[0][1] * 48), "the rest of the rows are drills"
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])


@pytest.mark.parametrize("kind", ["ar", "dlm"])
def test_the_faster_training_kernels_compute_the_same_loss(kind: str, schedule: Schedule) -> None:
    rows = schedule.order(kind, 1, 48)[0][:6]
    batch = (schedule.ar_batch if kind == "ar" else schedule.dlm_batch)(0, rows, 0.5)
    model = load(kind)
    with torch.no_grad():
        plain = loss_of(kind, model, batch)
        fast = loss_of(kind, prepare(model), batch)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_the_learning_rate_warms_up_and_decays_to_its_floor() -> None:
    stage = Recipe().ar
    assert rate(0, stage) == pytest.approx(1 / stage.warmup)
    assert rate(stage.warmup, stage) == pytest.approx(1.0)
    assert rate(stage.steps, stage) == pytest.approx(stage.final_rate)


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (64, 64)])
def test_the_optimiser_of_matrices_is_that_of_torch_up_to_its_bfloat16(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optims = [Muon([ours], lr=0.02, weight_decay=0.1), torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1)]
    for _ in range(5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optim in optims:
            optim.step()
    assert (ours - theirs).abs().max() < 0.01 * (ours - start).abs().max()


def test_orthogonalised_matrices_keep_their_singular_vectors() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 20, 32)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.diagonal(left.mT @ orthogonal(matrices) @ right.mT, dim1=1, dim2=2)
    assert 0.6 < values.min() <= values.max() < 1.3
    torch.testing.assert_close(left * values[:, None] @ right, orthogonal(matrices), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(orthogonal(matrices.mT), orthogonal(matrices).mT, rtol=1e-4, atol=1e-4)


def test_the_attention_mask_hides_padding_keys_only() -> None:
    mask = bidirectional_mask(torch.tensor([2, 3]), 3)
    assert mask.shape == (2, 1, 3, 3)
    assert (mask[0, 0, :, :2] == 0).all()
    assert (mask[0, 0, :, 2] < -1e30).all()
    assert (mask[1] == 0).all()


def test_the_model_card_states_the_recorded_figures_and_steps(metrics: dict[str, Any]) -> None:
    card, recorded = Path(WEIGHTS).with_name("MODEL_CARD.md").read_text(encoding="utf-8"), metrics["held_out"]
    for name, entry in recorded["accuracy"].items():
        assert f"| `{name}` | {entry['accuracy']:.1%} | {entry['problems']:,} |" in card, name
    for name in ("ar", "dlm_masked", "dlm_next_token"):
        assert f"(`{name}`) | {recorded['losses'][name]:.4f} | {recorded['losses']['problems']:,} |" in card, name
    assert f"AR: {Recipe().ar.steps:,} steps" in card
    assert f"{Recipe().dlm.steps:,} steps of cross-entropy" in card
