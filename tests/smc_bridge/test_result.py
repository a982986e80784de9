"""A `Result` is the weighted set it says it is, and survives JSON unchanged."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy import stats

from smc_bridge.engine.resampling import Systematic
from smc_bridge.engine.weights import EssBelow
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods.released import Argmax
from smc_bridge.result import Forwards, Result
from tests.smc_bridge.programs import TablePotential, program

FAILURE = 1e-5
SEQUENCES = [[0, 1], [1], [0, 1], [0, 0, 0], [0, 0, 1]]
LOG_WEIGHTS = [0.3, -1.2, 0.9, -math.inf, 2.0]
MASS = np.exp(LOG_WEIGHTS)


def make(**changes: Any) -> Result:
    return replace(Result([2, 0], SEQUENCES, LOG_WEIGHTS), **changes)


def runs() -> list[Result]:
    """Results of real runs: dead particles, finished ones, drafts kept or not."""
    potential = TablePotential(2, 3, dead=(0, 1))
    out = []
    for kernel in (Rejection(), TreeWalk(1)):
        for keep in (False, True):
            sampler = program(
                kernel, particles=3, lanes=2, potential=potential, trigger=EssBelow(0.3), resampler=Systematic(),
                detokenize=lambda ids: "<" + "&".join(map(str, ids)) + ">")
            out += sampler.run([[]] * 6, seed=list(range(6)), max_new_tokens=3, keep_drafts=keep)
    assert any(-math.inf in result.log_weights for result in out)
    return out


def test_a_loaded_result_equals_the_saved_one(tmp_path: Path) -> None:
    every = [*runs(), make(), make(texts=["a", "b", "a", "é\n", "\u2028"], reasons=["x"], proper=False, seconds=0.1)]
    for result in every:
        path = tmp_path / "result.json"
        result.save(path)
        assert Result.load(path) == result
        assert Result.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result


def test_old_files_without_the_later_fields_load_as_complete(tmp_path: Path) -> None:
    data = {name: value for name, value in make().to_dict().items() if name not in ("complete", "settings")}
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    assert Result.load(path) == make()
    assert (Result.load(path).complete, Result.load(path).settings) == (True, {})


def test_an_unfinished_result_has_no_certificate_and_says_so(tmp_path: Path) -> None:
    cut = make(complete=False, settings={"window": 3, "temperature": [0.2, math.inf], "potential": None})
    cut.save(tmp_path / "cut.json")
    assert Result.load(tmp_path / "cut.json") == cut
    assert "(interrupted)" in cut._repr_html_()
    with pytest.raises(ValueError, match="complete = False: the run was interrupted"):
        cut.certificate()


def test_what_is_saved_is_json_without_extensions(tmp_path: Path) -> None:
    make().save(tmp_path / "result.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert data["log_weights"][3] == "float:-inf"


def test_texts_that_look_like_numbers_stay_texts() -> None:
    result = make(texts=["float:inf", "float:-inf", "text:float:nan", "1", "text:"], method="float:inf")
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_weights_evidence_and_ess_are_those_of_numpy() -> None:
    result, weights = make(), MASS / MASS.sum()
    assert result.weights == pytest.approx(weights, abs=1e-15)
    assert result.log_evidence == pytest.approx(math.log(MASS.mean()), abs=1e-14)
    assert result.ess == pytest.approx(1 / (weights**2).sum(), abs=1e-14)
    shifted = make(log_weights=[w - 2000.0 for w in LOG_WEIGHTS])
    assert shifted.weights == pytest.approx(weights, abs=1e-12)
    assert shifted.log_evidence == pytest.approx(result.log_evidence - 2000.0, abs=1e-9)


def test_posterior_adds_equal_sequences_likeliest_first() -> None:
    share = MASS / MASS.sum()
    posterior = make().posterior()
    expected = {(0, 0, 1): share[4], (0, 1): share[0] + share[2], (1,): share[1], (0, 0, 0): 0.0}
    assert posterior == pytest.approx(expected, abs=1e-15)
    assert list(posterior) == list(expected)


def test_expectation_is_self_normalised_and_skips_weight_zero() -> None:
    def f(sequence: tuple[int, ...]) -> float:
        assert sequence != (0, 0, 0), "f of a particle of weight zero"
        return len(sequence) + 0.5 * sequence[0]

    share = MASS / MASS.sum()
    expected = sum(w * (len(s) + 0.5 * s[0]) for w, s in zip(share, SEQUENCES, strict=True))
    assert make().expectation(f) == pytest.approx(expected, abs=1e-14)


def test_samples_have_the_law_of_the_weights_and_are_not_the_argmax() -> None:
    result, count = make(), 4000
    drawn = result.sample(count, seed=3)
    posterior = {s: p for s, p in result.posterior().items() if p > 0}
    assert set(drawn) == set(posterior)
    observed = [drawn.count(s) for s in posterior]
    p_value = stats.chisquare(observed, [count * p for p in posterior.values()]).pvalue
    assert p_value > FAILURE, f"counts {observed} of {posterior}: p = {p_value}"
    assert result.sample(seed=1) in posterior
    assert result.sample(5, seed=7) == result.sample(5, seed=7)


def test_values_are_texts_where_there_are_any() -> None:
    texts = ["a", "b", "a", "c", "d"]
    assert make(texts=texts).values == texts
    assert make().values == [tuple(s) for s in SEQUENCES]
    assert set(make(texts=texts).sample(50)) <= set(texts) - {"c"}


def test_tokens_per_forward() -> None:
    result = make(forwards=Forwards(dlm_forwards=2))
    assert (result.tokens, result.tokens_per_dlm_forward) == (2.2, 1.1)
    assert math.isnan(make().tokens_per_dlm_forward)


def test_length_of_what_is_drawn_is_the_weighted_one() -> None:
    share = MASS / MASS.sum()
    expected = float(share @ [len(sequence) for sequence in SEQUENCES])
    assert make().drawn_tokens == pytest.approx(expected, abs=1e-14)
    assert abs(expected - make().tokens) > 0.1


def test_a_result_shows_itself_in_a_few_lines() -> None:
    ids = list(range(500))
    long = Result(ids, [[i, *ids] for i in range(64)], [0.0] * 64, settings={"seed": 0}, proper=False, complete=False)
    head, *lines = repr(long).splitlines()
    assert head == (
        "Result of smc: N = 64, 501.0 tokens, log Z = 0.0000 nats, ESS = 64.00, not properly weighted, interrupted"
    )
    assert len(lines) == 5
    assert lines[0].startswith("  0.016  (0, 0, 1, 2, ")
    assert lines[-1] == "  and 60 more"
    assert max(map(len, lines)) <= 102
    assert f"{MASS[4] / MASS.sum():.3f}  (0, 0, 1)" in repr(make())


def test_to_empirical_has_the_weights_and_pads_with_minus_one() -> None:
    empirical = make().to_empirical()
    share = MASS / MASS.sum()
    assert empirical.sample().shape == (3,)
    for sequence, probability in (([0, 0, 1], share[4]), ([0, 1, -1], share[0] + share[2]), ([1, -1, -1], share[1])):
        found = float(empirical.log_prob(torch.tensor(sequence)).exp())
        assert found == pytest.approx(probability, abs=1e-6), f"{sequence}: {found}, expected {probability}"


def test_html_escapes_what_models_write() -> None:
    hostile = "<script>alert('x')</script> & co"
    page = make(texts=[hostile] * 5, method="<b>m</b>")._repr_html_()
    assert hostile not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; co" in page
    assert "<b>m</b>" not in page
    assert "not properly weighted" not in page
    assert "not properly weighted" in make(proper=False)._repr_html_()


def test_a_result_of_weight_zero_can_be_shown_and_saved_but_not_sampled(tmp_path: Path) -> None:
    dead = make(log_weights=[-math.inf] * 5)
    assert dead.log_evidence == -math.inf
    assert "ESS = 0" in dead._repr_html_()
    assert repr(dead).splitlines() == [
        "Result of smc: N = 5, 2.2 tokens, log Z = -inf nats, ESS = 0.00", "  every weight is zero",
    ]
    assert (dead.ess, dead.alive, dead.drawn_tokens) == (0.0, False, dead.tokens)
    dead.save(tmp_path / "dead.json")
    assert Result.load(tmp_path / "dead.json") == dead
    for use in (dead.sample, dead.posterior, lambda: dead.expectation(len), dead.to_empirical, lambda: dead.weights):
        with pytest.raises(ValueError, match=r"log_weights are all -inf: .* use more particles"):
            use()


@pytest.mark.parametrize(
    ("sequences", "weights", "message"),
    [([], [], "0 sequences"), ([[1]], [], "1 sequences with 0 log_weights"), ([[1]], [math.nan], "NaN and"),
     ([[1]], [math.inf], r"\+inf are not weights")],
)
def test_weights_that_make_no_sense_are_refused(sequences: Any, weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Result([], sequences, weights)


FOREIGN = ["", "{", "[]", "null", "3", '{"format": 1}', '{"format": 99}', "\x00\x01", '"a"']


@pytest.mark.parametrize("text", FOREIGN)
def test_a_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "foreign.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="saved Result"):
        Result.load(path)


@pytest.mark.parametrize("change", [
    {"format": 2}, {"forwards": {"spam": 1}}, {"forwards": 3}, {"trace": [{"spam": 1}]}, {"trace": 3},
    {"sequences": 3}, {"log_weights": ["x"] * 5}, {"log_weights": [0.0]}, {"extra": 1},
])
def test_a_file_with_other_fields_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(make().to_dict() | change))
    with pytest.raises(ValueError, match=r"saved Result|one weight for each"):
        Result.load(path)


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json.*cannot be read"):
        Result.load(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="cannot be written"):
        make().save(tmp_path / "no" / "folder.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="cannot be read"):
        Result.load(tmp_path / "bytes.json")


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    make().save(path)
    before = path.read_text()
    with mock.patch.object(Path, "replace", side_effect=OSError("full")), pytest.raises(ValueError, match="full"):
        make(method="other").save(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"], "a temporary file is left"


def test_a_certificate_needs_a_proper_sampler_and_a_known_z() -> None:
    evidence = make().log_evidence
    assert make().certificate().kl == pytest.approx(math.expm1(evidence) - evidence)
    assert make(has_potential=True).certificate(log_z=1.0).kl == pytest.approx(1.0 - make().log_evidence)
    with pytest.raises(ValueError, match="log_z is missing"):
        make(has_potential=True).certificate()
    (improper,) = program(Rejection(), resampler=Argmax()).run([[]], max_new_tokens=2)
    with pytest.raises(ValueError, match=r"has no certificate: resampler Argmax is not proper"):
        improper.certificate()


def test_one_seed_for_many_results_still_draws_by_weight() -> None:
    """A fixed uniform for all results would pick the heavier of two particles far too often."""
    rng = np.random.default_rng(0)
    results = [
        Result([i], [[0], [1]], [float(w) for w in rng.normal(size=2) * 1.5]) for i in range(4000)
    ]
    heavier = [max(r.weights) for r in results]
    picked = [r.weights[r.values.index(r.sample(seed=0))] == max(r.weights) for r in results]
    gap = abs(np.mean(picked) - np.mean(heavier))
    # Hoeffding's bound for 4000 independent draws at failure rate 1e-7.
    assert gap < np.sqrt(np.log(2 / 1e-7) / (2 * 4000)), (np.mean(picked), np.mean(heavier))
