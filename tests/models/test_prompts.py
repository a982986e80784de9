"""From a text to the ids that a model is prompted with, and from a continuation's ids to its text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import BertProcessing, TemplateProcessing
from transformers import PreTrainedTokenizerFast

from smc_bridge import ar_sampling, smc
from smc_bridge.analysis.exact_law import oracle
from smc_bridge.models.arithmetic.tokenizer import load_tokenizer
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.models.prompts import chat_prompt, ids_of_prompt, plain_prompt, prompt_format
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.models.target import load_causal
from smc_bridge.models.texts import anchor_of
from tests.models.checkpoints import make_tokenizer, save_checkpoint


def pair_of(tokenizer: Any, size: int = 20, **options: Any) -> Pair:
    """A pair of tables with that tokenizer."""
    ar = TabularAR([np.full((1, size), 1 / size)], eos_id=2, banned_ids=[0, 1, 3])
    return Pair("toy", TabularDLM(ar), ar, tokenizer, options.pop("format_prompt", plain_prompt))


def sentencepiece() -> Any:
    """Blanks are part of the words, and the decoder strips the one in front of a text (Llama, Mistral, Gemma)."""
    words = ["<pad>", "<bos>", "<eos>", "<mask>", "<unk>", "▁▁▁", "▁return", "▁x", "▁def", ":", "\n", "▁"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pattern = Regex("▁▁▁(?=▁)|▁?[a-z]+|▁|\n|:")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    strip = decoders.Strip(content=" ", left=1, right=0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", mask_token="<mask>",
        unk_token="<unk>",
    )


def wordpiece() -> Any:
    """Pieces of a word are joined, words are set apart."""
    words = ["<pad>", "<bos>", "<eos>", "<mask>", "a", "walk", "##ing", "##s", ",", "b"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


TEXTS = {
    "sentencepiece": (sentencepiece, "def x:\n", "    return x"),
    "wordpiece": (wordpiece, "a walk", "ing, b walks"),
    "words": (make_tokenizer, "w1 w2", " w3 w4"),
    "bytes": (load_tokenizer, "Tom has", "  3 çups"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_is_that_of_prompt_and_continuation_less_that_of_the_prompt(kind: str) -> None:
    """For any ids: tokens of a model are not those that its tokenizer would write."""
    tokenizer = TEXTS[kind][0]()
    pair = pair_of(tokenizer, size=len(tokenizer))
    generator = np.random.default_rng(1)
    known = 0
    for _ in range(300):
        prompt, ids = (generator.integers(4, len(tokenizer), generator.integers(0, 5)).tolist() for _ in range(2))
        before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + ids)
        text = pair.decode(ids, prompt)
        if whole.startswith(before):
            known += 1
            assert before + text == whole, (prompt, ids)
        assert pair.decode([*ids, 2, 0], prompt) == text, "the end and what is banned are silent"
    assert known > 200


def test_a_character_of_which_the_prompt_has_a_part_breaks_no_text() -> None:
    tokenizer = load_tokenizer()
    pair = pair_of(tokenizer, size=len(tokenizer))
    first, *rest = tokenizer.encode("€", add_special_tokens=False)
    assert rest, "one byte, one token"
    dots = [tokenizer.encode(".", add_special_tokens=False)[-1]]
    assert pair.decode([*rest, *dots], [*dots, first]).endswith(".")
    assert pair.decode([*dots, first], dots) == ".\ufffd"
    assert pair.decode([*dots, first, *rest], dots) == ".€"


def test_tokens_that_are_special_and_neither_end_nor_banned_are_shown() -> None:
    tokenizer = sentencepiece()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    tool = tokenizer.convert_tokens_to_ids("<|tool|>")
    assert pair_of(tokenizer, size=len(tokenizer)).decode([7, tool, 7, 2], [8]) == " x<|tool|> x"


@pytest.mark.parametrize("kind", TEXTS)
def test_prompt_and_text_of_the_continuation_together_are_the_text(kind: str) -> None:
    make, prompt, rest = TEXTS[kind]
    tokenizer = make()
    pair = pair_of(tokenizer, size=len(tokenizer))
    before = tokenizer.encode(prompt, add_special_tokens=False)
    whole = tokenizer.encode(prompt + rest, add_special_tokens=False)
    assert whole[: len(before)] == before
    assert len(whole) > len(before)
    assert pair.decode(whole[len(before) :]) == rest
    assert pair.decode(whole[len(before) :]) == tokenizer.decode(whole)[len(tokenizer.decode(before)) :]
    assert pair.decode([]) == pair.decode([2]) == ""


def test_results_carry_the_leading_space() -> None:
    pair = pair_of(make_tokenizer())
    [result] = smc(pair, 1, window=2, lookahead=2).run([[5]], seed=1, max_new_tokens=2)
    assert result.texts is not None
    assert "w1" + result.texts[0] == make_tokenizer().decode([5, *(t for t in result.sequences[0] if t != 2)])


class Blanks:
    """Tokens with a blank between them, and no list of tokens to look for a word in."""

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))


def test_results_have_the_texts_behind_their_prompt() -> None:
    pair = pair_of(Blanks())
    sampler = smc(pair, 1, window=2, lookahead=2)
    exact = oracle(sampler.target, [5], max_new_tokens=1, detokenize=pair.decode)
    runs = [*sampler.run([[5]], max_new_tokens=2), *ar_sampling(pair, [[5]], max_new_tokens=2), exact]
    for run in runs:
        assert run.texts is not None
        shown = [[t for t in sequence if t != 2] for sequence in run.sequences]
        assert run.texts == ["".join(f" {t}" for t in ids) for ids in shown]


def test_the_word_before_a_continuation_is_no_byte_if_there_is_another() -> None:
    anchor = anchor_of(load_tokenizer())
    assert anchor is not None
    assert len(anchor[1]) > 1
    assert anchor_of(object()) is None


# Prompts


@pytest.mark.parametrize(("template", "lead"), [("<bos> $A <eos>", [1]), ("$A <eos> <pad>", []), ("<bos> $A", [1])])
def test_what_a_tokenizer_closes_a_text_with_is_not_part_of_a_prompt(template: str, lead: list[int]) -> None:
    tokenizer = make_tokenizer()
    tokens = [(name, i) for i, name in enumerate(["<pad>", "<bos>", "<eos>"])]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=tokens)
    assert pair_of(tokenizer).encode("w1 w2").tolist() == [*lead, 5, 6]
    # What the user wrote stays.
    assert pair_of(tokenizer).encode("w1 <eos>").tolist() == [*lead, 5, 2]


@pytest.mark.parametrize("text", ["<eos>", "<eos> <eos>", "<bos>"])
def test_special_tokens_that_the_user_wrote_stay(text: str) -> None:
    """Also where nothing else is in the text, and the end is the begin as well (OPT)."""
    for lead in ("<bos>", "<eos>"):
        for tail in ("", " <eos>", " <eos> <pad>"):
            tokenizer = make_tokenizer()
            tokens = [(name, i) for i, name in enumerate(["<pad>", "<bos>", "<eos>"])]
            template = TemplateProcessing(single=f"{lead} $A{tail}", special_tokens=tokens)
            own = tokenizer.encode(text)
            tokenizer.backend_tokenizer.post_processor = template
            assert plain_prompt(tokenizer, text) == [tokenizer.convert_tokens_to_ids(lead), *own]


def test_the_separator_of_a_bert_tokenizer_does_not_close_a_prompt() -> None:
    words = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "walk", "##ing"])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    assert found.encode("walking") == [1, 5, 6, 2]
    assert plain_prompt(found, "walking") == [1, 5, 6]
    assert plain_prompt(found, "walking [SEP]") == [1, 5, 6, 2]


def chatting(template: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


PARTS = "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }} w9{% endfor %}{% endfor %}"


def test_a_chat_template_is_given_a_text_or_else_its_parts() -> None:
    assert chat_prompt(chatting("{{ messages[0]['content'] }} w8"), "w1 w2") == [5, 6, 12]
    assert chat_prompt(chatting(PARTS), "w1 w2") == [5, 6, 13]
    picky = "{% if messages[0]['content'] is string %}{{ raise_exception('parts') }}{% endif %}" + PARTS
    assert chat_prompt(chatting(picky), "w1 w2") == [5, 6, 13]


@pytest.mark.parametrize(("template", "why"), [
    ("{{ raise_exception('no\nsystem role') }}", "raised TemplateError: no system role; give system"),
    ("w1", "leaves the text of the user turn out; give system"),
    ("{{ 1 / 0 }}", "raised ZeroDivisionError"),
    ("{% for", "raised TemplateSyntaxError"),
])
def test_a_chat_template_that_takes_neither_is_refused_in_one_line(template: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^the tokenizer's chat template {why}") as caught:
        pair_of(chatting(template), format_prompt=chat_prompt).encode("w2")
    assert "\n" not in str(caught.value)


def test_a_chat_template_writes_all_special_tokens_by_itself() -> None:
    """None is put before or behind what it writes, and none taken away."""
    tokenizer = chatting("<bos> {{ messages[0]['content'] }} <eos>")
    tokens = [("<bos>", 1), ("<eos>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=tokens)
    assert chat_prompt(tokenizer, "w1") == [1, 5, 2]
    tokenizer.chat_template = "{{ messages[0]['content'] }} w8"
    assert chat_prompt(tokenizer, "w1 <eos>") == [5, 2, 12]


@pytest.mark.parametrize("way", ["tojson", "upper"])
def test_a_template_may_write_the_text_in_another_way(way: str) -> None:
    tokenizer = chatting(f"{{{{ messages[0]['content'] | {way} }}}} w8")
    written = tokenizer.apply_chat_template([{"role": "user", "content": 'w1 "w2"'}], tokenize=False)
    assert 'w1 "w2"' not in written
    assert chat_prompt(tokenizer, 'w1 "w2"') == tokenizer.encode(written, add_special_tokens=False)


ROLES = "{% for m in messages %}{{ 'w8' if m['role'] == 'system' else 'w9' }} {{ m['content'] }} {% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + ROLES
DROPS_SYSTEM = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"


def test_the_form_of_a_prompt_is_what_the_user_asks_for() -> None:
    with_template, without = chatting(ROLES), make_tokenizer()
    forms: list[tuple[Any, dict[str, Any], list[int]]] = [
        (with_template, {}, [13, 5]),
        (with_template, {"chat": True}, [13, 5]),
        (with_template, {"chat": np.bool_(True)}, [13, 5]),
        (with_template, {"chat": False}, [5]),
        (with_template, {"system": "w2 w3"}, [12, 6, 7, 13, 5]),
        (with_template, {"chat": True, "system": "w2"}, [12, 6, 13, 5]),
        (without, {}, [5]),
        (without, {"chat": False}, [5]),
    ]
    for tokenizer, options, ids in forms:
        assert prompt_format(tokenizer, **options)(tokenizer, "w1") == ids, options


@pytest.mark.parametrize(("template", "line"), [
    (NO_SYSTEM, "raised TemplateError: no system role; leave system out"),
    (DROPS_SYSTEM, "leaves the text of the system turn out; leave system out"),
])
def test_a_system_turn_that_a_template_does_not_take_is_refused_in_one_line(template: str, line: str) -> None:
    tokenizer = chatting(template)
    assert 5 in prompt_format(tokenizer)(tokenizer, "w1")
    with pytest.raises(ValueError, match=f"^the tokenizer's chat template {line}"):
        pair_of(tokenizer, format_prompt=prompt_format(tokenizer, system="w2")).encode("w1")


def own_form(tokenizer: Any, text: str) -> list[int]:
    return [1]


@pytest.mark.parametrize(("options", "line"), [
    ({"chat": "yes"}, "chat = 'yes': give True, False or 'auto'"),
    ({"chat": None}, "chat = None: give True"),
    ({"chat": 1}, "chat = 1: give True"),
    ({"chat": np.array([True])}, "chat = array"),
    ({"system": 3}, "system = 3: give the text of a system turn"),
    ({"system": " "}, "system = ' ': give the text"),
    ({"system": "w2", "chat": False}, "system = 'w2' with chat = False: a text as it is has no turns"),
    ({"system": "w2", "format_prompt": own_form}, "system = 'w2' with format_prompt: that makes the whole prompt"),
    ({"chat": False, "format_prompt": own_form}, "chat = False with format_prompt"),
    ({"chat": True}, "chat = True: the target's tokenizer has no chat template"),
    ({"system": "w2"}, "system = 'w2': the target's tokenizer has no chat template to put it in"),
])
def test_forms_that_contradict_or_cannot_be_are_refused_before_weights_are_read(
    unreadable: tuple[Path, Path], options: dict[str, Any], line: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(line)}"):
        load_pair(*unreadable, device="cpu", **options)
    if "format_prompt" not in options:
        with pytest.raises(ValueError, match=f"^{re.escape(line)}"):
            load_causal(unreadable[1], device="cpu", **options)


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints, and the weights of the target are none."""
    folder = tmp_path_factory.mktemp("unreadable")
    save_checkpoint(folder / "dlm", "bert")
    save_checkpoint(folder / "ar", "qwen2")
    (folder / "ar" / "model.safetensors").write_bytes(b"none")
    return folder / "dlm", folder / "ar"


