"""The one-layer joint sampler on hidden states (ADJUST, arXiv 2509.22738): the diffusion model is frozen, the layer is
trained to give the states that the model itself would give after some more tokens.

Rows of a pool are on trajectories of the model: its own law gives one token of each after the other, in order of
entropy or from left to right. From a state of a trajectory the layer goes on for J steps, each of which fills a place
by its own logits, with

    P(J = i) proportional to exp(0.5^i),   i = 1 .. 7,

and a second forward of the model on the state *reached* gives what the layer should have said at its last step:

    loss = KL(model's law || layer's law) + 0.1 smooth-L1(layer's states, model's states)    mean of masked places

Several such excursions begin at a state before the trajectory goes on. Temperatures of the draws are spread over 0.2 to
1. Shapes: R rows, W places, D hidden size, A alphabet.
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
from smc_bridge.models.learned.adjust import Refiner
from smc_bridge.models.pair import Pair
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.training.fit import Trained, fit

#: Problems of the pool, rows of a step, places of a canvas, tokens of a response at most, excursions from a state.
PROBLEMS, ROWS, PLACES, LIMIT, EXCURSIONS = 2_000, 24, 32, 144, 2
#: Steps of the layer at most, weight of the states, temperatures of the draws.
DEPTH, STATES, TEMPERATURES = 7, 0.1, (0.2, 1.0)
STEPS, RATE = 1_500, 2e-3


class Pool:
    """Rows on trajectories of the model, each of its own order and temperature.

    Attributes:
        texts: prompt and response without a gap, of each row, which the session holds; its forwards are over what
            stands behind them (cache "prefix").
        canvas: what that is, `[R, W]`.
        first: logits and states of the canvas.
        by_entropy: rows whose places are filled in order of entropy, bool `[R]`.
        temperature: `[R, 1]`.
    """

    def __init__(self, pair: Pair, *, rows: int, generator: torch.Generator) -> None:
        self.dlm: Any = pair.dlm
        none = torch.zeros(rows, 0, dtype=torch.long)
        self.session = self.dlm.with_cache("prefix").session(none, none.sum(1))
        self.ends, self.generator = ends_of(pair.dlm.eos_id), generator
        some = problems.splits(PROBLEMS, DRAFTED).train
        self.prompts = [pair.encode(problem.prompt).tolist() for problem in some]
        self.texts: list[list[int]] = [[] for _ in range(rows)]
        self.begun = [0] * rows
        self.canvas = torch.full((rows, PLACES), MASKED)
        self.by_entropy = torch.arange(rows) % 2 == 0
        self.temperature = torch.ones(rows, 1)
        self.ban = torch.zeros(pair.dlm.vocab_size).index_fill(0, torch.tensor(pair.dlm.banned_ids), -torch.inf)
        for r in range(rows):
            self.refill(r)
            written = pair.tokenizer(some[self.last].response, add_special_tokens=False)["input_ids"]
            self.texts[r] += written[: self.number(len(written))]  # rows are spread over their responses
        self.hold()

    def number(self, below: int) -> int:
        """A whole number from 0 on."""
        return int(torch.randint(below, (1,), generator=self.generator))

    def refill(self, r: int) -> None:
        """Let a row begin with another problem."""
        self.last = self.number(len(self.prompts))
        self.texts[r], self.begun[r] = list(self.prompts[self.last]), len(self.prompts[self.last])
        low, high = TEMPERATURES
        self.temperature[r] = low + (high - low) * torch.rand(1, generator=self.generator)
        self.canvas[r] = MASKED

    @torch.no_grad()
    def scored(self, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and states of canvases behind the rows' texts, `[R, W, A]` and `[R, W, D]`."""
        found = self.session.score(torch.arange(len(canvas)), canvas, hidden=True)
        return found.logits + self.ban, found.hidden

    @torch.no_grad()
    def filled(self, canvas: Tensor, logits: Tensor) -> Tensor:
        """The canvases with one more token each, drawn from the logits at the next place of the row's order."""
        log_law = logits.log_softmax(-1)
        nats = -(log_law.exp() * log_law.clamp_min(-1e4)).sum(-1)
        place = torch.arange(PLACES, dtype=nats.dtype).expand_as(nats)
        late = torch.where(self.by_entropy[:, None], nats, place).masked_fill(canvas != MASKED, torch.inf)
        at = late.argmin(1, keepdim=True)
        law = (logits.take_along_dim(at[..., None], 1)[:, 0] / self.temperature).softmax(-1)
        drawn = law.multinomial(1, generator=self.generator)
        return torch.where((canvas != MASKED).all(1, keepdim=True), canvas, canvas.scatter(1, at, drawn))

    def advance(self) -> None:
        """One token of each row from the model's own law; what is known without a gap goes to the texts, and finished
        rows begin anew."""
        canvas = self.filled(self.canvas, self.first[0])
        self.canvas = canvas.clone()
        for r, row in enumerate(canvas):
            known = int((row == MASKED).to(torch.uint8).argmax()) if bool((row == MASKED).any()) else PLACES
            self.texts[r] += row[:known].tolist()
            self.canvas[r] = functional.pad(row[known:], (0, known), value=MASKED)
            if bool(is_end(row[:known], self.ends).any()) or len(self.texts[r]) - self.begun[r] > LIMIT:
                self.refill(r)
        self.hold()

    def hold(self) -> None:
        """Let the session hold the rows' texts."""
        held = list(zip(self.texts, self.session.lengths, strict=True))
        same = [n if self.session.texts[r, :n].tolist() == text[:n] else 0 for r, (text, n) in enumerate(held)]
        self.session.crop(torch.tensor(same))
        more = [torch.tensor(text[n:], dtype=torch.long) for text, n in zip(self.texts, same, strict=True)]
        block = torch.nn.utils.rnn.pad_sequence(more, batch_first=True)
        self.session.commit(block, torch.tensor([len(tokens) for tokens in more]))
        self.first = self.scored(self.canvas)


