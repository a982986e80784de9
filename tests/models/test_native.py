"""Families are loaded without their code: every weight is accounted for, and every argument looked at before any is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import smc_bridge.models.loading as loading
from smc_bridge.models.checkpoints import Checkpoint
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.placement import options_of
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.target import load_causal
from tests.models.checkpoints import MASK_ID, edit_config, make_tokenizer, save_checkpoint
from tests.models.dit_checkpoints import save_bd3lm, save_mdlm
from tests.models.families import FAMILIES

Weights = dict[str, torch.Tensor]


def rewrite(change: Callable[[Weights], Mapping[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Change the weights of a folder with a single file."""

    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, file, metadata={"format": "pt"})

    return spoil


def without(name: str) -> Callable[[Path], None]:
    return rewrite(lambda weights: {k: v for k, v in weights.items() if k != name})


def with_more(name: str) -> Callable[[Path], None]:
    return rewrite(lambda weights: weights | {name: torch.ones(3)})


def cut(name: str) -> Callable[[Path], None]:
    return rewrite(lambda weights: weights | {name: weights[name][:-1]})


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose weights have been read so far; nothing is, of networks that are made without."""
    seen: list[str] = []
    original = loading._load

    def noted(checkpoint: Any, *rest: Any, **given: Any) -> Any:
        seen.append(checkpoint.argument)
        return original(checkpoint, *rest, **given)

    monkeypatch.setattr(loading, "_load", noted)
    return seen


def save_dream(folder: Path) -> None:
    save_checkpoint(folder, "qwen2", seed=1)
    edit_config(model_type="Dream", architectures=["DreamModel"], mask_token_id=MASK_ID)(folder)


def save_llada(folder: Path) -> None:
    FAMILIES["llada tied, grouped"].save(folder, 0)


#: Writer of a checkpoint, what is done to it, and the one line that comes of it.
_HEAD = "copy weights and config.json from one checkpoint$"
LOST: dict[str, tuple[Callable[[Path], Any], Callable[[Path], None], str]] = {
    "missing": (
        save_dream, without("model.norm.weight"), rf"1 weights of Qwen2.* not in it \(first model\.norm\.w.*{_HEAD}",
    ),
    "no head": (
        save_dream, without("lm_head.weight"), rf"1 weights of Qwen2.* not in it \(first lm_head\.weight\).*{_HEAD}",
    ),
    "left over": (
        save_dream, with_more("model.extra"), rf"1 weights have no place in Qwen2.* \(first model\.extra\).*{_HEAD}",
    ),
    "misshapen": (
        save_dream, cut("model.layers.1.mlp.up_proj.weight"),
        rf"1 weights have another shape than Qwen2.* \(first model\.layers\.1\.mlp\.up_proj\.weight: .*{_HEAD}",
    ),
    "a family with names of its own": (
        save_mdlm, without("backbone.blocks.1.attn_qkv.weight"), r"1 weights of DiT .* \(first blocks\.1\.qkv\.",
    ),
    "left over there": (save_bd3lm, with_more("backbone.extra"), r"1 weights have no place in DiT \(first backbone\."),
    "misshapen there": (save_mdlm, cut("backbone.output_layer.linear.bias"), r"another shape than DiT .*head\.bias: "),
    "another architecture": (save_dream, edit_config(architectures=["X"]), r"is a X, and only DreamModel .* is known"),
    "an entry that is missing": (save_llada, edit_config(d_model=None), r"config\.json has no 'd_model'; copy"),
    "an entry that is unlike": (save_llada, edit_config(alibi=True), r"alibi = True in its configuration is not known"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_a_weight_or_an_entry_that_is_amiss_is_one_line_before_weights_are_read(tmp_path, case, read):
    save, spoil, message = LOST[case]
    save(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    files = sorted((tmp_path / "dlm").glob("*.safetensors"))
    assert len(files) == 1
    spoil(tmp_path / "dlm")
    with pytest.raises(ValueError, match=message) as caught:
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu", reduce=True)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"dlm = {str(tmp_path / 'dlm')!r}")
    assert not read


def test_what_old_checkpoints_hold_besides_is_left(tmp_path):
    save_dream(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    with_more("model.layers.0.self_attn.rotary_emb.inv_freq")(tmp_path / "dlm")
    assert load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu").dlm.shift


#: Arguments that cannot be, and what is said of them.
ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "mask": ({"mask_id": 99}, "mask_id = 99: give an id from 0 to 21"),
    "mask that ends": ({"mask_id": 2}, "mask_id = 2 is eos_id too"),
    "end": ({"eos_id": 99}, "eos_id = 99"),
    "cap": ({"max_logit_bytes": 8}, "max_logit_bytes = 8: one position of 22 output columns takes 88"),
    "attention": ({"attention": "block"}, "give block_size"),
    "block": ({"block_size": 2}, "block_size = 2 with full attention"),
    "implementation": ({"attn_implementation": "flash_attention_2"}, "takes no mask of which places are seen; give"),
    "of the other model": ({"dlm_kwargs": {"atn": 1}}, r"dlm_kwargs has 'atn': use any of dtype, torch_dtype, device"),
    "no mapping": ({"ar_kwargs": "bfloat16"}, "ar_kwargs = 'bfloat16': give a mapping"),
    "two names": ({"dtype": "float32", "torch_dtype": "bfloat16"}, "torch_dtype = 'bfloat16' with dtype: they are one"),
    "revision": ({"revision": 3}, "revision = 3: give a text"),
    "token": ({"token": 3.5}, "token: give a text, or True"),
    "quantisation": ({"quantization_config": 8}, "quantization_config = 8: give one of transformers'"),
    "two places": ({"device": "cpu", "ar_kwargs": {"device_map": "auto", "device": "cpu"}}, "with device_map"),
    "chat": ({"chat": True}, "has no chat template"),
    "unknown quantisation": (
        {"dlm_kwargs": {"quantization_config": {"quant_method": "nonsense"}}}, "its quantised weights cannot be loaded",
    ),
    "mask, though code may run": ({"mask_id": 99, "trust_remote_code": True}, "mask_id = 99: give an id from 0 to 21"),
    "cap, though code may run": ({"max_logit_bytes": 8, "trust_remote_code": True}, "takes 88"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_every_argument_is_looked_at_before_weights_are_read(tmp_path, case, read):
    save_dream(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    given, message = ARGUMENTS[case]
    with pytest.raises(ValueError, match=message) as caught:
        load_pair(tmp_path / "dlm", tmp_path / "ar", **{"device": "cpu"} | given)
    assert "\n" not in str(caught.value)
    assert not read
    load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    assert read == ["ar", "dlm"]  # the witness works


def test_a_cache_that_there_is_not_is_refused_before_weights_are_read(tmp_path, read):
    save_checkpoint(tmp_path / "dlm", "bert")
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    with pytest.raises(ValueError, match=r"cache = 'prefix' needs a causal backbone .*: use cache = 'none'"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu", dlm_cache="prefix")
    assert not read


def test_options_of_one_model_go_before_those_of_both(tmp_path):
    save_dream(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    pair: Any = load_pair(
        tmp_path / "dlm", tmp_path / "ar", device="cpu", dtype="float64", ar_kwargs={"torch_dtype": "bfloat16"},
        dlm_kwargs={"attn_implementation": "eager"},
    )
    assert (pair.dlm.model.dtype, pair.ar.model.dtype) == (torch.float64, torch.bfloat16)
    kinds = (pair.dlm.model.config._attn_implementation, pair.ar.model.config._attn_implementation)
    assert kinds == ("eager", "sdpa")
    assert load_causal(tmp_path / "ar", torch_dtype="bfloat16", device="cpu").model.model.dtype == torch.bfloat16


def test_a_family_is_read_with_either_attention_and_the_default_is_told(tmp_path):
    family = FAMILIES["a2d-llama-bd3lm"]
    family.save(tmp_path / "dlm", 0)
    family.save_target(tmp_path / "ar")
    with pytest.warns(UserWarning, match="is read with full attention: give attention = 'block' and block_size"):
        whole = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    blocks = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu", attention="block", block_size=4)
    ids, row, canvas = torch.tensor([[4, 9, 5]]), torch.tensor([0]), torch.full((1, 6), MASKED)
    one, other = (pair.dlm.session(ids, torch.tensor([3])).score(row, canvas)[0, 0] for pair in (whole, blocks))
    assert (one - other).abs().max() > 1e-3


def test_a_configuration_may_name_blocks_of_any_backbone(tmp_path):
    entry = {"shift": False, "mask_token_id": MASK_ID, "attention": "block", "block_size": 3}
    save_checkpoint(tmp_path / "dlm", "llama", seed=1, entry=entry)
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    dlm: Any = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu").dlm
    assert (dlm.block_size, dlm.shift, dlm.cache) == (3, False, "prefix")


def test_code_that_fails_names_the_version_that_it_was_written_for(tmp_path, monkeypatch):
    import transformers

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    save_dream(tmp_path / "dlm")
    head = "from transformers import PretrainedConfig"
    code = f"{head}\nclass C(PretrainedConfig):\n    model_type = 'Dream'\nraise KeyError('x')"
    (tmp_path / "dlm" / "own.py").write_text(code)
    edit_config(auto_map={"AutoConfig": "own.C", "AutoModel": "own.M"}, transformers_version="4.46.2")(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    with pytest.raises(ValueError, match=r"written with transformers 4\.46\.2, this is .*leave trust_remote_code out"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu", trust_remote_code=True)
    assert load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu").dlm.shift  # none of it is run


def test_a_target_that_transformers_has_is_read_without_the_code_beside_it(tmp_path):
    save_dream(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    edit_config(auto_map={"AutoModelForCausalLM": "absent.Model"})(tmp_path / "ar")
    assert load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu").ar.vocab_size == 22


def test_an_adapter_of_peft_is_to_be_merged(tmp_path):
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ValueError, match=r"ar = .*holds a PEFT adapter .*merge it into its base model"):
        load_pair(tmp_path / "ar", tmp_path / "adapter", dlm_convention="shifted", mask_id=3)


def test_a_hub_name_without_the_hub_says_so(tmp_path, monkeypatch):
    from huggingface_hub import constants

    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"dlm = 'nobody/nothing': .*HF_HUB_OFFLINE is set; give a folder"):
        load_pair("nobody/nothing", tmp_path / "ar")


def test_models_of_one_pair_are_on_one_device(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a second device")
    save_dream(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    with pytest.raises(ValueError, match="dlm is on cpu and ar on cuda"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", dlm_kwargs={"device": "cpu"}, ar_kwargs={"device": "cuda"})


def test_a_tokenizer_from_elsewhere_serves_a_family_that_publishes_none(tmp_path):
    save_mdlm(tmp_path / "dlm")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "dlm" / name).unlink()
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer .*name another checkpoint's with dlm_tokenizer"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    make_tokenizer(mask_token=None).save_pretrained(tmp_path / "words")
    (tmp_path / "words" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    pair = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu", dlm_tokenizer=tmp_path / "words", reduce=True)
    assert 20 in pair.dlm.banned_ids  # the mask: the last id, which no tokenizer has


def quantised(folder: Path) -> None:
    edit_config(quantization_config={"quant_method": "fp8"})(folder)


@pytest.mark.parametrize(
    ("save", "spoil", "message"),
    [
        (
            save_dream, without("model.layers.1.mlp.up_proj.weight"),
            r"1 weights of Qwen2.* are not in it .*up_proj|quantised weights cannot be",  # without a GPU for them
        ),
        (save_llada, lambda folder: None, "its weights are quantised under names of their own"),
    ],
)
def test_a_quantised_checkpoint_is_never_filled_with_random_or_raw_numbers(tmp_path, save, spoil, message):
    save(tmp_path / "dlm")
    spoil(tmp_path / "dlm")
    quantised(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    with pytest.raises(ValueError, match=message):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")


def test_what_quantises_a_model_goes_to_transformers_which_then_places_it():
    given = {"quant_method": "fp8"}
    fresh = Checkpoint("ar", "x", {}, offline=True)
    saved = Checkpoint("ar", "x", {"quantization_config": given}, offline=True)
    asked, _ = options_of({"device": "cpu", "quantization_config": given})
    plain, _ = options_of({"device": "cpu"})
    place = {"": torch.device("cpu")}
    assert asked.options(fresh) == {"dtype": "auto", "quantization_config": given, "device_map": place}
    assert plain.options(saved) == {"dtype": "auto", "device_map": place}  # what is quantised is not moved afterwards
    assert plain.options(fresh) == {"dtype": "auto"}


def test_revision_and_token_find_every_file_of_their_model(monkeypatch):
    found: dict[str, Any] = {}

    def stop(argument: str, name: str, **options: Any) -> Any:
        found[argument] = options["hub"]
        if argument == "ar":
            raise FileNotFoundError("far enough")
        config = {"model_type": "Dream", "architectures": ["DreamModel"]}
        return Checkpoint(argument, name, config, True, options["hub"])

    shapes: list[Mapping[str, Any]] = []
    monkeypatch.setattr("smc_bridge.models.source.find_checkpoint", stop)
    monkeypatch.setattr("smc_bridge.models.source.load_tokenizer", lambda *_, **__: make_tokenizer())
    monkeypatch.setattr("smc_bridge.models.own.weight_shapes", lambda given: shapes.append(given.options) or {})
    monkeypatch.setattr("smc_bridge.models.own.account", lambda *_: None)
    with pytest.raises(FileNotFoundError, match="far enough"):
        load_pair("a/b", "c/d", revision="v1", token="secret", dlm_kwargs={"revision": "v2"})
    assert found == {"dlm": {"revision": "v2", "token": "secret"}, "ar": {"revision": "v1", "token": "secret"}}
    assert shapes == [{"local_files_only": True, "revision": "v2", "token": "secret"}]


def test_a_weight_without_a_place_is_refused_of_any_diffusion_model(tmp_path):
    save_checkpoint(tmp_path / "dlm", "llama", seed=1)  # as DiffuLLaMA is published
    with_more("model.extra")(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    with pytest.raises(ValueError, match=r"1 weights have no place in LlamaForCausalLM \(first model\.extra\); copy"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu", dlm_convention="shifted")


def test_a_fault_of_the_native_route_does_not_blame_code_that_was_not_run(tmp_path):
    save_dream(tmp_path / "dlm")
    edit_config(auto_map={"AutoModel": "own.M"}, transformers_version="4.46.2")(tmp_path / "dlm")
    save_checkpoint(tmp_path / "ar", "qwen2", seed=2)
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load_pair(tmp_path / "dlm", tmp_path / "ar", dlm_kwargs={"quantization_config": {"quant_method": "nonsense"}})
    assert "4.46.2" not in str(caught.value)


def test_a_weight_under_two_names_is_refused(tmp_path, read):
    FAMILIES["llada tied, grouped"].save(tmp_path / "dlm", 0)
    rewrite(lambda w: w | {"transformer.ln_f.weight": 5 * w["model.transformer.ln_f.weight"]})(tmp_path / "dlm")
    FAMILIES["llada tied, grouped"].save_target(tmp_path / "ar")
    with pytest.raises(ValueError, match=r"holds model\.norm\.weight twice"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    assert not read


def test_ends_of_the_hub_are_those_of_the_revision_and_token(monkeypatch):
    import transformers.utils

    from smc_bridge.models.checkpoints import generation_ends

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(transformers.utils, "cached_file", lambda *_, **options: asked.append(options))
    hub = {"revision": "v1.0", "token": "secret"}
    assert generation_ends(Checkpoint("ar", "owner/name", {}, False, hub)) == []
    assert asked[0].items() >= hub.items()
