"""Which layers of a causal model to leave out of the one that drafts for it: a seeded search over 2 L booleans.

A set of sub-layers is judged on texts x that the model itself continues, by one forward of either model along them. A
token drafted at place t by r would be accepted with probability `a_t = sum min(p_t, r_t)`. A round that drafts n tokens
brings `1 + a_t + a_t a_{t+1} + ...` (n terms) and costs n forwards of what is left and one of the whole, so that

    worth = max over n <= V of  tokens(n) / (1 + n (2 L - left out) / 2 L)

tokens per forward of the whole model, counted in layers and not in seconds: the same on every machine. 1 is ancestral
sampling. The search begins with `usual_skips` and keeps a change of one or two sub-layers where it is worth more, a
(1 + 1) evolution strategy of so many trials. (Zhang et al. 2023, arXiv 2309.08168, search by Bayesian optimisation of
seconds per token, 1,000 iterations.)

Shapes: R texts, T tokens of each, A alphabet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smc_bridge.distributions.shaping import Shaping
from smc_bridge.models.arguments import is_list, said, whole_number
from smc_bridge.models.ends import ends_of, is_end
from smc_bridge.models.protocols import CausalLM
from smc_bridge.prefix import Prefix
from smc_bridge.sampling import inverse_cdf

#: Texts that a set is judged on, and tokens of each at most.
TEXTS, TOKENS = 8, 48


class Skips(NamedTuple):
    """Sub-layers that are left out.

    Attributes:
        attention, mlp: layers of either, in increasing order.
    """

    attention: tuple[int, ...]
    mlp: tuple[int, ...]


class Texts(NamedTuple):
    """Texts that a set is judged on.

    Attributes:
        prefix: what they continue, R rows.
        tokens: the continuations, `[R, T]`.
        inside: which of them count, BoolTensor `[R, T]`.
        probs: the model's own laws along them, `[R, T, A]`.
    """

    prefix: Prefix
    tokens: Tensor
    inside: Tensor
    probs: Tensor


def layers_to_skip(model: Any) -> int:
    """L, the layers of a model that can leave out sub-layers.

    Raises:
        ValueError: it cannot.
    """
    layers = getattr(model, "layers", 0) if hasattr(model, "without") else 0
    if not isinstance(layers, int) or layers < 1:
        raise ValueError(
            f"ar = {said(model)} has no layers that could be left out: give draft, another causal model of its alphabet"
        )
    return layers


def usual_skips(layers: int) -> Skips:
    """Attention and MLP of every third layer, but for the first and the last: what is left out without a search."""
    middle = tuple(range(1, layers - 1))[1::3] or tuple(range(1, layers - 1))[:1]
    return Skips(middle, middle)


@torch.inference_mode()
def own_texts(model: CausalLM, prompts: Sequence[Sequence[int]], law: Shaping, rng: np.random.Generator) -> Texts:
    """Continuations of the prompts that the model draws, with its laws along them."""
    prefix = Prefix.of([list(prompt) for prompt in prompts], device=model.device)
    limit = min(TOKENS, getattr(model, "depth", TOKENS))  # a table knows no more
    if model.max_length is not None:
        limit = max(1, min(limit, model.max_length - int(prefix.length.max())))
    session, rows = _session(model, prefix)
    columns, laws = list[Tensor](), list[Tensor]()
    for _ in range(limit):
        log_p = law.log_probs(session.score(rows, rows[:, None].new_zeros(rows.numel(), 1))[:, 0])
        uniform = torch.from_numpy(rng.random(rows.numel())).to(log_p.device)
        columns.append(inverse_cdf(log_p, uniform))
        laws.append(log_p.exp())
        session.commit(columns[-1][:, None], torch.ones_like(rows))
    tokens = torch.stack(columns, 1)
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    if ends := ends_of(model.eos_id):
        ended = is_end(tokens, ends)
    inside = (ended.long().cumsum(1) - ended.long()) == 0
    return Texts(prefix, tokens, inside, torch.stack(laws, 1))


@torch.inference_mode()
def worth(drafter: CausalLM, texts: Texts, law: Shaping, *, window: int, share: float) -> float:
    """Tokens per forward of the whole model where `drafter` drafts (module docstring).

    Args:
        drafter: what is left of the model.
        texts: of the model.
        law: temperature and banned ids of both.
        window: V, tokens drafted at most.
        share: what a forward of the drafter costs, in forwards of the whole.
    """
    session, rows = _session(drafter, texts.prefix)
    probs = law.log_probs(session.score(rows, texts.tokens)).exp()
    accepted = torch.minimum(texts.probs, probs).sum(-1).double() * texts.inside
    reached, tokens, best = texts.inside.double(), 0.0, 0.0
    for n in range(1, window + 1):
        tokens += float(reached.sum()) / float(texts.inside.sum())
        best = max(best, tokens / (1.0 + n * share))
        ahead = min(n - 1, accepted.shape[1])
        reached = reached * torch.nn.functional.pad(accepted[:, ahead:], (0, ahead))
    return best


def search(
    model: Any, *, trials: int, seed: int = 0, window: int = 8, temperature: float = 1.0,
    prompts: Sequence[Sequence[int]] | None = None,
) -> tuple[Skips, float]:
    """The sub-layers whose absence is worth most among so many that were tried, and what it is worth.

    Args:
        model: causal, with `layers` and `without`.
        trials: sets that are tried after the first; 0 for that alone.
        seed: of the texts and of what is tried.
        window: V, tokens drafted at most.
        temperature: of both models; at 0 that at temperature 1 is judged.
        prompts: token ids that the texts continue; by default the model's own beginning.
    Raises:
        ValueError: an argument out of range, or a model without layers to leave out.
    """
    layers, trials = layers_to_skip(model), whole_number("search", trials, least=0)
    seed = whole_number("search_seed", seed, least=0, most=None)
    rng = np.random.default_rng(seed)
    law = Shaping(temperature or 1.0, banned_ids=tuple(model.banned_ids))
    texts = own_texts(model, [_start(model)] * TEXTS if prompts is None else prompts, law, rng)

    def judged(left_out: np.ndarray) -> float:
        """What a set `[2 L]` is worth."""
        skips = _skips(left_out)
        share = 1.0 - left_out.sum() / (2 * layers)
        return worth(model.without(*skips), texts, law, window=window, share=share)

    best = np.zeros(2 * layers, dtype=bool)
    for kind, chosen in enumerate(usual_skips(layers)):
        best[[kind * layers + layer for layer in chosen]] = True
    most = judged(best)
    for _ in range(trials):
        other = best.copy()
        flipped = rng.choice(2 * layers, size=rng.integers(1, 3), replace=False)
        other[flipped] ^= True
        if other[:layers].all():  # some attention must be left
            continue
        if (found := judged(other)) > most:
            best, most = other, found
    return _skips(best), most


def drafter_of(
    model: Any, *, attention: int | Sequence[float] | None = None, mlp: int | Sequence[float] | None = None,
    trials: int = 0, seed: int = 0, window: int = 8, temperature: float = 1.0,
    prompts: Sequence[Sequence[int]] | None = None,
) -> CausalLM:
    """What is left of a model without the sub-layers that are named, or found by `search`; `usual_skips` by default.

    Args:
        attention, mlp: layers, one or several; where one of them is given the other is none by default.
        model, trials, seed, window, temperature, prompts: see `search`.
    Raises:
        ValueError: sub-layers are named and searched for, or as `search`.
    """
    layers_to_skip(model)
    named = attention is not None or mlp is not None
    if named and trials:
        raise ValueError(
            f"search = {said(trials)} with attention = {said(attention)} and mlp = {said(mlp)}: name what is left out, "
            "or search for it"
        )
    if named:
        left_out = Skips(_layers("attention", attention), _layers("mlp", mlp))
    else:
        left_out, _ = search(
            model, trials=trials, seed=seed, window=window, temperature=temperature, prompts=prompts
        ) if trials else (usual_skips(layers_to_skip(model)), 0.0)
    found: CausalLM = model.without(*left_out)
    return found


def _layers(name: str, value: Any) -> tuple[int, ...]:
    """Layers as they are written: none, one, or several, which a command line gives as numbers."""
    given = () if value is None else tuple(value) if is_list(value) else (value,)
    if any(isinstance(layer, float) and not layer.is_integer() for layer in given):
        raise ValueError(f"{name} = {said(value)}: give layers, whole numbers counted from 0")
    return tuple(int(layer) if isinstance(layer, float) else layer for layer in given)


def _skips(left_out: np.ndarray) -> Skips:
    """A set `[2 L]` of booleans, attention first, as layers."""
    attention, mlp = (tuple(half.nonzero()[0].tolist()) for half in np.split(left_out, 2))
    return Skips(attention, mlp)


def _session(model: CausalLM, prefix: Prefix) -> tuple[Any, Tensor]:
    """A session on the prefixes, and all of its rows."""
    rows = torch.arange(prefix.length.numel(), device=prefix.length.device)
    return model.session(prefix.tokens.clamp_min(0), prefix.length), rows


def _start(model: Any) -> list[int]:
    """What the model's own texts begin with: nothing, its bos, or the first id that is text."""
    if model.min_length == 0:
        return []
    config = getattr(getattr(model, "model", None), "config", None)
    bos = getattr(config, "bos_token_id", None)
    if isinstance(bos, int) and 0 <= bos < model.vocab_size:
        return [bos]
    silent = {*model.banned_ids, *ends_of(model.eos_id)}
    return [next(i for i in range(model.vocab_size) if i not in silent)]
