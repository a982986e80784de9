"""Learned parts: their files say what they are, trainings repeat, a pair gives its own parts or those it is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from smc_bridge.models.learned import PARTS
from smc_bridge.models.learned.store import facts_of, load, save
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.training.fit import fit, initialised


class Line(nn.Module):
    """`x -> a x + b` of `size` numbers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.config = {"size": size}
        self.map = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.map(x)
        return out


@pytest.fixture(autouse=True)
def _line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "line", f"{__name__}:Line")


def trained(seed: int) -> tuple[Line, float]:
    """A line taught to double its input."""
    module = initialised(lambda: Line(3), seed=seed)
    data = torch.randn(40, 16, 3, generator=torch.Generator().manual_seed(seed))
    return module, fit(module, lambda step: (module(data[step % 40]) - 2 * data[step % 40]).square().mean(), steps=200,
                       rate=0.05, name="line", warmup=10)


def test_a_training_learns_and_the_same_seed_gives_the_same_weights() -> None:
    (first, loss), (second, _), (other, _) = trained(1), trained(1), trained(2)
    assert loss < 1e-2
    assert torch.equal(first.map.weight, second.map.weight)
    assert not torch.equal(first.map.weight, other.map.weight)
    assert not first.training


def test_a_network_is_made_by_its_seed_and_the_callers_draws_go_on() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(2)
    torch.manual_seed(1)
    first = initialised(lambda: Line(3), seed=0)
    assert torch.equal(torch.rand(2), wanted)
    assert torch.equal(first.map.weight, initialised(lambda: Line(3), seed=0).map.weight)
    assert not torch.equal(first.map.weight, initialised(lambda: Line(3), seed=1).map.weight)


def test_a_file_gives_the_network_back_with_its_facts(tmp_path: Path) -> None:
    module, path = Line(3), tmp_path / "new" / "line.safetensors"
    save(module, path, kind="line", facts={"seed": 7})
    again = load(path, kind="line")
    assert again.config == {"size": 3}
    torch.testing.assert_close(again.map.weight, module.map.weight.half().float(), rtol=0, atol=0)
    assert facts_of(path) == {"seed": 7}
    assert [file.name for file in path.parent.iterdir()] == ["line.safetensors"]


def test_a_pair_gives_its_own_part_once_or_the_one_that_is_given(tmp_path: Path) -> None:
    path = tmp_path / "line.safetensors"
    save(Line(3), path, kind="line", facts={})
    bare = load_pair("arithmetic")
    pair = replace(bare, learned={"line": path})
    assert pair.part("line") is pair.part("line")
    given = Line(2)
    assert bare.part("line", given) is given
    assert bare.part("line", path).config == {"size": 3}
    with pytest.raises(ValueError, match=r"the pair 'arithmetic' has no trained line: train one"):
        bare.part("line")


@pytest.mark.parametrize(
    ("given", "message"),
    [(7, "line = 7: give a network, or a file"), ("nowhere", "line = 'nowhere': no such file; train one")],
)
def test_what_is_no_part_is_one_line(given: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_pair("arithmetic").part("line", given)


def test_a_file_of_another_part_or_of_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "other", f"{__name__}:Line")
    path, text = tmp_path / "line.safetensors", tmp_path / "text.safetensors"
    save(Line(3), path, kind="line", facts={})
    text.write_text("no tensors")
    with pytest.raises(ValueError, match=r"holds 'line': give a file of python -m smc_bridge\.models\.training other"):
        load(path, kind="other")
    with pytest.raises(ValueError, match="is no safetensors file: train one"):
        load(text, kind="other")
    with pytest.raises(ValueError, match="is a folder: give the path of a file"):
        load(tmp_path, kind="line")


@pytest.mark.parametrize("fault", ["no config", "no json", "another argument", "another shape", "a tensor too few"])
def test_a_damaged_file_is_one_line(tmp_path: Path, fault: str) -> None:
    path, weights = tmp_path / "line.safetensors", dict(Line(3).state_dict())
    configs = {"no json": "{", "another argument": '{"width": 3}', "another shape": '{"size": 4}'}
    config = configs.get(fault, '{"size": 3}')
    if fault == "a tensor too few":
        weights.popitem()
    save_file(weights, path, metadata={"kind": "line"} | ({} if fault == "no config" else {"config": config}))
    with pytest.raises(ValueError, match=r"line = '.*' is damaged: .*; train one: ") as caught:
        load(path, kind="line")
    assert "\n" not in str(caught.value)


def test_weights_beyond_float16_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    module = Line(3)
    nn.init.constant_(module.map.weight, 1e6)
    with pytest.raises(ValueError, match="weights of line are not finite in float16"):
        save(module, tmp_path / "line.safetensors", kind="line", facts={})
    with pytest.raises(ValueError, match="is a folder"):
        save(Line(3), tmp_path, kind="line", facts={})
    weights = module.state_dict() | {"map.weight": torch.full((3, 3), torch.nan)}
    save_file(weights, tmp_path / "nan.safetensors", metadata={"kind": "line", "config": '{"size": 3}'})
    with pytest.raises(ValueError, match="has weights that are not finite"):
        load(tmp_path / "nan.safetensors", kind="line")
    assert [file.name for file in tmp_path.iterdir()] == ["nan.safetensors"]
