"""`assert_proper` and `assert_biased`: what a test of a part or of a whole program says in one line."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from smc_bridge.distributions.intermediate import Mixture
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import always
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.models.arguments import called, confidence, real_between, said, whole_number
from smc_bridge.models.tabular import TabularDLM
from smc_bridge.proposals.protocol import Proposal
from smc_bridge.testing.checking import check
from smc_bridge.testing.finding import Finding, worst_of
from smc_bridge.testing.kernel_laws import kernel_findings
from smc_bridge.testing.parts import resampler_findings
from smc_bridge.testing.seat import takes
from smc_bridge.testing.tabular import tabular_pair

#: Greatest gap that is put down to round-off of laws in float64.
EXACT = 1e-12
#: Most lanes that a proposal alone is asked to draft.
LANES = 4


def assert_proper(thing: Any, *, tolerance: float = EXACT, runs: int = 2_000, level: float = 1e-4) -> None:
    """Assert that a program is properly weighted, or that a part keeps what it promises.

    Small asymmetric tables are used, all randomness is enumerated where that can be:

    - a sampler: `E[Z_hat sum_k W_k 1{x_k = s}] = p(s) phi(s)` for every sequence s (`check`);
    - a kernel: `sum_L g / pi = 1` along every path, its `log_density` is the law of its moves, rows are independent;
    - a resampler: `E[offspring_i] = N W_i`;
    - an intermediate, a weight rule or a proposal: a program with it, as a sampler. Drafts are tried, not what
      `Proposal.along` says of retained sequences.

    Args:
        thing: one of these; a proposal is on a tabular model, `tabular_pair().dlm`. What says `proper = False` of
            itself is refused.
        tolerance: greatest gap of an enumeration that is put down to round-off, in [0, 1]; parts in float32 need more.
        runs: of a program that draws continuous variables, instead of its outcomes.
        level: probability with which something right is refused by a comparison of draws.
    Raises:
        AssertionError: it is not proper; every line names the part, the claim and the two numbers.
        ValueError: it is none of these, does not run on a table, or an argument is out of range.
    Example:
        >>> from smc_bridge import Rejection
        >>> from smc_bridge.testing import mutants
        >>> assert_proper(Rejection())
        >>> assert_proper(mutants.KeepsTheBest())
        Traceback (most recent call last):
        AssertionError: KeepsTheBest is not proper:
          resampler KeepsTheBest: 2 survivors have mean shares [1.0, 0.0, 0.0, 0.0] for weights [0.25, 0.25, 0.25, \
0.25]; candidate 0 has 1, must have 0.25 (C6)
    """
    tolerance = _gap("tolerance", tolerance)
    wrong = [finding for finding in _findings(thing, tolerance, runs, level) if finding.wrong]
    if wrong:
        raise AssertionError(f"{_name(thing)} is not proper:{_lines(wrong)}")


def assert_biased(thing: Any, *, least: float = 1e-6, runs: int = 2_000, level: float = 1e-4) -> None:
    """Assert that a program is biased, or that a part makes programs biased: for mutants that a test must catch.

    Args:
        thing: as for `assert_proper`.
        least: gap that counts as a bias, in [0, 1].
        runs, level: as for `assert_proper`; draws count as a bias if they refute the claim at this level.
    Raises:
        AssertionError: no bias is found. The message gives the greatest gap, and for draws the gap that they would have
            found with probability 0.99. A closed form that is wrong alone is no bias, nor is what a part says of
            itself.
        ValueError: as for `assert_proper`.
    Example:
        >>> from smc_bridge.testing import mutants
        >>> assert_biased(mutants.KeepsTheBest())
    """
    least = _gap("least", least)
    found = [finding for finding in _findings(thing, EXACT, runs, level) if finding.biases]
    if not any(finding.wrong and finding.gap >= least for finding in found):
        raise AssertionError(f"no bias of {_name(thing)} of at least {least:g} is found:{_lines(found)}")


def _gap(name: str, value: Any) -> float:
    """A gap as a number; ValueError unless it lies in [0, 1]: every comparison with NaN would be in favour."""
    return real_between(name, value, 0.0, 1.0, remedy="give a number in [0, 1]")


def _name(thing: Any) -> str:
    return thing.name if isinstance(thing, Sampler) else called(thing)


def _lines(findings: list[Finding]) -> str:
    """The worst of each claim, on a line of its own."""
    return "".join(f"\n  {finding.text}" for finding in worst_of(findings))


def _findings(thing: Any, tolerance: float, runs: int, level: float) -> list[Finding]:
    """Everything that is known how to test about a thing; a new kind of thing is one more branch."""
    runs, level = whole_number("runs", runs), confidence(level)
    if isinstance(thing, Sampler):
        return _program("program", thing, tolerance, runs, level)
    declared = []
    if getattr(thing, "proper", True) is not True:
        text = f"{_name(thing)} says of itself that it is not proper"
        declared = [Finding("declared", text, 0.0, True, biases=False)]
    if isinstance(thing, Kernel):
        if not isinstance(getattr(thing, "proper", None), bool):
            raise ValueError(f"kernel {_name(thing)} does not say if it is proper: give it a bool `proper`")
        return declared + kernel_findings(thing, tolerance=tolerance, level=level)
    if callable(thing) and "count" in _parameters(thing):
        return declared + resampler_findings(thing, tolerance=tolerance, level=level)
    return declared + [
        finding for name, seated in _seated(thing).items() for finding in _program(name, seated, tolerance, runs, level)
    ]


def _seated(part: Any) -> dict[str, Sampler]:
    """Programs with an intermediate, a weight rule or a proposal among parts that are right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is told here stands in the findings
        if hasattr(part, "log_prob"):
            return {"program": smc(tabular_pair(2, 3, eos=False, seed=4), 1, intermediate=part)}
        if callable(part) and {"kernel", "intermediate"} <= _parameters(part):
            long, short = tabular_pair(2, 3, noise=1.5), tabular_pair(2, 2, noise=1.5, seed=1)
            return {
                "one lane": smc(long, 1, w=0.5, weight=part, proposal_temperature=1.2),
                "two lanes": smc(short, 1, w=0.5, lanes=2, weight=part, proposal_temperature=[0.4, 2.5]),
            }
        if isinstance(part, Proposal) and not isinstance(part, type):
            return {"program": _drafting(part)}
    raise ValueError(
        f"thing = {said(part)}: give a sampler, a kernel, a resampler, an intermediate, a weight rule or a proposal"
    )


