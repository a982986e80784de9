"""What a user's part returns is checked where it enters, and one line names the part."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from smc_bridge import (
    ARTarget,
    BlockVerification,
    Chernoff,
    Defensive,
    EssBelow,
    GumbelCoupling,
    Mixture,
    Move,
    Multinomial,
    PowerMean,
    ProductOfExperts,
    Rejection,
    Sampler,
    Systematic,
    TreeWalk,
    always,
    paper,
    smc,
    tree_walk,
)
from smc_bridge.analysis import oracle
from smc_bridge.distributions.table import Dense
from smc_bridge.kernels.importance import BalanceHeuristic
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.pyro_program import run_program
from smc_bridge.randomness import Source

AR = TabularAR.random(3, 4, seed=3, eos_id=2)
PAIR: Any = SimpleNamespace(dlm=TabularDLM(AR, noise=0.5, seed=1), ar=AR)
LIMIT = 3


def allowed(x: Any) -> Any:
    """Continuations with a 1 in them."""
    return ~x.done | (x.tokens == 1).any(1)


def as_numbers(x: Any) -> Any:
    return torch.where(allowed(x), 0.0, -math.inf).double()


#: The same potential in all forms that are taken.
FORMS: dict[str, Callable[[Any], Any]] = {
    "bool": allowed,
    "numpy bool": lambda x: allowed(x).numpy(),
    "list of bools": lambda x: allowed(x).tolist(),
    "numpy": lambda x: as_numbers(x).numpy(),
    "list": lambda x: as_numbers(x).tolist(),
    "float32": lambda x: as_numbers(x).float(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_potential_in_any_form_is_the_same_potential(form: str) -> None:
    runs = [
        smc(PAIR, 4, window=2, lookahead=3, potential=potential).run([[]] * 5, seed=range(5), max_new_tokens=LIMIT)
        for potential in (as_numbers, FORMS[form])
    ]
    assert [r.log_weights for r in runs[0]] == [r.log_weights for r in runs[1]]
    exact = [oracle(ARTarget(AR, potential=f), max_new_tokens=LIMIT).log_evidence for f in (as_numbers, FORMS[form])]
    assert exact[0] == exact[1] < 0.0


def test_a_boolean_potential_gives_no_weight_to_what_it_forbids() -> None:
    runs = smc(PAIR, 4, window=2, lookahead=3, potential=allowed).run([[]] * 40, seed=range(40), max_new_tokens=LIMIT)
    broken = [
        weight for run in runs for s, weight in zip(run.sequences, run.weights, strict=True)
        if 1 not in s and run.log_evidence > -math.inf
    ]
    assert broken == [0.0] * len(broken)
    assert len(broken) > 0


@pytest.mark.parametrize("wrong", [
    lambda x: 0.0, lambda x: True, lambda x: None, lambda x: torch.tensor(0.0), lambda x: np.float64(0.0),
    lambda x: torch.zeros(len(x.length), 1), lambda x: [0.0], lambda x: ["a"] * len(x.length),
    lambda x: torch.zeros(len(x.length), dtype=torch.complex64),
    lambda x: torch.full((len(x.length),), math.nan), lambda x: [math.inf] * len(x.length),
])
def test_a_potential_that_is_none_is_refused_everywhere_in_the_same_words(wrong: Callable[[Any], Any]) -> None:
    sampler = smc(PAIR, 2, window=2, lookahead=3, potential=wrong)
    for entry in (
        lambda: sampler.run([[]], max_new_tokens=LIMIT), lambda: oracle(sampler.target, max_new_tokens=LIMIT),
        lambda: run_program(sampler, [], seed=1, max_new_tokens=LIMIT),
    ):
        with pytest.raises(ValueError, match=r"^potential .*<lambda> returned .* for .*: return ") as caught:
            entry()
        assert "Trace Shapes" in str(caught.value) or "\n" not in str(caught.value)  # Pyro adds its shapes below


class Law:
    """An intermediate that returns what it is given."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change

    def log_prob(self, log_q: Any, log_p: Any) -> Any:
        return self.change(log_p)


class Kernel(Rejection):
    """Rejection, whose moves are changed."""

    def __init__(self, change: Callable[[Move], Any]) -> None:
        self.change = change

    def __call__(self, draft: Draft, pi: Any, **rest: Any) -> Any:
        return self.change(super().__call__(draft, pi, **rest))