def test_forms_reach_the_models_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "dlm", "bert")
    save_checkpoint(tmp_path / "ar", "qwen2", tokenizer=chatting(ROLES))
    pair = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu", chat=True, system="w2")
    assert pair.encode("w1").tolist() == [12, 6, 13, 5]
    plain = load_causal(tmp_path / "ar", device="cpu", chat=False)
    assert plain.format_prompt(plain.tokenizer, "w1") == [5]
    with pytest.raises(ValueError, match=r"^chat = False is for two models of your own: leave it out with the pair"):
        load_pair("arithmetic", chat=False)


#: Ids of one prompt in all forms.
FORMS: dict[str, Callable[[Any, str], Any]] = {
    "list": lambda t, x: t.encode(x),
    "tuple": lambda t, x: tuple(t.encode(x)),
    "array": lambda t, x: np.array(t.encode(x)),
    "tensor": lambda t, x: torch.tensor(t.encode(x)),
    "batch of one": lambda t, x: torch.tensor([t.encode(x)]),
    "encoding": lambda t, x: t(x),
    "tensors": lambda t, x: t(x, return_tensors="pt"),
    "template": lambda t, x: t.apply_chat_template(
        [{"role": "user", "content": x}], chat_template="{{ messages[0]['content'] }}"),
    "rust": lambda t, x: t.backend_tokenizer.encode(x),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_format_may_return_what_a_tokenizer_returns(form: str) -> None:
    assert pair_of(make_tokenizer(), format_prompt=FORMS[form]).encode("w1 w2").tolist() == [5, 6]


@pytest.mark.parametrize(("wrong", "line"), [
    (lambda t, x: x, "<lambda> returned 'w1 w2': return the ids of one prompt"),
    (lambda t, x: t.tokenize(x), r"<lambda> returned \['w1', 'w2'\]"),
    (lambda t, x: [1.0], r"<lambda> returned \[1.0\]"),
    (lambda t, x: None, "<lambda> returned None"),
    (lambda t, x: [[1], [2]], r"<lambda> returned \[\[1\], \[2\]\]"),
    (lambda t, x: {"ids": [1]}, "<lambda> returned {'ids'"),
    (lambda t, x: int("x\ny"), "<lambda> raised ValueError: invalid literal"),
    (lambda t, x: t.nothing, "<lambda> raised AttributeError"),
])
def test_a_format_that_returns_no_ids_or_fails_is_named_in_one_line(wrong: Any, line: str) -> None:
    with pytest.raises(ValueError, match=rf"^format_prompt = .*{line}") as caught:
        pair_of(make_tokenizer(), format_prompt=wrong).encode("w1 w2")
    assert "\n" not in str(caught.value)


def test_a_token_that_a_model_lacks_is_named_with_the_model() -> None:
    """As with `reduce = True`: the alphabet is the smaller of two."""
    whole, cut = pair_of(make_tokenizer()), pair_of(make_tokenizer(), size=18)
    pair = replace(whole, dlm=cut.dlm)
    assert pair.encode("w1 w13").tolist() == [5, 17]
    with pytest.raises(ValueError, match=r"prompt has the token 'w14' \(id 18\), .* of the diffusion model"):
        pair.encode("w1 w14")
    with pytest.raises(ValueError, match="diffusion and the autoregressive model"):
        cut.encode("w14")


@pytest.mark.parametrize("token", [-1, 10**30, 99])
def test_an_id_that_no_tokenizer_has_is_named_by_its_number(token: int) -> None:
    with pytest.raises(ValueError, match=f"^prompt has the token {token}, which is not in the alphabet"):
        pair_of(make_tokenizer(), format_prompt=lambda t, x: [token]).encode("w1")


def test_ids_of_several_prompts_are_not_those_of_one() -> None:
    with pytest.raises(ValueError, match=r"^it returned"):
        ids_of_prompt(torch.zeros(2, 3, dtype=torch.long), "it")


def test_a_prompt_longer_than_the_tokenizer_says_is_told_by_the_pair_alone(caplog: pytest.LogCaptureFixture) -> None:
    """transformers' own line would stand beside the program's, or where there is nothing wrong."""
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 2
    assert plain_prompt(tokenizer, "w1 w2 w3") == [5, 6, 7]
    assert "longer than the specified maximum" in caplog.text
    caplog.clear()
    assert pair_of(tokenizer).encode("w1 w2 w3").tolist() == [5, 6, 7]
    assert caplog.text == ""
