"""How sure a diffusion model is of each place: what rules of the confidence family rank and threshold.

    probability   max_a q(a), or q(x) of a token x that was drawn
    margin        q(first) - q(second) of the two likeliest tokens
    entropy       -H(q) = sum_a q(a) log q(a), nats
    random        a uniform number of the prompt's own

All are read from the model's own law, at temperature 1 and without truncation: at temperature 0.2 nearly every place
looks certain. A probability of the *drawn* token is known only after sampling: which places are committed then depends
on what was drawn there, and the committed token's law is no longer its marginal.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor

from smc_bridge.canvas.rules import Look
from smc_bridge.models.arguments import said
from smc_bridge.sampling import entropy

#: Ways of being sure.
Score = Literal["probability", "margin", "entropy", "random"]


def check_score(name: str, value: Any, *, sampled: bool = False) -> None:
    """Raise ValueError unless `value` is a score, and, if it is to be of drawn tokens, one that there is of them."""
    if value not in get_args(Score):
        raise ValueError(f"{name} = {said(value)}: give one of {', '.join(get_args(Score))}")
    if sampled and value != "probability":
        raise ValueError(f"sampled = True with {name} = {value}, which reads no token: leave it out")


def probability(look: Look, *, sampled: bool = False) -> Tensor:
    """Probability of each place's likeliest token, or of the one that was drawn there, `[R, T]`."""
    if not sampled:
        return look.log_q_plain.amax(-1).exp()
    assert look.tokens is not None, "a rule that decides after sampling sees tokens"
    return look.log_q_plain.gather(-1, look.tokens[..., None])[..., 0].exp()


def sureness(look: Look, score: Score, *, sampled: bool = False) -> Tensor:
    """How sure each place is, `[R, T]`: greater is surer (module docstring)."""
    if score == "random":
        assert look.noise is not None, "a rule that is noisy is given noise"
        return look.noise
    if score == "entropy":
        return -entropy(look.log_q_plain)
    if score == "margin":
        two = look.log_q_plain.exp().topk(min(2, look.log_q_plain.shape[-1])).values
        return two[..., 0] - (two[..., 1] if two.shape[-1] == 2 else 0.0)
    return probability(look, sampled=sampled)
