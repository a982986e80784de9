"""The constants of the training recipe, and a fingerprint that ties shipped weights to them."""

import hashlib
import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smc_bridge.models.arithmetic.architecture import ARCHITECTURE, DIFFUSION
from smc_bridge.models.arithmetic.muon import CONSTANTS
from smc_bridge.models.arithmetic.problems import TRAIN_COUNT, TRAIN_SEED, drill, generate
from smc_bridge.models.arithmetic.tokenizer import TOKENIZER_FILE
from smc_bridge.models.arithmetic.wording import DRAFTED, PLAIN, Dialect


@dataclass(frozen=True)
class Stage:
    """Optimisation of one network; rates are peaks, reached linearly, then a cosine down to `final_rate` of them.

    Attributes:
        steps: batches.
        matrix_rate, other_rate: learning rates of Muon (matrices of the layers) and AdamW (all else).
        warmup: steps until the peak.
        final_rate: share of the peak at the last step.
        matrix_decay, other_decay: weight decay of either.
        clip: greatest norm of the gradient.
        batch: rows of a batch.
    """

    steps: int
    matrix_rate: float
    other_rate: float
    warmup: int = 150
    final_rate: float = 0.02
    matrix_decay: float = 0.1
    other_decay: float = 0.01
    clip: float = 1.0
    batch: int = 48


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, given the generator and the architecture.

    What begins with `dlm` has no part in the training of the autoregressive network.

    Weights here are those of the loss at a token. A plan of drills is a list of (until this share of the training,
    share of rows that are bare equations).

    Attributes:
        seed: of initialisation, order and masks.
        ar, dlm: optimisation of either network.
        train_count, train_seed: how many problems are made, and from which stream.
        tokenizer_count: problems that the tokenizer is learnt from, in the plain dialect, which has all the words.
        ar_drills, dlm_drills: plan of drills of either network.
        ar_result_weight, ar_prompt_weight: weights of digits of results, and of the prompt; others have 1.
        dlm_random_share: share of rows that are masked at random places of the response; the others have a clean
            prefix.
        dlm_start_in_result: probability that the masks behind a clean prefix begin in a result.
        dlm_fully_masked: probability that all behind a clean prefix is masked.
        dlm_cut_share, dlm_cut_window: probability that such a row is cut behind the prefix, and after how many tokens.
        dlm_near_weight, dlm_near_scale: further weight of the tokens next to the prefix, and its decay, tokens.
        dlm_padding, dlm_long_padding: most ends of sequence behind a response, and further ones in a long batch.
        dlm_long_share: probability of a long batch.
        dlm_padding_weight: factor of the weight of those ends.
        dlm_drill_weight: weight of masked places of a drill.
    """

    seed: int = 0
    ar: Stage = field(default_factory=lambda: Stage(steps=1_800, matrix_rate=0.02, other_rate=3e-3))
    dlm: Stage = field(default_factory=lambda: Stage(steps=800, matrix_rate=0.012, other_rate=1.2e-3))
    train_count: int = TRAIN_COUNT
    train_seed: int = TRAIN_SEED
    tokenizer_count: int = 20_000

    # Autoregressive stage. Without drills and heavier result digits, arithmetic does not appear within the budget.
    ar_drills: tuple[tuple[float, float], ...] = ((0.12, 0.60), (0.80, 0.25), (1.0, 0.0))  # (until, share of rows)
    ar_result_weight: float = 4.0
    ar_prompt_weight: float = 0.1

    # Diffusion stage. Most rows are what a decoder asks for: a clean prefix and a masked continuation.
    dlm_drills: tuple[tuple[float, float], ...] = ((0.85, 0.30), (1.0, 0.0))
    dlm_random_share: float = 0.25
    dlm_start_in_result: float = 0.5
    dlm_fully_masked: float = 0.70
    dlm_cut_share: float = 0.60
    dlm_cut_window: tuple[int, int] = (8, 40)
    dlm_near_weight: float = 4.0
    dlm_near_scale: float = 3.0
    dlm_padding: int = 24
    dlm_long_share: float = 0.10
    dlm_long_padding: int = 128
    dlm_padding_weight: float = 0.2
    dlm_drill_weight: float = 2.0


def fingerprint(recipe: Recipe, tokenizer_file: Path = TOKENIZER_FILE) -> str:
    """Return the SHA-256 (hex) of recipe, optimiser, architecture, tokenizer and a sample of the generated data."""
    samples = [_sample(recipe, dialect) for dialect in (PLAIN, DRAFTED)]
    return _digest(asdict(recipe), CONSTANTS, ARCHITECTURE, DIFFUSION, _read(tokenizer_file), *samples)


def fingerprint_ar(recipe: Recipe, tokenizer_file: Path = TOKENIZER_FILE) -> str:
    """Return the SHA-256 (hex) of what decides the autoregressive network; its checkpoint outlives other changes."""
    decides = {name: value for name, value in asdict(recipe).items() if not name.startswith("dlm")}
    return _digest(decides, CONSTANTS, ARCHITECTURE, _read(tokenizer_file), _sample(recipe, PLAIN))


def _sample(recipe: Recipe, dialect: Dialect) -> list[Any]:
    rng = random.Random(recipe.train_seed)
    problems = [(p.prompt, p.response, p.answer) for p in generate(200, recipe.train_seed, dialect)]
    return [problems, [drill(rng, dialect) for _ in range(200)]]


def _read(tokenizer_file: Path) -> Any:
    return json.loads(tokenizer_file.read_text(encoding="utf-8"))


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
