"""What a step takes besides its forwards, timed on a few steps of the program in its plainest form.

With small models this is as much as a forward: a step that drafts little is then cheap for the models alone. It is
timed once per pair and machine, with `smc_bridge.models.costs`, and kept in the same file.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from smc_bridge.distributions.intermediate import ProductOfExperts
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.resampling import Systematic
from smc_bridge.engine.weights import EssBelow
from smc_bridge.kernels.importance import OwnWeights
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.models.costs import Costs, Step, costs_of, measure, place_of, wait
from smc_bridge.models.ends import ends_of
from smc_bridge.proposals.mean_field import DLMProposal

#: Lanes of each prompt, prompts of the two runs that are timed, steps of each, and V = M.
LANES, PROMPTS, STEPS, WINDOW = 4, (1, 8), 4, 16


def costs_here(program: Any) -> Costs:
    """Costs of a program's pair on this machine, with what a step takes besides (`smc_bridge.models.costs.costs_of`).

    Args:
        program: a `Sampler`, of which a plain copy is run.
    """
    dlm, ar = program.proposal.model, program.target.model
    return costs_of(dlm, ar, lambda: replace(measure(dlm, ar), step=step_seconds(program)))


def step_seconds(program: Any) -> Step:
    """Least seconds of a step of few and of many lanes outside of the models, as a straight line of the lanes.

    Nothing where it cannot be timed, as with a model that has too few positions.
    """
    clock, target = [0.0], program.target
    dlm, ar = (_Timed(model, clock) for model in (program.proposal.model, target.model))
    banned = target.shaping.banned_ids
    try:
        plain = replace(
            program, proposal=DLMProposal(dlm, lookahead=WINDOW, banned_ids=banned),
            target=ARTarget(ar, banned_ids=banned), intermediate=ProductOfExperts(), kernel=Rejection(),
            weight=OwnWeights(), resampler=Systematic(), trigger=EssBelow(), particles=1, lanes=LANES, window=WINDOW,
            pace=None, tokenize=None, detokenize=None, max_logit_bytes=None, compile=False,
        )
        few, many = (_least(plain, prompts, clock) for prompts in PROMPTS)
    except (ValueError, RuntimeError, TypeError, AttributeError):
        return Step()
    lane = max(0.0, (many - few) / (LANES * (PROMPTS[1] - PROMPTS[0])))
    return Step(max(0.0, few - LANES * lane), lane)


@torch.inference_mode()
def _least(plain: Any, prompts: int, clock: list[float]) -> float:
    """Least seconds of a step outside of the models, while all of the prompts are in work."""
    model, best = plain.target.model, [0.0]
    room, token = place_of(plain.proposal.model, model)
    ids = [(token + i) % model.vocab_size for i in range(prompts)]  # other prompts: equal ones would share a row
    banned = {*model.banned_ids, *ends_of(model.eos_id)}
    starts = [[token if i in banned else i] * room for i in ids]
    for seed in range(STEPS):
        state = plain.start(starts, seed=[seed * prompts + i for i in range(prompts)], max_new_tokens=WINDOW)
        clock[0], begun = 0.0, time.perf_counter()
        plain.step(state)
        wait(model)
        best.append(time.perf_counter() - begun - clock[0])
    return max(0.0, min(best[2:]))  # the first may compile, cache and allocate


class _Timed:
    """A model, or a session of it, whose scores add their seconds to a clock; all else is passed on."""

    def __init__(self, inner: Any, clock: list[float], model: Any = None) -> None:
        self._inner, self._clock, self._model = inner, clock, inner if model is None else model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def session(self, *arguments: Any) -> Any:
        """A session of the model, timed."""
        return _Timed(self._inner.session(*arguments), self._clock, self._model)

    def score(self, *arguments: Any, **options: Any) -> Any:
        """Scores of the session, timed."""
        wait(self._model)
        begun = time.perf_counter()
        scores = self._inner.score(*arguments, **options)
        wait(self._model)
        self._clock[0] += time.perf_counter() - begun
        return scores
