"""The table of conventions: what each published family is run as, and what overrides it."""

from types import SimpleNamespace

import pytest

from smc_bridge.models.conventions import convention_of, mask_id_of

NO_MASK = SimpleNamespace(mask_token_id=None)

FAMILIES = {
    "Dream": (True, "mask-4d", "AutoModel"),
    "llada": (False, "unpadded", "AutoModel"),
    "a2d-qwen2": (False, "mask-2d", "AutoModelForMaskedLM"),
    "a2d-qwen3": (False, "mask-2d", "AutoModelForMaskedLM"),
    "mdlm": (False, "unpadded", "AutoModelForMaskedLM"),
    "bd3lm": (False, "unpadded", "AutoModelForMaskedLM"),
    "bert": (False, "mask-2d", "AutoModelForMaskedLM"),
    "roberta": (False, "mask-2d", "AutoModelForMaskedLM"),
    "modernbert": (False, "mask-2d", "AutoModelForMaskedLM"),
    "fnet": (False, "unpadded", "AutoModelForMaskedLM"),
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_published_family_needs_no_override(model_type):
    found = convention_of({"model_type": model_type}, name="x")
    assert (found.shift, found.attention, found.auto_class) == FAMILIES[model_type]


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("override", ["shifted", "unshifted"])
def test_a_causal_backbone_is_run_as_the_override_says(model_type, override):
    found = convention_of({"model_type": model_type}, name="x", override=override)
    assert (found.shift, found.attention) == (override == "shifted", "mask-4d")


@pytest.mark.parametrize("shift", [True, False])
def test_a_diffusion_entry_of_the_configuration_states_the_convention(shift):
    found = convention_of({"model_type": "qwen2", "diffusion": {"shift": shift}}, name="x")
    assert (found.shift, found.auto_class) == (shift, "AutoModelForCausalLM")


@pytest.mark.parametrize("shift", [True, False])
def test_a_configuration_that_carries_the_trainers_option_is_believed(shift):
    found = convention_of({"model_type": "a2d-qwen3", "right_shift_logits": shift}, name="x")
    assert (found.shift, found.attention) == (shift, "mask-2d")
    with pytest.raises(ValueError, match="right_shift_logits = 'yes'"):
        convention_of({"model_type": "a2d-qwen3", "right_shift_logits": "yes"}, name="x")


def test_the_override_goes_before_entry_and_table():
    entry = {"model_type": "qwen2", "diffusion": {"shift": True}}
    assert not convention_of(entry, name="x", override="unshifted").shift
    dream = convention_of({"model_type": "Dream"}, name="x", override="unshifted")
    assert (dream.shift, dream.attention) == (False, "mask-4d")  # the architecture stays what it is


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_the_weights_of_diffullama_and_diffugpt_are_shifted(model_type):
    assert convention_of({"model_type": model_type}, name="x", wrapped=True).shift


@pytest.mark.parametrize("model_type", ["qwen2", "gpt2", "unheard-of"])
def test_an_unknown_convention_is_refused_with_the_remedy(model_type):
    with pytest.raises(ValueError, match=rf"dlm = 'x' has the model type '{model_type}'.*set dlm_convention to 'shift"):
        convention_of({"model_type": model_type}, name="x")


def test_an_architecture_that_nobody_has_is_refused_even_with_an_override():
    with pytest.raises(ValueError, match="'unheard-of', which transformers has no language model for: give"):
        convention_of({"model_type": "unheard-of"}, name="x", override="shifted")


def test_another_word_for_the_convention_is_refused():
    with pytest.raises(ValueError, match="dlm_convention = 'left': give 'shifted' or 'unshifted'"):
        convention_of({"model_type": "qwen2"}, name="x", override="left")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "tokenizer_mask", "expected"),
    [
        ({"model_type": "qwen2", "diffusion": {"shift": True, "mask_token_id": 7}, "mask_token_id": 8}, 9, 7),
        ({"model_type": "Dream", "mask_token_id": 151666}, None, 151666),
        ({"model_type": "bert"}, 103, 103),
        ({"model_type": "mdlm", "vocab_size": 50258}, None, 50257),
    ],
)
def test_the_mask_is_that_of_configuration_then_tokenizer_then_family(config, tokenizer_mask, expected):
    tokenizer = SimpleNamespace(mask_token_id=tokenizer_mask)
    assert mask_id_of(config, tokenizer, convention_of(config, name="x"), name="x") == expected


def test_a_model_without_a_mask_token_is_refused():
    config = {"model_type": "bert"}
    with pytest.raises(ValueError, match="mask_id = None, and neither configuration nor tokenizer of dlm = 'x'"):
        mask_id_of(config, NO_MASK, convention_of(config, name="x"), name="x")


@pytest.mark.parametrize("entry", ["shifted", [True], 1])
def test_a_diffusion_entry_that_is_no_object_is_refused(entry):
    with pytest.raises(ValueError, match=r"dlm = 'x': diffusion = .* in its configuration is no JSON object: give one"):
        convention_of({"model_type": "qwen2", "diffusion": entry}, name="x")


@pytest.mark.parametrize("shift", ["no", 0, "true"])
def test_a_shift_that_is_neither_true_nor_false_is_refused(shift):
    with pytest.raises(ValueError, match=r"shift = .* in the diffusion entry of its configuration: give true or false"):
        convention_of({"model_type": "qwen2", "diffusion": {"shift": shift}}, name="x")


@pytest.mark.parametrize("mask", ["x", -1, 2.5, True])
def test_a_mask_token_that_is_no_id_is_refused(mask):
    config = {"model_type": "bert", "mask_token_id": mask}
    with pytest.raises(ValueError, match=r"dlm = 'x': mask_token_id = .* is no id: give mask_id"):
        mask_id_of(config, NO_MASK, convention_of(config, name="x"), name="x")
