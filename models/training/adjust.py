"""The one-layer joint sampler on hidden states (ADJUST, arXiv 2509.22738): the diffusion model is frozen, the layer is
trained to give the states that the model itself gives after some more tokens.

The model writes responses to training problems, a token per forward, half of them from left to right and half in order
of entropy. Every forward is a state of a trajectory: a canvas, and the hidden states that the head reads of it. From a
state drawn anew the layer goes J steps along the trajectory, each with one token more, where

    P(J = i) proportional to exp(0.5^i),   i = 1 .. 7,

and is held against the model at the states that are reached:

    loss = KL(model's law || layer's law) + 0.1 smooth-L1(layer's states, model's states)

over places that are masked there, weighted by exp(-r / 4) for the one that the trajectory fills r steps later: what is
far ahead changes little. (Published: at the last of the J states alone, all places alike. The trajectory has the
targets of all J, so all are used.) Temperatures of the draws are spread over 0.2 to 1, and the model sees more masks
behind the places that the layer does, 0, 16 or 48.

Shapes: n responses, T places of one, S forwards, W places that the layer sees, D hidden size, A alphabet, m examples.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from smc_bridge.models.arithmetic import problems
from smc_bridge.models.arithmetic.wording import DRAFTED
from smc_bridge.models.ends import ends_of, is_end
from smc_bridge.models.learned.adjust import Refiner, columns
from smc_bridge.models.pair import Pair
from smc_bridge.models.protocols import ABSENT, MASKED
from smc_bridge.models.training.fit import Trained, ban_of, fit, initialised

#: Problems whose responses are written, and of a batch of them; places of a response at most.
PROBLEMS, BATCH, LIMIT = 256, 32, 128
#: Places that the layer sees, masks behind them, and temperatures of the draws.
PLACES, BEHIND, TEMPERATURES = 16, (0, 16, 48), (0.2, 1.0)
#: Steps of the layer at most, weight of the states, places over which a weight falls by a factor e.
DEPTH, STATES, SOON = 7, 0.1, 4.0
STEPS, RATE, EXAMPLES = 1_700, 3e-3, 32
#: One problem in so many is kept to measure the losses.
KEPT = 8
#: Time of a place that is never filled.
NEVER = 10**6


class Trajectories(NamedTuple):
    """Responses of the diffusion model, and what it saw on the way.

    Attributes:
        tokens: `[n, T]`.
        time: forward that each was drawn after, `[n, T]`.
        start: places without a gap before each forward, `[n, S]`.
        hidden: states of the W places from there on, float16 `[n, S, W, D]`.
        last: last token of each prompt, `[n]`.
        steps: forwards of each, `[n]`.
    """

    tokens: Tensor
    time: Tensor
    start: Tensor
    hidden: Tensor
    last: Tensor
    steps: Tensor

    def of_rows(self, rows: Tensor) -> Trajectories:
        """Those of some responses."""
        return Trajectories(*(x[rows] for x in self))

    def canvas(self, rows: Tensor, begin: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """What stands in the W places that forward `begin: [m]` sees, `depth` tokens later, `[m, W]`; and how many
        forwards later each is filled."""
        place = self.start[rows, begin][:, None] + torch.arange(self.hidden.shape[2])
        ahead = self.time[rows[:, None], place] - begin[:, None] - depth
        return torch.where(ahead < 0, self.tokens[rows[:, None], place], MASKED), ahead

    def states(self, rows: Tensor, begin: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """States of those places `depth` forwards later, `[m, W, D]`, and which there are, `[m, W]`."""
        moved = self.start[rows, begin + depth] - self.start[rows, begin]
        index = torch.arange(self.hidden.shape[2]) - moved[:, None]
        found = self.hidden[rows[:, None], (begin + depth)[:, None], index.clamp_min(0)]
        return found.float(), index >= 0


@torch.inference_mode()
def written(pair: Pair, prompts: list[Tensor], *, seed: int) -> Trajectories:
    """Responses of the pair's diffusion model to prompts, every second one in order of entropy."""
    dlm: Any = pair.dlm
    generator, ban = torch.Generator().manual_seed(seed), ban_of(pair)
    parts = list[Trajectories]()
    for first in range(0, len(prompts), BATCH):
        own = prompts[first : first + BATCH]
        count, length = len(own), torch.tensor([len(prompt) for prompt in own])
        session = dlm.with_cache("prefix").session(torch.nn.utils.rnn.pad_sequence(own, batch_first=True), length)
        by_entropy = torch.arange(count) % 2 == 0
        low, high = TEMPERATURES
        temperature = low + (high - low) * torch.rand(count, 1, generator=generator)
        masks = torch.tensor(BEHIND)[torch.randint(len(BEHIND), (count, 1), generator=generator)]
        behind = torch.where(torch.arange(max(BEHIND)) < masks, MASKED, ABSENT)
        made = Trajectories(
            torch.full((count, LIMIT + PLACES), MASKED), torch.full((count, LIMIT + PLACES), NEVER),
            torch.zeros(count, LIMIT, dtype=torch.long),
            torch.zeros(count, LIMIT, PLACES, dlm.hidden_size, dtype=torch.float16),
            torch.stack([prompt[-1] for prompt in own]), torch.zeros(count, dtype=torch.long),
        )
        start, going = torch.zeros(count, dtype=torch.long), torch.arange(count)
        for step in range(LIMIT):
            place = start[going, None] + torch.arange(PLACES)
            window = made.tokens[going[:, None], place]
            scored = session.score(going, torch.cat([window, behind[going]], 1), hidden=True)
            made.hidden[going, step], made.start[going, step] = scored.hidden[:, :PLACES].half(), start[going]
            logits = scored.logits[:, :PLACES].float() + ban
            law = logits.log_softmax(-1)
            nats = -(law.exp() * law.clamp_min(-1e4)).sum(-1)
            late = torch.where(by_entropy[going, None], nats, torch.arange(PLACES).float())
            at = late.masked_fill(window != MASKED, torch.inf).argmin(1)
            every = torch.arange(len(going))
            drawn = (logits[every, at] / temperature[going]).softmax(-1).multinomial(1, generator=generator)[:, 0]
            made.tokens[going, place[every, at]], made.time[going, place[every, at]] = drawn, step
            window[every, at] = drawn
            known = (window != MASKED).long().cumprod(1).sum(1)
            block, kept = torch.zeros(count, PLACES, dtype=torch.long), torch.zeros(count, dtype=torch.long)
            block[going], kept[going] = window.clamp_min(0), known
            session.commit(block, kept)
            start, made.steps[going] = start + kept, step + 1
            ended = (is_end(window, ends_of(dlm.eos_id)) & (torch.arange(PLACES) < known[:, None])).any(1)
            going = going[~ended & (start[going] < LIMIT)]
            if not len(going):
                break
        parts.append(made)
    return Trajectories(*(torch.cat(each).clone() for each in zip(*parts, strict=True)))


