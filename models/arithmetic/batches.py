"""Training batches, each a function of (seed, step): a resumed training sees what an uninterrupted one sees."""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from smc_bridge.models.arithmetic.problems import Problem, drill
from smc_bridge.models.arithmetic.recipe import Recipe
from smc_bridge.models.arithmetic.tokenizer import BOS_ID, EOS_ID, MASK_ID, PAD_ID
from smc_bridge.models.arithmetic.wording import PLAIN, Dialect

#: Batches are cut from pools of this many batches' worth of rows, sorted by length, so that little is padding.
POOL = 50


class Encoded(NamedTuple):
    """One problem as token ids.

    Attributes:
        ids: bos, prompt, newline, response, eos.
        start: where the response begins in them.
    """

    ids: list[int]
    start: int


class Batch(NamedTuple):
    """What a network is trained on in one step.

    Attributes:
        inputs: what the network reads, `[R, S]`.
        targets: what it should say at each place, `[R, S]`.
        weights: of the loss at each place, `[R, S]`.
        lengths: real tokens of each row, `[R]`.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    lengths: Tensor


def encode(tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem]) -> list[Encoded]:
    """Return the problems as token ids, in the format of `format_prompt` followed by response and eos."""
    prompts = tokenizer([p.prompt + "\n" for p in problems], add_special_tokens=False)["input_ids"]
    responses = tokenizer([p.response for p in problems], add_special_tokens=False)["input_ids"]
    return [Encoded([BOS_ID, *a, *b, EOS_ID], 1 + len(a)) for a, b in zip(prompts, responses, strict=True)]


class Schedule:
    """Gives the problems and drills that each training step reads."""

    def __init__(
        self, data: Sequence[Encoded], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, dialect: Dialect = PLAIN
    ) -> None:
        self.data, self.tokenizer, self.recipe, self.dialect = data, tokenizer, recipe, dialect
        self.equals = tokenizer.convert_tokens_to_ids("Ġ=")
        self.space = tokenizer.convert_tokens_to_ids("Ġ")
        self.digits = frozenset(tokenizer.convert_tokens_to_ids(list("0123456789")))

    def order(self, stage: str, steps: int, batch: int) -> list[list[int]]:
        """Return the problem indices of every step: shuffled epochs, bucketed by length."""
        rng = random.Random(f"{self.recipe.seed} {stage} order")
        batches: list[list[int]] = []
        while len(batches) < steps:
            epoch = list(range(len(self.data)))
            rng.shuffle(epoch)
            for first in range(0, len(epoch) - batch * POOL + 1, batch * POOL) or [0]:
                pool = sorted(epoch[first : first + batch * POOL], key=lambda i: len(self.data[i].ids))
                cut = [pool[i : i + batch] for i in range(0, len(pool) - batch + 1, batch)]
                rng.shuffle(cut)
                for rows in cut:
                    rng.shuffle(rows)
                batches += cut
        return batches[:steps]

    def result_positions(self, ids: Sequence[int]) -> list[int]:
        """Return the positions of the digits right of an equals sign."""
        found: list[int] = []
        for i, token in enumerate(ids):
            if token == self.equals:
                j = i + 2
                while j < len(ids) and ids[j] in self.digits:
                    found.append(j)
                    j += 1
        return found

    def drill_row(self, rng: random.Random, length: int) -> list[int]:
        """Return bos and as many whole equations as fit into `length` tokens (at least one)."""
        ids = [BOS_ID]
        drills = [drill(rng, self.dialect) for _ in range(max(1, length // 9))]
        texts = self.tokenizer(drills, add_special_tokens=False)["input_ids"]
        for equation in texts:
            if len(ids) > 1 and len(ids) + len(equation) > length:
                break
            ids += equation
        return ids

    def ar_batch(self, step: int, rows: Sequence[int], progress: float) -> Batch:
        """Return the causal batch of a step: `targets[:, i]` is the token after `inputs[:, i]`."""
        rng = random.Random(f"{self.recipe.seed} ar {step}")
        problems = [self.data[i] for i in rows[_drill_rows(self.recipe.ar_drills, progress, len(rows)) :]]
        length = max(len(self.data[i].ids) for i in rows)
        drills = [Encoded(self.drill_row(rng, length), 1) for _ in range(len(rows) - len(problems))]
        tokens, lengths = pad([row.ids for row in problems + drills])
        weights = torch.zeros(tokens.shape)
        for r, row in enumerate(problems + drills):
            weights[r, 1 : row.start] = self.recipe.ar_prompt_weight
            weights[r, row.start : len(row.ids)] = 1.0
            weights[r, self.result_positions(row.ids)] = self.recipe.ar_result_weight
        return Batch(tokens[:, :-1], tokens[:, 1:], weights[:, 1:], lengths - 1)

    def dlm_batch(self, step: int, rows: Sequence[int], progress: float) -> Batch:
        """Return the diffusion batch of a step: `inputs` has masks, `targets` the clean tokens at the same places."""
        seed = self.recipe.seed
        rng, noise = random.Random(f"{seed} dlm {step}"), np.random.default_rng([seed, 2, step])
        problems = [self.data[i] for i in rows[_drill_rows(self.recipe.dlm_drills, progress, len(rows)) :]]
        floor = self.recipe.dlm_long_padding if rng.random() < self.recipe.dlm_long_share else 0
        most = self.recipe.dlm_padding
        made = [self._masked_problem(row, rng, noise, floor + rng.randint(0, most)) for row in problems]
        length = max(len(self.data[i].ids) for i in rows)
        made += [self._masked_drill(self.drill_row(rng, length), rng) for _ in range(len(rows) - len(problems))]
        inputs, lengths = pad([row[0] for row in made])
        targets, _ = pad([row[1] for row in made])
        weights = torch.zeros(targets.shape)
        for r, (_, ids, weight) in enumerate(made):
            weights[r, : len(ids)] = torch.from_numpy(weight).float()
        return Batch(inputs, targets, weights, lengths)

    def _masked_problem(
        self, row: Encoded, rng: random.Random, noise: np.random.Generator, padding: int
    ) -> tuple[list[int], list[int], np.ndarray]:
        recipe, real = self.recipe, len(row.ids)
        ids = row.ids + [EOS_ID] * padding
        uniform = noise.random(len(ids))
        weights = np.ones(len(ids))
        if rng.random() < recipe.dlm_random_share:
            first, share = row.start, 1.0 - rng.random()
            sure = rng.randrange(first, real)
        else:
            results = [i for i in self.result_positions(row.ids) if i >= row.start]
            in_result = bool(results) and rng.random() < recipe.dlm_start_in_result
            first = sure = rng.choice(results) if in_result else rng.randrange(row.start, real)
            share = 1.0 if rng.random() < recipe.dlm_fully_masked else 1.0 - rng.random()
            if rng.random() < recipe.dlm_cut_share:
                ids = ids[: first + rng.randint(*recipe.dlm_cut_window)]
            distance = np.arange(len(weights)) - first
            weights += recipe.dlm_near_weight * np.exp(-np.maximum(distance, 0) / recipe.dlm_near_scale)
        weights[real:] *= recipe.dlm_padding_weight
        masked = uniform < share
        masked[:first], masked[sure] = False, True
        return self._masked(ids, masked[: len(ids)], weights[: len(ids)])

    def _masked_drill(self, ids: list[int], rng: random.Random) -> tuple[list[int], list[int], np.ndarray]:
        masked = np.zeros(len(ids), dtype=bool)
        results = self.result_positions(ids)
        masked[results] = True
        for i in results:
            # Hiding the full stop too makes the network work out how many digits the result has.
            if ids[i + 1] not in self.digits and rng.random() < 0.5:
                masked[i + 1] = True
        return self._masked(ids, masked, np.full(len(ids), self.recipe.dlm_drill_weight))

    @staticmethod
    def _masked(ids: list[int], masked: np.ndarray, weights: np.ndarray) -> tuple[list[int], list[int], np.ndarray]:
        inputs = np.where(masked, MASK_ID, np.asarray(ids)).tolist()
        return inputs, ids, weights * masked


def _drill_rows(plan: Sequence[tuple[float, float]], progress: float, rows: int) -> int:
    """Return how many of a batch's rows are drills at `progress` (0 to 1) of the training."""
    share = next((share for until, share in plan if progress < until), plan[-1][1])
    return round(share * rows)


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the rows padded on the right, `[R, S]`, and their lengths, `[R]`."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), PAD_ID)
    for r, row in enumerate(rows):
        tokens[r, : len(row)] = torch.tensor(row)
    return tokens, lengths
