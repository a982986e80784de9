"""Measure the embedded pair on held-out problems: `python -m smc_bridge.models.arithmetic.evaluate` (about five
minutes).

Plain decoders, independent of the rest of the repository: the autoregressive network samples with a key-value cache,
the diffusion network recomputes at every forward. Draws come from a seeded generator through Gumbel noise, so a second
run repeats the first.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen2ForCausalLM

from smc_bridge.models.arithmetic.architecture import WEIGHTS, load, masked_logits
from smc_bridge.models.arithmetic.batches import Encoded, encode, pad
from smc_bridge.models.arithmetic.problems import extract_answer, held_out
from smc_bridge.models.arithmetic.tokenizer import BOS_ID, EOS_ID, MASK_ID, PAD_ID, format_prompt, load_tokenizer

SEED = 0
ROWS = 100
WINDOW = 32
LIMIT = 160
BANNED = (PAD_ID, BOS_ID, MASK_ID)


Row = TypeVar("Row")
Decoder: TypeAlias = Callable[[Qwen2ForCausalLM, Sequence[Sequence[int]]], list[list[int]]]


@dataclass(frozen=True)
class Sizes:
    """How many held-out problems (the first ones) each kind of figure uses.

    Attributes:
        losses: problems of either model's cross-entropy.
        ar_accuracy, dlm_accuracy: problems that each model answers.
    """

    losses: int
    ar_accuracy: int
    dlm_accuracy: int


FULL = Sizes(losses=1_000, ar_accuracy=1_000, dlm_accuracy=200)
SUBSET = Sizes(losses=64, ar_accuracy=32, dlm_accuracy=6)


@torch.no_grad()
def ar_loss(model: Qwen2ForCausalLM, data: Sequence[Encoded]) -> float:
    """Return the mean cross-entropy of the response tokens (eos included), nats per token."""
    total, count = 0.0, 0
    for rows in _chunks(data):
        tokens, lengths = pad([row.ids for row in rows])
        nats = functional.cross_entropy(model(input_ids=tokens).logits[:, :-1].mT, tokens[:, 1:], reduction="none")
        place = torch.arange(1, tokens.shape[1])[None, :]
        use = (place >= torch.tensor([row.start for row in rows])[:, None]) & (place < lengths[:, None])
        total, count = total + float(nats[use].double().sum()), count + int(use.sum())
    return total / count


@torch.no_grad()
def dlm_losses(model: Qwen2ForCausalLM, data: Sequence[Encoded], seed: int = SEED) -> tuple[float, float]:
    """Return two cross-entropies of the diffusion model, nats per masked token, under a masking fixed by `seed`.

    The first masks each response token with a probability drawn uniformly for the row. The second is what a left to
    right decoder sees: a clean prefix that ends at a random place of the response, then `WINDOW` masks; only the next
    token is scored.
    """
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(2, 2, dtype=torch.float64)
    for rows in _chunks(data):
        tokens, lengths = pad([row.ids for row in rows])
        start = torch.tensor([row.start for row in rows])
        place = torch.arange(tokens.shape[1])[None, :]
        response = (place >= start[:, None]) & (place < lengths[:, None])
        cut = start + (torch.rand(len(rows), generator=generator) * (lengths - start)).long()
        share = torch.rand(len(rows), 1, generator=generator)
        masked = (torch.rand(tokens.shape, generator=generator) < share) & response
        masked[torch.arange(len(rows)), cut] = True
        logits = masked_logits(model, tokens.masked_fill(masked, MASK_ID), lengths)
        nats = functional.cross_entropy(logits.mT, tokens, reduction="none")
        sums[0] += torch.stack([nats[masked].double().sum(), masked.sum().double()])

        open_ended, visible = pad([row.ids[:c] + [MASK_ID] * WINDOW for row, c in zip(rows, cut.tolist(), strict=True)])
        each = torch.arange(len(rows))
        logits = masked_logits(model, open_ended, visible)[each, cut]
        nats = functional.cross_entropy(logits, tokens[each, cut], reduction="none")
        sums[1] += torch.stack([nats.double().sum(), torch.tensor(float(len(rows)), dtype=torch.float64)])
    masked_mean, next_mean = (sums[:, 0] / sums[:, 1]).tolist()
    return masked_mean, next_mean


@torch.no_grad()
def sample_ar(
    model: Qwen2ForCausalLM, prompts: Sequence[Sequence[int]], temperature: float, seed: int = SEED
) -> list[list[int]]:
    """Return one sampled response (token ids, without eos) for each prompt; at most `LIMIT` tokens."""
    generator = torch.Generator().manual_seed(seed)
    width = max(len(p) for p in prompts)
    tokens = torch.tensor([[PAD_ID] * (width - len(p)) + list(p) for p in prompts])
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    positions = (real.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    drawn: list[Tensor] = []
    finished = torch.zeros(len(prompts), dtype=torch.bool)
    while len(drawn) < LIMIT and not finished.all():
        out = model(
            input_ids=tokens, attention_mask=real, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        token = _draw(out.logits[:, -1], temperature, generator)
        finished |= token == EOS_ID
        drawn.append(token)
        tokens, positions = token[:, None], positions[:, -1:] + 1
        real = torch.cat([real, torch.ones_like(tokens)], dim=1)
    return [_before_eos(row) for row in torch.stack(drawn, 1).tolist()]


@torch.no_grad()
def decode_dlm(
    model: Qwen2ForCausalLM,
    prompts: Sequence[Sequence[int]],
    per_forward: int,
    order: str,
    temperature: float,
    seed: int = SEED,
) -> list[list[int]]:
    """Return one response (token ids, without eos) for each prompt, `per_forward` tokens at a time.

    Args:
        order: "left" fills the next tokens after the prefix, which is always followed by `WINDOW` masks; "entropy"
            fills the least uncertain positions of a block of `WINDOW` masks, and opens the next block when it is full.
    """
    if order not in ("left", "entropy"):
        raise ValueError(f"order={order!r}: unknown order; use 'left' or 'entropy'")
    generator = torch.Generator().manual_seed(seed)
    starts = [len(p) for p in prompts]
    tokens, _ = pad([[*p, *[MASK_ID] * (LIMIT + WINDOW)] for p in prompts])
    active = list(range(len(prompts)))
    while active:
        visible = []
        for r in active:
            known = int((tokens[r] == MASK_ID).nonzero()[0])
            blocks = (known - starts[r]) // WINDOW
            visible.append(known + WINDOW if order == "left" else starts[r] + (blocks + 1) * WINDOW)
        lengths = torch.tensor(visible)
        seen = tokens[active, : max(visible)]
        seen[torch.arange(seen.shape[1])[None, :] >= lengths[:, None]] = PAD_ID
        log_q = _law(masked_logits(model, seen, lengths), temperature)
        drawn = (log_q + _gumbel(log_q.shape, generator)).argmax(-1)
        if order == "entropy":
            score = -torch.xlogy(log_q.exp(), log_q.exp()).sum(-1)
        else:
            score = torch.arange(seen.shape[1], dtype=torch.float32).expand(seen.shape)
        places = score.masked_fill(seen != MASK_ID, torch.inf).topk(per_forward, dim=-1, largest=False)
        for i, r in enumerate(active):
            chosen = places.indices[i][places.values[i].isfinite()]
            tokens[r, chosen] = drawn[i, chosen]
        active = [r for r in active if not _complete(tokens[r, starts[r] :].tolist())]
    return [_before_eos(tokens[r, start:].tolist()) for r, start in enumerate(starts)]


#: The decoders whose accuracy is reported, by name.
AR_DECODERS: dict[str, Decoder] = {
    "ar_temperature_0.2": partial(sample_ar, temperature=0.2),
    "ar_temperature_1.0": partial(sample_ar, temperature=1.0),
}
DLM_DECODERS: dict[str, Decoder] = {
    "dlm_left_to_right_1": partial(decode_dlm, per_forward=1, order="left", temperature=0.2),
    "dlm_left_to_right_2": partial(decode_dlm, per_forward=2, order="left", temperature=0.2),
    "dlm_left_to_right_4": partial(decode_dlm, per_forward=4, order="left", temperature=0.2),
    "dlm_left_to_right_8": partial(decode_dlm, per_forward=8, order="left", temperature=0.2),
    "dlm_entropy_1": partial(decode_dlm, per_forward=1, order="entropy", temperature=0.2),
}


def accuracy(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int, decode: Decoder) -> float:
    """Return the share of the first `count` held-out problems whose decoded response states the right answer."""
    right = 0
    for rows in _chunks(held_out()[:count]):
        texts = tokenizer.batch_decode(decode(model, [format_prompt(tokenizer, p.prompt) for p in rows]))
        right += sum(extract_answer(text) == p.answer for text, p in zip(texts, rows, strict=True))
    return right / count


def figures(
    ar: Qwen2ForCausalLM, dlm: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, sizes: Sizes
) -> dict[str, Any]:
    """Return losses (nats per token) and accuracies on the first held-out problems, with how many each used."""
    data = encode(tokenizer, held_out()[: sizes.losses])
    masked, following = dlm_losses(dlm, data)
    losses = {"ar": ar_loss(ar, data), "dlm_masked": masked, "dlm_next_token": following, "problems": sizes.losses}
    shares = {}
    for model, count, decoders in ((ar, sizes.ar_accuracy, AR_DECODERS), (dlm, sizes.dlm_accuracy, DLM_DECODERS)):
        for name, decode in decoders.items():
            shares[name] = {"accuracy": accuracy(model, tokenizer, count, decode), "problems": count}
    return {"losses": losses, "accuracy": shares}


def measure(weights: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the figures of the weights on disk, at the sizes `FULL` and, for the test, `SUBSET`."""
    ar, dlm = load("ar", weights), load("dlm", weights)
    return {"held_out": figures(ar, dlm, tokenizer, FULL), "subset": figures(ar, dlm, tokenizer, SUBSET)}


