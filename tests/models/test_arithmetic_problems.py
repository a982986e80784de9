"""The word problems are right: every equation holds, the splits are disjoint, the tokenizer is lossless."""

import random
import re
import time

import pytest

from smc_bridge.models.arithmetic import problems
from smc_bridge.models.arithmetic.tokenizer import (
    BOS_ID,
    EOS_ID,
    MASK_ID,
    PAD_ID,
    VOCABULARY_SIZE,
    format_prompt,
    load_tokenizer,
)

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


@pytest.fixture(scope="module")
def sample() -> list[problems.Problem]:
    return problems.generate(3_000, seed=5)


def check_equation(left: str, operation: str, right: str, result: str) -> None:
    a, b, c = int(left), int(right), int(result)
    text = f"{a} {operation} {b} = {c}"
    assert APPLY[operation](a, b) == c, text
    if operation == "/":
        assert a % b == 0, f"{text} is not exact"
        assert b <= problems.LARGEST_FACTOR, text
    if operation in "+-":
        assert problems.SMALLEST <= b <= problems.LARGEST_AMOUNT, f"the amount in {text} is out of range"
    if operation == "*":
        assert min(a, b) <= problems.LARGEST_FACTOR, text
    for value in (a, b, c):
        assert problems.SMALLEST <= value <= problems.LARGEST, f"{value} in {text} is out of range"


def test_every_written_equation_is_true_and_within_the_limits(sample: list[problems.Problem]) -> None:
    for problem in sample:
        equations = EQUATION.findall(problem.response)
        assert 2 <= len(equations) <= 5, problem
        assert problem.response.count("=") == len(equations)
        for equation in equations:
            check_equation(*equation)


def test_every_number_is_between_two_and_ninety_nine(sample: list[problems.Problem]) -> None:
    for problem in sample:
        for number in re.findall(r"\d+", problem.prompt + " " + problem.response):
            assert problems.SMALLEST <= int(number) <= problems.LARGEST, problem


def test_the_answer_is_on_the_last_line_and_is_the_last_result(sample: list[problems.Problem]) -> None:
    for problem in sample:
        assert problem.response.splitlines()[-1] == f"#### {problem.answer}"
        assert int(EQUATION.findall(problem.response)[-1][3]) == problem.answer
        assert problems.extract_answer(problem.response) == problem.answer


def test_the_story_in_the_prompt_leads_to_the_answer(sample: list[problems.Problem]) -> None:
    for problem in sample:
        assert solve(problem.prompt) == problem.answer, problem


def solve(prompt: str) -> int:
    """Work the story out from its words, independently of the generator's own bookkeeping."""
    *story, _ = prompt.split(". ")
    value = 0
    for sentence in story:
        numbers = [int(n) for n in re.findall(r"\d+", sentence)]
        if " bags of " in sentence:
            value += numbers[0] * numbers[1]
        elif " times as many " in sentence:
            value *= numbers[0]
        elif re.search(r"\b(splits|shares)\b", sentence):
            assert value % numbers[0] == 0, prompt
            value //= numbers[0]
        elif re.search(r"\b(loses|sells|gives away)\b", sentence):
            value -= numbers[0]
        else:
            assert sentence.endswith("more") or " has " in sentence, sentence
            value += numbers[0]
    return value


def test_all_step_counts_operations_and_paraphrases_occur(sample: list[problems.Problem]) -> None:
    counts = {len(EQUATION.findall(p.response)) for p in sample}
    assert counts == {2, 3, 4, 5}
    assert {op for p in sample for _, op, _, _ in EQUATION.findall(p.response)} == set("+-*/")
    for kind, paraphrases in problems.REASONING.items():
        for paraphrase in paraphrases:
            pattern = re.compile(re.sub(r"\\{\w\\}", r"\\w+", re.escape(paraphrase)))
            assert any(pattern.search(p.response) for p in sample), (kind, paraphrase)


def test_the_same_prompt_has_responses_in_several_styles() -> None:
    openings = {p.response.split("=")[0].split()[0] for p in problems.generate(500, seed=8)}
    assert {"The", "In", "Adding", "That"} <= openings


