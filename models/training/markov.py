"""The Markov head of the embedded pair, taught to draft what its autoregressive model would say.

Blocks of V places are cut from responses of the training problems, half of them in the wording of the autoregressive
model and half in that of the diffusion model, for a bridge commits either. The diffusion model reads the prompt and the
response up to the block, with masks behind, as for a draft, and gives U_i; the autoregressive model reads all of it,
and gives `p_i(. | y_<i)`. The head is trained on

    sum_i g^i ( .1 CE(y_i, q_i) + .9 ||q_i - p_i||_1 ),      q_i = softmax((U_i + W2 W1[y_{i-1}]) / tau)

(DSpark's loss, with its weights that fall with the place), p_i at temperature tau too, which is another one in each
step: a lane may have any. The second term is what is refused: a draft's token is accepted with probability
`1 - ||q_i - p_i||_1 / 2`. To learn the diffusion model's own chain rule, p_i may be its marginal with the block so far
filled in, in place of the autoregressive model's conditional (`target`).

Shapes: B blocks, V places, A alphabet, D features.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from smc_bridge.models.arithmetic.batches import Encoded, encode
from smc_bridge.models.arithmetic.problems import splits
from smc_bridge.models.arithmetic.wording import DRAFTED, PLAIN
from smc_bridge.models.learned.markov import MarkovHead
from smc_bridge.models.learned.selector import SelectorHead
from smc_bridge.models.pair import Pair
from smc_bridge.models.protocols import ABSENT, MASKED
from smc_bridge.models.training.fit import Trained, fit, initialised

#: What is trained so.
Head = MarkovHead | SelectorHead
#: Whose conditionals are learned.
Target = Literal["ar", "dlm"]
#: Blocks, those of a problem, and places of each.
BLOCKS, PER_PROBLEM, PLACES = 4_000, 8, 16
#: Masks behind the prefix, places: those of the task, of a block at the end, and of a longer look ahead.
LOOKAHEAD = (16, 32, 32, 64)
#: Temperatures of the loss.
TEMPERATURES = (1.0, 0.5, 0.2)
#: Steps, blocks of each, greatest rate, and what a place weighs next to the one before it.
STEPS, BATCH, RATE, FALL = 1_200, 64, 1e-2, 0.9
#: Share of the cross-entropy in the loss.
SHARE = 0.1
#: Blocks of one forward.
AT_ONCE = 64
#: Lines of a log: one for so many forwards.
LOG_EVERY = 10
#: What a banned token's logit is.
NEVER = -1e4


class Blocks(NamedTuple):
    """What a head is trained on.

    Attributes:
        before: the token before each place, `[B, V]`.
        tokens: that stand there, `[B, V]`.
        counts: whether the place is within the response, bool `[B, V]`.
        scores: U, logits of the diffusion model, float16 `[B, V, A]`.
        target: logits of what is learned, float16 `[B, V, A]`.
        hidden: features of the diffusion model at each place, float16 `[B, V, D]`.
    """

    before: Tensor
    tokens: Tensor
    counts: Tensor
    scores: Tensor
    target: Tensor
    hidden: Tensor


def train(
    pair: Pair, *, seed: int = 0, steps: int | None = None, target: Target = "ar", blocks: int | None = None,
) -> Trained:
    """Train a head of rank 64 for the embedded pair (module docstring); arguments and result as every training's.

    Args:
        pair: the embedded pair.
        seed: of initialisation, blocks and batches.
        steps: of the optimiser.
        target: whose conditionals are learned: those of the autoregressive model, or the diffusion model's own.
        blocks: that it is trained on; as few as the steps ask for, as a share of the recipe's, unless it is given.
    """
    steps = STEPS if steps is None else steps
    blocks = blocks_for(steps) if blocks is None else blocks
    data = harvest(pair, seed=seed, blocks=blocks, target=target)
    head = initialised(lambda: MarkovHead(vocabulary=pair.dlm.vocab_size), seed=seed)
    loss = taught(head, data, seed=seed, steps=steps, name="markov")
    return Trained(head, loss, {"seed": seed, "steps": steps, "blocks": blocks, "target": target, "loss": loss})


def blocks_for(steps: int) -> int:
    """As many of the recipe's blocks as steps are of its steps, those of a forward at least."""
    return min(BLOCKS, max(AT_ONCE, BLOCKS * steps // STEPS))


def taught(head: Head, data: Blocks, *, seed: int, steps: int, name: str) -> float:
    """Train a head in place on blocks; its loss (`fit`)."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(data.before), (steps, BATCH), generator=generator)
    return fit(
        head, lambda step: loss_of(head, data, draws[step], TEMPERATURES[step % len(TEMPERATURES)]), steps=steps,
        rate=RATE, name=name,
    )


def loss_of(head: Head, data: Blocks, rows: Tensor, temperature: float) -> Tensor:
    """The loss of blocks `rows: [n]` at one temperature, nats and mass per place."""
    before, tokens, counts, scores, target, hidden = (each[rows] for each in data)
    log_q = ((scores.float() + head(before, hidden)) / temperature).log_softmax(-1)
    p = (target.float() / temperature).softmax(-1)
    entropy = -log_q.gather(-1, tokens[..., None])[..., 0]
    distance = (log_q.exp() - p).abs().sum(-1)
    weight = counts * FALL ** torch.arange(tokens.shape[1])
    loss: Tensor = (weight * (SHARE * entropy + (1 - SHARE) * distance)).sum() / weight.sum()
    return loss


@torch.inference_mode()
def accepted(head: Head | None, data: Blocks, temperature: float) -> Tensor:
    """Mass that draft and target share at each place, given what stands before it, `[V]`; of None by the marginals."""
    total, number = torch.zeros(data.tokens.shape[1]), torch.zeros(data.tokens.shape[1])
    for first in range(0, len(data.before), AT_ONCE):
        before, _, counts, scores, target, hidden = (each[first : first + AT_ONCE] for each in data)
        logits = scores.float() + (0.0 if head is None else head(before, hidden))
        both = torch.minimum((logits / temperature).softmax(-1), (target.float() / temperature).softmax(-1)).sum(-1)
        total, number = total + (both * counts).sum(0), number + counts.sum(0)
    return total / number


@torch.inference_mode()
def harvest(pair: Pair, *, seed: int, blocks: int, target: Target = "ar") -> Blocks:
    """Blocks of training problems with what both models say of them; the same seed gives the same ones."""
    rng, problems = random.Random(f"{seed} markov"), -(-blocks // (2 * PER_PROBLEM))
    train = [problem for dialect in (PLAIN, DRAFTED) for problem in splits(problems, dialect).train]
    parts = list[Blocks]()
    for cut in _cuts(encode(pair.tokenizer, train), rng, blocks):
        parts.append(_read(pair, cut, target))
        if len(parts) % LOG_EVERY == 0:
            print(f"blocks {sum(len(part.before) for part in parts)}/{blocks}", flush=True)
    return Blocks(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _cuts(data: Sequence[Encoded], rng: random.Random, blocks: int) -> Iterator[list[tuple[list[int], int]]]:
    """Sequences with the place where a block begins in each, as many at a time as one forward reads."""
    every = [(row.ids, rng.randrange(row.start, len(row.ids))) for row in data for _ in range(PER_PROBLEM)]
    rng.shuffle(every)
    del every[blocks:]
    every.sort(key=lambda cut: cut[1])  # little is padding
    for first in range(0, len(every), AT_ONCE):
        yield every[first : first + AT_ONCE]


def _read(pair: Pair, cuts: Sequence[tuple[list[int], int]], target: Target) -> Blocks:
    """What both models say of some blocks."""
    count = len(cuts)
    length = torch.tensor([start for _, start in cuts])
    prefix = torch.zeros(count, int(length.max()), dtype=torch.long)
    tokens = torch.full((count, PLACES), pair.tokenizer.eos_token_id)
    counts = torch.zeros(count, PLACES, dtype=torch.bool)
    for r, (ids, start) in enumerate(cuts):
        prefix[r, :start] = torch.tensor(ids[:start])
        block = ids[start : start + PLACES]
        tokens[r, : len(block)], counts[r, : len(block)] = torch.tensor(block), True
    rows = torch.arange(count)
    before = torch.cat([prefix[rows, length - 1][:, None], tokens[:, :-1]], dim=1)
    masks = LOOKAHEAD[int(length.sum()) % len(LOOKAHEAD)]
    session = pair.dlm.session(prefix, length)
    scores, hidden = (each[:, :PLACES] for each in session.score(rows, torch.full((count, masks), MASKED), hidden=True))
    if target == "ar":
        learned = pair.ar.session(prefix, length).score(rows, tokens)
    else:
        place = torch.arange(masks)
        padded = torch.nn.functional.pad(tokens, (0, masks - PLACES), value=ABSENT)
        learned = torch.stack([
            session.score(rows, torch.where(place < i, padded, MASKED))[:, i] for i in range(PLACES)
        ], dim=1)
    banned = torch.tensor(pair.dlm.banned_ids, dtype=torch.long)
    scores, learned = (each.index_fill(-1, banned, NEVER).half() for each in (scores, learned))
    return Blocks(before, tokens, counts, scores, learned, hidden.half())
