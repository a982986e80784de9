"""A checkpoint that is not whole, not one, or not safe is refused in one line, before anything of it runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smc_bridge.models import checkpoints
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.target import load_causal
from tests.models.checkpoints import MASK_ID, SIZE, edit_config, make_tokenizer, save_checkpoint

Spoil = Callable[[Path], object]


def drop(*names: str) -> Spoil:
    """Delete files of a folder."""
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


def write(name: str, text: str) -> Spoil:
    """Overwrite a file of a folder."""
    return lambda folder: (folder / name).write_text(text)


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(1)}, folder / "pytorch_model.bin")


def half_of_the_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


def weight_map(content: object) -> Spoil:
    """An index of weights that says nothing."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": content}))

    return spoil


def no_head(folder: Path) -> None:
    """The body of a BERT without what predicts tokens."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    body = {name: value for name, value in weights.items() if not name.startswith("cls.")}
    save_file(body, folder / "model.safetensors", metadata={"format": "pt"})


def tokenizer_with_code(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_mine.Mine", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").unlink()


FAULTS: dict[str, tuple[Spoil, str]] = {
    "no configuration": (drop("config.json"), r"has no config\.json, so it is no checkpoint"),
    "configuration that is no JSON": (write("config.json", "{"), r"config\.json cannot be read .*: copy the"),
    "configuration that is a list": (write("config.json", "[]"), r"config\.json is no JSON object"),
    "configuration of something else": (edit_config(model_type=None), r"config\.json has no model_type"),
    "no weights": (drop("model.safetensors"), r"has no weights \(model\.safetensors\)"),
    "pickle only": (pickle_only, r"holds its weights as pickle only \(pytorch_model\.bin\).*: save them as"),
    "half of the weights": (half_of_the_weights, r"model\.safetensors is no safetensors file .*; copy it anew"),
    "weights that are a text": (write("model.safetensors", "hello"), r"model\.safetensors is no safetensors file"),
    "a shard is missing": (missing_shard, r"1 of 2 weight files are missing \(first model-00002-of-00002"),
    "no head": (no_head, r"\d+ weights of BertForMaskedLM are not in it \(first cls\.predictions.*would be random"),
    "another width": (edit_config(hidden_size=64), r"its weights cannot be loaded: they have other shapes than its c"),
    "code that is a list": (edit_config(auto_map=["a.B"]), r"auto_map in config\.json is \['a\.B'\], no JSON object"),
    "code that is a text": (edit_config(auto_map="a.B"), r"auto_map in config\.json is 'a\.B', no JSON object"),
    "index that is a list": (weight_map(["a"]), r"index\.json has no weight_map from weights to files"),
    "index without files": (weight_map(None), r"index\.json has no weight_map from weights to files"),
    "no tokenizer": (drop("tokenizer.json", "tokenizer_config.json"), r"has no tokenizer \(tokenizer\.json\)"),
    "tokenizer that is no JSON": (write("tokenizer.json", "{"), r"its tokenizer cannot be loaded"),
    "tokenizer with code of its own": (tokenizer_with_code, r"its tokenizer is made by code of its own .*, which is"),
}


@pytest.fixture
def ar(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "ar", "qwen2")
    return tmp_path / "ar"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoilt_checkpoint_is_refused_in_one_line(tmp_path, ar, fault):
    spoil, message = FAULTS[fault]
    save_checkpoint(tmp_path / "dlm", "bert")
    spoil(tmp_path / "dlm")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_pair(tmp_path / "dlm", ar, device="cpu")
    assert str(caught.value).startswith(f"dlm = '{tmp_path / 'dlm'}': ")
    assert "\n" not in str(caught.value)


def test_a_fault_of_the_target_names_the_other_argument(tmp_path, ar):
    save_checkpoint(tmp_path / "dlm", "bert")
    (ar / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"^ar = .*has no weights"):
        load_pair(tmp_path / "dlm", ar, device="cpu")


def test_a_masked_model_is_no_target(tmp_path):
    save_checkpoint(tmp_path / "dlm", "modernbert")
    with pytest.raises(ValueError, match=r"^ar = .*has the model type 'modernbert', of which this version"):
        load_pair(tmp_path / "dlm", tmp_path / "dlm", device="cpu")


def test_only_an_argument_that_exists_is_named_as_the_remedy(tmp_path, ar):
    save_checkpoint(tmp_path / "dlm", "bert")
    drop("tokenizer.json", "tokenizer_config.json")(ar)
    with pytest.raises(FileNotFoundError, match=r"^ar = .*has no tokenizer .*: copy it from where the model is from$"):
        load_pair(tmp_path / "dlm", ar, device="cpu")


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_bidirectional_model_that_loads_as_a_causal_one_is_no_target(tmp_path, kind):
    save_checkpoint(tmp_path / "dlm", "qwen2", entry={"shift": True, "mask_token_id": MASK_ID})
    save_checkpoint(tmp_path / "ar", kind)
    with pytest.raises(ValueError, match=r"^ar = .*: is not causal: its logits at a position change by"):
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    with pytest.raises(ValueError, match="is not causal"):
        load_causal(tmp_path / "ar", device="cpu")


def test_the_same_architecture_told_to_look_back_alone_is_a_target(tmp_path):
    save_checkpoint(tmp_path / "ar", "bert")
    edit_config(is_decoder=True)(tmp_path / "ar")
    assert load_causal(tmp_path / "ar", device="cpu").model.vocab_size == SIZE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "dlm = '': is empty"),
        ("./nowhere", "dlm = 'nowhere': there is no such folder"),
        ("~nobody-of-that-name/x", "dlm = '~nobody-of-that-name/x': there is no such home folder"),
        ("/nowhere/at/all", "dlm = '/nowhere/at/all': there is no such folder"),
        (__file__, "is a file; give the folder of a checkpoint"),
    ],
)
def test_a_name_that_is_no_folder_is_refused(ar, name, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_pair(name, ar, device="cpu")


def test_a_name_of_the_hub_without_a_connection_is_one_line_at_once(ar, monkeypatch):
    monkeypatch.setattr(checkpoints, "hub_answers", lambda: False)
    with pytest.raises(FileNotFoundError, match="is no local folder, not in the hub's local cache, and the hub cannot"):
        load_pair("nobody/no-such-model", ar, device="cpu")


def test_the_ends_that_a_name_of_the_hub_generates_to_are_read_from_the_local_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path), raising=False)  # of version 4
    monkeypatch.setattr(checkpoints, "hub_answers", lambda: False)
    home = tmp_path / "models--nobody--chat"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text("0" * 40)
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "qwen2", "eos_token_id": 5}')
    found = checkpoints.find_checkpoint("ar", "nobody/chat")
    assert checkpoints.generation_ends(found) == []
    for text, ends in (("[7, 5]", [7, 5]), ("7", [7]), ("null", [])):
        (snapshot / "generation_config.json").write_text(f'{{"eos_token_id": {text}}}')
        assert checkpoints.generation_ends(found) == ends


def test_an_unreachable_hub_is_seen_without_asking_for_files(monkeypatch):
    from huggingface_hub import constants

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not checkpoints.hub_answers()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not checkpoints.hub_answers()


def test_a_tokenizer_from_elsewhere_serves_a_checkpoint_without_one(tmp_path, ar):
    """As MDLM's, which are published without the GPT-2 tokenizer that they use."""
    model = save_checkpoint(tmp_path / "dlm", "bert")
    drop("tokenizer.json", "tokenizer_config.json")(tmp_path / "dlm")
    pair = load_pair(tmp_path / "dlm", ar, device="cpu", dlm_tokenizer=ar)
    assert (pair.dlm.mask_id, pair.dlm.vocab_size) == (MASK_ID, SIZE)  # type: ignore[attr-defined]
    assert model.config.vocab_size == SIZE
    with pytest.raises(FileNotFoundError, match=r"dlm_tokenizer = .*: there is no such folder"):
        load_pair(tmp_path / "dlm", ar, device="cpu", dlm_tokenizer=tmp_path / "none")


def test_a_generic_tokenizer_is_read_as_its_file_stands(tmp_path, ar):
    """The type of the model beside it (qwen2 here) has rules of its own, which would give other ids."""
    save_checkpoint(tmp_path / "dlm", "bert")
    pair = load_pair(tmp_path / "dlm", ar, device="cpu")
    assert pair.encode("w1 w15 w2").tolist() == make_tokenizer().encode("w1 w15 w2") == [5, 19, 6]