class Losses(NamedTuple):
    """Of examples, means over all places and depths by their weights.

    Attributes:
        law: KL from the model's law at the states reached to the layer's, nats per place.
        states: smooth-L1 of the layer's states.
        before: KL from the model's law to its law where the examples begin, which independent draws are of.
    """

    law: Tensor
    states: Tensor
    before: Tensor


def losses_of(refiner: Refiner, pair: Pair, paths: Trajectories, rows: Tensor, begin: Tensor, depth: int) -> Losses:
    """Losses of examples that begin at forwards `begin: [m]` of responses `rows: [m]` and go `depth` steps on."""
    dlm: Any = pair.dlm
    ban, there = ban_of(pair), torch.ones(len(rows), PLACES, dtype=torch.bool)
    first = paths.start[rows, begin]
    before = torch.where(first > 0, paths.tokens[rows, (first - 1).clamp_min(0)], paths.last[rows])
    hidden = paths.states(rows, begin, 0)[0]
    marginals = (dlm.head(hidden) + ban).log_softmax(-1)
    sums, total = [torch.zeros(()) for _ in range(3)], torch.zeros(())
    for j in range(1, depth + 1):
        canvas, ahead = paths.canvas(rows, begin, j)
        hidden = refiner(dlm.embed(columns(canvas, before, shift=dlm.shift)), hidden, there)
        wanted, known = paths.states(rows, begin, j)
        held = known & (ahead >= 0) & (ahead < NEVER // 2)
        weight = (-ahead[held] / SOON).exp()
        log_p = (dlm.head(wanted[held]) + ban).log_softmax(-1)
        off = functional.smooth_l1_loss(hidden[held], wanted[held], reduction="none").mean(-1)
        log_q = (dlm.head(hidden[held]) + ban).log_softmax(-1)
        found = (_kl(log_p, log_q), off, _kl(log_p, marginals[held]))
        sums = [s + x @ weight for s, x in zip(sums, found, strict=True)]
        total = total + weight.sum()
    return Losses(*(s / total for s in sums))


def train(pair: Pair, *, seed: int = 0, steps: int | None = None) -> Trained:
    """One layer on the diffusion model's hidden states refreshes them as tokens become known (ADJUST)."""
    count = STEPS if steps is None else steps
    several = min(PROBLEMS, max(2 * KEPT, PROBLEMS * count // STEPS))
    prompts = [pair.encode(problem.prompt) for problem in problems.splits(several, DRAFTED).train]
    paths = written(pair, prompts, seed=seed)
    every = torch.arange(several)
    used, held_out = paths.of_rows(every[every % KEPT != 0]), paths.of_rows(every[every % KEPT == 0])
    dlm: Any = pair.dlm
    refiner = initialised(lambda: Refiner.untrained(dlm, places=PLACES), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    chance = torch.tensor([math.exp(0.5**i) for i in range(1, DEPTH + 1)])

    def drawn(of: Trajectories, depth: int, many: int) -> tuple[Tensor, Tensor]:
        """Responses and forwards where examples begin."""
        rows = torch.randint(len(of.steps), (many,), generator=generator)
        return rows, (torch.rand(many, generator=generator) * (of.steps[rows] - depth).clamp_min(1)).long()

    def loss(step: int) -> Tensor:
        """Of examples of one depth, drawn anew."""
        depth = 1 + int(chance.multinomial(1, generator=generator))
        found = losses_of(refiner, pair, used, *drawn(used, depth, EXAMPLES), depth)
        return found.law + STATES * found.states

    reached = fit(refiner, loss, steps=count, rate=RATE, name="adjust")
    with torch.no_grad():
        rows, begin = drawn(held_out, DEPTH, 16 * EXAMPLES)
        found = losses_of(refiner, pair, held_out, rows, begin, DEPTH)
    facts: dict[str, Any] = {
        "seed": seed, "steps": count, "problems": several, "states": int(paths.steps.sum()), "loss": round(reached, 4),
        "kl": round(float(found.law), 4), "kl_of_marginals": round(float(found.before), 4),
        "smooth_l1": round(float(found.states), 4),
    }
    return Trained(refiner, reached, facts)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of laws `[n, A]`, `[n]`."""
    return (log_p.exp() * torch.where(log_p > -torch.inf, log_p - log_q, 0.0)).sum(-1)
