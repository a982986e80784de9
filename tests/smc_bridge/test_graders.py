"""Graders by name: which texts give which answers, and what a grader of one's own may be."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from smc_bridge.graders import check_answer, contains, exact, final_number, find_grader, number

NUMBERS: list[tuple[str, str | None]] = [
    ("so there are 18 left.", "18"), ("1,234 and then 70,000", "70000"), ("1,000,000.50", "1000000.50"), ("1, 2", "2"),
    ("12,34", "34"), ("1,2345", "2345"), ("it is -3", "-3"), ("it is \N{MINUS SIGN}3", "-3"), ("16 - 3 = 13", "13"),
    ("16-3", "3"), ("(16)-3", "3"), ("(-5)", "-5"), ("+7", "7"), ("$5", "5"), ("-$1,200", "-1200"), ("$-5", "-5"),
    (".5", "0.5"), ("18.", "18"), ("3.0", "3"), ("1e3", "1000"), ("2.5E-1", "0.25"), ("3eggs", "3"), ("50%", "50"),
    ("5 7/8", "8"), ("none", None), ("", None), ("-", None), (".", None), ("####", None),
    ("#### 18", "18"), ("x\n#### 18\n\nQuestion: 5 and 7?", "18"), ("#### $1,000", "1000"), ("####-4 then 5", "-4"),
    ("#### 18 no, #### 19", "18"), ("#### Step\nthat is 4", "4"), ("<<16-3-4=9>>9 a day.\n#### 9", "9"),
    ("\N{ARABIC-INDIC DIGIT THREE}", "3"), ("9" * 5000, "9" * 5000),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS, ids=[repr(text[:30]) for text, _ in NUMBERS])
def test_the_number_that_a_text_gives(text: str, value: str | None) -> None:
    assert final_number(text) == (None if value is None else Decimal(value))


@pytest.mark.parametrize(("text", "answer", "right"), [
    ("The answer is 1,000.", "1000.0", True), ("1000", 1000, True), ("0.30", 0.3, True), ("0.3001", 0.3, False),
    ("#### 18", "She makes 9 * 2 = 18.\n#### 18", True), ("18 or 19", "18", False), ("eighteen", "18", False),
    ("-18", "18", False), ("", "18", False),
])
def test_numbers_are_compared_by_value(text: str, answer: Any, right: bool) -> None:
    assert number(text, answer) is right


def test_texts_are_compared_with_case_and_without_blanks_around() -> None:
    assert exact(" Paris\n", "Paris")
    assert exact("5", 5)
    assert not exact("paris", "Paris")
    assert not exact("Paris.", "Paris")
    assert contains("It is Paris.", " Paris ")
    assert not contains("It is paris.", "Paris")


def test_answers_that_a_grader_cannot_use_are_refused() -> None:
    for answer in (True, [5], {"a": 1}, "", "  "):
        with pytest.raises(ValueError, match=r"answer = .*: give a text or a number"):
            check_answer("exact", answer)
        check_answer("mine:grade", answer)
    with pytest.raises(ValueError, match="answer = 'five': has no number; use another grader than number"):
        check_answer("number", "five")
    check_answer("number", "#### 5")


OWN = """
def same_length(text, answer):
    return len(text) == len(answer)

class Case:
    @staticmethod
    def ignored(text, answer):
        return text.lower() == answer.lower()

def broken(text, answer):
    return 1 / 0

def wordy(text, answer):
    return "yes"

count = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])
    (tmp_path / f"own_{tmp_path.name}.py").write_text(OWN)
    (tmp_path / f"bad_{tmp_path.name}.py").write_text("import nothing_of_that_name\n")
    return tmp_path.name


def test_a_grader_of_ones_own_is_found_beside_the_user(own: str) -> None:
    assert find_grader(f"own_{own}:same_length")("abc", "xyz")
    assert find_grader(f"own_{own}:Case.ignored")("ABC", "abc")
    assert not find_grader(f"own_{own}:Case.ignored")("ABC", "abd")


@pytest.mark.parametrize(("name", "words"), [
    ("fuzzy", "= 'fuzzy': choose from exact, number, contains, or give your own as module:function"),
    (":f", "= ':f': choose from"), ("nowhere_at_all:f", "ModuleNotFoundError"), ("own_{}:missing", "AttributeError"),
    ("own_{}:count", "is no function"), ("bad_{}:f", "No module named 'nothing_of_that_name'"),
])
def test_what_is_no_grader_is_refused_in_one_line(own: str, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")) as caught:
        find_grader(name.format(own))
    assert "\n" not in str(caught.value)


def test_a_grader_that_fails_or_gives_no_verdict_is_named(own: str) -> None:
    with pytest.raises(ValueError, match=r"grader = 'own_.*:broken': raised ZeroDivisionError.* for answer = '5'"):
        find_grader(f"own_{own}:broken")("5", "5")
    with pytest.raises(ValueError, match=r"grader = 'own_.*:wordy': returned 'yes'; return True or False"):
        find_grader(f"own_{own}:wordy")("5", "5")
