"""Every family of diffusion models, in its own layout, scores what an independent forward of its weights scores."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge.decode import decode
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.models.protocols import ABSENT, MASKED
from smc_bridge.registry import METHODS
from tests.models.families import FAMILIES, Family, read_weights
from tests.models.families.files import COLUMNS, random_weights

PROMPT = [4, 9, 5, 12, 7, 10, 15, 6, 13, 8]


def row(family: Family, masks: int) -> list[int]:
    return PROMPT + [family.mask_id] * masks


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def test_a_reference_reads_every_weight(family):
    weights = random_weights(family.shapes, 0)
    ids = row(family, 3)
    outputs = family.outputs(weights, ids)
    for name, value in weights.items():
        changed = weights | {name: value + 0.1 * torch.arange(value.shape[-1])}
        assert (family.outputs(changed, ids) - outputs).abs().max() > 1e-3, name


def test_a_reference_sees_what_the_family_sees(family):
    """Every token changes every place that sees it, and no other."""
    weights = random_weights(family.shapes, 0)
    ids = row(family, 3)
    outputs = family.outputs(weights, ids)
    for j in range(len(ids)):
        other = family.outputs(weights, [*ids[:j], 11, *ids[j + 1 :]])
        changed = (other - outputs).abs().amax(1) > 1e-6
        size = family.block_size
        first = 0 if size is None else j // size * size
        assert changed.tolist() == [i >= first for i in range(len(ids))]


def test_a_reference_knows_where_a_token_stands(family):
    weights = random_weights(family.shapes, 0)
    here, there = (family.outputs(weights, ids) for ids in ([4, 9, 5, 12], [9, 4, 5, 12]))
    assert (here[2:] - there[2:]).abs().max() > 1e-3


def load(family: Family, folder: Path, **options: Any) -> tuple[Pair, dict[str, Tensor]]:
    """The family's checkpoint as the diffusion model of a pair, and its weights."""
    family.save(folder / "dlm", seed=3)
    family.save_target(folder / "ar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ends, and of what a pair does not share
        pair = load_pair(folder / "dlm", folder / "ar", device="cpu", **family.kwargs, **options)
    return pair, read_weights(folder / "dlm")


def check_scores(
    family: Family, weights: Mapping[str, Tensor], scores: Tensor, prefixes: list[list[int]], canvas: Tensor
) -> None:
    """Scores of every place that is there are the reference's."""
    for scored, prefix, places in zip(scores, prefixes, canvas.tolist(), strict=True):
        there = [i for i in places if i != ABSENT]
        ids = prefix + [family.mask_id if i == MASKED else i for i in there]
        expected = family.logits(weights, ids)[len(prefix) :, : scores.shape[-1]]
        torch.testing.assert_close(scored[: len(there)].double(), expected, rtol=1e-4, atol=1e-4)


LENGTHS = [10, 3, 8]
CANVASES = {
    "masked": [[MASKED] * 6] * 3,
    "partly known": [[MASKED, 5, MASKED, MASKED, 9, MASKED]] * 3,
    "ragged": [[MASKED] * 6, [MASKED, 7, MASKED, ABSENT, ABSENT, ABSENT], [MASKED, MASKED, 4, MASKED, ABSENT, ABSENT]],
}


def test_a_checkpoint_is_loaded_by_name_and_scored_as_its_formulas_say(family, tmp_path):
    pair, weights = load(family, tmp_path, dlm_cache="none")
    tokens = torch.tensor([PROMPT] * 3)
    prefixes = [PROMPT[:length] for length in LENGTHS]
    rows = torch.arange(3)
    session = pair.dlm.session(tokens, torch.tensor(LENGTHS))
    for canvas in map(torch.tensor, CANVASES.values()):
        check_scores(family, weights, session.score(rows, canvas), prefixes, canvas)
    session.commit(torch.tensor([[5, 9], [6, 0], [8, 4]]), torch.tensor([2, 1, 2]))
    prefixes = [prefix + more for prefix, more in zip(prefixes, ([5, 9], [6], [8, 4]), strict=True)]
    canvas = torch.tensor(CANVASES["masked"])
    check_scores(family, weights, session.score(rows, canvas), prefixes, canvas)
    assert getattr(pair.dlm, "block_size", None) == family.block_size


def test_with_a_cache_the_first_scores_are_exact_and_of_blocks_all(family, tmp_path):
    pair, weights = load(family, tmp_path, dlm_cache="prefix")
    prefixes = [PROMPT[:length] for length in LENGTHS]
    session = pair.dlm.session(torch.tensor([PROMPT] * 3), torch.tensor(LENGTHS))
    canvas, rows = torch.tensor(CANVASES["masked"]), torch.arange(3)
    check_scores(family, weights, session.score(rows, canvas), prefixes, canvas)
    if family.block_size is None:
        return
    block = torch.tensor([[5, 9, 7, 6, 4]] * 3)
    for length in ([5, 1, 3], [2, 5, 5], [4, 4, 5]):  # over the ends of blocks
        session.commit(block, torch.tensor(length))
        prefixes = [prefix + block[0, :n].tolist() for prefix, n in zip(prefixes, length, strict=True)]
        check_scores(family, weights, session.score(rows, canvas), prefixes, canvas)


@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_a_checkpoint_is_decoded_by_every_kind_of_method(family, cache, tmp_path):
    pair, _ = load(family, tmp_path, dlm_cache=cache)
    for name in ("smc", "paper", "tree-walk", "dlm"):
        results = decode(METHODS[name].make(pair), [PROMPT, PROMPT[:3]], seed=3, max_new_tokens=5)
        for result in results:
            assert name == "dlm" or math.isfinite(result.log_evidence), name
            assert all(1 <= len(tokens) <= 5 for tokens in result.sequences), name
            assert not {family.mask_id, COLUMNS - 1} & {i for tokens in result.sequences for i in tokens}, name


@pytest.mark.parametrize(
    ("name", "other"), [("dream", "DreamForCausalLM"), ("llada", "LLaDAMoEModelLM")]
)
def test_another_network_under_the_same_model_type_is_refused(name, other, tmp_path):
    """Dream-Reasoner is unshifted and works in blocks, LLaDA-MoE is a mixture; both keep the model type."""
    family = FAMILIES[name]
    with pytest.raises(ValueError, match=other):
        load(replace(family, config=dict(family.config) | {"architectures": [other]}), tmp_path)


def test_a_diffusion_model_is_no_target(tmp_path: Path) -> None:
    FAMILIES["sdar"].save(tmp_path / "dlm")
    with pytest.raises(ValueError, match=r"^ar = .*: is a diffusion model \(SDAR\), .* give it as dlm$"):
        load_pair(tmp_path / "dlm", tmp_path / "dlm")
