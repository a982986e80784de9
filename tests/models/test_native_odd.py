"""Checkpoints that cannot be, or would be read wrongly in silence, are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from smc_bridge.models.pairs import load_pair
from smc_bridge.models.target import load_causal
from tests.models.checkpoints import MASK_ID, make_tokenizer, save_checkpoint
from tests.models.families import FAMILIES

#: Family, changes of its configuration, and what is said.
ODD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no heads": ("dream", {"num_attention_heads": 0}, "no Qwen2ForCausalLM can be made by its config.json"),
    "an activation": ("dream", {"hidden_act": "bogus"}, "bogus"),
    "a rotary embedding": ("dream", {"rope_scaling": {"rope_type": "bogus"}}, "bogus"),
    "a number in text": ("dream", {"rope_theta": "500"}, "copy the checkpoint anew"),
    "padding past the rows": ("dream", {"pad_token_id": 500}, "no Qwen2ForCausalLM can be made"),
    "architectures": ("dream", {"architectures": 3}, "architectures = 3 in config.json is no list of names"),
    "no longest input": ("llada", {"max_sequence_length": 0}, "max_sequence_length in the configuration of dlm = 0"),
    "quantised under names of its own": (
        "llada", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised under names of their own",
    ),
    "norms that are not said": ("llada", {"layer_norm_type": None}, "layer_norm_type = None .* only 'rms'"),
    "a rotary embedding that LLaDA has not": ("llada", {"rope_scaling": {"factor": 2.0}}, "rope_scaling = {'factor'"),
    "an epsilon of norms": ("dream", {"rms_norm_eps": None}, "rms_norm_eps = null in config.json"),
    "a base of rotary embeddings": ("llada", {"rope_theta": None}, "rope_theta = null in config.json"),
    "Nemotron": ("any block model", {"model_type": "nemotron_labs_diffusion"}, "not known here: what it has finished"),
}  # fmt: skip


def save(name: str, folder: Path, **changes: Any) -> None:
    FAMILIES[name].save(folder / "dlm", 3)
    FAMILIES[name].save_target(folder / "ar")
    edit(folder / "dlm", **changes)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("case", ODD)
def test_a_configuration_that_cannot_be_is_one_line(tmp_path, case):
    name, changes, message = ODD[case]
    save(name, tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    assert "\n" not in str(caught.value)


def test_no_longest_input_at_all_is_no_error(tmp_path):
    save("llada", tmp_path, max_sequence_length=None)
    assert load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu").dlm.mask_id == 3


def rewrite(folder: Path, name: str, value: torch.Tensor) -> None:
    """Put a weight into the first file of a checkpoint."""
    file = sorted(folder.glob("*.safetensors"))[0]
    save_file(load_file(file) | {name: value}, file, metadata={"format": "pt"})


def test_two_heads_where_the_configuration_ties_them_are_refused(tmp_path):
    save("llada tied, grouped", tmp_path)
    held = load_file(tmp_path / "dlm" / "model.safetensors")["model.transformer.wte.weight"]
    rewrite(tmp_path / "dlm", "model.transformer.ff_out.weight", held.clone())
    load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")  # a copy is none
    rewrite(tmp_path / "dlm", "model.transformer.ff_out.weight", held + 1)
    with pytest.raises(ValueError, match=r"ff_out\.weight and .*wte\.weight are tied .* and differ|wte.* and .*ff_out"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float8_e4m3fn])
def test_narrow_numbers_that_nothing_explains_are_refused(tmp_path, dtype):
    save("llada tied, grouped", tmp_path)
    file, name = tmp_path / "dlm" / "model.safetensors", "model.transformer.blocks.0.q_proj.weight"
    rewrite(tmp_path / "dlm", name, load_file(file)[name].to(dtype))
    with pytest.raises(ValueError, match=r"q_proj\.weight holds numbers of type .(8|32).*, and its config"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")


@pytest.mark.parametrize("stated", [[16, None], "16", [-1], True])
def test_ends_of_a_configuration_that_are_none_are_told_with_their_file(tmp_path, stated):
    save("dream", tmp_path)
    (tmp_path / "ar" / "generation_config.json").unlink(missing_ok=True)
    edit(tmp_path / "ar", eos_token_id=stated)
    with pytest.raises(ValueError, match=r"^ar = .*: eos_token_id = .* in config\.json is no id and no list of ids"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")


def test_a_target_of_another_kind_is_told_its_type(tmp_path):
    save("dream", tmp_path)
    edit(tmp_path / "ar", model_type="t5")
    with pytest.raises(ValueError, match="has the model type 't5', of which this version of transformers has no"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")


def test_no_shared_end_is_told_with_a_remedy_that_helps(tmp_path):
    save("dream", tmp_path)
    FAMILIES["llada"].save_target(tmp_path / "other")
    with pytest.raises(ValueError, match=r"the target ends sequences with eos_id = .* none is left: .*; give two"):
        load_pair(tmp_path / "dlm", tmp_path / "other", device="cpu", reduce=True)


def test_an_end_that_a_target_alone_does_not_know_is_told_with_its_own_remedy(tmp_path):
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2, tokenizer=make_tokenizer(eos_token=None))
    (tmp_path / "ar" / "generation_config.json").unlink()
    edit(tmp_path / "ar", eos_token_id=21)  # a row of the embedding that no token has
    with pytest.raises(ValueError, match=r"eos_id = 21, and none is left: .*; give eos_id$"):
        load_causal(tmp_path / "ar", device="cpu")


def test_a_template_that_fails_is_told_before_weights_are_read(tmp_path, monkeypatch):
    save("dream", tmp_path)
    monkeypatch.setattr("smc_bridge.models.loading._load", lambda *_, **__: pytest.fail("weights were read"))
    file = tmp_path / "ar" / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"chat_template": "{{ raise_exception('no') }}"}
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="chat template"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_masked_model_may_come_with_a_pooler_and_another_head(tmp_path, kind):
    """As bert-base-uncased and roberta-base are published."""
    save_checkpoint(tmp_path / "dlm", kind, seed=1)
    for name in (f"{kind}.pooler.dense.weight", "cls.seq_relationship.weight"):
        rewrite(tmp_path / "dlm", name, torch.ones(2, 32))
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    assert load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu").dlm.mask_id == MASK_ID


def test_an_architecture_that_a_package_registered_is_a_target(tmp_path, monkeypatch):
    class OwnConfig(transformers.Qwen2Config):
        model_type = "own_words"

    class OwnForCausalLM(transformers.Qwen2ForCausalLM):
        config_class = OwnConfig

    for mapping in (transformers.CONFIG_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING):
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    transformers.AutoConfig.register("own_words", OwnConfig)
    transformers.AutoModelForCausalLM.register(OwnConfig, OwnForCausalLM)
    save_checkpoint(tmp_path / "dlm", "bert", seed=1)
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    edit(tmp_path / "ar", model_type="own_words")
    pair: Any = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    assert type(pair.ar.model) is OwnForCausalLM


def test_blocks_of_a_network_that_cannot_be_told_of_them_do_not_blame_code_of_its_own(tmp_path):
    save_checkpoint(tmp_path / "dlm", "bert", seed=1)
    with pytest.raises(ValueError, match="the code that runs it cannot be told of blocks; leave it out"):
        load_pair(tmp_path / "dlm", tmp_path / "dlm", device="cpu", attention="block", block_size=4)


def test_a_device_map_that_is_no_device_is_told_by_its_name():
    with pytest.raises(ValueError, match=r"^device_map = 'autoo': is not there"):
        load_pair("x", "y", device_map="autoo")


def test_a_path_is_said_as_a_text_where_a_model_is_refused(tmp_path):
    for name in ("dlm", "ar"):
        save_checkpoint(tmp_path / name, "bert", seed=1)
    with pytest.raises(ValueError, match=r"^ar = '.*ar': is not causal"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