class Losses(NamedTuple):
    """Of one step.

    Attributes:
        law: KL from the model's law at the state reached to the layer's, nats per masked place.
        states: smooth-L1 of the layer's states.
        before: KL from the model's law to its law before the excursion, which independent draws are of.
    """

    law: Tensor
    states: Tensor
    before: Tensor


def losses_of(refiner: Refiner, pool: Pool, depth: int) -> Losses:
    """Losses of an excursion of `depth` steps from where the pool is."""
    canvas, there = pool.canvas, torch.ones_like(pool.canvas, dtype=torch.bool)
    logits, hidden = pool.first
    for _ in range(depth):
        canvas = pool.filled(canvas, logits.detach())
        hidden = refiner(pool.dlm.embed(canvas), hidden, there)
        logits = pool.dlm.head(hidden) + pool.ban
    wanted, states = pool.scored(canvas)
    masked = canvas == MASKED

    def kl(from_logits: Tensor) -> Tensor:
        """Mean KL from the model's law at the masked places."""
        log_p, log_q = (x[masked].log_softmax(-1) for x in (wanted, from_logits))
        return (log_p.exp() * torch.where(log_p > -torch.inf, log_p - log_q, 0.0)).sum(-1).mean()

    return Losses(kl(logits), functional.smooth_l1_loss(hidden[masked], states[masked]), kl(pool.first[0]))


def train(pair: Pair, *, seed: int = 0, steps: int | None = None) -> Trained:
    """One layer on the diffusion model's hidden states refreshes them as tokens become known (ADJUST)."""
    count = STEPS if steps is None else steps
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    dlm: Any = pair.dlm
    refiner = Refiner.untrained(dlm)
    pool = Pool(pair, rows=ROWS, generator=generator)
    chance = torch.tensor([math.exp(0.5**i) for i in range(1, DEPTH + 1)])
    measured = list[tuple[float, float, float]]()

    def loss(step: int) -> Tensor:
        """At a depth drawn anew."""
        if step and step % EXCURSIONS == 0:
            pool.advance()
        depth = 1 + int(chance.multinomial(1, generator=generator))
        found = losses_of(refiner, pool, depth)
        measured.append((float(found.law.detach()), float(found.states.detach()), float(found.before)))
        return found.law + STATES * found.states

    reached = fit(refiner, loss, steps=count, rate=RATE, name="adjust")
    last = torch.tensor(measured[-max(1, count // 10) :]).mean(0).tolist()
    facts: dict[str, Any] = {
        "seed": seed, "steps": count, "loss": round(reached, 4), "kl": round(last[0], 4),
        "states": round(last[1], 4), "kl_of_marginals": round(last[2], 4),
    }
    return Trained(refiner, reached, facts)
