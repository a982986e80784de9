"""What a run is asked for: `Request`, one prompt with its seed, and the checks that every entry makes of prompts.

Each violation is one line that names argument, value and remedy, and comes before the first forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from smc_bridge.models.arguments import is_list, said, whole_number, whole_numbers
from smc_bridge.models.host import sent
from smc_bridge.models.protocols import LanguageModel
from smc_bridge.prefix import Prefix
from smc_bridge.streams import Role, first_repeat, prompt_generator
from smc_bridge.warn import warn_caller


class Request(NamedTuple):
    """A prompt of a run.

    Attributes:
        place: in the run.
        prompt: token ids.
        seed: with the prompt and the stream, decides its draws.
        stream: of its draws, by what is run.
        retained: for conditional SMC, the continuation to follow.
        keep_drafts: whether the trace of a sampler's run keeps drafts and blocks of all lanes.
    """

    place: int
    prompt: list[int]
    seed: int
    stream: Role
    retained: list[int] | None = None
    keep_drafts: bool = False

    def generator(self) -> torch.Generator:
        """A fresh generator of the request's draws, from the first one on."""
        return prompt_generator(self.seed, self.prompt, role=self.stream)

    def settings(self) -> dict[str, Any]:
        """What a result's settings say of the request's draws: seed, stream, and whether a sequence is retained."""
        retained = {} if self.retained is None else {"retained": True}
        return {"seed": self.seed, "stream": self.stream.value, **retained}


def prompts_of(requests: Sequence[Request | None], *, device: torch.device) -> Prefix:
    """One row for each seat, `[P]`: the prompt, or where nobody sits an empty row that is done."""
    prefix = Prefix.of([[] if request is None else request.prompt for request in requests], device=device)
    return prefix._replace(done=sent(np.array([request is None for request in requests]), device))


def check_tokens(
    sequences: Sequence[Sequence[int]], vocab_size: int, called: Callable[[int], str]
) -> list[list[int]]:
    """Token ids as lists of ints.

    Args:
        called: what each of the sequences is called in a message.
    Raises:
        ValueError: one is no list of whole numbers, or leaves the alphabet.
    """
    name = called(0).split("[")[0]
    if not is_list(sequences) or not hasattr(sequences, "__len__"):
        raise ValueError(f"{name} = {said(sequences)}: give a list with the token ids of each, [pair.encode(text)]")
    remedy = "give token ids, whole numbers, as pair.encode(text) does"
    found = [whole_numbers(called(i), sequence, remedy=remedy) for i, sequence in enumerate(sequences)]
    for i, ids in enumerate(found):
        outside = next((token for token in ids if not 0 <= token < vocab_size), None)
        if outside is not None:
            raise ValueError(
                f"{called(i)} has a token outside 0..{vocab_size - 1}, {outside}: give ids of the models' alphabet"
            )
    return found


def check_room(ids: Sequence[int], model: LanguageModel, kind: str, *, max_new_tokens: int, name: str) -> None:
    """Raise ValueError unless a model can read a prompt and all that may follow it.

    Args:
        ids: of the prompt, which is called `name`.
        kind: of the model, for the message.
        max_new_tokens: length limit of the continuation.
    """
    if len(ids) < getattr(model, "min_length", 0):
        raise ValueError(f"{name} is empty: the {kind} model reads at least one token; give a text, or its bos")
    limit = getattr(model, "max_length", None)
    if limit is None or len(ids) + max_new_tokens <= limit:
        return
    room = limit - len(ids)
    reason = f" ({model.limited_by})" if hasattr(model, "limited_by") else ""
    remedy = f"allow at most {room} new tokens, or shorten the prompt" if room > 0 else "shorten the prompt"
    raise ValueError(
        f"{name} has {len(ids)} tokens, with max_new_tokens = {max_new_tokens} more than the {limit} positions of the "
        f"{kind} model{reason}: {remedy}"
    )


