"""The filter of Learn2PD: its size, its data by definition, and a reduced training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from smc_bridge.models.learned.confidence_filter import ConfidenceFilter
from smc_bridge.models.learned.store import facts_of, load
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.models.training import confidence_filter as training

END, PLACES = 2, 4


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two places."""
    monkeypatch.setattr(training, "BLOCK", 2)


def table(seed: int) -> TabularDLM:
    ar = TabularAR.random(3, PLACES + 2, seed=seed, concentration=0.5, eos_id=END)
    return TabularDLM(ar, noise=1.5, seed=seed)


def laws(model: TabularDLM, prompt: list[int], row: list[int]) -> list[list[float]]:
    session = model.session(torch.tensor([prompt]), torch.tensor([len(prompt)]))
    found: list[list[float]] = session.score(torch.tensor([0]), torch.tensor([row]))[0].softmax(-1).tolist()
    return found


def best(law: list[float]) -> int:
    return law.index(max(law))


def by_hand(model: TabularDLM, prompt: list[int], answer: list[int]) -> list[tuple[list[float], list[bool]]]:
    """The extremely greedy run as a loop over lists."""
    row, before, rows = [MASKED] * PLACES, [MASKED] * PLACES, []
    end = answer.index(END) if END in answer else PLACES - 1
    while MASKED in row[: end + 1]:
        found = laws(model, prompt, row)
        first = row.index(MASKED) // 2 * 2
        block = [first, first + 1]
        tokens = [best(law) for law in found]
        rows.append(([max(found[i]) for i in block], [tokens[i] == answer[i] for i in block]))
        stuck = all(tokens[i] == before[i] for i in block)
        for i in block:
            if row[i] == MASKED and (tokens[i] == answer[i] or stuck):
                row[i] = answer[i]
        before = [token if i in block else MASKED for i, token in enumerate(tokens)]
    return rows


@pytest.mark.usefixtures("small")
def test_references_and_rows_of_data_are_those_of_the_definition() -> None:
    prompts, stuck = [[0], [1], [0, 1]], 0
    for seed in range(12):
        model = table(seed)
        answer = training.reference(model, prompts, PLACES)
        log = training.extremely_greedy(model, prompts, answer)
        for p, prompt in enumerate(prompts):
            text: list[int] = []
            while len(text) < PLACES and END not in text:
                text.append(best(laws(model, prompt + text, [MASKED])[0]))
            own = answer[p].tolist()
            assert own[: len(text)] == text
            assert all(token == END for token in own[len(text) :])
            expected = by_hand(model, prompt, own)
            rows = log.problem == p
            confidences, right = zip(*expected, strict=True)
            torch.testing.assert_close(log.confidences[rows], torch.tensor(confidences))
            assert log.right[rows].tolist() == [list(each) for each in right]
            stuck += any(not any(each) for each in right)
        assert log.forwards == len(log.problem)
    assert stuck > 0, "some block is filled with the reference, for nothing in it was right"


def test_the_filter_has_the_published_size() -> None:
    module = ConfidenceFilter()
    assert sum(x.numel() for x in module.parameters()) == 2_112
    assert module(torch.rand(3, 32)).shape == (3, 32)


def test_a_reduced_training_reaches_its_loss_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PLACES", 32)
    monkeypatch.setattr(training, "BATCH", 12)
    pair: Any = load_pair("arithmetic")
    log = training.logs(pair, problems=12, seed=0)
    first, second = (training.fitted(log, seed=0, steps=200) for _ in range(2))
    assert first.loss < 0.85 * first.facts["loss_of_shares"], (first.loss, first.facts)
    assert all(torch.equal(a, b) for a, b in zip(
        first.module.state_dict().values(), second.module.state_dict().values(), strict=True))


def test_the_shipped_filter_is_its_cards() -> None:
    path = load_pair("arithmetic").learned["confidence_filter"]
    module, facts = load(path, kind="confidence_filter"), facts_of(path)
    assert module.config == {"places": 32, "hidden": 32}
    card = path.with_suffix(".md").read_text()
    for name in ("seed", "steps", "problems", "loss", "loss_test", "loss_of_shares"):
        assert str(facts[name]) in card, name