def _drafting(proposal: Proposal) -> Sampler:
    """Two particles over two steps under an intermediate that dominates whatever the proposal leaves out."""
    if not isinstance(proposal.model, TabularDLM):
        raise ValueError(
            f"proposal {called(proposal)} is on {said(proposal.model)}, which is no table: give one on a tabular "
            "model, smc_bridge.testing.tabular_pair(size).dlm"
        )
    lanes = next((k for k in range(1, LANES + 1) if takes(proposal, k)), 1)
    return Sampler(
        proposal, ARTarget(proposal.model.ar), Mixture(0.5), particles=2, lanes=lanes, window=2, trigger=always,
    )


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def _program(claim: str, sampler: Sampler, tolerance: float, runs: int, level: float) -> list[Finding]:
    """The program as a whole; parts that contradict themselves, and what they say of themselves, do not bias it."""
    found = check(sampler, runs=runs, level=level)
    biased = found.gap > tolerance if found.p_value is None else found.p_value < level
    power = "" if found.detectable is None else f"; a gap of {found.detectable:.2g} is found with probability 0.99"
    if biased:
        return [Finding(claim, str(found) if not found.proper else f"{found}\n  {found.worst}", found.gap, True)]
    right = Finding(claim, f"{found}{power}\n  {found.worst}", found.gap, False)
    return [right] if found.proper else [right, Finding(f"parts of {claim}", str(found), 0.0, True, biases=False)]
