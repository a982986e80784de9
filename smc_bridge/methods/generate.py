"""transformers' own `generate` of the AR model, plain or assisted: what a user would pick instead.

One prompt at a time, each with a generator of its own: what transformers draws in a batch depends on the batch, and its
assisted decoding takes one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from smc_bridge.decode import Seat
from smc_bridge.describe import name_of
from smc_bridge.distributions.shaping import check_temperature
from smc_bridge.engine.presets import check_pair
from smc_bridge.facts import UnsuitedError
from smc_bridge.models.arguments import said, whole_number
from smc_bridge.models.ends import ends_of
from smc_bridge.models.loading import quiet
from smc_bridge.models.protocols import LanguageModel, ModelPair
from smc_bridge.registry import method
from smc_bridge.requests import Request
from smc_bridge.result import Forwards, Result
from smc_bridge.streams import Role

#: Least positive temperature, by which transformers divides float32 logits: those of 1e8 stay finite.
COLDEST = 1e-30
#: Tokens of a draft that is copied from the text before, unless it is given.
LOOKUP = 10


class State(NamedTuple):
    """P seats.

    Attributes:
        seats: who sits there, None for nobody.
        forwards: of each seat so far.
        limit: length limit of a continuation, tokens.
    """

    seats: tuple[Seat | None, ...]
    forwards: tuple[Forwards, ...]
    limit: int


@contextmanager
def alone(seed: torch.Generator, models: Sequence[Any], ends: Sequence[int]) -> Iterator[list[Any]]:
    """Run transformers models as if nothing had run before: global draws from a generator's state, and no settings but
    those of the call. Yields the list of the shapes of all logits that they compute.

    Whatever happens, the models are afterwards as they were: their settings, and their depth, which an early exit
    changes.
    """
    shapes: list[Any] = []
    handles = [model.register_forward_hook(lambda *made: shapes.append(made[-1].logits.shape)) for model in models]
    before = [(model.generation_config, getattr(model.config, "num_hidden_layers", None)) for model in models]
    device = models[0].device
    with quiet(progress=True), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(seed.get_state())
        if device.type == "cuda":
            torch.cuda.manual_seed(int(torch.randint(2**62, ())))
        try:
            for model, (own, _) in zip(models, before, strict=True):
                model.generation_config = type(own)(eos_token_id=list(ends) or None, pad_token_id=0)
            yield shapes
        finally:
            for model, (own, depth), handle in zip(models, before, handles, strict=True):
                model.generation_config = own
                if depth is not None:
                    model.config.num_hidden_layers = depth
                handle.remove()


@dataclass
class Generate:
    """transformers' own `generate` as a `Decoder`.

    Attributes:
        pair: of which the AR model decodes.
        temperature: of the target.
        options: of `generate`, that say what assists it.
        assistant: a transformers model that drafts, or None.
        name: for tables.
    """

    pair: Any
    temperature: float
    options: Mapping[str, Any]
    assistant: Any
    name: str

    @property
    def stream(self) -> Role:
        """The stream of random numbers of exact samples."""
        return Role.AR

    @property
    def models(self) -> dict[str, LanguageModel]:
        """The one model that reads the prompts, by its kind."""
        return {"autoregressive": self.pair.ar}

    def open(self, requests: Sequence[Request | None], limit: int) -> State:
        """P seats with their prompts (`Decoder.open`)."""
        return State(tuple(map(Seat.of, requests)), (Forwards(),) * len(requests), limit)

    def step(self, state: State) -> State:
        """The first prompt that is not finished, to its end; transformers knows no other steps (`Decoder.step`)."""
        place, seat = next(
            (place, seat) for place, seat in enumerate(state.seats) if seat is not None and not seat.complete
        )
        ar, prompt = self.pair.ar, seat.request.prompt
        ids = torch.tensor([prompt], device=ar.device)
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        outside = [*ar.banned_ids, *range(ar.vocab_size, ar.columns)]
        models = [ar.model] if self.assistant is None else [ar.model, self.assistant]
        with alone(seat.request.generator(), models, ends_of(ar.eos_id)) as shapes:
            out = ar.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=state.limit,
                suppress_tokens=outside or None, **(drawn if self.temperature else {"do_sample": False}),
                **self.options, **({} if self.assistant is None else {"assistant_model": self.assistant}),
            )
        count = Forwards(0, 0, len(shapes), sum(s[0] for s in shapes), sum(s[0] * s[1] for s in shapes))
        seats, forwards = list(state.seats), list(state.forwards)
        seats[place], forwards[place] = seat.after(out[0, len(prompt) :].tolist(), complete=True), count
        return state._replace(seats=tuple(seats), forwards=tuple(forwards))

    def finished(self, state: State) -> list[int]:
        """Seats whose continuation is complete (`Decoder.finished`)."""
        return [place for place, seat in enumerate(state.seats) if seat is not None and seat.complete]

    def result(self, state: State, seat: int) -> Result:
        """See `Decoder.result`: one continuation of weight one, nothing of one that has not had its turn."""
        own = state.seats[seat]
        assert own is not None, f"nobody sits in seat {seat}"
        settings = {
            "method": self.name, "target": {"temperature": self.temperature}, "exact": True, **self.options,
            "models": {"ar": name_of(self.pair.ar)}, "max_new_tokens": state.limit,
            **({} if self.assistant is None else {"assistant": name_of(self.assistant)}),
        }
        return own.result(settings, forwards=state.forwards[seat], detokenize=getattr(self.pair, "decode", None))

    def reseat(self, state: State, seats: Sequence[int], requests: Sequence[Request | None]) -> State:
        """The state with other prompts in some seats (`Decoder.reseat`)."""
        every, forwards = list(state.seats), list(state.forwards)
        for place, request in zip(seats, requests, strict=True):
            every[place], forwards[place] = Seat.of(request), Forwards()
        return state._replace(seats=tuple(every), forwards=tuple(forwards))


@method(
    "generate", role="exact", targets="AR", proper=True, reference="transformers; arXiv 2211.17192 (assisted)",
    examples=("generate", "generate,assist=prompt-lookup"),
)
def generate(
    pair: ModelPair, *, assist: Literal["prompt-lookup", "early-exit"] | None = None, lookup: int | None = None,
    layers: int | None = None, assistant: Any = None, temperature: float = 1.0, name: str = "generate",
) -> Generate:
    """Samples of the AR model by transformers' own `generate`, plain or assisted, one prompt at a time.

    Plain, a token per forward, `x_i ~ p(. | c, x_<i)`. With prompt lookup a draft is what followed the last tokens
    where they stood before; each `x_i` is drawn from p, as far as it agrees with the draft. With an early exit, or an
    assistant, a draft y is drawn from the model's first layers, or from the other model, and accepted with probability
    `min(1, p(y) / q(y))`, else corrected from `(p - q)_+`.

    Role: an exact sampler of the AR law, for comparison; greedy at temperature 0. Forwards of first layers and of an
    assistant are counted as forwards of the AR model, and positions are those whose logits were computed.

    Changed: nothing in how it draws; settings of the checkpoint, such as a repetition penalty, are left out, for they
    are no part of the target's law.

    Args:
        assist: what drafts, prompt-lookup or early-exit; none for plain sampling.
        lookup: tokens of a draft that is looked up, 10 unless it is given.
        layers: after which the early exit is, half of them unless it is given.
        assistant: a transformers model over the same ids that drafts, an object.
        temperature: of the target, 0 for greedy or at least 1e-30.
    Raises:
        ValueError: options contradict each other.
        UnsuitedError: the pair's AR model is none of transformers.
    """
    check_pair(pair)
    temperature = check_temperature(temperature)
    if 0.0 < temperature < COLDEST:
        remedy = f"give 0 for greedy decoding, or at least {COLDEST:g}, by which transformers can divide float32 logits"
        raise ValueError(f"temperature = {said(temperature)}: {remedy}")
    if assist not in (None, "prompt-lookup", "early-exit"):
        raise ValueError(f"assist = {said(assist)}: give prompt-lookup, early-exit or none")
    for given, value, needs in (("lookup", lookup, "prompt-lookup"), ("layers", layers, "early-exit")):
        if value is not None and assist != needs:
            raise ValueError(f"{given} = {said(value)} with assist = {said(assist)}: leave it out, or give {needs}")
    drafted = whole_number("lookup", LOOKUP if lookup is None else lookup)
    least = whole_number("layers", 1 if layers is None else layers)
    model: Any = getattr(pair.ar, "model", None)
    if not hasattr(model, "generate") or not hasattr(pair.ar, "columns"):
        raise UnsuitedError(
            f"pair = {said(pair)}: its AR model is none of transformers, which alone can generate; give a pair of "
            "checkpoints, or method = ar"
        )
    if assistant is not None:
        assistant = getattr(assistant, "model", assistant) if hasattr(assistant, "columns") else assistant
        size = getattr(getattr(assistant, "config", None), "vocab_size", None)
        if assist is not None or size != model.config.vocab_size:
            remedy = f"give a transformers model of {model.config.vocab_size} ids, and no assist"
            raise ValueError(f"assistant = {said(type(assistant).__name__)} with assist = {said(assist)}: {remedy}")
    options: dict[str, Any] = {}
    if assist == "prompt-lookup":
        options["prompt_lookup_num_tokens"] = drafted
    elif assist == "early-exit":
        depth = model.config.num_hidden_layers
        if least > depth:
            raise ValueError(f"layers = {said(layers)}: give a number of layers from 1 to {depth}")
        options["assistant_early_exit"] = max(1, depth // 2) if layers is None else least
    return Generate(pair, temperature, options, assistant, name)
