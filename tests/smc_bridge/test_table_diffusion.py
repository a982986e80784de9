"""TabDiff as a method: rows as tokens of a pair of models of the table, after the columns that a prompt gives."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from smc_bridge.decode import decode
from smc_bridge.facts import UnsuitedError
from smc_bridge.models.pair import Pair
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.tables.codec import Codec
from smc_bridge.models.tables.columns import ColumnNetwork
from smc_bridge.models.tables.data import Column, Table
from smc_bridge.models.tables.pair import table_pair
from smc_bridge.models.tables.tabdiff import TabDiff
from smc_bridge.registry import METHODS, spelled
from smc_bridge.testing import tabular_pair

COLUMNS = (Column("b", "category", values=("x", "y", "z")), Column("a", "number"), Column("c", "category", values="uv"))


@cache
def made() -> tuple[Pair, TabDiff]:
    """A pair of models of a table, and a TabDiff of it, all with random weights."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    columns = tuple(Column(c.name, c.kind, tuple(c.values)) for c in COLUMNS)
    rows = Table(columns, numbers, torch.stack([torch.arange(200) % 3, torch.arange(200) % 2], 1))
    codec = Codec.of(rows, most=4)
    torch.manual_seed(0)
    sizes = " ".join(map(str, codec.sizes))
    dlm, ar = (ColumnNetwork(sizes=sizes, causal=causal, width=8, layers=1, heads=2).eval() for causal in (0, 1))
    model = TabDiff.of(rows, width=8, hidden=8)
    torch.nn.init.normal_(model.network.to_logits)
    torch.nn.init.normal_(model.network.to_number, std=0.3)
    return table_pair(dlm, ar, codec), model.eval().requires_grad_(False)


def run(prompts: list[list[int]], seeds: list[int], limit: int | None = None, **options: Any) -> list[Any]:
    pair, model = made()
    limit = 4 - max(map(len, prompts)) if limit is None else limit
    decoder = METHODS["tabdiff"].make(pair, model=model, steps=4, **options)
    return decode(decoder, prompts, seed=seeds, max_new_tokens=limit)


def test_rows_are_cut_into_tokens_and_kept_as_they_were_drawn() -> None:
    pair, _ = made()
    begin, codec = pair.tokenizer.bos_id, pair.tokenizer
    for result in run([[begin]] * 5, [1, 2, 3, 4, 5]):
        row = result.settings["row"]
        tokens = codec.encode(f"row: b={row['b']}, a={row['a']!r}, c={row['c']}")
        assert tokens[1:] == result.sequences[0]
        assert not result.proper
        assert result.reasons


@pytest.mark.parametrize(("options", "calls"), [({}, 7), ({"heun": False}, 4), ({"guidance": 1.0}, 14)])
def test_every_call_of_the_network_is_a_forward_of_the_diffusion_model(options: dict[str, Any], calls: int) -> None:
    pair, model = made()
    begin, count = pair.tokenizer.bos_id, 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1

    handle = model.network.layers[0].register_forward_hook(counted)
    results = run([[begin, 1], [begin, 2]], [0, 1], **options)
    handle.remove()
    assert count == calls
    assert [(r.forwards.dlm_forwards, r.forwards.ar_forwards) for r in results] == [(calls, 0)] * 2


def test_a_prompt_gives_the_first_columns() -> None:
    pair, _ = made()
    begin = pair.tokenizer.bos_id
    for result in run([[begin, 2, 1]] * 4 + [[begin]], [0, 1, 2, 3, 4])[:4]:
        assert result.settings["row"]["b"] == "z"
        assert len(result.sequences[0]) == 1
        assert int(pair.tokenizer.encode(f"b=z, a={result.settings['row']['a']!r}")[-1]) == 1


@pytest.mark.parametrize("options", [{}, {"guidance": 0.5}])
def test_a_row_does_not_depend_on_what_is_beside_it(options: dict[str, Any]) -> None:
    begin = made()[0].tokenizer.bos_id
    prompts, seeds = [[begin], [begin, 1], [begin], [begin, 0, 3]], [7, 8, 9, 10]
    together = run(prompts, seeds, **options)
    for prompt, seed, result in zip(prompts, seeds, together, strict=True):
        alone = run([prompt], [seed], limit=1, **options)[0]
        assert alone.sequences == result.sequences
        assert alone.forwards == result.forwards, f"{alone.forwards} alone, {result.forwards} beside others"
        assert alone.settings["row"]["a"] == pytest.approx(result.settings["row"]["a"], abs=1e-4)
    assert len({str(r.settings["row"]) for r in run([[begin]] * 6, list(range(6)))}) > 1


def test_its_rows_have_not_the_law_of_the_autoregressive_model() -> None:
    pair, _ = made()
    begin, counts = pair.tokenizer.bos_id, torch.zeros(3)
    for result in run([[begin]] * 600, list(range(600))):
        counts[result.sequences[0][0]] += 1
    session = pair.ar.session(torch.tensor([[begin]]), torch.tensor([1]))
    law = session.score(torch.tensor([0]), torch.zeros(1, 1, dtype=torch.long))[0, 0].softmax(-1)[:3]
    assert ((counts / 600 - law).abs() > 5 * (law * (1 - law) / 600).sqrt()).any()


@pytest.mark.parametrize(("options", "words"), [
    ("steps=1", "steps = 1"), ("churn=-1", "churn = -1"), ("guidance=-1", "guidance = -1"),
    ("growth=-1", "growth = -1"), ("steps=4", "has no trained table_diffusion"),
])
def test_what_does_not_fit_is_refused_in_one_line(options: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        spelled(f"tabdiff,{options}").make(made()[0])
    assert "\n" not in str(caught.value)


def test_a_pair_that_is_of_no_table_and_a_model_of_another_are_refused() -> None:
    with pytest.raises(UnsuitedError, match="its tokens are not columns of a table; give load_pair"):
        METHODS["tabdiff"].make(tabular_pair())
    with pytest.raises(ValueError, match="give a TabDiff of the columns of"):
        METHODS["tabdiff"].make(made()[0], model=torch.nn.Linear(1, 1))
    begin = made()[0].tokenizer.bos_id
    with pytest.raises(ValueError, match=r"growth = 0\.75 with a prompt that gives columns: leave growth out"):
        run([[begin, 1]], [0], growth=0.75)


def test_the_shipped_one_knows_adult_by_the_pair_alone() -> None:
    pair = load_pair("adult")
    assert pair.learned["table_diffusion"].stat().st_size < 1_000_000
    assert pair.learned["table_diffusion"].with_suffix(".md").is_file()
    decoder = spelled("tabdiff,steps=15").make(pair)
    prompts, columns = [[pair.tokenizer.bos_id]] * 300, len(pair.tokenizer.columns)
    results = decode(decoder, prompts, seed=range(300), max_new_tokens=columns)
    rows = [result.settings["row"] for result in results]
    assert sum(row["capital-gain"] == 0 for row in rows) / 300 == pytest.approx(0.917, abs=0.08)
    graduates = [row["education-num"] for row in rows if row["education"] == "HS-grad"]
    assert len(graduates) / 300 == pytest.approx(0.3225, abs=0.13)
    assert sum(number == 9 for number in graduates) > 0.6 * len(graduates)  # in Adult, all of them