class Drafter(DLMProposal):
    """A proposal whose drafts are changed."""

    def __init__(self, change: Callable[[Draft], Any]) -> None:
        super().__init__(PAIR.dlm, lookahead=3)
        self.change = change

    def draft(self, state: Any, asked: Asked, *, source: Source | None) -> Any:
        return self.change(super().draft(state, asked, source=source))


class Stopping(Rejection):
    """Rejection with another law of going on."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change

    def log_continue(self, q: Any, pi: Any, block: Any, *, horizon: Any) -> Any:
        return self.change(super().log_continue(q, pi, block, horizon=horizon))


class Walk(TreeWalk):
    """A tree walk that leaves the alphabet."""

    def walk(self, *arguments: Any, **rest: Any) -> Any:
        move, node = super().walk(*arguments, **rest)
        return move._replace(length=move.length + 9), node


class Rule:
    """A weight rule or resampler that returns what it is given."""

    proper = lanewise = True

    def __init__(self, value: Callable[..., Any]) -> None:
        self.value = value

    def __call__(self, *arguments: Any, **rest: Any) -> Any:
        return self.value(*arguments)


def weight(value: Callable[[Any], Any]) -> dict[str, Any]:
    return {"weight": Rule(lambda lanes: value(lanes.move.length.double()))}


def drafter(change: Callable[[Draft], Any]) -> dict[str, Any]:
    return {"proposal": Drafter(change)}


def ancestors(value: Callable[[Any], Any]) -> dict[str, Any]:
    return {"resampler": Rule(lambda w, count: value(torch.zeros(w.shape[0], count, dtype=torch.long))),
            "trigger": always}


#: Parts that return nonsense, and how the line begins.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "intermediate list": ({"intermediate": Law(lambda p: p.tolist())}, "Law.log_prob returned [["),
    "intermediate shape": ({"intermediate": Law(lambda p: p[..., :1])}, "Law.log_prob returned a tensor of float"),
    "intermediate type": ({"intermediate": Law(lambda p: p.long())}, "Law.log_prob returned a tensor of int64"),
    "intermediate NaN": ({"intermediate": Law(lambda p: p * math.nan)}, "Law.log_prob is not normalised"),
    "move type": ({"kernel": Kernel(lambda m: m.block)}, "Kernel returned tensor("),
    "block shape": ({"kernel": Kernel(lambda m: m._replace(block=m.block[:, :1]))}, "Kernel (block) returned a tensor"),
    "block type": ({"kernel": Kernel(lambda m: m._replace(block=m.block.double()))}, "Kernel (block) returned a"),
    "length shape": ({"kernel": Kernel(lambda m: m._replace(length=m.length[:, None]))}, "Kernel (length) returned"),
    "length range": ({"kernel": Kernel(lambda m: m._replace(length=m.length * 0))}, "Kernel committed 0 tokens in"),
    "accepted type": ({"kernel": Kernel(lambda m: m._replace(accepted=3))}, "Kernel (accepted) returned 3: return a"),
    "accepted range": ({"kernel": Kernel(lambda m: m._replace(accepted=m.length + 1))}, "Kernel says that"),
    "token": ({"kernel": Kernel(lambda m: m._replace(block=m.block + 3))}, "Kernel committed ["),
    "draft": (drafter(lambda d: d.tokens), "Drafter.draft returned tensor("),
    "draft type": (
        drafter(lambda d: d._replace(tokens=d.tokens.float())), "Drafter.draft (tokens) returned a tensor of float32"),
    "draft shape": (
        drafter(lambda d: d._replace(tokens=d.tokens[:, :1])), "Drafter.draft (tokens) returned a tensor of int64, sh"),
    "draft token": (drafter(lambda d: d._replace(tokens=d.tokens + 3)), "Drafter.draft returned ["),
    "draft law": (drafter(lambda d: d._replace(q=d.q.dense())), "Drafter.draft (q) is a Tensor: return a law ["),
    "draft mass": (drafter(lambda d: d._replace(q=Dense(d.q.dense() + 1))), "Drafter.draft (q) has mass 2.718 at"),
    "draft of nothing": (
        drafter(lambda d: d._replace(tokens=d.tokens * 0 - 1)), "Drafter.draft drafts nothing (PAD) at place 0 of"),
    "draft cost": (drafter(lambda d: d._replace(cost=5)), "Drafter.draft (cost) is 5: "),
    "draft law shape": (
        drafter(lambda d: d._replace(q=d.q.of_rows(torch.tensor([0])))), "Drafter.draft (q) has shape [1, 2, 3]: "),
    "draft width type": (
        drafter(lambda d: d._replace(width=d.width[0])), "Drafter.draft (width) returned a tensor of int64, shape []"),
    "draft width": (drafter(lambda d: d._replace(width=d.width * 0)), "Drafter.draft (width) is 0 in row 0: draft 1"),
    "draft width over": (drafter(lambda d: d._replace(width=d.width + 2)), "Drafter.draft (width) is 4 in row 0: "),
    "walk": ({"kernel": Walk(4)}, "Walk committed "),
    "stop type": (
        {"kernel": Stopping(lambda c: 1), "weight": "balance", "lanes": 2}, "Stopping.log_continue returned 1"),
    "stop NaN": (
        {"kernel": Stopping(lambda c: c * math.nan), "weight": "balance", "lanes": 2},
        "Stopping.log_continue returned nan in row 0"),
    "weight type": (weight(lambda x: 0.0), "weight Rule returned 0.0: return a tensor of float, shape [2, 1]"),
    "weight shape": (weight(lambda x: x[:, 0]), "weight Rule returned a tensor of float64, shape [2]"),
    "weight NaN": (weight(lambda x: x * math.nan), "weight Rule returned nan for lane 0 of particle 0"),
    "ancestor type": (ancestors(lambda a: a.tolist()), "resampler Rule returned [[0, 0]]"),
    "ancestor shape": (ancestors(lambda a: a[:, :1]), "resampler Rule returned a tensor of int64, shape [1, 1]"),
    "ancestor numbers": (ancestors(lambda a: a.double()), "resampler Rule returned a tensor of float64"),
    "ancestor range": (ancestors(lambda a: a - 1), "resampler Rule returned the ancestor -1"),
    "trigger type": ({"trigger": lambda w: True}, "trigger "),
    "trigger shape": ({"trigger": lambda w: w < 0}, "trigger "),
    "trigger numbers": ({"trigger": lambda w: w.sum(-1)}, "trigger "),
    "text": ({"detokenize": len}, "detokenize len returned"),
    "ids": ({"tokenize": lambda text: "ids"}, "tokenize returned 'ids'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_part_that_returns_nonsense_is_named_in_one_line(case: str) -> None:
    parts, words = WRONG[case]
    coded = {name: parts[name] for name in ("tokenize", "detokenize", "proposal") if name in parts}
    sampler = smc(PAIR, 2, window=2, lookahead=3, **{k: v for k, v in parts.items() if k not in coded})
    for name, function in coded.items():
        setattr(sampler, name, function)
    def run() -> None:
        if "tokenize" in coded:
            sampler.decode("x", max_new_tokens=LIMIT)
        else:  # one prompt at a time: in some of these runs every part has its turn
            sampler.run([[]] * 8, seed=range(8), max_new_tokens=LIMIT, batch=1)

    with pytest.raises(ValueError, match="^" + re.escape(words)) as caught:
        run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25), Fraction(1, 4), 0.25])
def test_a_weight_of_any_kind_of_number_is_that_number(value: Any) -> None:
    laws = (ProductOfExperts(value), Mixture(value), PowerMean(0.5, value), Defensive(ProductOfExperts(), value))
    held = [laws[0].w, laws[1].w, laws[2].w, laws[3].eps, EssBelow(value).fraction, PowerMean(value).alpha]  # type: ignore[attr-defined]
    assert held == [0.25] * 6
    assert {type(x) for x in held} == {float}
    assert paper(PAIR, w=value).intermediate.w == 0.25  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, "0.3", None, True, [0.3], 1j])
def test_a_weight_that_is_none_is_refused(value: Any) -> None:
    laws: list[Callable[[Any], object]] = [ProductOfExperts, Mixture, lambda w: PowerMean(0.5, w)]
    laws += [] if value is None else [lambda w: paper(PAIR, w=w)]  # None is the preset's own
    for law in laws:
        with pytest.raises(ValueError, match=r"^w = .*: the exponent \(or share\) of the diffusion model lies in"):
            law(value)
    with pytest.raises(ValueError, match=r"^iterations = "):
        Chernoff(2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "numpy", "tensor"])
def test_exponents_of_lanes_in_any_form_are_the_same(kind: Callable[[Any], Any]) -> None:
    law = ProductOfExperts(0.3, kind([0.5, 1.5]))
    assert law.per_lane
    flat = torch.log_softmax(torch.randn(1, 2, 2, 3, dtype=torch.float64), -1)
    known = ProductOfExperts(0.3, torch.tensor([0.5, 1.5], dtype=torch.float64))
    assert torch.allclose(law.log_prob(flat, flat.flip(-1)), known.log_prob(flat, flat.flip(-1)))


def test_a_tree_ranks_the_same_at_a_temperature_of_any_kind() -> None:
    plain, other = (tree_walk(PAIR, temperature=t).kernel for t in (0.5, np.float32(0.5)))
    assert repr(plain) == repr(other) != repr(tree_walk(PAIR, temperature=1.0).kernel)


def test_parts_have_names() -> None:
    sampler = smc(PAIR, 2, lanes=2, kernel="block", resampler="multinomial", trigger="always", weight="balance")
    assert isinstance(sampler.kernel, BlockVerification)
    assert isinstance(sampler.resampler, Multinomial)
    assert sampler.trigger is always
    assert isinstance(sampler.weight, BalanceHeuristic)
    bare: Any = {"kernel": "gumbel", "resampler": "systematic", "trigger": "ess"}
    named = Sampler(sampler.proposal, sampler.target, **bare)
    assert isinstance(named.kernel, GumbelCoupling)
    assert isinstance(named.resampler, Systematic)
    assert named.trigger == EssBelow()


@pytest.mark.parametrize(("kind", "known"), [
    ("kernel", "rejection, block, gumbel, tree, accept-all"), ("resampler", "multinomial, stratified, systematic"),
    ("trigger", "ess, always, never"), ("weight", "own, balance"),
])
def test_a_name_that_no_part_has_is_refused_with_those_there_are(kind: str, known: str) -> None:
    for make in (lambda **part: smc(PAIR, **part), lambda **part: Sampler(smc(PAIR).proposal, ARTarget(AR), **part)):
        with pytest.raises(ValueError, match=f"^{kind} = 'nobody': give one of {known}"):
            make(**{kind: "nobody"})
    with pytest.raises(ValueError, match=r"^target = "):
        Sampler(smc(PAIR).proposal, PAIR)


#: Potentials that are neither numbers nor bools, and what the line says came.
NEITHER: dict[str, tuple[Callable[[int], Any], str]] = {
    "bools among numbers": (lambda n: [False] + [-0.5] * (n - 1), "[False, -0.5"),
    "a mask of bytes": (lambda n: torch.ones(n, dtype=torch.uint8), "a tensor of uint8, shape ["),
    "complex numbers": (lambda n: torch.zeros(n, dtype=torch.complex64), "a tensor of complex64, shape ["),
    "texts": (lambda n: ["x"] * n, "['x', "),
    "None for some": (lambda n: [None] * n, "[None, "),
}


@pytest.mark.parametrize("case", NEITHER)
def test_a_potential_of_neither_numbers_nor_bools_is_refused_with_what_came(case: str) -> None:
    make, words = NEITHER[case]
    target = ARTarget(AR, potential=lambda prefix: make(len(prefix.length)))
    for call in (
        lambda: smc(PAIR, 2, window=2, lookahead=3, potential=target.potential).run([[]] * 2, seed=[1, 2]),
        lambda: oracle(target, max_new_tokens=2),
    ):
        with pytest.raises(ValueError, match=r"^potential <lambda> returned " + re.escape(words)):
            call()


def test_a_trigger_that_writes_to_the_weights_leaves_the_run_as_it_is() -> None:
    def writes(log_weights: torch.Tensor) -> torch.Tensor:
        few = EssBelow(0.9)(log_weights)
        log_weights.zero_()
        return few

    runs = [
        smc(PAIR, 3, window=2, lookahead=3, trigger=trigger).run([[]] * 4, seed=range(4), max_new_tokens=LIMIT)
        for trigger in (writes, EssBelow(0.9))
    ]
    assert [r.log_weights for r in runs[0]] == [r.log_weights for r in runs[1]]
    assert any(r.log_evidence != 0 for r in runs[0])
