"""`beta_of`: the beta of `Clamp(beta)` under which a sequence costs a given KL divergence per token.

What is estimated is `E[sum_{i<=T} KL(pi_i || p_i)] / E[T]` of one particle under `Clamp(beta)`, T its tokens, averaged
over prompts: by the chain rule (docs/theory, section 9) that sum bounds the divergence of its sequence from the target.
It is what `kl_per_token` estimates for one particle, with the noise of the drawn tokens taken out. More particles cost
less.

A *round* runs the program at one beta and reads the laws q and p at every committed token. On these laws the cost of
any other beta is known without a forward, and never falls as beta grows; where it is the wanted one is the beta of the
next round. Paths depend on beta, so the rounds go on until a run's own cost, on its own path, is near enough. All
rounds share their random numbers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.analysis.local import kl as divergence
from smc_bridge.analysis.local import laws_along
from smc_bridge.distributions.intermediate import Clamp
from smc_bridge.engine.presets import smc
from smc_bridge.engine.sampler import Sampler
from smc_bridge.estimate import Estimate
from smc_bridge.intervals import NAME, ratio_interval
from smc_bridge.models.arguments import confidence, is_list, real_between, said, whole_number
from smc_bridge.models.protocols import ModelPair
from smc_bridge.names import meant
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.result import Result

Array = npt.NDArray[np.float64]

#: Powers of a round's beta that it looks at; it moves no further than the outermost.
POWERS = 2.0 ** np.arange(-2.0, 2.5, 0.5)
#: Where the search begins, and the least and the greatest beta that are tried: nearer to 1 costs are round-off.
FIRST, LEAST, MOST = 8.0, 1.0 + 1e-6, 1e6
#: Numbers of a law that are held until costs are read from them, all positions together.
TOGETHER = 2**20
#: Options of `smc` that are not the caller's: what is asked for is one particle's cost.
TAKEN = ("particles", "lanes", "intermediate", "beta", "w", "potential")


@dataclass(frozen=True)
class Calibrated:
    """A beta and what it was seen to cost.

    Attributes:
        beta: of `Clamp`.
        kl: divergence of one particle's sequence, nats per token, from the last round's runs, all of them at this very
            beta; with a bootstrap-t interval over prompts.
        reached: whether that is as near to what was wanted as the tolerance asks.
        rounds: that were run.
    """

    beta: float
    kl: Estimate
    reached: bool
    rounds: int

    def __str__(self) -> str:
        far = "" if self.reached else ", not as near as the tolerance asks: give more rounds or prompts"
        return f"beta = {self.beta:.4g}: {self.kl.text()} nats per token after {self.rounds} rounds{far}"


def beta_of(
    pair: ModelPair, prompts: Sequence[Sequence[int]], *, kl: float, tolerance: float = 0.05, rounds: int = 8,
    seed: int | Sequence[int] = 0, max_new_tokens: int = 256, level: float = 0.95, **options: Any,
) -> Calibrated:
    """Calibrate `Clamp(beta)` to a KL divergence per token on given prompts (module docstring).

    A round's forwards are those of decoding the prompts once with one particle, made a second time to read the laws.

    Args:
        pair: the models.
        prompts: token ids, at least two of them.
        kl: wanted, nats per token.
        tolerance: relative distance of the estimate from `kl` that ends the search. The interval of what is returned
            tells how far the prompts let it be known.
        rounds: at most.
        seed, max_new_tokens: as in `Sampler.run`.
        level: confidence of the interval.
        options: of `smc`, such as `temperature`, `window` and `lookahead`.
    Raises:
        ValueError: an argument is out of range; an option that is not the caller's; or no beta from 1 + 1e-6
            to 1e6 costs as much.
    Example:
        >>> from smc_bridge.testing import tabular_pair
        >>> found = beta_of(tabular_pair(), [[]] * 12, kl=0.008, seed=range(12), max_new_tokens=3)
        >>> found.reached, abs(found.kl.value - 0.008) < 0.0005
        (True, True)
    """
    wanted = real_between("kl", kl, 0.0, 1e3, remedy="give nats per token, between 0 and 1000", strictly=True)
    near = real_between("tolerance", tolerance, 0.0, 1.0, remedy="give a relative distance in (0, 1)", strictly=True)
    most, level = whole_number("rounds", rounds), confidence(level)
    if taken := [name for name in TAKEN if name in options]:
        raise ValueError(f"{taken[0]} is an option: beta_of calibrates one particle under Clamp; leave it out")
    known = tuple(name for name in inspect.signature(smc).parameters if name not in ("pair", "name", *TAKEN))
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"{unknown[0]} is no option of smc: {meant(unknown[0], known)}give some of {', '.join(known)}")
    if not is_list(prompts) or not hasattr(prompts, "__len__"):
        raise ValueError(f"prompts = {said(prompts)}: give a list of lists of token ids")
    if len(prompts) < 2:
        raise ValueError(f"prompts has {len(prompts)} entries: an interval needs at least 2")
    if not isinstance(proposal := smc(pair, 1, intermediate=Clamp(FIRST), **options).proposal, DLMProposal):
        raise ValueError(
            f"proposal = {type(proposal).__name__}: beta_of reads the laws of a DLMProposal; leave it out, or give one"
        )
    beta, tried = FIRST, []
    for number in range(1, most + 1):
        sampler = smc(pair, 1, intermediate=Clamp(beta), **options)
        runs = sampler.run(prompts, seed=seed, max_new_tokens=max_new_tokens)
        grid = np.unique(np.clip(beta**POWERS, LEAST, MOST))
        costs = _costs(sampler, runs, grid, max_new_tokens)
        tokens = np.array([len(run.sequences[0]) for run in runs], dtype=np.float64)
        curve, own = costs.sum(0) / tokens.sum(), costs[:, int(np.flatnonzero(grid == beta)[0])]
        value = float(own.sum() / tokens.sum())
        low, high = ratio_interval(own, tokens, level=level)
        estimate = Estimate(value, max(low, 0.0), high, len(runs), NAME, level=level)
        tried.append(Calibrated(beta, estimate, abs(value - wanted) <= near * wanted, number))
        if tried[-1].reached:
            return tried[-1]
        if beta == MOST and curve[-1] < wanted:
            raise ValueError(
                f"kl = {wanted:g}: no beta costs as much on these prompts, {MOST:g} costs {value:.3g} nats per token; "
                "give less"
            )
        if beta == LEAST and curve[0] > wanted:
            raise ValueError(
                f"kl = {wanted:g}: 1 + {LEAST - 1:.0e} is the least beta and costs {value:.3g} nats per token; "
                "give more"
            )
        beta = _where(wanted, curve, grid)
    best = min(tried, key=lambda each: abs(math.log(max(each.kl.value, 1e-300) / wanted)))
    return Calibrated(best.beta, best.kl, best.reached, most)


def _where(wanted: float, curve: Array, grid: Array) -> float:
    """The beta of a cost between those of a grid, or the nearer end; near beta = 1 a cost is a square of `log beta`."""
    if wanted >= curve[-1] or wanted <= curve[0]:
        return float(grid[-1] if wanted >= curve[-1] else grid[0])
    logs = np.log(np.maximum(curve, 1e-300))
    found = np.exp(np.exp(np.interp(math.log(wanted), logs, np.log(np.log(grid)))))
    return float(np.clip(found, grid[0], grid[-1]))  # the logarithms are rounded


@torch.inference_mode()
def _costs(sampler: Sampler, runs: Sequence[Result], grid: Array, limit: int) -> Array:
    """`sum_i KL(pi_i || p_i)` along every run's sequence under `Clamp` of every beta, `[runs, grid]`, nats."""
    out = np.zeros((len(runs), grid.size))
    held: list[tuple[int, Tensor, Tensor]] = []  # a run's number and its laws, `[L, A]` each, until they are read

    def read() -> None:
        numbers, every_q, every_p = zip(*held, strict=True)
        log_q, log_p = torch.cat(every_q), torch.cat(every_p)
        owner = np.repeat(numbers, [len(each) for each in every_q])
        for place, beta in enumerate(grid):
            nats = divergence(Clamp(float(beta)).log_prob(log_q, log_p), log_p).cpu().numpy()
            out[:, place] += np.bincount(owner, nats, len(runs))
        held.clear()

    size = 0
    for number, run in enumerate(runs):
        for _, log_q, _, log_p, _ in laws_along(sampler, run, max_new_tokens=limit):
            held.append((number, log_q, log_p))
            size += log_q.numel()
            if size > TOGETHER:
                read()
                size = 0
    if held:
        read()
    return out
