"""The laws of denoising decoders in plain loops over canvases: what `canvas_enumeration` must find."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from smc_bridge.models.protocols import MASKED
from smc_bridge.testing.frontier import SequenceLaw
from smc_bridge.testing.tabular import TabularPair

Canvas = tuple[int, ...]
#: From a canvas, its open places, the marginals of all places and t to the law of tokens for the open places.
Ends = Callable[[Canvas, list[int], list[list[float]], float], dict[tuple[int, ...], float]]


def marginals(pair: TabularPair, canvas: Canvas) -> list[list[float]]:
    """What the diffusion model says of each place."""
    session = pair.dlm.session(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    return session.score(torch.zeros(1, dtype=torch.long), torch.tensor([canvas])).softmax(-1)[0].tolist()


def independent(canvas: Canvas, places: list[int], q: list[list[float]], t: float) -> dict[tuple[int, ...], float]:
    """Draws of all open places by their marginals."""
    return {
        tokens: math.prod(q[place][token] for place, token in zip(places, tokens, strict=True))
        for tokens in itertools.product(range(len(q[0])), repeat=len(places))
    }


def best_of_two(pair: TabularPair, *, start: float, end: float, power: float, carry_over: bool = False) -> Ends:
    """The law of the one that is picked of two candidates, by `(p / q)^power`: p of all up to the end, or of the open
    places alone (`carry_over`), q of the open places."""
    eos = pair.ar.eos_id

    def picked(canvas: Canvas, places: list[int], q: list[list[float]], t: float) -> dict[tuple[int, ...], float]:
        drawn = independent(canvas, places, q, t)
        if not end <= t <= start:
            return drawn
        weight = {}
        for tokens in drawn:
            whole = list(canvas)
            for place, token in zip(places, tokens, strict=True):
                whole[place] = token
            ratio = 1.0
            for i, token in enumerate(whole):
                prefix = torch.tensor([whole[:i]], dtype=torch.long).reshape(1, i)
                p = float(pair.ar.log_conditional(prefix, torch.tensor([i]))[0, token].exp())
                ratio *= p / q[i][token] if i in places else 1.0 if carry_over else p
                if token == eos:
                    break
            weight[tokens] = ratio**power
        law: dict[tuple[int, ...], float] = defaultdict(float)
        for (x, px), (y, py) in itertools.product(drawn.items(), repeat=2):
            law[x] += px * py * weight[x] / (weight[x] + weight[y])
            law[y] += px * py * weight[y] / (weight[x] + weight[y])
        return dict(law)

    return picked


def denoised(
    pair: TabularPair, limit: int, steps: int, ends: Ends = independent, *, squared: bool = False
) -> SequenceLaw:
    """The law of what T steps make of an empty canvas; `squared`: each path times the probabilities of its tokens."""
    law: dict[Canvas, float] = {(MASKED,) * limit: 1.0}
    eos = pair.ar.eos_id
    for step in range(steps):
        t, s = 1 - step / steps, 1 - (step + 1) / steps
        after: dict[Canvas, float] = defaultdict(float)
        for canvas, mass in law.items():
            stop = canvas.index(eos) if eos in canvas else limit
            places = [i for i in range(stop) if canvas[i] == MASKED]
            if not places:
                after[canvas] += mass
                continue
            q = marginals(pair, canvas)
            found = ends(canvas, places, q, t)
            for filled in itertools.product((False, True), repeat=len(places)):
                chance = math.prod((t - s) / t if now else s / t for now in filled)
                for tokens, probability in found.items():
                    whole, factor = list(canvas), 1.0
                    for place, token, now in zip(places, tokens, filled, strict=True):
                        if now:
                            whole[place] = token
                            factor *= q[place][token] if squared else 1.0
                    after[tuple(whole)] += mass * chance * probability * factor
        law = {canvas: mass for canvas, mass in after.items() if mass > 0}
    return by_sequence(law, eos)


def by_sequence(law: dict[Canvas, float], eos: int | Sequence[int] | None) -> SequenceLaw:
    """Canvases that are equal up to their first end of sequence are one."""
    out: SequenceLaw = defaultdict(float)
    for canvas, mass in law.items():
        out[canvas[: canvas.index(eos) + 1] if eos in canvas else canvas] += mass
    return dict(out)
