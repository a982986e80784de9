"""transformers' own `generate` on a whole batch, prompts padded on the left: AR sampling to compare speeds with.

Its draws depend on the batch, and it knows no refill: who sits together is decoded to the end in one step. So it is no
method of the package, whose own `generate` takes a prompt at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from smc_bridge.decode import Seat
from smc_bridge.models.ends import ends_of
from smc_bridge.models.pairs import Pair
from smc_bridge.models.protocols import LanguageModel
from smc_bridge.registry import method
from smc_bridge.requests import Request
from smc_bridge.result import Forwards, Result
from smc_bridge.streams import Role, derived_seed


class State(NamedTuple):
    """The state of `Generate`.

    Attributes:
        seats: who sits there, None for nobody.
        limit: length limit of a continuation, tokens.
    """

    seats: tuple[Seat | None, ...]
    limit: int


@dataclass
class Generate:
    """transformers' own `generate` as a `Decoder` (`smc_bridge.decode`).

    Attributes:
        pair: of which the AR model decodes.
        temperature: of the target.
        name: for tables.
    """

    pair: Pair
    temperature: float
    name: str = "generate-batch"

    def __post_init__(self) -> None:
        if getattr(self.pair.ar, "model", None) is None:
            raise ValueError(
                f"method = generate-batch: the AR model of the pair {self.pair.name!r} is no transformers model"
            )

    @property
    def stream(self) -> Role:
        """The stream of exact samples."""
        return Role.AR

    @property
    def models(self) -> Mapping[str, LanguageModel]:
        """The one model that reads the prompts, by its kind."""
        return {"autoregressive": self.pair.ar}

    def open(self, requests: Sequence[Request | None], limit: int) -> State:
        """P seats with their prompts (`Decoder.open`)."""
        return State(tuple(map(Seat.of, requests)), limit)

    @torch.inference_mode()
    def step(self, state: State) -> State:
        """See `Decoder.step`: everybody to the end; the draws are those of the first one's seed and all prompts."""
        seated = [(place, seat) for place, seat in enumerate(state.seats) if seat is not None and not seat.complete]
        prompts = [seat.request.prompt for _, seat in seated]
        ar: Any = self.pair.ar
        ends = ends_of(ar.eos_id)
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=ar.device)
        real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=ar.device)
        seed = derived_seed(Role.AR, seated[0][1].request.seed, *(token for prompt in prompts for token in prompt))
        with torch.random.fork_rng():
            torch.manual_seed(seed % 2**64)
            out = ar.model.generate(
                input_ids=ids, attention_mask=real, do_sample=True, temperature=self.temperature, top_k=0, top_p=1.0,
                max_new_tokens=state.limit, eos_token_id=list(ends) or None, pad_token_id=0,
                suppress_tokens=list(ar.banned_ids) or None,
            )
        seats = list(state.seats)
        for (place, seat), row in zip(seated, out[:, width:].tolist(), strict=True):
            # It pads behind the end of sequence.
            count = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            seats[place] = seat.after(row[:count], complete=True)
        return state._replace(seats=tuple(seats))

    def finished(self, state: State) -> list[int]:
        """Seats whose continuation is complete (`Decoder.finished`)."""
        return [place for place, seat in enumerate(state.seats) if seat is not None and seat.complete]

    def result(self, state: State, seat: int) -> Result:
        """One continuation of weight one (`Decoder.result`)."""
        own = state.seats[seat]
        assert own is not None, f"nobody sits in seat {seat}"
        return own.result({"method": self.name}, forwards=Forwards(), detokenize=self.pair.decode)

    def reseat(self, state: State, seats: Sequence[int], requests: Sequence[Request | None]) -> State:
        """The state with other prompts in some seats (`Decoder.reseat`)."""
        every: list[Any] = list(state.seats)
        for place, request in zip(seats, requests, strict=True):
            every[place] = Seat.of(request)
        return state._replace(seats=tuple(every))


@method("generate-batch", role="exact", targets="AR", proper=True, reference="transformers", examples=())
def generate(pair: Pair, *, temperature: float = 1.0, name: str = "generate-batch") -> Generate:
    """Samples of the AR model by transformers' own `generate`.

    Args:
        temperature: of the target.
    """
    return Generate(pair, temperature, name)
