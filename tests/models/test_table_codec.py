"""Rows of a table as tokens: bins hold the law of a column, texts come back, and what is no row is one line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from smc_bridge import Result
from smc_bridge.models.tables.codec import KEPT, Bins, Codec, allowed
from smc_bridge.models.tables.data import Column, Table


def rows(count: int = 2_000, seed: int = 0) -> Table:
    """Four columns: skewed numbers, categories, whole numbers that are mostly 0, and few distinct ones."""
    generator = torch.Generator().manual_seed(seed)
    skewed = torch.empty(count, dtype=torch.float64).exponential_(generator=generator)
    rare = (torch.rand(count, generator=generator) < 0.2) * torch.randint(1, 900, (count,), generator=generator)
    few = torch.randint(3, (count,), generator=generator)
    category = torch.randint(3, (count, 1), generator=generator)
    columns = (
        Column("income", "number"), Column("colour", "category", ("red", "green", "dark blue")),
        Column("gain", "number", whole=True), Column("rooms", "number", whole=True),
    )
    return Table(columns, torch.stack([skewed, rare.double(), few.double()], 1), category)


def test_a_frequent_value_is_a_bin_of_its_own_and_the_rest_is_cut_at_its_quantiles() -> None:
    bins = Bins.of(rows().of("gain"), 8)
    assert bins.single == 1
    assert set(bins.values[0]) == {0.0}
    count = bins.ids(rows().of("gain")).bincount(minlength=8)
    assert count[0] == (rows().of("gain") == 0).sum()
    assert count[1:].min() > 0.8 * count[1:].max(), count.tolist()


def test_few_distinct_numbers_are_all_bins_and_others_fall_into_the_nearest() -> None:
    bins = Bins.of(rows().of("rooms"))
    assert (bins.single, len(bins.values)) == (3, 3)
    assert bins.ids(torch.tensor([-5.0, 0.2, 1.9, 7.0], dtype=torch.float64)).tolist() == [0, 0, 2, 2]


def test_tokens_of_rows_of_tokens_are_the_tokens() -> None:
    codec = Codec.of(rows())
    tokens = codec.tokens(rows())
    assert codec.sizes == (1, 32, 3, len(codec.bins["gain"].values), 3)
    assert torch.equal(codec.tokens(codec.rows(tokens, seed=3)), tokens)


def test_a_column_keeps_its_law_through_its_bins() -> None:
    table = rows()
    codec = Codec.of(table)
    drawn = codec.rows(codec.tokens(table), seed=1)
    for name in ("income", "gain", "rooms"):
        grid, was, now = torch.cat([table.of(name), drawn.of(name)]), table.of(name), drawn.of(name)
        gap = ((was[:, None] <= grid).double().mean(0) - (now[:, None] <= grid).double().mean(0)).abs().max()
        assert gap < 1 / 32, (name, float(gap))
    assert torch.equal(drawn.categories, table.categories)


def test_rows_of_one_bin_share_its_values_out_by_the_seed() -> None:
    codec = Codec.of(rows())
    tokens = codec.tokens(rows())[:1].expand(400, -1)
    first, again, other = (codec.rows(tokens, seed=seed).of("income") for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.unique(return_counts=True)[1].tolist() == [400 // KEPT] * KEPT  # type: ignore[no-untyped-call]


def test_a_text_gives_its_row_back_and_may_name_the_first_columns_alone() -> None:
    codec = Codec.of(rows())
    for ids in codec.tokens(rows())[:50].tolist():
        assert codec.encode(codec.decode(ids)) == ids
    assert codec.encode("row:") == [codec.bos_id]
    assert codec.encode("income=0.5, colour=dark blue")[1:] == codec.encode("row: income=0.5, colour=dark blue")[1:]
    assert codec.decode([1, 0, 2]) == f"colour=green, {codec.decode([0, 2])}"


NAMES = ("plain", "a, b", "a=b", 'a "b"', " blank ", "row: x", "two\nlines", '"', "", "row:", "\\")


def test_names_and_values_with_commas_quotes_and_blanks_come_back() -> None:
    columns = tuple(Column(name, "category", NAMES) for name in NAMES)
    codec = Codec(columns, {})
    for i in range(len(NAMES)):
        ids = [codec.bos_id, *((i + j) % len(NAMES) for j in range(len(NAMES)))]
        assert codec.encode(codec.decode(ids)) == ids
        assert codec.encode(codec.decode(ids[:3])) == ids[:3]
    city = Codec((Column("city", "category", ("Paris, Texas", "Rome")), Column("in", "category", ("a", "b"))), {})
    assert city.decode([city.bos_id, 0, 1]) == 'row: city="Paris, Texas", in=b'
    assert city.encode('city = "Rome" ,, in=a') == city.encode("row:city=Rome, in=a")


@pytest.mark.parametrize("first", [1_234_567_890, 1_234_567_890_123_456, -(2**52), 1e300, 0.1, -1 / 3])
def test_numbers_of_any_size_are_written_whole(first: float) -> None:
    whole = isinstance(first, int)
    numbers = torch.tensor([first + 3 * i if whole else first / (1 + i) for i in range(20)], dtype=torch.float64)
    table = Table((Column("t", "number", whole=whole),), numbers[:, None], torch.zeros(20, 0).long())
    codec = Codec.of(table)
    for ids in codec.tokens(table).tolist():
        text = codec.decode(ids)
        assert codec.encode(text) == ids
        assert float(text.removeprefix("row: t=")) in numbers.tolist()


def runs_of(codec: Codec) -> list[Result]:
    """Three runs of two particles, of which the second weighs most, or all."""
    tokens = codec.tokens(rows(12)).tolist()
    return [
        Result(prompt=row[:2], sequences=[other[2:], row[2:]], log_weights=weights, settings={"seed": i})
        for i, (row, other, weights) in enumerate(zip(
            tokens[:3], tokens[3:6], [[-math.inf, 0.0], [-math.inf, 0.0], [0.0, 0.0]], strict=True
        ))
    ]


def test_a_table_of_results_holds_the_rows_that_their_samples_show() -> None:
    codec = Codec.of(rows(12))
    results, texts = runs_of(codec), set[str]()
    for seed in range(20):
        found = codec.tokens(codec.table_of(results, seed=seed)).tolist()
        shown = [[*r.prompt, *r.sample_tokens(seed=seed)] for r in results]
        assert found == shown
        assert [tuple(row[2:]) for row in shown] == [r.sample(seed=seed) for r in results]
        assert shown[0][2:] == results[0].sequences[1]  # the first particle weighs nothing
        texts |= {codec.decode(shown[2])}
    assert len(texts) == 2
    assert len(codec.table_of([], seed=0)) == 0


def test_a_table_of_results_that_are_no_rows_is_refused_in_one_line() -> None:
    codec = Codec.of(rows(12))
    whole = codec.tokens(rows(12)).tolist()[0]
    for prompt, sequence in ((whole[:2], whole[2:-1]), ([], whole[1:]), (whole[1:], [0])):
        with pytest.raises(ValueError, match=r"^results\[0\] has \d tokens of a row's 5: begin with pair.encode"):
            codec.table_of([Result(prompt=prompt, sequences=[sequence], log_weights=[0.0])], seed=0)
    with pytest.raises(ValueError, match="seed = -1"):
        codec.table_of([], seed=-1)


def test_a_file_that_holds_something_else_is_one_line(tmp_path: Path) -> None:
    for text in ("{", "{}", "[1]", '{"columns": [{"name": 1}], "bins": {}}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match=r"other.json' is no codec of a table: give what Codec.save wrote$"):
            Codec.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match="is no codec of a table"):
        Codec.load(tmp_path)


def test_a_file_gives_the_codec_back(tmp_path: Path) -> None:
    codec = Codec.of(rows())
    codec.save(tmp_path / "table.json")
    assert Codec.load(tmp_path / "table.json") == codec


def test_a_position_has_the_ids_of_its_column_and_only_the_first_that_which_begins_a_row() -> None:
    assert allowed((1, 2, 3)).long().tolist() == [[0, 0, 0, 1], [1, 1, 0, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row: income=nan", "income=nan: give a number"), ("income=1e400", "give a number"), ("income", "'income' whe"),
        ("colour=red", "name the first columns in order"), ("row: income=1, colour=blue", "give one of"),
        ("row: income=much", "give a number"), ("income=1, colour=red, gain=0, rooms=1, x=1", "the table has 4"),
    ],
)
def test_a_text_that_is_no_row_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Codec.of(rows()).encode(text)


def test_tokens_that_are_no_rows_are_one_line() -> None:
    codec = Codec.of(rows())
    with pytest.raises(ValueError, match="give whole rows"):
        codec.rows(torch.zeros(2, 3, dtype=torch.long), seed=0)
    with pytest.raises(ValueError, match=r"tokens\[0\] has 3 for 'colour': give an id below 3"):
        codec.rows(torch.tensor([[0, 3, 0, 0]]), seed=0)
    with pytest.raises(ValueError, match="most = 1"):
        Codec.of(rows(), most=1)
    with pytest.raises(ValueError, match=r"rows = Table of 0 rows: .*: give at least one row"):
        Codec.of(rows().rows([]))
    for ids, message in (
        ([codec.bos_id, 0, 3], "has 3 for 'colour': give an id below 3"), ([codec.bos_id, -1], "has -1 for 'income'"),
        ([0] * 5, "are 5 columns: the table has 4"), ([codec.bos_id, *[0] * 5], "are 5 columns: the table has 4"),
    ):
        with pytest.raises(ValueError, match=message):
            codec.decode(ids)
