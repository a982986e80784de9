"""A tokenizer is what the checkpoint's files say, whatever class transformers would make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from smc_bridge.models.checkpoints import find_checkpoint
from smc_bridge.models.tokenizers import load_tokenizer

PROBES = [
    "Hello  world", " two  spaces ", "a\n\n b\r\n\tc", "123456 7,890.12", "def f(x):\n    return x", "don't he'll I'm",
    "e\u0301 \u00e9 \ufb01 \u212b", "한국 日本 Çüß", "🙂🏽", "HELLO hElLo", "<|end|>", "a<|end|> b",
    "<mask>x<|extra|>y",
]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("1", "2"), ("12", "3"), ("3", "4"), ("Ġ", "Ġ"), ("'", "t")]
#: Qwen2's way to cut a text (Qwen2 technical report; transformers' own classes have the same).
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def vocabulary() -> dict[str, int]:
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in MERGES]
    return {token: i for i, token in enumerate(tokens)}


def byte_level(**rules: Any) -> Tokenizer:
    """Digits in threes, words in lower case: a way to cut that no class of transformers has."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary(), merges=MERGES))
    tokenizer.normalizer = rules.get("normalizer", normalizers.Lowercase())
    cut = pre_tokenizers.Split(Regex(rules.get("cut", r"\p{N}{1,3}|\p{L}+|\s|[^\s\p{L}\p{N}]+")), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, plain])
    tokenizer.decoder = decoders.ByteLevel()
    names = rules.get("names", ["<pad>", "<|begin|>", "<|end|>", "<mask>", "<|extra|>"])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def metaspace() -> Tokenizer:
    """Blanks are marks, one in front of every text, and the decoder leaves the one in front as it is."""
    words = ["<unk>", "▁", *sorted({c for text in PROBES for c in text} - {" "})]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    names = ["<pad>", "<|begin|>", "<|end|>", "<mask>", "<|extra|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


NAMED = {"pad_token": "<pad>", "bos_token": "<|begin|>", "eos_token": "<|end|>", "mask_token": "<mask>"}


def save(folder: Path, written: Tokenizer | None, settings: dict[str, Any], model_type: str = "qwen3") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if written is not None:
        written.save(str(folder / "tokenizer.json"))
    return folder


def load(folder: Path, *, trust: bool = False) -> Any:
    found = find_checkpoint("ar", folder, weights=False)
    return load_tokenizer(found, trust_remote_code=trust)


def check(found: Any, written: Tokenizer) -> None:
    """Ids, vocabulary and text are those of the file."""
    assert found.get_vocab() == written.get_vocab()
    for text in PROBES:
        ids = written.encode(text, add_special_tokens=False).ids
        assert found.encode(text, add_special_tokens=False) == ids, text
        assert found.decode(ids) == written.decode(ids, skip_special_tokens=False), text


CLASSES = ["Qwen2Tokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "GPTNeoXTokenizer", "CodeLlamaTokenizer", "Nobodys"]


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_the_file_is_right_whatever_a_class_makes_of_it(tmp_path: Path, make: Any, kind: str, model_type: str) -> None:
    settings = {"tokenizer_class": kind, **NAMED, "additional_special_tokens": ["<|extra|>"], "chat_template": TEMPLATE}
    written = make()
    found = load(save(tmp_path / "it", written, settings, model_type))
    check(found, written)
    assert {name: getattr(found, name) for name in NAMED} == NAMED
    assert found.eos_token_id == written.token_to_id("<|end|>")
    assert "<|extra|>" in found.all_special_tokens
    assert found.chat_template == TEMPLATE
    assert len(found) == written.get_vocab_size()


def test_a_file_that_puts_a_blank_in_front_of_every_text_is_read_so(tmp_path: Path) -> None:
    written = byte_level()
    written.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for kind in ("PreTrainedTokenizerFast", "GPT2Tokenizer"):
        check(load(save(tmp_path / kind, written, {"tokenizer_class": kind, **NAMED})), written)


def test_special_tokens_that_the_class_alone_names_are_kept_if_the_file_has_them(tmp_path: Path) -> None:
    """As in GPT-2's repository, whose settings name none."""
    settings = {"tokenizer_class": "GPT2Tokenizer"}
    written = byte_level(names=["<|endoftext|>"])
    found = load(save(tmp_path / "gpt2", written, settings, "gpt2"))
    check(found, written)
    assert found.eos_token_id == found.bos_token_id == written.token_to_id("<|endoftext|>")
    other = byte_level(names=["<pad>"])
    check(load(save(tmp_path / "other", other, settings, "gpt2")), other)
    said = {"bos_token": None, "eos_token": "<|endoftext|>"}
    stated = load(save(tmp_path / "none", written, settings | said, "gpt2"))
    assert (stated.bos_token, stated.eos_token) == (None, "<|endoftext|>")


def test_what_settings_say_of_a_begin_of_sequence_holds(tmp_path: Path) -> None:
    """It is put around a text, and does not say how the text is cut."""
    written = byte_level()
    begin = written.token_to_id("<|begin|>")
    written.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED}
    assert load(save(tmp_path / "it", written, settings)).encode("he")[0] == begin


def test_a_class_whose_rules_are_those_of_the_file_is_kept(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "Qwen2Tokenizer", **NAMED}
    save(tmp_path / "it", byte_level(), settings)
    AutoTokenizer.from_pretrained(tmp_path / "it").save_pretrained(tmp_path / "its")
    save(tmp_path / "its", None, settings)
    assert type(load(tmp_path / "its")).__name__.startswith("Qwen2Tokenizer")


# Tokenizers that bring code

CODE = '''
open(r"{witness}", "a").write("ran")
from transformers import PreTrainedTokenizerFast

class {name}(PreTrainedTokenizerFast):
    ran = True
'''


def with_code(folder: Path, kind: str, written: Tokenizer | None, **settings: Any) -> Path:
    """A checkpoint whose tokenizer is made by code, which tells when it runs."""
    mapped = {"AutoTokenizer": [None, f"tokenization_own.{kind}"]}
    save(folder, written, {"tokenizer_class": kind, "auto_map": mapped, **NAMED, **settings})
    (folder / "tokenization_own.py").write_text(CODE.format(witness=folder / "witness", name=kind))
    return folder


@pytest.mark.parametrize("kind", ["DreamTokenizer", "Qwen2Tokenizer"])
def test_words_and_merges_are_read_without_the_code_beside_them(tmp_path: Path, kind: str) -> None:
    """As in Dream's repositories: no `tokenizer.json`, and the added tokens in the settings."""
    words = vocabulary()
    added = {
        str(len(words) + i): {
            "content": name, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
            "special": name != "<|tool|>",
        }
        for i, name in enumerate(["<|endoftext|>", "<|begin|>", "<|end|>", "<|tool|>", "<mask>", "<|extra|>"])
    }
    folder = with_code(
        tmp_path / "dream", kind, None, added_tokens_decoder=added, chat_template=TEMPLATE, model_max_length=99,
        additional_special_tokens=["<|extra|>"], errors="replace", add_bos_token=False, pad_token="<|endoftext|>",
    )
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    found = load(folder)
    assert not (folder / "witness").exists()
    wanted = byte_level(normalizer=normalizers.NFC(), cut=QWEN, names=["<|endoftext|>", "<|begin|>", "<|end|>"])
    wanted.add_tokens([AddedToken("<|tool|>", normalized=False)])
    wanted.add_special_tokens([AddedToken(name, normalized=False) for name in ("<mask>", "<|extra|>")])
    check(found, wanted)
    assert {name: getattr(found, name) for name in NAMED} == {**NAMED, "pad_token": "<|endoftext|>"}
    assert found.mask_token_id == len(words) + 4
    assert found.chat_template == TEMPLATE


def test_a_file_is_read_without_the_code_beside_it_and_by_the_code_if_that_is_trusted(tmp_path: Path) -> None:
    written = byte_level()
    folder = with_code(tmp_path / "own", "Mine", written)
    found = load(folder)
    check(found, written)
    assert isinstance(found, PreTrainedTokenizerFast)
    assert not (folder / "witness").exists()
    assert load(folder, trust=True).ran
    assert (folder / "witness").read_text() == "ran"


def test_code_alone_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "own", "Mine", None)
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^ar = .*own': its tokenizer is made by code .*\(Mine\).*copy ") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "witness").exists()
