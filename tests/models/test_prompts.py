"""From a text to the ids that a model is prompted with, and from a continuation's ids to its text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from smc_bridge import smc
from smc_bridge.models.arithmetic.tokenizer import load_tokenizer
from smc_bridge.models.pairs import Pair
from smc_bridge.models.prompts import chat_prompt, ids_of_prompt, plain_prompt
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.models.texts import anchor_of
from tests.models.checkpoints import make_tokenizer


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
    ("{{ raise_exception('no\nsystem role') }}", "raised TemplateError: no system role; give format_prompt"),
    ("w1", "leaves the text of the user turn out; give format_prompt"),
    ("{{ 1 / 0 }}", "raised ZeroDivisionError"),
    ("{% for", "raised TemplateSyntaxError"),
])
def test_a_chat_template_that_takes_neither_is_refused_in_one_line(template: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^the tokenizer's chat template {why}") as caught:
        pair_of(chatting(template), format_prompt=chat_prompt).encode("w2")
    assert "\n" not in str(caught.value)


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