def seeds_of(seed: int | Sequence[int], prompts: int) -> list[int]:
    """One seed for each prompt; ValueError if there are not as many as prompts, or one is no whole number."""
    remedy = "give a whole number, or one per prompt"
    if not is_list(seed):
        return [whole_number("seed", seed, least=None, most=None, remedy=remedy)] * prompts
    seeds = whole_numbers("seed", seed, remedy=remedy)
    if len(seeds) != prompts:
        raise ValueError(f"seed has {len(seeds)} entries for {prompts} prompts: give one, or one per prompt")
    return seeds


def warn_of_repeats(requests: Sequence[Request]) -> None:
    """Warn, once, of a prompt that stands there twice with one seed: its runs have the same draws."""
    repeat = first_repeat([(tuple(request.prompt), request.seed) for request in requests])
    if repeat is not None:
        again, first = repeat
        warn_caller(
            f"prompts[{again}] repeats prompts[{first}] with seed {requests[again].seed}: equal draws; give "
            f"seed=range({len(requests)})",
        )


def check_limit(max_new_tokens: int) -> int:
    """The length limit as an int; ValueError unless it is a whole number of at least 1."""
    return whole_number("max_new_tokens", max_new_tokens, remedy="allow at least 1 token, a whole number")


def limit_that_fits(
    max_new_tokens: int | None, prompts: Sequence[Sequence[int]], models: Iterable[LanguageModel], *, default: int
) -> int:
    """The length limit: what is given, or else `default`, or the positions that are left behind prompts if fewer are.

    Prompts that leave more positions than others keep the default, for what fits one would cut another.
    """
    if max_new_tokens is not None:
        return max_new_tokens
    lengths = [limit for model in models if (limit := getattr(model, "max_length", None)) is not None]
    rooms = {min(lengths) - len(prompt) for prompt in prompts} if lengths else set[int]()
    [room] = rooms if len(rooms) == 1 else [default]
    return room if 0 < room < default else default


def check_prompts(
    prompts: Sequence[Sequence[int]], models: Mapping[str, LanguageModel], *, max_new_tokens: int,
    called: Callable[[int], str] | None = None,
) -> list[list[int]]:
    """The prompts of a run, whatever runs them: every entry comes through here before the first forward.

    Args:
        prompts: token ids of each.
        models: who reads them, by kind ("diffusion", "autoregressive"); their alphabet and positions are the limits. A
            model of which not every list of ids is a text refuses the others by `check_prompt(ids, name)`.
        max_new_tokens: length limit of a continuation.
        called: what each prompt is called in a message, `prompts[i]` by default.
    Raises:
        ValueError: the limit is no number, or a prompt is no list of ids in the models' alphabet, or has no room in
            their positions.
    """
    called = called or "prompts[{}]".format
    limit = check_limit(max_new_tokens)
    ids = check_tokens(prompts, min(model.vocab_size for model in models.values()), called)
    for i, prompt in enumerate(ids):
        for kind, model in models.items():
            if hasattr(model, "check_prompt"):
                model.check_prompt(prompt, called(i))
            check_room(prompt, model, kind, max_new_tokens=limit, name=called(i))
    return ids


def requests_of(
    prompts: Sequence[Sequence[int]], models: Mapping[str, LanguageModel], *, seed: int | Sequence[int],
    max_new_tokens: int, stream: Role,
) -> list[Request]:
    """The requests of a run; `prompts`, `models` and errors as `check_prompts`.

    Args:
        seed: one for all, or one per prompt; a whole number of any size. A prompt that repeats under one seed is told
            by a warning.
        stream: who draws.
    Raises:
        ValueError: also if there is no prompt, or seeds do not fit them.
    """
    ids = check_prompts(prompts, models, max_new_tokens=max_new_tokens)
    if not ids:
        raise ValueError("prompts is empty: give at least one")
    requests = [
        Request(place, prompt, own, stream)
        for place, (prompt, own) in enumerate(zip(ids, seeds_of(seed, len(ids)), strict=True))
    ]
    warn_of_repeats(requests)
    return requests
