"""Ancestral sampling from the autoregressive model: exact, with weight one, and one forward per token.

    x_i ~ p(. | c, x_<i),   i = 1, 2, ..  up to the end of sequence or the length limit
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.decode import OnResult, Seat, decode
from smc_bridge.describe import name_of
from smc_bridge.distributions.target import ARTarget, as_target
from smc_bridge.engine.presets import check_pair
from smc_bridge.models.arguments import check_callable, check_text
from smc_bridge.models.ends import ends_of
from smc_bridge.models.protocols import CausalSession, LanguageModel, ModelPair
from smc_bridge.models.rows import reseat
from smc_bridge.registry import method
from smc_bridge.requests import Request, prompts_of
from smc_bridge.result import Forwards, Result
from smc_bridge.sampling import inverse_cdf
from smc_bridge.streams import Role


class ARState(NamedTuple):
    """P seats of one row each.

    Attributes:
        seats: who sits there, None for nobody.
        session: holds prompt and tokens of every seat.
        uniforms: all draws of each prompt, `[P, T]` float64 on the CPU; T is the length limit.
    """

    seats: tuple[Seat | None, ...]
    session: CausalSession
    uniforms: Tensor


@dataclass
class ARSampling:
    """Exact ancestral samples of a target, as a `Decoder`.

    Attributes:
        target: the law; it must have no potential, which ancestral sampling cannot follow.
        name: for tables.
        detokenize: from a continuation's ids to its text.
    """

    target: ARTarget
    name: str = "AR"
    detokenize: Callable[[list[int]], str] | None = None

    def __post_init__(self) -> None:
        check_text("name", self.name)
        check_callable("detokenize", self.detokenize, "a function of a list of ids")
        if self.target.potential is not None:
            raise ValueError("target has a potential: ancestral samples do not follow it, use smc")

    @property
    def stream(self) -> Role:
        """The stream of random numbers of exact samples."""
        return Role.AR

    @property
    def models(self) -> dict[str, LanguageModel]:
        """The one model that reads the prompts, by its kind."""
        return {"autoregressive": self.target.model}

    def open(self, requests: Sequence[Request | None], limit: int) -> ARState:
        """P seats with their prompts and all their uniforms (`Decoder.open`)."""
        prefix = prompts_of(requests, device=self.target.model.device)
        session = self.target.model.session(prefix.tokens.clamp_min(0), prefix.length)
        uniforms = torch.zeros(len(requests), limit, dtype=torch.float64)
        return _with(ARState((None,) * len(requests), session, uniforms), range(len(requests)), requests)

    def step(self, state: ARState) -> ARState:
        """One more token for every prompt, by one forward (`Decoder.step`)."""
        seated = [(place, seat) for place, seat in enumerate(state.seats) if seat is not None and not seat.complete]
        model, limit = self.target.model, state.uniforms.shape[1]
        places = torch.tensor([place for place, _ in seated])
        used, rows = torch.tensor([seat.forwards for _, seat in seated]), places.to(model.device)
        blank = torch.zeros(len(state.seats), 1, dtype=torch.long, device=model.device)
        law = self.target.log_probs(state.session.score(rows, blank[rows])[:, 0])
        token = inverse_cdf(law, state.uniforms[places, used].to(model.device))
        state.session.commit(blank.index_copy(0, rows, token[:, None]), blank[:, 0].index_fill(0, rows, 1))
        seats, ends = list(state.seats), ends_of(model.eos_id)
        for (place, seat), drawn in zip(seated, token.tolist(), strict=True):
            tokens = (*seat.tokens, drawn)
            seats[place] = seat.after(tokens, complete=drawn in ends or len(tokens) == limit)
        return state._replace(seats=tuple(seats))

    def finished(self, state: ARState) -> list[int]:
        """Seats whose continuation has ended (`Decoder.finished`)."""
        return [place for place, seat in enumerate(state.seats) if seat is not None and seat.complete]

    def result(self, state: ARState, seat: int) -> Result:
        """See `Decoder.result`: one continuation of weight one."""
        own = state.seats[seat]
        assert own is not None, f"nobody sits in seat {seat}"
        settings = {
            "method": self.name, "target": self.target.shaping.settings(),
            "models": {"ar": name_of(self.target.model)}, "exact": True, "max_new_tokens": state.uniforms.shape[1],
        }
        forwards = Forwards(0, 0, own.forwards, own.forwards, own.forwards)
        return own.result(settings, forwards=forwards, detokenize=self.detokenize)

    def reseat(self, state: ARState, seats: Sequence[int], requests: Sequence[Request | None]) -> ARState:
        """The state with other prompts in some seats (`Decoder.reseat`)."""
        device = self.target.model.device
        held = [0 if seat is None else len(seat.request.prompt) + len(seat.tokens) for seat in state.seats]
        rows, fresh = torch.tensor(seats, device=device), prompts_of(requests, device=device)
        reseat(state.session, torch.tensor(held, device=device), rows, fresh.tokens, fresh.length)
        return _with(state, seats, requests)


def _with(state: ARState, places: Iterable[int], requests: Sequence[Request | None]) -> ARState:
    """The state with prompts before their first token in some seats; their draws are made at once."""
    seats, uniforms = list(state.seats), state.uniforms.clone()
    for place, request in zip(places, requests, strict=True):
        seats[place] = Seat.of(request)
        if request is not None:
            uniforms[place].uniform_(generator=request.generator())
    return state._replace(seats=tuple(seats), uniforms=uniforms)


@method("ar", role="exact", targets="AR", proper=True, reference="ancestral sampling")
def ar(pair: ModelPair, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None) -> ARSampling:
    """Exact samples of the autoregressive model, one token per forward.

    Args:
        pair: the models, of which the autoregressive model decodes.
        temperature: of the target; 0 is greedy.
        top_p: of the target.
        top_k: of the target, none keeps all tokens.
    """
    check_pair(pair)
    target = ARTarget(pair.ar, temperature=temperature, top_p=top_p, top_k=top_k)
    return ARSampling(target, "ar", getattr(pair, "decode", None))


def ar_sampling(
    target: ARTarget | ModelPair, prompts: Sequence[Sequence[int]], *, seed: int | Sequence[int] = 0,
    max_new_tokens: int = 256, batch: int | None = None, on_result: OnResult | None = None,
    detokenize: Callable[[list[int]], str] | None = None, name: str = "AR",
) -> list[Result]:
    """Exact ancestral samples of the target, one per prompt and one token per forward.

    Args:
        target: or a pair of models, whose AR model at temperature 1 is it (and whose `decode` makes texts).
        seed, batch, on_result: as for `Sampler.run`; under one seed the samples are independent of a sampler's runs.
    Raises:
        ValueError: the target has a potential (ancestral sampling cannot follow it), or an argument is out of range.
        Interrupted: see `Sampler.run`, also for other errors.
    """
    texts = getattr(target, "decode", None) if detokenize is None else detokenize
    decoder = ARSampling(as_target(target), name, texts)
    return decode(decoder, prompts, seed=seed, max_new_tokens=max_new_tokens, batch=batch, on_result=on_result)
