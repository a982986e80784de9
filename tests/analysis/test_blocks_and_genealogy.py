"""Acceptance, block lengths and ancestors, by hand on constructed traces."""

from __future__ import annotations

import math

import numpy as np
import pytest

from smc_bridge.analysis import block_statistics, coalescence, offspring_count, unique_ancestors
from smc_bridge.analysis.genealogy import ancestral_lines
from tests.analysis.helpers import make_record, make_result, two_step_trace


def test_blocks_of_all_lanes_by_hand() -> None:
    found = block_statistics(make_result([0.0] * 3, trace=two_step_trace()))
    lengths, accepted = [3, 1, 2, 2, 4, 4, 2, 1, 1, 1], [3, 0, 1, 2, 3, 4, 2, 0, 0, 1]
    assert found.blocks == 10
    assert found.tokens == pytest.approx(np.mean(lengths))
    assert found.accepted == pytest.approx(np.mean(accepted))
    assert found.acceptance == pytest.approx(sum(accepted) / sum(lengths))
    assert found.corrected == pytest.approx(np.mean(np.array(accepted) < np.array(lengths)))
    assert found.lengths == {1: 4, 2: 3, 3: 1, 4: 2}


def test_blocks_of_survivors_count_as_often_as_they_survived() -> None:
    """Survivors are (0, 0), (0, 1), (2, 1), then (0, 1) and (2, 0); the particle that is done commits nothing."""
    found = block_statistics(make_result([0.0] * 3, trace=two_step_trace()), survivors=True)
    lengths, accepted = [3, 1, 4, 1, 1], [3, 0, 4, 0, 0]
    assert (found.blocks, found.tokens, found.accepted) == (5, np.mean(lengths), np.mean(accepted))
    assert found.lengths == {1: 3, 3: 1, 4: 1}


def test_several_runs_are_pooled_by_blocks() -> None:
    one = make_result([0.0], trace=[make_record(length=[[4]], accepted=[[3]])])
    two = make_result([0.0], trace=[make_record(length=[[1]]), make_record(length=[[1]])])
    assert block_statistics([one, two]).tokens == 2.0


def test_without_blocks_the_means_are_nan() -> None:
    found = block_statistics(make_result([0.0]))
    assert (found.blocks, found.lengths) == (0, {})
    assert all(math.isnan(x) for x in (found.tokens, found.accepted, found.acceptance, found.corrected))
    with pytest.raises(ValueError, match="results is empty"):
        block_statistics([])


def test_genealogy_by_hand() -> None:
    """Step 0 keeps 0, 0, 2, 3; step 1 keeps 1, 1, 1, 3; step 2 keeps 0, 0, 2, 1."""
    steps = [[0, 0, 2, 3], [1, 1, 1, 3], [0, 0, 2, 1]]
    result = make_result([0.0] * 4, trace=[make_record(length=[[1]] * 4, ancestors=a) for a in steps])
    assert unique_ancestors(result) == [3, 2, 3]
    assert offspring_count(result) == [[2, 0, 1, 1], [0, 3, 0, 1], [2, 1, 1, 0]]
    assert ancestral_lines(result).tolist() == [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 2, 1]]
    assert coalescence(result) == [1, 1, 3]


def test_particles_that_never_interact_keep_their_own_line() -> None:
    result = make_result([0.0] * 3, trace=[make_record(length=[[1]] * 3)] * 5)
    assert coalescence(result) == unique_ancestors(result) == [3] * 5
    assert coalescence(make_result([0.0] * 3)) == []
