"""A pair of models over columns: sessions, alphabets of positions, the program as it is, training, the shipped pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smc_bridge import ARTarget, ar_sampling, diffusion, load_pair, paper, smc
from smc_bridge.methods.poe_bridge import plain_is
from smc_bridge.models.learned.store import facts_of
from smc_bridge.models.pair import Pair
from smc_bridge.models.tables.codec import Codec
from smc_bridge.models.tables.columns import ColumnNetwork
from smc_bridge.models.tables.data import Column, Table
from smc_bridge.models.tables.pair import WEIGHTS, ColumnAR, load_table_pair, save_table_pair, table_pair
from smc_bridge.models.tables.tabdiff import TabDiff
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.models.training.table_pair import main, train
from smc_bridge.requests import limit_that_fits
from smc_bridge.testing import assert_proper, enumerate_sampler
from smc_bridge.testing.tabular import TabularPair

SIZES = (2, 3, 2)


def codec(sizes: tuple[int, ...] = SIZES) -> Codec:
    """Categories alone."""
    columns = [Column(f"c{j}", "category", tuple("abcdefgh"[:size])) for j, size in enumerate(sizes)]
    return Codec(tuple(columns), {})


def pair(sizes: tuple[int, ...] = SIZES, seed: int = 0) -> Pair:
    """Random networks in float64."""
    torch.manual_seed(seed)
    own = codec(sizes)
    dlm, ar = (
        ColumnNetwork(sizes=" ".join(map(str, own.sizes)), causal=causal, width=16, layers=1, heads=2).double().eval()
        for causal in (0, 1)
    )
    for network in (dlm, ar):
        torch.nn.init.normal_(network.head.bias, std=0.7)
    return table_pair(dlm, ar, own)


def law(model: ColumnAR) -> dict[tuple[int, ...], float]:
    """Probability of every row, with the token that begins it."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in model.network.sizes:
        after: dict[tuple[int, ...], float] = {}
        for prefix, mass in found.items():
            session = model.session(torch.tensor([prefix], dtype=torch.long), torch.tensor([len(prefix)]))
            shares = session.score(torch.tensor([0]), torch.zeros(1, 1, dtype=torch.long))[0, 0].softmax(-1)
            after |= {(*prefix, a): mass * share for a, share in enumerate(shares.tolist()) if share > 0}
        found = after
    return found


@pytest.fixture(scope="module")
def tiny() -> Pair:
    return pair()


def test_a_position_gives_all_that_is_not_of_its_column_minus_infinity(tiny: Pair) -> None:
    tokens, length = torch.tensor([[3, 1, 0], [3, 0, 0], [0, 0, 0]]), torch.tensor([2, 1, 0])
    drafts = tiny.dlm.session(tokens, length).score(torch.arange(3), torch.full((3, 2), -1))
    along = tiny.ar.session(tokens, length).score(torch.arange(3), torch.tensor([[2, 1], [1, 2], [3, 1]]))
    for logits in (drafts, along):
        shown = (logits > -math.inf).long().tolist()
        assert shown[0] == [[1, 1, 1, 0], [1, 1, 0, 0]]
        assert shown[1] == [[1, 1, 0, 0], [1, 1, 1, 0]]
        assert shown[2] == [[0, 0, 0, 1], [1, 1, 0, 0]]


def test_drafts_and_trees_are_scored_as_the_network_scores_whole_rows(tiny: Pair) -> None:
    network = tiny.ar.network  # type: ignore[attr-defined]
    whole = torch.tensor([[3, 1, 2, 0], [3, 0, 1, 1]])
    places, sees = torch.arange(4)[None], torch.ones(1, 4, 4, dtype=torch.bool).tril()
    features = network(whole, places, sees)
    expected = network.logits(features[:, :-1], places[:, 1:])
    session = tiny.ar.session(whole, torch.tensor([1, 2]))  # ragged
    torch.testing.assert_close(session.score(torch.tensor([0]), whole[:1, 1:]), expected[:1])
    torch.testing.assert_close(session.score(torch.tensor([1]), whole[1:, 2:]), expected[1:, 1:])
    both = session.score_tree(
        torch.tensor([0, 1]), torch.tensor([[1, 0, 2, 0], [1, 0, 0, 0]]), torch.tensor([[0, 0, 1, 3], [0, 1, 0, 0]])
    )
    torch.testing.assert_close(both[0, [0, 1, 3]], expected[0])
    torch.testing.assert_close(both[1, [0, 1]], expected[1, 1:])


