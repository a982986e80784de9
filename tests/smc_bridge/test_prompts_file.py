"""A file of prompts: what it may hold, and that every fault is one line with the file and the number of the line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from smc_bridge.prompts_file import PromptsTask, read_prompts
from smc_bridge.tasks import Item


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def read(tmp_path: Path, data: bytes, grader: str = "exact") -> tuple[Item, ...]:
    (tmp_path / "p.jsonl").write_bytes(data)
    return read_prompts(tmp_path / "p.jsonl", grader=grader, argument="--prompts")


def test_prompts_answers_and_ids_are_read(tmp_path: Path) -> None:
    first, second = line(prompt="a", answer="1", id="x"), line(prompt="b", answer=2, id=7, more=[1])
    found = read(tmp_path, b"\n".join([first, second, line(prompt="c", answer="3")]))
    assert found == (Item("a", "1", "x"), Item("b", 2, "7"), Item("c", "3", "3"))


def test_marks_line_ends_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + line(prompt="a") + b"\r\n\r\n  \n" + line(prompt="b") + b"\r\n"
    assert read(tmp_path, data) == (Item("a", None, "1"), Item("b", None, "4"))


def test_texts_are_as_they_stand(tmp_path: Path) -> None:
    text = " Zwölf \u2028 \x85 🦆\n漢字 "
    raw = json.dumps({"prompt": text, "id": "ü"}, ensure_ascii=False).encode()
    assert read(tmp_path, raw + b"\n" + line(prompt="🦆")) == (Item(text, None, "ü"), Item("🦆", None, "2"))
    long = "word " * 400_000
    assert read(tmp_path, line(prompt=long))[0].prompt == long


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(line(prompt="a"))))
    assert read_prompts("-") == (Item("a", None, "1"),)


def test_standard_input_that_is_closed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ValueError, match=r"--prompts = -: cannot be read \(Bad file descriptor\); give a file"):
        read_prompts("-", argument="--prompts")


GOOD = line(prompt="a", answer="1")
BAD: dict[str, tuple[bytes, str]] = {
    "no JSON": (GOOD + b"\nbuy milk", "line 2: is not JSON (Expecting value at column 1); give one object a line"),
    "cut short": (GOOD[:-3], "line 1: is not JSON (Unterminated string"),
    "two objects": (GOOD + GOOD, "line 1: is not JSON (Extra data"),
    "a list of all": (b"[" + GOOD + b"]", 'line 1: is no object; give {"prompt": "..."}'),
    "a number": (b"5", "line 1: is no object"),
    "NaN": (b'{"prompt": "a", "answer": NaN}', "line 1: is not JSON (NaN is no number of JSON)"),
    "endless brackets": (b"[" * 100_000, "line 1: is not JSON ("),
    "endless digits": (b'{"prompt": "a", "id": ' + b"9" * 5000 + b"}", "line 1: is not JSON ("),
    "a huge line": (b"x" * 3_000_000, "line 1: is not JSON (Expecting value at column 1)"),
    "no prompt": (GOOD + b"\r\n" + line(question="b", answer="1"), "line 2: has no 'prompt', but 'question', 'answer'"),
    "nothing": (b"{}", "line 1: has no 'prompt', but nothing"),
    "blank prompt": (line(prompt=" \n"), "line 1: its prompt is empty: give a text"),
    "prompt no text": (line(prompt=["a"]), "line 1: its prompt is list: give a text"),
    "half a character": (b'{"prompt": "\\ud83e"}', "line 1: its prompt is not valid Unicode"),
    "id no text": (line(prompt="a", id=1.5), "line 1: its id is float: give a text or whole number"),
    "blank id": (line(prompt="a", id=""), "line 1: its id is empty"),
    "id twice": (
        line(prompt="a", id=1) + b"\n\n" + line(prompt="b", id="1"), "line 3: id = '1' is that of line 1 too",
    ),
    "prompt twice": (
        line(prompt="a") + b"\n" + line(prompt="a"), "line 2: has the prompt of line 1, so that its draws would count",
    ),
    "answer missing": (GOOD + b"\n" + line(prompt="b"), "line 2: has no answer, and line 1 has one"),
    "answer too many": (
        b"\n" + line(prompt="b") + b"\n" + GOOD, "line 3: has an answer, and line 2 has none: give every prompt",
    ),
    "answer no text": (line(prompt="a", answer=[1]), "line 1: answer = [1]: give a text or a number"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "line 1: is not UTF-8; save the file in it"),
    "Latin-1": (GOOD + b"\n" + '{"prompt": "Zwölf"}'.encode("latin-1"), "line 2: is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_fault_is_one_line_with_the_file_and_the_line(tmp_path: Path, case: str) -> None:
    data, words = BAD[case]
    with pytest.raises(ValueError, match=r"--prompts = ") as caught:
        read(tmp_path, data)
    message = str(caught.value)
    assert message.startswith(f"--prompts = {tmp_path}/p.jsonl, {words}"), message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"p\.jsonl: has no prompts; give JSON objects"):
        read(tmp_path, data)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ValueError, match=rf"--prompts = {path}: cannot be read \({why}"):
            read_prompts(path, argument="--prompts")


def test_answers_fit_the_grader(tmp_path: Path) -> None:
    data = GOOD + b"\n" + line(prompt="b", answer="two")
    with pytest.raises(ValueError, match="line 2: answer = 'two': has no number"):
        read(tmp_path, data, "number")
    assert len(read(tmp_path, data, "contains")) == 2


def test_a_file_is_a_task() -> None:
    task = PromptsTask("p.jsonl", (Item("a", "5", "x"), Item("b", "6", "y")), "number")
    assert task.problems(1, 1) == [Item("b", "6", "y")]
    assert task.grade("#### 5", "5")
    assert not task.grade("#### 5", "6")
    with pytest.raises(ValueError, match=r"n = 3: 'p\.jsonl' has 2 prompts; give 1 to 2"):
        task.problems(3)
    with pytest.raises(ValueError, match=r"n = 2 from offset = 1: 'p\.jsonl' has 2 prompts; give a part of them"):
        task.problems(2, 1)