def _law(logits: Tensor, temperature: float) -> Tensor:
    """Return log-probabilities at a temperature, the ids that are never text banned."""
    logits = logits.float().clone()
    logits[..., list(BANNED)] = -torch.inf
    return functional.log_softmax(logits / temperature, dim=-1)


def _gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return -torch.log(torch.empty(shape).exponential_(generator=generator))


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    log_p = _law(logits, temperature)
    return (log_p + _gumbel(log_p.shape, generator)).argmax(-1)


def _before_eos(ids: list[int]) -> list[int]:
    return ids[: ids.index(EOS_ID)] if EOS_ID in ids else [i for i in ids if i != MASK_ID]


def _complete(ids: list[int]) -> bool:
    """Whether a response is known up to its eos, or up to the length limit."""
    end = ids.index(EOS_ID) if EOS_ID in ids else LIMIT
    return MASK_ID not in ids[:end]


def _chunks(data: Sequence[Row]) -> list[Sequence[Row]]:
    return [data[i : i + ROWS] for i in range(0, len(data), ROWS)]


def main() -> None:
    """Print the figures of the shipped weights as a table."""
    program = "python -m smc_bridge.models.arithmetic.evaluate"
    parser = argparse.ArgumentParser(program, description="Measure the shipped pair.")
    parser.add_argument("--subset", action="store_true", help="only the small subset that the tests recompute")
    options = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    found = figures(load("ar", WEIGHTS), load("dlm", WEIGHTS), load_tokenizer(), SUBSET if options.subset else FULL)
    table = Table("figure", "value", "problems", title="Embedded pair on held-out problems")
    for name, value in found["losses"].items():
        if name != "problems":
            table.add_row(f"{name} loss, nats per token", f"{value:.4f}", str(found["losses"]["problems"]))
    for name, entry in found["accuracy"].items():
        table.add_row(f"{name} accuracy", f"{entry['accuracy']:.1%}", str(entry["problems"]))
    Console().print(table)


if __name__ == "__main__":
    main()