def test_the_generator_repeats_itself_for_a_seed_and_differs_between_seeds() -> None:
    assert problems.generate(50, seed=3) == problems.generate(50, seed=3)
    assert problems.generate(50, seed=3) != problems.generate(50, seed=4)
    assert problems.generate(50, seed=3)[:10] == problems.generate(10, seed=3)


def test_the_stream_is_the_same_on_every_platform() -> None:
    first = problems.generate(1, seed=problems.HELD_OUT_SEED)[0]
    assert first.prompt == (
        "Max has 44 shells. Max buys 36 more. Max finds 2 more. Max shares them in 2 equal parts and keeps one. "
        "Max loses 18. How many shells does Max have at the end?"
    )
    assert first.answer == 23


def test_the_splits_share_no_prompt_and_have_the_stated_sizes() -> None:
    train, validation, held_out = problems.splits(train_count=20_000)
    assert (len(train), len(validation), len(held_out)) == (20_000, 1_000, 1_000)
    texts = [{p.prompt for p in part} for part in (train, validation, held_out)]
    assert len(texts[1]) == len(texts[2]) == 1_000
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]


def test_held_out_problems_do_not_need_the_training_set() -> None:
    problems._held_out.cache_clear()
    started = time.monotonic()
    assert problems.held_out() == problems.splits(train_count=0).held_out
    assert time.monotonic() - started < 5.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 3 = 5.\n#### 5", 5),
        ("####17", 17),
        ("#### 3 #### 4", 3),
        ("no answer 5", None),
        ("#### none", None),
        ("", None),
    ],
)
def test_extract_answer(text: str, answer: int | None) -> None:
    assert problems.extract_answer(text) == answer


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="count=-1"):
        problems.generate(-1, seed=0)


def test_drills_are_true_equations_within_the_limits() -> None:
    rng = random.Random(0)
    drills = [problems.drill(rng) for _ in range(3_000)]
    for text in drills:
        match = EQUATION.fullmatch(text[1:-1])
        assert match is not None, text
        assert text[0] == " ", text
        assert text[-1] == ".", text
        check_equation(*match.groups())
    assert {EQUATION.findall(text)[0][1] for text in drills} == set("+-*/")


def test_the_tokenizer_is_lossless_on_problems_and_on_any_text(sample: list[problems.Problem]) -> None:
    tokenizer = load_tokenizer()
    texts = [p.prompt for p in sample[:300]] + [p.response for p in sample[:300]]
    texts += ["", " ", "\n\t ", "a  b", "Zażółć gęślą jaźń", "数字 42", "\U0001f600 1,234.5"]
    texts += ["can't . , ! ?", "<not a token>"]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert all(PAD_ID < i < VOCABULARY_SIZE for i in ids)


def test_digits_are_tokens_of_their_own() -> None:
    tokenizer = load_tokenizer()
    for text in ("1234567890", "has 42 apples", "x7y", "#### 99", "3+4=7"):
        pieces = tokenizer.tokenize(text)
        assert all(len(piece) == 1 for piece in pieces if any(c.isdigit() for c in piece)), pieces


def test_the_vocabulary_has_the_stated_size_and_special_ids() -> None:
    tokenizer = load_tokenizer()
    assert len(tokenizer) == VOCABULARY_SIZE == 640
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id) == (PAD_ID, BOS_ID) == (0, 1)
    assert (tokenizer.eos_token_id, tokenizer.mask_token_id) == (EOS_ID, MASK_ID) == (2, 3)


def test_a_prompt_and_its_response_tokenize_apart_as_they_do_together(sample: list[problems.Problem]) -> None:
    tokenizer = load_tokenizer()
    for problem in sample[:300]:
        apart = format_prompt(tokenizer, problem.prompt) + tokenizer.encode(problem.response, add_special_tokens=False)
        together = tokenizer.encode(f"{problem.prompt}\n{problem.response}", add_special_tokens=False)
        assert apart == [BOS_ID, *together]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        format_prompt(load_tokenizer(), "  \n")
