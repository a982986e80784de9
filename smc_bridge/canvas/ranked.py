"""The surest k places per forward: static top-k of LLaDA, and the orders of Dream (arXiv 2502.09992, 2508.15487).

    places = the k greatest of   score_i   or   score_i / alg_temp + G_i,   G_i ~ Gumbel

With noise the places are drawn without replacement, each with a probability proportional to exp(score / alg_temp).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smc_bridge.canvas.rules import Commit, Look, foremost
from smc_bridge.canvas.scores import Score, check_score, sureness
from smc_bridge.models.arguments import real_between, true_or_false, whole_number
from smc_bridge.models.protocols import MASKED


@dataclass(frozen=True)
class Ranked:
    """Fill the k places that are surest.

    Attributes:
        score: how sure a place is.
        tokens: k, places per forward.
        alg_temp: temperature of the noise on the score; 0 for none.
        sampled: whether a probability is that of the drawn token, which biases the law of what is committed.
        aligned: fill no more than brings the masks down to the next multiple of `tokens` (Dimple's schedule).
    Raises:
        ValueError: one of them is something else, or noise on a random score.
    """

    score: Score = "probability"
    tokens: int = 1
    alg_temp: float = 0.0
    sampled: bool = False
    aligned: bool = False

    looks_back = False

    def __post_init__(self) -> None:
        set_once: Any = object.__setattr__  # the class is frozen
        set_once(self, "sampled", true_or_false("sampled", self.sampled))
        set_once(self, "aligned", true_or_false("aligned", self.aligned))
        check_score("score", self.score, sampled=self.sampled)
        set_once(self, "tokens", whole_number("tokens", self.tokens, remedy="commit at least 1, a whole number"))
        remedy = "give a temperature of the noise of at least 0"
        set_once(self, "alg_temp", float(real_between("alg_temp", self.alg_temp, 0.0, 1e6, remedy=remedy)))
        if self.alg_temp and self.score == "random":
            raise ValueError(f"alg_temp = {self.alg_temp:g} with score = random, which is noise already: leave it out")

    @property
    def before_sampling(self) -> bool:
        """Whether it decides before tokens are drawn."""
        return not self.sampled

    @property
    def noisy(self) -> bool:
        """Whether it reads noise."""
        return self.score == "random" or self.alg_temp > 0

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        eager = sureness(look, self.score, sampled=self.sampled)
        if self.alg_temp:
            assert look.noise is not None, "a rule that is noisy is given noise"
            tiny = torch.finfo(look.noise.dtype).tiny
            eager = eager.double() / self.alg_temp - (-look.noise.clamp_min(tiny).log()).log()
        return Commit(foremost(eager, look.open, self._count(look)))

    def _count(self, look: Look) -> int | Tensor:
        """How many places are filled in each row, `[R]`."""
        if not self.aligned:
            return self.tokens
        return ((look.canvas == MASKED).sum(1) - 1) % self.tokens + 1
