"""Decoders at temperature 0 against greedy loops that are written out here: a model's scores, and numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smc_bridge import ARTarget, DLMProposal, ProductOfExperts, diffusion, smc
from smc_bridge.analysis import oracle
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.rules import Ordered, Reconsider
from smc_bridge.cli import main
from smc_bridge.decode import decode
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.protocols import MASKED
from smc_bridge.pyro_program import enumerate_program, run_program
from smc_bridge.registry import spelled
from tests.smc_bridge.programs import KERNELS, program, target_law, worst
from tests.toys import LIMIT, toy_pair

PROBLEM = "Jack has 47 candies. Jack sells 2. How many candies does Jack have now?"
TOKENS = 16
TOY_PROMPTS = [[1], [2, 1], [2]]
#: What draws from the AR law itself at temperature 0, on any pair.
EXACT = [
    "ar", "ar,top_p=0.5", "ar,top_k=3", "smc-1", "smc-4", "smc-2x3", "speculative", "paper", "tree-walk",
    "tree-walk,proposal_temperature=0.7", "smc,kernel=tree,nodes=5", "smc,kernel=block", "smc,kernel=gumbel",
    "smc,intermediate=chernoff", "smc,intermediate=defensive", "smc,proposal=path", "smc,proposal=chain",
    "smc,proposal_temperature=0.7,top_p=0.8", "smc,proposal_temperature=0/0.5,lanes=2,particles=1",
    "smc,proposal_temperature=0/0.5,lanes=2,particles=2,weight=balance", "smc,proposal_top_p=0.5",
]


def best(scores: torch.Tensor, banned: tuple[int, ...]) -> int:
    """First token of greatest score that is not banned."""
    row = scores.double().numpy().copy()
    row[list(banned)] = -np.inf
    return int(np.flatnonzero(row == row.max())[0])


def greedy(model: Any, prompt: list[int], limit: int) -> list[int]:
    """The likeliest token after each prefix, by a fresh session for each."""
    found: list[int] = []
    while len(found) < limit and (not found or found[-1] != model.eos_id):
        whole = [*prompt, *found]
        session = model.session(torch.tensor([whole], dtype=torch.long), torch.tensor([len(whole)]))
        found.append(best(session.score(torch.tensor([0]), torch.tensor([[0]]))[0, 0], model.banned_ids))
    return found


def embedded() -> Any:
    return load_pair("arithmetic")


@pytest.fixture(scope="module")
def embedded_greedy() -> list[int]:
    pair = embedded()
    return greedy(pair.ar, pair.encode(PROBLEM).tolist(), TOKENS)


@pytest.mark.parametrize("text", EXACT)
def test_exact_methods_are_greedy_decoding_on_tables(text: str) -> None:
    pair = toy_pair()
    decoder = spelled(text).make(pair, temperature=0.0)
    for prompt, result in zip(TOY_PROMPTS, decode(decoder, TOY_PROMPTS, max_new_tokens=LIMIT), strict=True):
        expected = greedy(pair.ar, prompt, LIMIT)
        assert {tuple(sequence) for sequence in result.sequences} == {tuple(expected)}
        assert result.log_evidence == pytest.approx(0.0, abs=1e-15)
        assert list(result.log_weights) == pytest.approx([0.0] * len(result.log_weights), abs=1e-15)
        assert result.exact


@pytest.mark.parametrize("text", EXACT)
def test_exact_methods_are_greedy_decoding_on_the_embedded_pair(text: str, embedded_greedy: list[int]) -> None:
    pair = embedded()
    decoder = spelled(text).make(pair, **{"temperature": 0, **({} if text.startswith("ar") else {"lookahead": 32})})
    [result] = decode(decoder, [pair.encode(PROBLEM).tolist()], seed=5, max_new_tokens=TOKENS)
    assert [list(sequence) for sequence in result.sequences] == [embedded_greedy] * len(result.sequences)
    assert result.log_evidence == pytest.approx(0.0, abs=1e-6)
    assert list(result.log_weights) == pytest.approx([0.0] * len(result.log_weights), abs=1e-6)


def test_the_released_decoder_runs_on_the_greedy_product(embedded_greedy: list[int]) -> None:
    """Its weights are those of raw logits; its tokens are the target's, for the product has no others."""
    pair = embedded()
    [result] = decode(
        spelled("released").make(pair, temperature=0.0, lookahead=32), [pair.encode(PROBLEM).tolist()],
        max_new_tokens=TOKENS,
    )
    assert list(result.sequences[0]) == embedded_greedy
    assert not result.proper


