"""The filter of Learn2PD, trained on greedy decodings of the embedded pair's diffusion model.

For each training problem, in blocks of 32 places:

1. the reference: one place per forward from left to right, by its likeliest token, with 32 places ahead (published:
   the surest place of the block, on the whole canvas, which is right less often here);
2. an *extremely greedy* parallel run: after a forward exactly those places are filled whose likeliest token is the
   reference's; where no likeliest token of the block has changed since the forward before, itself one of this block,
   the rest of it is filled with the reference. Every forward is a row of data: the block's 32 confidences (of filled
   places, too), and whether each place's likeliest token is the reference's;
3. binary cross-entropy over rows and places, AdamW at a rate of 3e-3, all rows in every step; a tenth of the problems
   is held back to choose by, another one to report on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from smc_bridge.models.arithmetic.problems import splits
from smc_bridge.models.caches import recomputing
from smc_bridge.models.ends import ends_of, is_end
from smc_bridge.models.learned.confidence_filter import ConfidenceFilter
from smc_bridge.models.pair import Pair
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.training.fit import Trained, fit, initialised

#: Problems, places of a canvas and of a block, problems that are decoded at a time.
PROBLEMS, PLACES, BLOCK, BATCH = 480, 96, 32, 40
#: Steps of the optimiser, by the loss on the problems that are held back to choose by, and its rate.
STEPS, RATE = 1_500, 3e-3


class Log(NamedTuple):
    """Forwards of extremely greedy runs, a row each.

    Attributes:
        confidences: of the places of the block, `[n, B]`.
        right: whether their likeliest token is the reference's, BoolTensor `[n, B]`.
        problem: whose forward it was, `[n]`.
        forwards, tokens: of all runs, and tokens of their references up to their ends.
    """

    confidences: Tensor
    right: Tensor
    problem: Tensor
    forwards: int
    tokens: int


def _session(model: Any, prompts: Sequence[Sequence[int]]) -> Any:
    """A session of the diffusion model behind some prompts."""
    length = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    tokens = torch.zeros(len(prompts), int(length.max()), dtype=torch.long, device=model.device)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    return model.session(tokens, length)


def _likeliest(model: Any, session: Any, rows: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor]:
    """Greatest probability of each place of canvases `[R, T]`, and its token, `[R, T]` each."""
    logits = session.score(rows, canvas).float()
    logits[..., list(model.banned_ids)] = -torch.inf
    value, token = logits.log_softmax(-1).max(-1)
    return value.exp(), token


@torch.inference_mode()
def reference(model: Any, prompts: Sequence[Sequence[int]], places: int) -> Tensor:
    """Greedy decodings from left to right, one token per forward, `[R, places]`; behind an end stands that end."""
    session, answer = _session(model, prompts), torch.full((len(prompts), places), MASKED, device=model.device)
    ends, rows = ends_of(model.eos_id), torch.arange(len(prompts), device=model.device)
    for at in range(places):
        canvas = torch.full((len(rows), min(BLOCK, places - at)), MASKED, device=rows.device)
        _, token = _likeliest(model, session, rows, canvas)
        answer[rows, at] = token[:, 0]
        count = torch.zeros(len(prompts), dtype=torch.long, device=rows.device)
        count[rows] = 1
        session.commit(answer[:, at : at + 1].clamp_min(0), count)
        rows = rows[~is_end(token[:, 0], ends)]
        if not len(rows):
            break
    return torch.where(answer == MASKED, ends[0] if ends else 0, answer)


@torch.inference_mode()
def extremely_greedy(model: Any, prompts: Sequence[Sequence[int]], answer: Tensor) -> Log:
    """The parallel runs against references `answer: [R, T]` (module docstring, 2)."""
    session, ends, places = _session(model, prompts), ends_of(model.eos_id), answer.shape[1]
    canvas, place = torch.full_like(answer, MASKED), torch.arange(places, device=answer.device)
    before = torch.full_like(answer, MASKED)
    end = torch.where(is_end(answer, ends).any(1), is_end(answer, ends).to(torch.uint8).argmax(1), places - 1)
    logged: list[tuple[Tensor, Tensor, Tensor]] = []
    while True:
        own = ((canvas == MASKED) & (place <= end[:, None])).any(1).nonzero()[:, 0]
        if not len(own):
            break
        value, token = _likeliest(model, session, own, canvas[own])
        first = (canvas[own] == MASKED).to(torch.uint8).argmax(1) // BLOCK * BLOCK
        block = first[:, None] + torch.arange(BLOCK, device=answer.device)
        inside = (place >= first[:, None]) & (place < first[:, None] + BLOCK)
        right = token == answer[own]
        logged.append((value.gather(1, block), right.gather(1, block), own))
        same = ((token == before[own]) | ~inside).all(1)
        filled = inside & (right | same[:, None]) & (canvas[own] == MASKED)
        canvas[own] = torch.where(filled, answer[own], canvas[own])
        before[own] = torch.where(inside, token, MASKED)  # of another block nothing has been seen before
    confidences, rights, problem = (torch.cat(each) for each in zip(*logged, strict=True))
    return Log(confidences, rights, problem, len(problem), int((end + 1).sum()))


def logs(pair: Pair, *, problems: int, seed: int) -> Log:
    """Runs on the first training problems from a place that the seed sets, `BATCH` at a time."""
    model, found = recomputing(pair.dlm), list[Log]()
    train = splits((seed + 1) * problems).train[seed * problems :]
    for start in range(0, problems, BATCH):
        prompts = [pair.encode(problem.prompt).tolist() for problem in train[start : start + BATCH]]
        own = extremely_greedy(model, prompts, reference(pair.dlm, prompts, PLACES))
        found.append(own._replace(problem=own.problem + start))
        print(f"confidence_filter problems {start + len(prompts)}/{problems} forwards {own.forwards}", flush=True)
    confidences, right, problem, forwards, tokens = zip(*found, strict=True)
    return Log(
        torch.cat(confidences).cpu(), torch.cat(right).cpu(), torch.cat(problem).cpu(), sum(forwards), sum(tokens)
    )


def train(pair: Pair, *, seed: int, steps: int | None = None, problems: int = PROBLEMS) -> Trained:
    """Train the filter for the pair's diffusion model.

    Args:
        pair: the embedded pair.
        seed: of the initial weights; and which training problems are decoded.
        steps: of the optimiser.
        problems: that are decoded.
    """
    return fitted(logs(pair, problems=problems, seed=seed), seed=seed, steps=STEPS if steps is None else steps)


def fitted(log: Log, *, seed: int, steps: int) -> Trained:
    """The filter of some runs (module docstring, 3); of their problems the first two tenths are held back."""
    problems = int(log.problem.max()) + 1
    tenth = math.ceil(problems / 10)
    test, validation = log.problem < tenth, (log.problem >= tenth) & (log.problem < 2 * tenth)
    own = ~(test | validation)
    module = initialised(lambda: ConfidenceFilter(BLOCK), seed=seed)
    inputs, labels = log.confidences[own], log.right[own].float()

    def loss(step: int) -> Tensor:
        """Over all rows."""
        return functional.binary_cross_entropy_with_logits(module(inputs), labels)

    final = fit(module, loss, steps=steps, rate=RATE, name="confidence_filter")
    share, held = labels.mean(0), dict[str, float]()
    with torch.inference_mode():
        for name, at in (("validation", validation), ("test", test)):
            right = log.right[at].float()
            held[name] = float(functional.binary_cross_entropy_with_logits(module(log.confidences[at]), right))
    facts = {
        "seed": seed, "steps": steps, "problems": problems, "rows": len(inputs), "loss": round(final, 5),
        **{f"loss_{name}": round(value, 5) for name, value in held.items()},
        "loss_of_shares": round(float(functional.binary_cross_entropy(share.expand_as(labels), labels)), 5),
        "tokens_per_forward_of_the_runs": round(log.tokens / log.forwards, 3),
    }
    return Trained(module, final, facts)
