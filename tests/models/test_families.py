"""Every family of diffusion models, in its own layout, scores what an independent forward of its weights scores."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.families import FAMILIES, Family, read_weights
from tests.models.families.files import random_weights

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
