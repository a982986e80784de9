"""The word problems are right: every equation holds, the splits are disjoint, the tokenizer is lossless."""

import random
import re
import time

import pytest

from smc_bridge.models.arithmetic import problems, slips, wording
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
DIALECTS = (wording.PLAIN, wording.DRAFTED)
#: Slots whose favourite is what the plain dialect says most often as well.
SHARED = ("lead", "tail", "tense")
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
        assert 2 <= len(equations) <= 4, problem
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


@pytest.mark.parametrize("dialect", DIALECTS, ids=["plain", "drafted"])
def test_all_step_counts_operations_and_words_occur_in_both_dialects(dialect: wording.Dialect) -> None:
    sample = problems.generate(10_000, seed=5, dialect=dialect)
    assert {len(EQUATION.findall(p.response)) for p in sample} == {2, 3, 4}
    assert {op for p in sample for _, op, _, _ in EQUATION.findall(p.response)} == set("+-*/")
    slots = [*wording.SLOTS.values(), *wording.VERBS.values()]
    for text in {form for options in slots for both in options for form in both}:
        assert any(text in p.response for p in sample), text


def test_the_dialects_tell_the_same_stories_in_other_words() -> None:
    plain, drafted = (problems.generate(200, 8, dialect) for dialect in (wording.PLAIN, wording.DRAFTED))
    assert [(p.prompt, p.answer) for p in plain] == [(p.prompt, p.answer) for p in drafted]
    assert sum(a.response == b.response for a, b in zip(plain, drafted, strict=True)) < 5


@pytest.mark.parametrize("dialect", DIALECTS, ids=["plain", "drafted"])
def test_a_solution_keeps_its_tense(dialect: wording.Dialect) -> None:
    for problem in problems.generate(1_000, 4, dialect):
        words = set(re.findall(r"[a-z]+", problem.response))
        past = words & {"were", "came", "was", "made", "had", "held", "took", "kept", "lost", "gave", "owned", "could"}
        present = words & {"are", "comes", "is", "makes", "has", "holds", "takes", "keeps", "loses", "gives", "can"}
        assert not (past and present), problem


def test_slots_are_filled_with_the_probabilities_of_the_dialect() -> None:
    """Frames and leads by operation; the pooled chi-square statistic, of some 200 degrees of freedom, is within six
    standard deviations of its mean under the stated law."""
    rng, statistic, freedom, draws = random.Random(0), 0.0, 0, 2_000
    slots = [("frame", 3), *((name, len(options)) for name, options in wording.SLOTS.items()), ("verb", 4)]
    for dialect in DIALECTS:
        for kind in wording.SIGNS:
            for slot, count in slots:
                law = dialect.weights(kind, slot, count)
                assert sum(law) == pytest.approx(1.0)
                drawn = [dialect.choose(rng, kind, slot, count) for _ in range(draws)]
                statistic += sum((drawn.count(i) - draws * p) ** 2 / (draws * p) for i, p in enumerate(law))
                freedom += count - 1
    assert 100 < freedom < 400, f"{freedom} degrees of freedom"
    assert abs(statistic - freedom) < 6 * (2 * freedom) ** 0.5


def test_sentences_have_the_frames_and_leads_of_the_dialect_for_their_operation() -> None:
    """As above, counted in what is written."""
    leads = [both[0] for both in wording.SLOTS["lead"]]
    kinds = {"+": "add", "-": "subtract", "/": "divide"}
    for dialect in DIALECTS:
        counts: dict[tuple[str, str], list[int]] = {}
        for problem in problems.generate(2_000, 6, dialect):
            for sentence in re.split(r"(?<=\.) ", problem.response.partition("\n####")[0]):
                operation = EQUATION.findall(sentence)[0][1]
                kind = kinds.get(operation) or ("bags" if " bags of " in sentence else "times")
                lead = next(i for i, text in enumerate(leads) if sentence.startswith(text))
                rest = sentence[len(leads[lead]) :]
                joined = any(both[0] in sentence for both in wording.SLOTS["joint"])
                frame = 2 if rest.startswith(("with ", "without ")) else int(joined)
                for slot, option, count in (("lead", lead, 4), ("frame", frame, 3)):
                    counts.setdefault((kind, slot), [0] * count)[option] += 1
        assert len(counts) == 2 * len(wording.SIGNS)
        statistic = freedom = 0.0
        for (kind, slot), found in counts.items():
            wanted = [sum(found) * share for share in dialect.weights(kind, slot, len(found))]
            statistic += sum((a - b) ** 2 / b for a, b in zip(found, wanted, strict=True))
            freedom += len(found) - 1
        assert abs(statistic - freedom) < 6 * (2 * freedom) ** 0.5, (dialect.name, counts)