def test_masked_columns_see_those_that_are_known_on_both_sides(tiny: Pair) -> None:
    network = tiny.dlm.network  # type: ignore[attr-defined]
    whole, places = torch.tensor([[3, 1, -1, 0], [3, -1, -1, -1]]), torch.arange(4)[None]
    expected = network.logits(network(whole, places), places)
    session = tiny.dlm.session(whole.clamp_min(0), torch.tensor([2, 1]))
    torch.testing.assert_close(session.score(torch.tensor([0]), torch.tensor([[-1, 0]])), expected[:1, 2:])
    torch.testing.assert_close(session.score(torch.tensor([1]), torch.tensor([[-1, -1]])), expected[1:, 1:3])
    scored = session.score(torch.tensor([1]), torch.tensor([[-1, -1]]), hidden=True)
    assert scored.hidden.shape == (1, 2, tiny.dlm.hidden_size)
    torch.testing.assert_close(network.logits(scored.hidden, places[:, 1:3]), scored.logits)


KERNELS = ("rejection", "block", "tree", "accept-all")


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_program_as_it_is_samples_rows_of_the_autoregressive_model(tiny: Pair, kernel: str) -> None:
    """Every outcome of the engine on the networks themselves, two particles: `E[Z_hat sum_k W_k 1{x_k}] = p(x)`."""
    options = {} if kernel == "accept-all" else {"w": 0.5}
    sampler = smc(tiny, 2, window=2, kernel=kernel, **options)  # type: ignore[arg-type]
    found, expected = enumerate_sampler(sampler, 1 + len(SIZES)).proper, law(tiny.ar)  # type: ignore[arg-type]
    assert len(expected) == math.prod(SIZES)
    assert set(found) <= set(expected)
    worst = max(abs(found.get(row, 0.0) - mass) for row, mass in expected.items())
    assert worst < 1e-9, worst


def tables(model: ColumnAR, depth: int) -> TabularAR:
    """The model's conditionals as tables; what no row begins with has the first id."""
    size, found = model.vocab_size, list[Tensor]()
    for d in range(depth):
        prefixes = torch.cartesian_prod(*[torch.arange(size)] * d).reshape(-1, d) if d else torch.zeros(1, 0).long()
        session = model.session(prefixes, torch.full((len(prefixes),), d))
        laws = session.score(torch.arange(len(prefixes)), torch.zeros(len(prefixes), 1, dtype=torch.long))[:, 0]
        found.append(laws.double().softmax(-1))
    return TabularAR(found)


def test_tables_with_an_alphabet_per_position_are_proper() -> None:
    small = pair((2, 1), seed=1)
    ar = tables(small.ar, 3)  # type: ignore[arg-type]
    assert_proper(smc(TabularPair(TabularDLM(ar, noise=0.7), ar), 2, w=0.4, window=2))


def test_draws_do_not_depend_on_the_batch(tiny: Pair) -> None:
    sampler = smc(tiny, 2, w=0.4)
    prompts = [[3], [3, 1], [3]]
    together = sampler.run(prompts, seed=[1, 2, 3], max_new_tokens=2)
    for prompt, seed, run in zip(prompts, (1, 2, 3), together, strict=True):
        alone = sampler.run([prompt], seed=seed, max_new_tokens=2)[0]
        assert (alone.sequences, alone.log_weights) == (run.sequences, pytest.approx(run.log_weights))


