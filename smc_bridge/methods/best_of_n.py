"""Best of n: whole continuations, of which the one that the AR model finds likeliest is kept.

Its parts are a decoder of the diffusion model (`smc_bridge.canvas`), or the program at w = 0, and one forward of the
AR model on all candidates of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from smc_bridge.blocks import prefix_sum
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.rules import Order, Ordered
from smc_bridge.decode import Decoder
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.presets import LOOKAHEAD, WINDOW, check_pair, smc
from smc_bridge.models.arguments import said, whole_number
from smc_bridge.models.protocols import LanguageModel, ModelPair
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.registry import method
from smc_bridge.requests import Request
from smc_bridge.result import Forwards, Result
from smc_bridge.streams import Role, seeds_apart

WHY = "keeps the likeliest of n"


class State(NamedTuple):
    """P seats.

    Attributes:
        inner: state of the decoder of candidates, whose seats are those of each prompt in a row.
        best: result of each seat, None until its candidates are compared.
    """

    inner: Any
    best: tuple[Result | None, ...]


@dataclass
class BestOf:
    """The likeliest of n candidates under the AR model, as a `Decoder`.

    Attributes:
        inner: decodes candidates, one or several in a seat.
        each: seats of `inner` for each prompt; with seeds of their own.
        target: by whose log-probability candidates are compared, at temperature 1.
        name: for tables.
    """

    inner: Decoder[Any]
    each: int
    target: ARTarget
    name: str

    @property
    def stream(self) -> Role:
        """The stream of random numbers of the candidates."""
        return self.inner.stream

    @property
    def models(self) -> dict[str, LanguageModel]:
        """Both models, by kind."""
        return {**self.inner.models, "autoregressive": self.target.model}

    def open(self, requests: Sequence[Request | None], limit: int) -> State:
        """P seats with their prompts (`Decoder.open`)."""
        return State(self.inner.open(self._candidates(requests), limit), (None,) * len(requests))

    def step(self, state: State) -> State:
        """One more step of all candidates; those of a prompt are compared when all are finished (`Decoder.step`)."""
        inner = self.inner.step(state.inner)
        done = self.inner.finished(inner)
        best = list(state.best)
        whole = [seat for seat in range(len(best)) if best[seat] is None and set(self._seats(seat)) <= set(done)]
        if whole:
            groups = [[self.inner.result(inner, place) for place in self._seats(seat)] for seat in whole]
            for seat, found in zip(whole, self._compared(groups), strict=True):
                best[seat] = found
        return State(inner, tuple(best))

    def finished(self, state: State) -> list[int]:
        """Seats whose candidates are compared (`Decoder.finished`)."""
        return [seat for seat, found in enumerate(state.best) if found is not None]

    def result(self, state: State, seat: int) -> Result:
        """See `Decoder.result`: the best candidate; before they are compared the first, as far as it has come."""
        found = state.best[seat]
        if found is not None:
            return found
        group = [self.inner.result(state.inner, place) for place in self._seats(seat)]
        return self._kept(group, 0, Forwards(), complete=False)

    def reseat(self, state: State, seats: Sequence[int], requests: Sequence[Request | None]) -> State:
        """The state with other prompts in some seats (`Decoder.reseat`)."""
        places = [place for seat in seats for place in self._seats(seat)]
        best = [None if seat in set(seats) else found for seat, found in enumerate(state.best)]
        return State(self.inner.reseat(state.inner, places, self._candidates(requests)), tuple(best))

    def _seats(self, seat: int) -> range:
        """Places of a seat's candidates in the inner decoder."""
        return range(seat * self.each, (seat + 1) * self.each)

    def _candidates(self, requests: Sequence[Request | None]) -> list[Request | None]:
        """Requests of all candidates, each with draws of its own."""
        return [
            None if request is None else request._replace(seed=seed)
            for request in requests
            for seed in (
                [0] * self.each if request is None else seeds_apart([request.prompt] * self.each, request.seed)
            )
        ]

    def _compared(self, groups: Sequence[Sequence[Result]]) -> list[Result]:
        """The best of each group of candidates, by one forward of the AR model on all of them."""
        device = self.target.model.device
        prompts = Prefix.of([group[0].prompt for group in groups], device=device)
        texts = [[text for one in group for text in one.sequences] for group in groups]
        owner = torch.arange(len(groups), device=device).repeat_interleave(
            torch.tensor([len(own) for own in texts], device=device)
        )
        drafts = Prefix.of([text for own in texts for text in own], device=device)
        session = self.target.model.session(prompts.tokens.clamp_min(0), prompts.length)
        law = self.target.law(session.score(owner, drafts.tokens.clamp_min(0)))
        score = prefix_sum(law.at(drafts.tokens), drafts.length).tolist()
        found, first = [], 0
        for group, own in zip(groups, texts, strict=True):
            mine = score[first : first + len(own)]
            first += len(own)
            count = Forwards(0, 0, 1, len(own), len(own) * max(map(len, own)))
            found.append(self._kept(group, mine.index(max(mine)), count, complete=True))
        return found

    def _kept(self, group: Sequence[Result], place: int, scoring: Forwards, *, complete: bool) -> Result:
        """The result of one candidate, with the costs of all: a forward serves all candidates that are not finished."""
        texts = [(one, i) for one in group for i in range(len(one.sequences))]
        one, i = texts[place]
        costs = [each.forwards for each in group]
        total = Forwards.total([replace(cost, dlm_forwards=0, ar_forwards=0) for cost in costs])
        calls = Forwards(max(cost.dlm_forwards for cost in costs), 0, max(cost.ar_forwards for cost in costs))
        return replace(
            one, sequences=[one.sequences[i]], log_weights=[0.0], texts=None if one.texts is None else [one.texts[i]],
            method=self.name, proper=False, reasons=[WHY], forwards=Forwards.total([total, calls, scoring]),
            seconds=max(each.seconds for each in group), trace=[], complete=complete,
            settings={
                **one.settings, "method": self.name, "candidates": len(texts), "exact": False,
                "seed": group[0].settings["seed"], "compared_by": self.target.shaping.settings(),
            },
        )


