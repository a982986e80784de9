"""How far a step goes: V places verified, M masks looked at and B nodes of a tree, from costs and what was accepted.

Positions past the first refusal are paid for and thrown away. How many a step should have follows from what a forward
costs (`smc_bridge.models.costs`) and from how far drafts were accepted. Let `h_i` be the probability that place i of a
draft is accepted if the places before it are, and `G_i = h_1 ... h_i`. One forward of the diffusion model on M masks,
and those of the AR model that use it up, V places each (elastic window), bring

    tokens    G_0 + G_1 + ... + G_{M-1}
    seconds   D(M) + (A(V) + S) * (G_0 + G_V + G_{2V} + ...)

on average, where S is what a step takes besides (`smc_bridge.engine.overhead`), and the pair (V, M) with the most
tokens per second is taken. `h_i` is estimated from all lanes of the prompt so far, with acceptances a that are expected
before anything is seen, and a number m of trials that they count for: `(accepted_i + m a_i) / (reached_i + m)`.

For a tree the sum is over its nodes, whose probabilities of being met are known from the marginals. They fall from node
to node, so a tree ends best at the first that lowers `(1 + sum of probabilities) / (worth + nodes)`, where `worth` is
what a step costs besides, in nodes (`smc_bridge.kernels.tree_build`).

It is reckoned as if a refusal ended the use of a forward: marginals that outlive one (`reuse`) are not counted in, nor
is a bonus token, nor what a chain saves whose forwards fill as many places as they may.

What is decided in a step is a function of the prompt's *past* and of costs, never of the step's own draws: where blocks
end is a stopping time, and the program stays proper (condition C1; docs/theory, section 3). Nor is it a function of the
batch: what forwards cost is reckoned for a number of prompts that the user names. Other rules are special cases of
`plan`: DiffuSpec's adaptive length (arXiv 2510.02358) is a window that follows a moving average of accepted lengths.

Shapes: P prompts, V window, C candidates, D places that are looked ahead at.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from smc_bridge.engine.overhead import costs_here
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.arguments import is_list, real_between, said, true_or_false, whole_number
from smc_bridge.models.costs import Costs
from smc_bridge.models.host import Index

Floats = npt.NDArray[np.float64]

#: Acceptances that are expected, place by place, and the last one after them: marginals are worse the further ahead.
ACCEPTANCE = (0.98, 0.97, 0.96, 0.95, 0.91, 0.87, 0.8, 0.68)
#: Trials that they count for at each place.
TRUST = 8.0
#: Windows that one forward of the diffusion model is meant for, at most.
WINDOWS = 4
#: Costs where none were measured: that of a forward is that of some tens of positions.
NOMINAL = Costs.linear(dlm=(1.0, 0.02), ar=(1.0, 0.02))
REACHED, KEPT = 0, 1


class Sizes(NamedTuple):
    """What is fixed in a program.

    Attributes:
        particles: N, rows of a prompt in a forward of the diffusion model.
        lanes: N * K of a prompt.
        rows: of a prompt in a forward of the AR model: its lanes, or its trees.
        window, lookahead: greatest V and M.
        factorised: whether one forward gives all places of a draft; else it takes one for each group of them.
        places: of such a group, as far as their number is fixed.
    """

    particles: int
    lanes: int
    rows: int
    window: int
    lookahead: int
    factorised: bool = True
    places: int = 1


class Plan(NamedTuple):
    """How far the next step of each of P prompts goes.

    Attributes:
        window: places that are verified, `[P]`.
        lookahead: places that are looked ahead at where the diffusion model is run, `[P]`.
    """

    window: list[int]
    lookahead: list[int]


@dataclass(frozen=True)
class Pace:
    """Chooses V, M and B by what they cost and bring (module docstring).

    Attributes:
        window, lookahead, nodes: which of them are chosen; the others are the program's.
        at_once: prompts that share a forward, for which costs are reckoned. Draws depend on it, never on the batch.
        costs: of the pair's forwards, also as plain data; None to have them measured when a run begins.
        acceptance: expected at each place before any is seen; the last one holds for all places after.
        trust: trials that it counts for at each place.
    Raises:
        ValueError: an argument out of range, or nothing is to be chosen.
    """

    window: bool = True
    lookahead: bool = True
    nodes: bool = False
    at_once: int = 1
    costs: Costs | None = None
    acceptance: Sequence[float] = ACCEPTANCE
    trust: float = TRUST

    def __post_init__(self) -> None:
        for name in ("window", "lookahead", "nodes"):
            object.__setattr__(self, name, true_or_false(name, getattr(self, name)))
        if not (self.window or self.lookahead or self.nodes):
            raise ValueError("window, lookahead and nodes are all False: let one of them be chosen, or give no pace")
        object.__setattr__(self, "at_once", whole_number("at_once", self.at_once))
        object.__setattr__(self, "costs", None if self.costs is None else Costs.of(self.costs))
        remedy = "give probabilities in (0, 1), one for each place"
        if not is_list(self.acceptance) or not len(self.acceptance):
            raise ValueError(f"acceptance = {said(self.acceptance)}: {remedy}")
        object.__setattr__(self, "acceptance", tuple(
            float(real_between("acceptance", a, 0.0, 1.0, remedy=remedy, strictly=True)) for a in self.acceptance
        ))
        remedy = "give a positive number of trials"
        object.__setattr__(self, "trust", float(
            real_between("trust", self.trust, 0.0, math.inf, remedy=remedy, strictly=True)
        ))

    def settings(self) -> dict[str, Any]:
        """Its arguments as plain data: `Pace(**settings)` is the same again."""
        return {
            "window": self.window, "lookahead": self.lookahead, "nodes": self.nodes, "at_once": self.at_once,
            "costs": None if self.costs is None else self.costs.data(), "acceptance": list(self.acceptance),
            "trust": self.trust,
        }

    def measured(self, program: Any) -> Pace:
        """The same with costs: those that it has, else those of the program's pair here (`costs_here`)."""
        return self if self.costs is not None else replace(self, costs=costs_here(program))

    def kernel(self, kernel: Kernel, sizes: Sizes) -> Kernel:
        """The kernel, if its nodes are to be chosen one whose trees end where another node does not pay."""
        if not self.nodes or not isinstance(kernel, TreeWalk) or kernel.worth is not None:
            return kernel  # or it says itself where its trees end
        paced = copy.copy(kernel)
        paced.worth = self.worth(sizes)
        return paced

    def worth(self, sizes: Sizes) -> float | None:
        """What a step costs besides the nodes of its trees, in nodes; None where nodes cost nothing."""
        costs, first = self.costs or NOMINAL, self.plan(np.zeros((1, 2, sizes.window), dtype=np.int64), sizes)
        rows, few, many = sizes.rows * self.at_once, 1, 33
        node = (costs.ar(rows, many) - costs.ar(rows, few)) / (many - few)
        whole = costs.dlm(sizes.particles * self.at_once, first.lookahead[0]) + costs.ar(rows, few)
        whole += costs.step(sizes.lanes * self.at_once)
        return whole / node if node * 1e6 > whole else None

    def plan(self, seen: Index, sizes: Sizes) -> Plan:
        """How far the next step of P prompts goes.

        Args:
            seen: trials and acceptances of each place so far (`note`), `[P, 2, V]`.
            sizes: of the program.
        """
        menu = _menu(self.costs or NOMINAL, self.window, self.lookahead, self.at_once, sizes)
        places = menu.runs.shape[1]
        prior = np.array(self.acceptance[:places] + self.acceptance[-1:] * (places - len(self.acceptance)))
        trials = np.zeros((seen.shape[0], 2, places))
        common = min(places, seen.shape[2])
        trials[:, :, :common] = seen[:, :, :common]
        rate = (trials[:, KEPT] + self.trust * prior) / (trials[:, REACHED] + self.trust)
        reached = np.ones_like(rate)  # G_0 ... G_{D-1}
        np.cumprod(rate[:, :-1], axis=1, out=reached[:, 1:])
        tokens = reached.cumsum(1)[:, menu.tokens - 1]  # [P, C]
        best = (tokens / (menu.dlm + menu.ar * (reached @ menu.runs.T))).argmax(1)
        return Plan(menu.window[best].tolist(), menu.lookahead[best].tolist())