def test_a_tree_of_greedy_marginals_has_branches() -> None:
    """With a budget for all continuations no walk leaves the tree; the likeliest path is left by some."""
    path, tree = (
        decode(spelled(text).make(toy_pair(), temperature=0.0, window=LIMIT), TOY_PROMPTS, max_new_tokens=LIMIT)
        for text in ("smc-1", "tree-walk,nodes=100,min_probability=0")
    )
    assert {result.forwards.ar_forwards for result in tree} == {1}
    assert max(result.forwards.ar_forwards for result in path) > 1


def canvas_loop(
    model: Any, prompt: list[int], limit: int, *, order: str, count: int, span: int | None = None, again: int = 0
) -> list[int]:
    """A canvas filled with the likeliest tokens, places ranked by the model's own law; all of it is shown.

    `again` least sure tokens are masked again in each of the first 8 forwards.
    """
    canvas, step = [MASKED] * limit, 0
    while True:
        session = model.session(torch.tensor([prompt]), torch.tensor([len(prompt)]))
        scores = session.score(torch.tensor([0]), torch.tensor([canvas]))[0].double().numpy().copy()
        scores[:, list(model.banned_ids)] = -np.inf
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        open_now = [i for i in range(limit) if canvas[i] == MASKED]
        if span is not None:
            open_now = [i for i in open_now if i < open_now[0] // span * span + span]
        logs = np.log(probs, where=probs > 0, out=np.zeros_like(probs))
        rank = {
            "left_to_right": np.arange(limit), "confidence": -probs.max(-1), "entropy": -(probs * logs).sum(-1),
        }[order]
        filled = [i for i in range(limit) if canvas[i] != MASKED]
        doubtful = sorted((probs[i, canvas[i]], i) for i in filled)[:again] if step < 8 else []
        for _, i in doubtful:
            canvas[i] = MASKED
        for _, i in sorted((rank[i], i) for i in open_now)[:count]:
            canvas[i] = int(np.flatnonzero(scores[i] == scores[i].max())[0])
        step += 1
        reached = canvas.index(MASKED) if MASKED in canvas else limit
        end = canvas[:reached].index(model.eos_id) + 1 if model.eos_id in canvas[:reached] else reached
        if end < reached or reached == limit or (end and canvas[end - 1] == model.eos_id):
            return canvas[:end]


@pytest.mark.parametrize("top_p", [1.0, 0.4])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("order", ["left_to_right", "entropy", "confidence"])
def test_canvas_decoders_are_the_loop_on_tables(order: Any, count: int, top_p: float) -> None:
    pair = toy_pair()
    decoder = spelled("dlm").make(pair, order=order, tokens=count, lookahead=None, temperature=0.0, top_p=top_p)
    for prompt, result in zip(TOY_PROMPTS, decode(decoder, TOY_PROMPTS, max_new_tokens=LIMIT), strict=True):
        assert list(result.sequences[0]) == canvas_loop(pair.dlm, prompt, LIMIT, order=order, count=count)


@pytest.mark.parametrize(("order", "count", "span", "again"), [
    ("left_to_right", 2, 8, 0), ("entropy", 1, None, 0), ("entropy", 2, 8, 0), ("confidence", 1, 8, 0),
    ("confidence", 3, None, 0), ("confidence", 3, None, 1),
])
def test_canvas_decoders_are_the_loop_on_the_embedded_pair(
    order: Any, count: int, span: int | None, again: int
) -> None:
    pair = embedded()
    prompt = pair.encode(PROBLEM).tolist()
    rule = Ordered(order, count)
    proposal = DLMProposal(pair.dlm, temperature=0.0, lookahead=TOKENS)
    [result] = decode(
        Canvas(proposal, Reconsider(rule, again) if again else rule, span), [prompt], max_new_tokens=TOKENS)
    expected = canvas_loop(pair.dlm, prompt, TOKENS, order=order, count=count, span=span, again=again)
    assert list(result.sequences[0]) == expected


def test_a_law_at_temperature_0_ranks_no_places() -> None:
    proposal = DLMProposal(toy_pair().dlm, temperature=0.0)
    with pytest.raises(ValueError, match=r"^tempered = True with temperature = 0: point masses rank no places; leave"):
        diffusion(proposal, [[1]], order="entropy", tempered=True)
    assert diffusion(proposal, [[1]], tempered=True, max_new_tokens=3), "an order by place reads no law"


def test_the_exact_answer_is_the_greedy_sequence() -> None:
    pair = toy_pair()
    target = smc(pair, 1, temperature=0.0).target
    for prompt in TOY_PROMPTS:
        exact = oracle(target, prompt, max_new_tokens=LIMIT)
        assert [list(sequence) for sequence in exact.sequences] == [greedy(pair.ar, prompt, LIMIT)]
        assert exact.log_evidence == 0.0


@pytest.mark.parametrize("own", [0.0, 1.2])
@pytest.mark.parametrize("name", [name for name in KERNELS if name != "accept-all"])
def test_the_pyro_program_has_the_same_law(name: str, own: float) -> None:
    sampler = program(KERNELS[name])
    sampler.target = ARTarget(sampler.target.model, temperature=0.0)
    sampler.proposal = DLMProposal(sampler.proposal.model, temperature=own, lookahead=3)
    gap, line = worst(enumerate_program(sampler, [], max_new_tokens=3), target_law(sampler, 3))
    assert gap < 1e-12, line
    found = run_program(sampler, [], max_new_tokens=3)
    assert {tuple(sequence) for sequence in found.sequences} == {tuple(greedy(sampler.target.model, [], 3))}
    assert found.log_evidence == 0.0


def test_a_retained_sequence_that_is_not_the_greedy_one_is_refused() -> None:
    pair = toy_pair()
    sampler = smc(pair, 2, temperature=0.0)
    expected = greedy(pair.ar, [1], LIMIT)
    [result] = sampler.run([[1]], max_new_tokens=LIMIT, retained=[expected])
    assert result.log_evidence == 0.0
    other = [1, *expected[1:]] if expected[0] != 1 else [2, *expected[1:]]
    if len(other) < LIMIT and other[-1] != pair.ar.eos_id:
        other += [1] * (LIMIT - len(other))
    with pytest.raises(ValueError, match=r"^retained\[0\] has probability 0 .* top_k, top_p or temperature 0 cuts"):
        sampler.run([[1]], max_new_tokens=LIMIT, retained=[other])


@pytest.mark.parametrize("method", ["smc-2", "paper", "speculative", "tree-walk", "released", "ar", "dlm-2-confidence"])
def test_the_command_line_decodes_at_temperature_0(
    method: str, tmp_path: Path, embedded_greedy: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    argv = ["decode", PROBLEM, "--method", method, "--temperature", "0", "--max-new-tokens", str(TOKENS)]
    assert main([*argv, "--json", str(file)], commands=[]) == 0
    capsys.readouterr()
    found = json.loads(file.read_text())
    sequences = found["sequences"]
    if not method.startswith("dlm"):
        assert {tuple(sequence) for sequence in sequences} == {tuple(embedded_greedy)}


def test_the_command_line_gives_lanes_a_temperature_of_0(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["decode", PROBLEM, "--temperature", "0", "--lane-temperatures", "0,0.5", "--max-new-tokens", "4"]
    assert main(argv, commands=[]) == 0
    assert "Jack" in capsys.readouterr().out


def test_the_coldest_targets_are_decoded_like_those_at_0(embedded_greedy: list[int]) -> None:
    """Of the intermediates, with the target itself: a product sides with the DLM wherever that is the surer."""
    pair = embedded()
    for temperature in (3e-39, 1e-30, 1e-6):
        [result] = smc(pair, 2, temperature=temperature, intermediate=ProductOfExperts(0.0), lookahead=32).run(
            [pair.encode(PROBLEM).tolist()], max_new_tokens=TOKENS
        )
        assert [list(sequence) for sequence in result.sequences] == [embedded_greedy] * 2