def test_networks_that_do_not_fit_are_one_line(tiny: Pair) -> None:
    dlm, ar = tiny.dlm.network, tiny.ar.network  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="network is causal"):
        table_pair(ar, ar, codec())
    with pytest.raises(ValueError, match=r"dlm has columns of \(1, 2, 3, 2\) ids: the codec has"):
        table_pair(dlm, ar, codec((2, 2)))
    with pytest.raises(ValueError, match="stands before its child"):
        tiny.ar.session(torch.tensor([[3]]), torch.tensor([1])).score_tree(
            torch.tensor([0]), torch.tensor([[0, 0]]), torch.tensor([[0, 2]])
        )
    with pytest.raises(FileNotFoundError, match="pair = 'nobody'"):
        load_table_pair("nobody")
    with pytest.raises(ValueError, match=r"allow at most 3 new tokens"):
        smc(tiny, 1).run([[3]], max_new_tokens=4)


@pytest.mark.parametrize(("prompt", "message"), [
    ([0], r"^prompts\[0\] = \[0\] begins no row: begin with 3"), ([0, 3, 1], "begins no row"),
    ([3, 2], r"^prompts\[0\] has 2 for column 1 of the table: give an id below 2$"), ([3, 1, 3], "has 3 for column 2"),
    ([3, 3], "has 3 for column 1"),
])
def test_ids_that_are_no_row_are_refused_whatever_decodes_them(tiny: Pair, prompt: list[int], message: str) -> None:
    runs: list[Callable[[], object]] = [
        lambda: smc(tiny, 1).run([prompt], max_new_tokens=1), lambda: ar_sampling(tiny, [prompt], max_new_tokens=1),
        lambda: diffusion(tiny, [prompt], max_new_tokens=1),
    ]
    for run in runs:
        with pytest.raises(ValueError, match=message):
            run()


def test_a_row_is_decoded_to_its_end_unless_a_limit_is_given(tiny: Pair) -> None:
    sampler = smc(tiny, 1)
    for text, left in (("row:", 3), ("c0=b", 2), ("c0=b, c1=a", 1)):
        assert len(sampler.decode(text).sequences[0]) == left
    assert len(sampler.decode("row:", max_new_tokens=1).sequences[0]) == 1
    with pytest.raises(ValueError, match="max_new_tokens = 4 more than the 4 positions"):
        sampler.decode("row:", max_new_tokens=4)
    with pytest.raises(ValueError, match="allow at least 1 token"):
        sampler.decode("row:", max_new_tokens=0)


def test_what_fits_is_said_of_prompts_that_leave_equal_room_alone(tiny: Pair) -> None:
    models = (tiny.dlm, tiny.ar)
    assert limit_that_fits(None, [[3], [3]], models, default=128) == 3
    assert limit_that_fits(None, [[3], [3, 0]], models, default=128) == 128
    assert limit_that_fits(None, [[3]], models, default=2) == 2
    assert limit_that_fits(64, [[3]], models, default=128) == 64


