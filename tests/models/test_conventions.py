"""The table of conventions: what each published family is run as, and what overrides it."""

from types import SimpleNamespace

import pytest

from smc_bridge.models.recognise import convention_of, mask_id_of

NO_MASK = SimpleNamespace(mask_token_id=None)

#: Shift, attention and size of a block, masking, and the network of the native route.
FAMILIES = {
    "Dream": (True, "full", None, "mask-4d", "Qwen2ForCausalLM"),
    "llada": (False, "full", None, "mask-4d", "LlamaForCausalLM"),
    "a2d-qwen2": (False, "full", None, "mask-4d", "Qwen2ForCausalLM"),
    "a2d-qwen3": (False, "full", None, "mask-4d", "Qwen3ForCausalLM"),
    "a2d-llama": (False, "full", None, "mask-4d", "LlamaForCausalLM"),
    "Fast_dLLM_Qwen": (True, "block", 32, "mask-4d", "Qwen2ForCausalLM"),
    "sdar": (False, "block", 4, "mask-4d", "Qwen3ForCausalLM"),
    "bert": (False, "full", None, "mask-2d", None),
    "roberta": (False, "full", None, "mask-2d", None),
    "modernbert": (False, "full", None, "mask-2d", None),
    "fnet": (False, "full", None, "unpadded", None),
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_published_family_needs_no_override(model_type):
    found = convention_of({"model_type": model_type}, name="x")
    network = found.native.architecture if found.native else None
    assert (found.shift, found.attention, found.block_size, found.masking, network) == FAMILIES[model_type]


#: Entry of the configuration, arguments, and what comes of them.
BLOCKS = {
    "of the family": ({"model_type": "sdar"}, {}, ("block", 4)),
    "of the configuration": ({"model_type": "sdar", "block_size": 16}, {}, ("block", 16)),
    "of Fast-dLLM's own entry": ({"model_type": "Fast_dLLM_Qwen", "bd_size": 8}, {}, ("block", 8)),
    "of the diffusion entry": (
        {"model_type": "qwen2", "diffusion": {"shift": False, "attention": "block", "block_size": 5}}, {}, ("block", 5),
    ),
    "given": ({"model_type": "sdar", "block_size": 16}, {"block_size": 2}, ("block", 2)),
    "given against the family": ({"model_type": "sdar"}, {"attention": "full"}, ("full", None)),
    "of BD3LM without blocks": ({"model_type": "bd3lm", "block_size": 4, "cross_attn": False}, {}, ("full", None)),
    "of BD3LM": ({"model_type": "bd3lm", "block_size": 4}, {}, ("block", 4)),
    "given for A2D": ({"model_type": "a2d-qwen3"}, {"attention": "block", "block_size": 32}, ("block", 32)),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_blocks_are_those_that_are_given_or_of_the_configuration_or_of_the_family(case):
    config, given, expected = BLOCKS[case]
    found = convention_of(config, name="x", **given)
    assert (found.attention, found.block_size) == expected


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        ({"model_type": "Dream"}, {"attention": "causal"}, r"attention = 'causal' of dlm = 'x': give 'full' or "),
        ({"model_type": "Dream"}, {"attention": "block"}, r"does not say how many tokens a block has; give block_size"),
        ({"model_type": "Dream"}, {"block_size": 4}, r"block_size = 4 with full attention: give attention = "),
        ({"model_type": "bd3lm", "cross_attn": "no"}, {}, r"cross_attn = 'no' in its configuration: give true"),
        ({"model_type": "sdar"}, {"block_size": 0}, r"block_size = 0: give a whole number of at least 1"),
        ({"model_type": "sdar", "block_size": "4"}, {}, r"block_size = '4': give a whole number of at least 1"),
    ],
)
def test_blocks_that_cannot_be_are_refused_in_one_line(config, given, message):
    with pytest.raises(ValueError, match=message):
        convention_of(config, name="x", **given)


@pytest.mark.parametrize("given", [None, "full", "block"])
def test_only_where_nothing_tells_the_attention_is_it_open(given):
    size = 4 if given == "block" else None
    found = convention_of({"model_type": "a2d-llama"}, name="x", attention=given, block_size=size)
    assert found.either is (given is None)


def test_trusted_code_goes_before_the_native_network():
    config = {"model_type": "a2d-qwen3", "auto_map": {"AutoModelForMaskedLM": "modeling.Model"}}
    found = convention_of(config, name="x", trusted=True)
    assert (found.native, found.masking, found.auto_class) == (None, "mask-2d", "AutoModelForMaskedLM")
    assert convention_of(config, name="x").native is not None
    blocks = {"model_type": "sdar", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    with pytest.raises(ValueError, match="the code that runs it cannot be told of blocks; leave trust"):
        convention_of(blocks, name="x", trusted=True)
    assert convention_of(blocks, name="x", trusted=True, attention="full").masking == "unpadded"


#: Auto class of the code of its own, and how that is masked.
TRUSTED = {
    "Dream": ("AutoModel", "mask-4d", {}), "llada": ("AutoModel", "unpadded", {}),
    "a2d-llama": ("AutoModelForMaskedLM", "mask-2d", {}),
    "mdlm": ("AutoModelForMaskedLM", "unpadded", {"timesteps": "zeros"}),
}


@pytest.mark.parametrize("model_type", TRUSTED)
def test_code_of_its_own_is_masked_as_it_takes_masks(model_type):
    auto_class, masking, inputs = TRUSTED[model_type]
    config = {"model_type": model_type, "auto_map": {auto_class: "own.Model"}}
    found = convention_of(config, name="x", trusted=True)
    assert (found.native, found.auto_class, found.masking, found.inputs) == (None, auto_class, masking, inputs)


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("override", ["shifted", "unshifted"])
def test_a_causal_backbone_is_run_as_the_override_says(model_type, override):
    found = convention_of({"model_type": model_type}, name="x", override=override)
    assert (found.shift, found.masking) == (override == "shifted", "mask-4d")


@pytest.mark.parametrize("shift", [True, False])
def test_a_diffusion_entry_of_the_configuration_states_the_convention(shift):
    found = convention_of({"model_type": "qwen2", "diffusion": {"shift": shift}}, name="x")
    assert (found.shift, found.auto_class) == (shift, "AutoModelForCausalLM")


@pytest.mark.parametrize("shift", [True, False])
def test_a_configuration_that_carries_the_trainers_option_is_believed(shift):
    found = convention_of({"model_type": "a2d-qwen3", "right_shift_logits": shift}, name="x")
    assert (found.shift, found.masking) == (shift, "mask-4d")
    with pytest.raises(ValueError, match="right_shift_logits = 'yes'"):
        convention_of({"model_type": "a2d-qwen3", "right_shift_logits": "yes"}, name="x")


def test_the_override_goes_before_entry_and_table():
    entry = {"model_type": "qwen2", "diffusion": {"shift": True}}
    assert not convention_of(entry, name="x", override="unshifted").shift
    dream = convention_of({"model_type": "Dream"}, name="x", override="unshifted")
    assert (dream.shift, dream.masking) == (False, "mask-4d")  # the architecture stays what it is


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