def test_favourites_are_not_what_the_plain_dialect_says_most_often_but_in_shared_slots() -> None:
    assert wording.DRAFTED.favourites is not None
    for (_, slot), option in wording.DRAFTED.favourites.items():
        assert (option == 0) == (slot in SHARED), slot
    assert all(law[0] == max(law) and sum(law) == pytest.approx(1.0) for law in wording.SOFT.values())


def test_the_drafted_dialect_slips_by_the_rule_and_works_on_from_what_it_wrote() -> None:
    wrong, slipping = 0, 0
    for problem in problems.generate(2_000, 5, wording.DRAFTED):
        equations = EQUATION.findall(problem.response)
        true = [APPLY[op](int(a), int(b)) == int(c) for a, op, b, c in equations]
        assert int(equations[-1][3]) == problems.extract_answer(problem.response), problem
        assert problems.extract_answer(problem.response) == problem.answer or not all(true), problem
        wrong += problems.extract_answer(problem.response) != problem.answer
        slipping += not all(true)
        for right, (a, op, b, c) in zip(true, equations, strict=True):
            if not right:
                assert op in "+-", problem
                assert int(b) % 10 >= slips.HARD, problem
                assert abs(APPLY[op](int(a), int(b)) - int(c)) == 10, problem
        assert all(2 <= int(n) <= 99 for n in re.findall(r"\d+", problem.response)), problem
    assert 0.22 < wrong / 2_000 < 0.29, "a quarter, says the model card"
    assert wrong <= slipping


@pytest.mark.parametrize(
    ("kind", "a", "b", "written"),
    [
        ("add", 47, 29, 66), ("add", 41, 28, 69), ("add", 40, 29, 69), ("add", 45, 27, 62), ("add", 46, 25, 71),
        ("add", 12, 8, 10), ("subtract", 52, 19, 43), ("subtract", 59, 19, 40), ("subtract", 52, 17, 45),
        ("subtract", 52, 15, 37), ("times", 9, 9, 81), ("divide", 18, 9, 2),
    ],
)  # fmt: skip
def test_a_slip(kind: str, a: int, b: int, written: int) -> None:
    assert slips.slipped(kind, a, b) == written


def test_a_slip_that_leads_out_of_the_limits_is_not_made() -> None:
    steps = [wording.Step("subtract", "Ann", 41, 9, 32), wording.Step("divide", "Ann", 32, 4, 8)]
    assert slips.retold(steps) is steps, "42 has no fourth part"
    steps[1] = wording.Step("divide", "Ann", 32, 2, 16)
    assert [s.c for s in slips.retold(steps)] == [42, 21]


def test_the_generator_repeats_itself_for_a_seed_and_differs_between_seeds() -> None:
    assert problems.generate(50, seed=3) == problems.generate(50, seed=3)
    assert problems.generate(50, seed=3) != problems.generate(50, seed=4)
    assert problems.generate(50, seed=3)[:10] == problems.generate(10, seed=3)


def test_the_stream_is_the_same_on_every_platform() -> None:
    first = problems.generate(1, seed=problems.HELD_OUT_SEED)[0]
    assert first.prompt == (
        "Max has 58 shells. Max gives away 13. A friend gives Max 15 more. Max buys 29 more. "
        "How many shells does Max have now?"
    )
    assert first.response == (
        "So Max lost 13, which made 58 - 13 = 45 shells in all. So Max gained 15 more, and that was 45 + 15 = 60 "
        "shells. After that, Max put aside 29 more, and this came to 60 + 29 = 89 shells in all.\n#### 89"
    )
    assert first.answer == 89


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