def saved(pair: Pair, folder: Path) -> dict[str, bytes]:
    """What stands in a folder once the pair is saved there."""
    save_table_pair(pair, folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_pair_comes_back_from_its_folder_whole(tiny: Pair, tmp_path: Path) -> None:
    named = replace(tiny, name="letters")
    whole = saved(named, tmp_path / "new")
    assert sorted(whole) == ["letters-ar.safetensors", "letters-dlm.safetensors", "letters.json"]
    back = load_table_pair("letters", folder=str(tmp_path / "new"))
    assert back.tokenizer == tiny.tokenizer
    assert not back.learned
    for mine, other in ((tiny.dlm, back.dlm), (tiny.ar, back.ar)):
        weight = mine.network.head.weight  # type: ignore[attr-defined]
        assert torch.equal(other.network.head.weight, weight.half().float())  # type: ignore[attr-defined]
    assert saved(back, tmp_path / "again").keys() == whole.keys()
    assert len(smc(back, 2).decode("row:").sequences) == 2


def test_a_tabdiff_is_saved_with_the_pair_and_goes_with_it(tmp_path: Path) -> None:
    table = learnt()
    own = Codec.of(table, most=4)
    networks = [
        ColumnNetwork(sizes=" ".join(map(str, own.sizes)), causal=causal, width=8, layers=1) for causal in (0, 1)
    ]
    made = table_pair(networks[0].eval(), networks[1].eval(), own, name="own")
    with pytest.raises(ValueError, match=r"diffusion = .*: give a TabDiff of the columns of 'own'"):
        save_table_pair(made, tmp_path, diffusion=networks[0])
    with pytest.raises(ValueError, match=r"table_diffusion does for the pair 'adult'\), and give its file"):
        made.part("table_diffusion")
    save_table_pair(made, tmp_path / "a", diffusion=TabDiff.of(table, width=8, hidden=8))
    save_table_pair(load_table_pair("own", folder=tmp_path / "a"), tmp_path / "b")
    for folder in "ab":
        model = load_table_pair("own", folder=tmp_path / folder).part("table_diffusion")
        assert model.columns == table.columns


def test_a_pair_that_cannot_be_written_leaves_nothing(tiny: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"folder = .*file' is a file: give a folder"):
        save_table_pair(tiny, tmp_path / "file")
    with pytest.raises(ValueError, match="name = 'a/b' of the pair"):
        save_table_pair(replace(tiny, name="a/b"), tmp_path)
    with pytest.raises(ValueError, match=r"pair = Pair 'table'.*: give one of table_pair"):
        save_table_pair(replace(tiny, tokenizer=None), tmp_path)
    broken = pair()
    broken.dlm.network.head.weight.data.fill_(1e30)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="not finite in float16"):
        save_table_pair(broken, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--steps", "0"], ["--out", "FILE"], ["--seed", str(2**32)]])
def test_the_command_that_trains_a_pair_refuses_before_it_writes(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "FILE").write_text("x")
    given = [text.replace("FILE", str(tmp_path / "FILE")) for text in arguments]
    with pytest.raises(SystemExit) as caught:
        main(["--table", "small", "--out", str(tmp_path / "p"), *given])
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["FILE"]


def test_the_command_that_trains_a_pair_writes_one_that_loads(tmp_path: Path) -> None:
    main(["--table", "small", "--steps", "1", "--out", str(tmp_path)])
    assert load_table_pair("small", folder=tmp_path).max_length == 9
    assert facts_of(tmp_path / "small-ar.safetensors")["steps"] == 1
    (tmp_path / "small-ar.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"small-ar.safetensors': no such file"):
        load_table_pair("small", folder=tmp_path)


def test_a_width_that_its_heads_do_not_share_is_refused() -> None:
    with pytest.raises(ValueError, match="width = 6: give a multiple of 4"):
        ColumnNetwork(sizes="1 2", causal=0, width=6)


def test_rows_of_the_table_of_results_are_those_that_their_texts_show() -> None:
    """On the pair that ships: each text of a sample gives the ids of its row of the table."""
    adult = load_pair("adult")
    results = smc(adult, 4, w=0.3).run([adult.encode("row:").tolist()] * 8, seed=range(8), max_new_tokens=15)
    table = adult.tokenizer.table_of(results, seed=0)
    texts = [adult.tokenizer.encode(f"row:{result.sample(seed=0)}") for result in results]
    assert adult.tokenizer.tokens(table).tolist() == texts
    assert any(result.sample_tokens(seed=0) != result.sequences[0] for result in results)


def learnt() -> Table:
    """The second column repeats the first nine times of ten, the third is alone."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(3, (600,), generator=generator)
    other = torch.randint(3, (600,), generator=generator)
    second = torch.where(torch.rand(600, generator=generator) < 0.9, first, other)
    columns = (
        Column("a", "category", ("x", "y", "z")), Column("b", "category", ("x", "y", "z")), Column("c", "number"),
    )
    numbers = torch.empty(600, 1, dtype=torch.float64).exponential_(generator=generator)
    return Table(columns, numbers, torch.stack([first, second], 1))


def test_training_learns_how_columns_hang_together_and_repeats() -> None:
    table = learnt()
    own = Codec.of(table, most=4)
    ar, again, dlm = (
        train(table, own, causal=causal, steps=120, batch=64, width=16, layers=1) for causal in (True, True, False)
    )
    assert torch.equal(ar.module.head.weight, again.module.head.weight)  # type: ignore[union-attr]
    # Nats a row: log 3 + log 4 that nothing tells, and 0.35 + 0.65 log 3 or less of the copied one.
    apart = (2 * math.log(3) + math.log(4)) / 3
    assert ar.facts["held_out"] < apart - 0.12
    made = table_pair(dlm.module, ar.module, own)  # type: ignore[arg-type]
    rows = {
        "ar": ar_sampling(made, [[own.bos_id]] * 300, seed=range(300), max_new_tokens=3),
        "dlm": diffusion(made, [[own.bos_id]] * 300, seed=range(300), max_new_tokens=3, tokens_per_forward=None),
        "bridge": smc(made, 4, w=0.3).run([[own.bos_id]] * 300, seed=range(300), max_new_tokens=3),
    }
    copies = {name: sum(r.sequences[0][0] == r.sequences[0][1] for r in runs) / 300 for name, runs in rows.items()}
    assert copies["ar"] > 0.75, copies
    assert copies["dlm"] < 0.5, copies
    assert abs(copies["bridge"] - copies["ar"]) < 0.15, copies


def test_the_shipped_pair_needs_no_rows_and_is_small() -> None:
    adult = load_pair("adult")
    assert adult.max_length == 16
    for file in WEIGHTS.iterdir():
        assert file.stat().st_size < 1e6, file.name
    prompt = adult.encode("age=39, workclass=Private").tolist()
    [result] = paper(adult).run([prompt], seed=1, max_new_tokens=13)
    [text] = result.texts or []
    assert text.startswith(", fnlwgt=")
    assert text.split(", ")[-1] in ("income=<=50K", "income=>50K")
    assert len(adult.tokenizer.encode(adult.tokenizer.decode([*prompt, *result.sequences[0]]))) == 16


def test_the_shipped_models_agree_on_single_columns_and_not_on_pairs_of_them() -> None:
    adult = load_pair("adult")
    count, bos = 400, adult.tokenizer.bos_id
    ar = ar_sampling(adult, [[bos]] * count, seed=range(count), max_new_tokens=15)
    dlm = diffusion(adult, [[bos]] * count, seed=range(count), max_new_tokens=15, tokens_per_forward=None)
    marital, relation = 5, 7
    laws = [torch.tensor([run.sequences[0] for run in runs]) for runs in (ar, dlm)]
    singles = [rows[:, relation].bincount(minlength=6) / count for rows in laws]
    pairs = [(6 * rows[:, marital] + rows[:, relation]).bincount(minlength=42) / count for rows in laws]
    assert (singles[0] - singles[1]).abs().sum() / 2 < 0.15
    assert (pairs[0] - pairs[1]).abs().sum() / 2 > 0.35


def test_plain_importance_sampling_and_the_bridge_read_the_pair_by_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from smc_bridge.cli import main

    assert main(["decode", "row: age=50", "--pair", "adult", "--max-new-tokens", "14", "--method", "smc-2"]) == 0
    assert "income=" in capsys.readouterr().out
    assert plain_is(load_pair("adult"), lanes=2).proper
    assert ARTarget(load_pair("adult").ar).model.max_length == 16


def test_weights_stand_beside_a_card() -> None:
    assert (Path(WEIGHTS) / "adult.md").is_file()