@method(
    "best-of-n", role="baseline", targets="AR", proper=False, why=WHY, reference="reranking by likelihood",
    aliases=("best-of-<n>",), examples=("best-of-4", "best-of-4,of=ar"),
)
def best_of_n(
    pair: ModelPair, *, n: int = 4, of: Literal["dlm", "ar"] = "dlm", tokens: int = 1,
    order: Order = "left_to_right", temperature: float = 1.0, lookahead: int = LOOKAHEAD, window: int = WINDOW,
    name: str = "best-of-n",
) -> BestOf:
    """n continuations, of which the one with the greatest AR log-probability is kept.

    `argmax_j sum_i log p(x^j_i | c, x^j_<i)` over whole sequences, at temperature 1, by one forward of the AR model on
    all candidates of a prompt; the first of equal ones.

    Role: a biased baseline. As n grows it goes to the AR model's likeliest sequence, not to its law: compare n
    particles with weights `p / q`, of which one is drawn.

    Changed: nothing; it has no exact form but resampling by weights.

    Args:
        n: candidates of each prompt.
        of: whose they are, the diffusion model's by its own decoder, or exact samples of the AR model (drafted by the
            diffusion model, w = 0).
        tokens: places filled per forward, of candidates of the diffusion model.
        order: which of them come first.
        temperature: of the candidates.
        lookahead: masked places per forward of the diffusion model.
        window: places that are open, or verified, at once.
    Raises:
        ValueError: an option out of range, or one of the other kind of candidates.
    """
    check_pair(pair)
    n = whole_number("n", n, remedy="compare at least 1 candidate, a whole number")
    if of not in ("dlm", "ar"):
        raise ValueError(f"of = {said(of)}: give dlm or ar")
    window = whole_number("window", window, remedy="open at least 1 place, a whole number")
    if of == "dlm":
        proposal = DLMProposal(pair.dlm, temperature=temperature, lookahead=lookahead)
        rule = Ordered(order, tokens)
        inner: Decoder[Any] = Canvas(proposal, rule, window, name, getattr(pair, "decode", None))
        return BestOf(inner, n, ARTarget(pair.ar), name)
    for option, value, plain in (("tokens", tokens, 1), ("order", order, "left_to_right")):
        if value != plain:
            raise ValueError(f"{option} = {said(value)} with of = ar, which fills no canvas: leave it out")
    program = smc(
        pair, n, intermediate="target", trigger="never", temperature=temperature, lookahead=lookahead, window=window,
        name=name,
    )
    return BestOf(program, 1, ARTarget(pair.ar), name)
