"""What the benchmarks measure with: each part does what its name says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from benchmarks import profile
from benchmarks.bias_vs_particles import toy_pair
from benchmarks.harness import HERE, interleaved, ratios, spread
from benchmarks.memory import peak_bytes
from benchmarks.overhead_arithmetic import MockStep, blocks
from benchmarks.replay import Tape, observe, replay
from benchmarks.report import Sheet, Verdict
from benchmarks.scaling import slope
from benchmarks.versus import both
from smc_bridge.engine.presets import smc


@dataclass(frozen=True)
class Toy:
    """A pair whose models can be replaced."""

    dlm: Any
    ar: Any


@pytest.fixture
def toy() -> Any:
    return Toy(*toy_pair())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("mixed", [False, True])
def test_textbook_form_commits_the_same_blocks_as_the_sampler(mixed: bool, seed: int) -> None:
    """Same logits and same uniforms; in double precision round-off decides nothing."""
    mock = MockStep(mixed, lanes=4, window=6, alphabet=40, seed=seed, dtype=torch.float64)
    ours, book = blocks(*mock.compare())
    assert ours == book


@pytest.mark.parametrize("mixed", [False, True])
def test_textbook_form_gives_the_same_weights_and_survivor(mixed: bool) -> None:
    for seed in range(8):
        mock = MockStep(mixed, lanes=4, window=6, alphabet=40, seed=seed, dtype=torch.float64)
        run, book = mock.compare()
        assert run.trace[0].log_increments[0] == pytest.approx(book.log_weight.tolist(), rel=1e-9, abs=1e-12)
        assert run.trace[0].lanes == [book.survivor]
        length = int(book.length[book.survivor])
        assert run.sequences[0][:length] == book.block[book.survivor, :length].tolist()


def test_peak_counts_what_is_held_at_one_time() -> None:
    """Three megabytes are made, but never more than two are alive; what was there before does not count."""
    million = 1 << 20

    def work(given: torch.Tensor) -> None:
        first = given + 1
        second = first + 1
        del first
        second + 1

    peak = peak_bytes(work, prepare=lambda: torch.zeros(million, dtype=torch.uint8))
    assert 2 * million <= peak < 2.1 * million, peak


def test_peak_counts_buffers_inside_of_operations() -> None:
    """`logsumexp` returns a few numbers, but computes all exponentials on the way."""
    logits = torch.zeros(64, 4096)
    peak = peak_bytes(lambda _: logits.logsumexp(-1), prepare=lambda: None)
    assert peak >= logits.numel() * 4, peak


def test_observed_run_is_the_same_run_and_its_replay_makes_the_same_calls(toy: Any) -> None:
    plain = smc(toy, 3, lanes=2, window=3, lookahead=4).run([[0], [2, 0]], seed=5, max_new_tokens=3)
    tape = Tape()
    watched = smc(observe(toy, tape), 3, lanes=2, window=3, lookahead=4).run([[0], [2, 0]], seed=5, max_new_tokens=3)
    assert [r.sequences for r in watched] == [r.sequences for r in plain]
    assert [r.log_weights for r in watched] == [r.log_weights for r in plain]
    again = Tape()
    replay(observe(toy, again), tape)
    assert tape.forwards("dlm") > 0
    assert [(c.model, c.session, c.name) for c in again.calls] == [(c.model, c.session, c.name) for c in tape.calls]
    for before, after in zip(tape.calls, again.calls, strict=True):
        for a, b in zip(before.arguments, after.arguments, strict=True):
            assert torch.equal(a, b)


def test_replay_refuses_a_tape_without_arguments(toy: Any) -> None:
    with pytest.raises(ValueError, match="keep"):
        replay(toy, Tape(keep=False))


def test_every_round_runs_every_case_once_and_starts_with_another() -> None:
    seen: list[str] = []
    found = interleaved({name: lambda name=name: seen.append(name) or len(seen) for name in "abc"}, 3, warmup=0)
    assert "".join(seen) == "abcbcacab"
    assert found == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_warm_up_is_not_measured() -> None:
    counter = iter(range(9))
    assert interleaved({"a": lambda: next(counter)}, 2, warmup=3)["a"] == [3, 4]


def test_ratios_are_taken_within_rounds() -> None:
    """A machine that is three times slower in the second round changes no ratio."""
    found = ratios([2.0, 6.0], [1.0, 3.0])
    assert (found.value, found.low, found.high, found.n) == (2.0, 2.0, 2.0, 2)


def test_spread_by_hand() -> None:
    found = spread([3.0, 1.0, 10.0])
    assert (found.value, found.low, found.high, found.n) == (3.0, 1.0, 10.0, 3)
    assert found.text() == "3 [1, 10]"
    assert spread([3.0]).text() == "3"
    assert found.bars == (2.0, 7.0)
    assert found.times(10).high == 100
    with pytest.raises(ValueError, match="values is empty"):
        spread([])


def test_slope_recovers_a_power_law_and_its_error() -> None:
    sizes = [1.0, 2.0, 4.0, 8.0]
    exact = slope(sizes, [5 * n**1.5 for n in sizes])
    assert exact.value == pytest.approx(1.5)
    assert exact.error == pytest.approx(0.0, abs=1e-12)
    # Residuals (e, -e, -e, e) leave the slope alone; its error is sqrt(4 e^2 / 2 / sum (x - mean)^2).
    e = 0.1
    bent = slope(sizes, [n * math.exp(s * e) for n, s in zip(sizes, (1, -1, -1, 1), strict=True)])
    spread = math.log(2) ** 2 * 5
    assert (bent.value, bent.error) == pytest.approx((1.0, math.sqrt(2 * e * e / spread)))
    with pytest.raises(ValueError, match="at least two"):
        slope([1.0, 1.0], [1.0, 2.0])


def test_verdicts_compare_in_the_right_direction() -> None:
    assert Verdict("x", 2.0, 1.5).met
    assert not Verdict("x", 2.0, 1.5, least=False).met
    assert not Verdict("x", math.nan, 1.5).met
    assert str(Verdict("speed", 1.0, 4.0)) == "missed  speed: 1, wanted at least 4"


def test_markdown_is_a_rectangle() -> None:
    text = Sheet("title", ("a", "b"), [("1", "2"), ("3", "4")]).markdown()
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {3}


def test_a_profile_counts_an_environment_inside_of_the_repository_among_the_libraries() -> None:
    inside = f"{HERE}/.venv/lib/site-packages"
    assert profile.part_of((f"{inside}/transformers/models/qwen2/modeling_qwen2.py", 1, "forward")) == "networks"
    assert profile.part_of((f"{inside}/torch/nn/modules/linear.py", 1, "forward")) == "networks"
    assert profile.part_of((f"{inside}/numpy/core.py", 1, "f")) == "other libraries"
    assert profile.part_of((f"{HERE}/models/huggingface/lean.py", 1, "f")) == "networks"
    assert profile.part_of((f"{HERE}/models/rows.py", 1, "f")) == "sessions"
    assert profile.part_of((f"{HERE}/smc_bridge/engine/steps.py", 1, "f")) == "smc_bridge/engine/steps.py"


def test_a_profile_counts_every_moment_once() -> None:
    a, b, op = ("a.py", 1, "a"), ("b.py", 1, "b"), ("~", 0, "<op>")
    stats = {
        a: (1, 1, 2.0, 7.0, {}), b: (1, 1, 1.0, 2.0, {a: (1, 1, 1.0, 2.0)}),
        op: (2, 2, 4.0, 4.0, {a: (1, 1, 3.0, 3.0), b: (1, 1, 1.0, 1.0)}),
    }
    assert profile.own_seconds(stats) == {a: 5.0, b: 2.0}


def test_methods_of_two_sides_are_spelled_with_their_options() -> None:
    assert both("smc-1, paper,w=0.5") == (("smc-1", "smc-1"), ("paper,w=0.5", "paper,w=0.5"))
    assert both("paper|paper,window=8,w=0.5,tree-32") == (("paper", "paper,window=8,w=0.5"), ("tree-32", "tree-32"))
    assert both("paper,w=0.5|paper,w=0.5,window=8") == (("paper,w=0.5", "paper,w=0.5,window=8"),)