class _Menu(NamedTuple):
    """C candidates.

    Attributes:
        window, lookahead: V and M of each, `[C]`.
        tokens: places that one forward of the diffusion model is used for, `[C]`.
        dlm, ar: seconds of drafting, and of a step besides: for one prompt, `[C]`.
        runs: 1 at the places where a forward of the AR model begins, `[C, D]`.
    """

    window: Index
    lookahead: Index
    tokens: Index
    dlm: Floats
    ar: Floats
    runs: Floats


@lru_cache(maxsize=64)
def _menu(costs: Costs, window: bool, lookahead: bool, at_once: int, sizes: Sizes) -> _Menu:
    """All pairs (V, M) that there are to choose from, with their costs."""
    pairs = []
    for v in range(1, sizes.window + 1) if window else (sizes.window,):
        if not lookahead:
            pairs.append((v, sizes.lookahead))
        elif sizes.factorised:
            shorter = () if window else range(1, v)
            pairs += [(v, min(m, sizes.lookahead)) for m in (*shorter, *(v * r for r in range(1, WINDOWS + 1)))]
        else:
            pairs.append((v, min(v, sizes.lookahead)))
    v, m = np.array(sorted(set(pairs)), dtype=np.int64).T
    used = m if sizes.factorised else np.minimum(v, m)  # a chain's conditionals do not outlive its draft
    place = np.arange(int(used.max()))
    runs = (place % v[:, None] == 0) & (place < used[:, None])
    rows = sizes.particles if sizes.factorised else sizes.rows
    forwards = np.ones_like(v) if sizes.factorised else -(-used // sizes.places)
    dlm = np.array([costs.dlm(rows * at_once, int(n)) for n in m]) * forwards
    step = costs.step(sizes.lanes * at_once)
    ar = np.array([
        costs.ar(sizes.rows * at_once, int(min(n, each))) + step for n, each in zip(v, m, strict=True)
    ])
    return _Menu(v, m, used, dlm / at_once, ar / at_once, runs.astype(np.float64))


def note(seen: Index, seat: Index, length: Index, accepted: Index, ended: npt.NDArray[np.bool_]) -> None:
    """Count what became of the drafts of a step, in place.

    The last token of a sequence is left out: a block ends there, accepted or not, and `kappa` does not say which. So
    neither a kernel nor a conditional run need give it its right law.

    Args:
        seen: of all seats, `[P, 2, V]`.
        seat: of each of the B particles that took part, `[B]`.
        length, accepted: of their lanes, `[B, K]`: one token more than was accepted tells of a refusal.
        ended: lanes whose sequence ends with the block, `[B, K]`.
    """
    place, reached = np.arange(seen.shape[2]), length - ended
    for count, places in ((REACHED, reached), (KEPT, np.minimum(accepted, reached))):
        np.add.at(seen[:, count], seat, (place < places[..., None]).sum(1))
