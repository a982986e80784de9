"""The small AR network over soft embeddings (CoDiLA, arXiv 2603.20216): the diffusion model is frozen, the network is
trained by cross-entropy on blocks of that model's own draws.

The model writes responses to training problems by its chain rule, a token per forward. The forward at position t gives
the marginals `pi` of the next places, and those that follow give what stands there, `b`, and the model's conditional of
each token given those before it: every forward is an example, and none is made for the training alone. The loss is

    - E sum_j log p_phi(b_j | b_<j, pi)     with the expectation over b_j, given b_<j, taken exactly

which has its least value where the network is the model's joint. (Published: on a corpus of text, places masked in
blocks. There the DLM's law and that of the text are the same up to training; here each has its slips.)

Shapes: n problems, T tokens of a response at most, B places of a block, A alphabet, m examples of a step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smc_bridge.models.arithmetic import problems
from smc_bridge.models.arithmetic.wording import DRAFTED
from smc_bridge.models.ends import ends_of, is_end
from smc_bridge.models.learned.codila import SoftAR
from smc_bridge.models.pair import Pair
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.training.fit import Trained, ban_of, fit, initialised

#: Problems whose responses are drawn, and of a batch of them; tokens of a response, and masks of a forward.
PROBLEMS, BATCH, LIMIT, LOOKAHEAD = 320, 32, 112, 32
#: Sizes of the blocks that are trained, B, and places of a step together.
BLOCKS, PLACES = (4, 8, 16), 512
STEPS, RATE, WIDTH = 4_000, 2e-3, 64
#: One problem in so many is kept to measure the losses, on so many examples of the middle size.
KEPT, MEASURED = 8, 512


class Draws(NamedTuple):
    """Responses drawn by the diffusion model's chain rule.

    Attributes:
        logits: of the next places at each position, float16 `[n, T, B, A]`.
        tokens: `[n, T]`.
        length: tokens of each response, `[n]`.
    """

    logits: Tensor
    tokens: Tensor
    length: Tensor

    def at(self, rows: Tensor, start: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Examples that begin at positions `start: [m]` of responses `rows: [m]`.

        Returns:
            marginals as logits `[m, B, A]`; tokens `[m, B]`; the model's conditionals along them as logits
            `[m, B, A]`; which of the places the response has, `[m, B]`.
        """
        place = start[:, None] + torch.arange(size)
        inside = place < self.length[rows, None]
        place = place.clamp_max(self.tokens.shape[1] - 1)
        tokens, along = self.tokens[rows[:, None], place], self.logits[rows[:, None], place, 0].float()
        return self.logits[rows, start, :size].float(), tokens, along, inside


@torch.inference_mode()
def draws_of(pair: Pair, prompts: list[Tensor], *, seed: int) -> Draws:
    """Responses of the pair's diffusion model to prompts, at temperature 1."""
    dlm, parts = pair.dlm, list[Draws]()
    generator = torch.Generator().manual_seed(seed)
    ban = ban_of(pair)
    for first in range(0, len(prompts), BATCH):
        own = prompts[first : first + BATCH]
        length = torch.tensor([len(prompt) for prompt in own])
        session = dlm.session(torch.nn.utils.rnn.pad_sequence(own, batch_first=True), length)
        logits = torch.zeros(len(own), LIMIT, max(BLOCKS), dlm.vocab_size, dtype=torch.float16)
        tokens, count = torch.zeros(len(own), LIMIT, dtype=torch.long), torch.zeros_like(length)
        going = torch.ones(len(own), dtype=torch.bool)
        for t in range(LIMIT):
            rows = going.nonzero().flatten()
            if not rows.numel():
                break
            scores = session.score(rows, torch.full((rows.numel(), LOOKAHEAD), MASKED)).float()
            logits[rows, t] = scores[:, : max(BLOCKS)].half()
            law = (scores[:, 0] + ban).softmax(-1)
            tokens[rows, t] = law.multinomial(1, generator=generator)[:, 0]
            count += going
            session.commit(tokens[:, t : t + 1], going.long())
            going &= ~is_end(tokens[:, t], ends_of(dlm.eos_id))
        parts.append(Draws(logits, tokens, count))
    return Draws(*(torch.cat(each) for each in zip(*parts, strict=True)))


class Losses(NamedTuple):
    """Mean cross-entropies to the model's conditionals, nats per token.

    Attributes:
        network: of the network.
        marginals: of the marginals.
        least: of the conditionals themselves.
    """

    network: Tensor
    marginals: Tensor
    least: Tensor


def losses_of(head: SoftAR, draws: Draws, examples: Tensor, size: int, ban: Tensor) -> Losses:
    """Losses on blocks of `size` places that begin at `examples: [m, 2]`, each a response and a position in it."""
    marginals, tokens, along, inside = draws.at(examples[:, 0], examples[:, 1], size)
    log_pi, log_p = ((logits + ban).log_softmax(-1) for logits in (marginals, along))
    log_q = (head(log_pi, torch.ones_like(inside), tokens) + ban).log_softmax(-1)
    wanted = log_p.exp()

    def mean(log_law: Tensor) -> Tensor:
        """Of a law that is scored."""
        nats = -(wanted * torch.where(wanted > 0, log_law, 0.0)).sum(-1)
        return (nats * inside).sum() / inside.sum()

    return Losses(mean(log_q), mean(log_pi), mean(log_p))


def train(pair: Pair, *, seed: int = 0, steps: int | None = None) -> Trained:
    """A small AR network decodes a block from soft embeddings of the diffusion model's marginals (CoDiLA)."""
    count = STEPS if steps is None else steps
    several = min(PROBLEMS, max(8, PROBLEMS * count // STEPS))
    prompts = [pair.encode(problem.prompt) for problem in problems.splits(several, DRAFTED).train]
    draws = draws_of(pair, prompts, seed=seed)
    head = initialised(lambda: SoftAR(size=pair.dlm.vocab_size, width=WIDTH, block=max(BLOCKS)), seed=seed)
    kept = torch.arange(several) % KEPT == 0
    every = torch.arange(LIMIT) < draws.length[:, None]
    examples, held_out = (every & ~kept[:, None]).nonzero(), (every & kept[:, None]).nonzero()
    generator, ban = torch.Generator().manual_seed(seed), ban_of(pair)

    def loss(step: int) -> Tensor:
        """Of blocks of one size, drawn anew."""
        size = BLOCKS[int(torch.randint(len(BLOCKS), (1,), generator=generator))]
        chosen = examples[torch.randint(len(examples), (PLACES // size,), generator=generator)]
        return losses_of(head, draws, chosen, size, ban).network

    reached = fit(head, loss, steps=count, rate=RATE, name="soft blocks", decay=0.05)
    size, some = BLOCKS[len(BLOCKS) // 2], held_out[torch.randperm(len(held_out), generator=generator)[:MEASURED]]
    with torch.no_grad():
        measured = {name: round(float(x), 4) for name, x in losses_of(head, draws, some, size, ban)._asdict().items()}
    facts: dict[str, Any] = {
        "seed": seed, "steps": count, "problems": several, "examples": len(examples), "loss": round(reached, 4),
        "measured_block": size, **measured,
    }
    return Trained(head, reached, facts)
