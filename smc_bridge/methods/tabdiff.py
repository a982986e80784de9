"""TabDiff (arXiv 2410.20626): rows of a table by one diffusion of its numbers and its categories."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from smc_bridge.decode import Seat
from smc_bridge.engine.presets import check_pair
from smc_bridge.facts import UnsuitedError
from smc_bridge.models.arguments import said
from smc_bridge.models.protocols import LanguageModel, ModelPair
from smc_bridge.models.tables.codec import Codec
from smc_bridge.models.tables.data import Table
from smc_bridge.models.tables.sampler import Known, Sampling, Source, check_guidance, draw
from smc_bridge.models.tables.skipping import Skipping
from smc_bridge.models.tables.tabdiff import TabDiff
from smc_bridge.registry import method
from smc_bridge.requests import Request
from smc_bridge.result import Forwards, Result
from smc_bridge.streams import Role

WHY = "a diffusion of its own, whose rows are cut into bins"


class Drawing(NamedTuple):
    """P seats of one row each.

    Attributes:
        seats: who sits there, None for nobody.
        limit: most tokens of a continuation.
        rows: by seat, as they were drawn.
    """

    seats: tuple[Seat | None, ...]
    limit: int
    rows: dict[int, dict[str, Any]]


@dataclass
class TableDiffusion:
    """Rows of a TabDiff as a `Decoder`: a step goes the whole way from noise to rows.

    Attributes:
        pair: models of the table; its codec cuts rows into tokens.
        codec: of the table.
        model: the diffusion of rows.
        sampling: how rows are drawn.
        guidance: w of the columns that a prompt gives.
        name: for tables.
        stream: of its random numbers.
    """

    pair: ModelPair
    codec: Codec
    model: TabDiff
    sampling: Sampling
    guidance: float
    name: str = "tabdiff"
    stream: Role = Role.DLM

    @property
    def models(self) -> dict[str, LanguageModel]:
        """Whose ids prompts are."""
        return {"diffusion": self.pair.dlm}

    def open(self, requests: Sequence[Request | None], limit: int) -> Drawing:
        """Seats with their prompts (`Decoder.open`)."""
        if any(request is not None and not request.prompt for request in requests):
            raise ValueError("prompts hold an empty one: begin with pair.encode('row:')")
        return Drawing(tuple(map(Seat.of, requests)), limit, {})

    def step(self, state: Drawing) -> Drawing:
        """The rows of all prompts (`Decoder.step`)."""
        waiting = [(place, seat) for place, seat in enumerate(state.seats) if seat is not None and not seat.complete]
        seats, rows = list(state.seats), dict(state.rows)
        for gives in (False, True):  # columns: such rows take other calls, with guidance twice as many
            own = [(place, seat) for place, seat in waiting if (len(seat.request.prompt) > 1) == gives]
            if not own:
                continue
            requests = [seat.request for _, seat in own]
            source = Source(tuple(request.generator() for request in requests), len(requests))
            x, c, calls = draw(self.model, source, self.sampling, self._known(requests) if gives else None)
            table = self.model.decode(x, c)
            for (place, seat), tokens, row in zip(own, self.codec.tokens(table).tolist(), _plain(table), strict=True):
                drawn = tokens[len(seat.request.prompt) :][: state.limit]
                seats[place], rows[place] = seat._replace(tokens=tuple(drawn), forwards=calls, complete=True), row
        return Drawing(tuple(seats), state.limit, rows)

    def finished(self, state: Drawing) -> list[int]:
        """Seats whose row is drawn (`Decoder.finished`)."""
        return [place for place, seat in enumerate(state.seats) if seat is not None and seat.complete]

    def result(self, state: Drawing, seat: int) -> Result:
        """One row (`Decoder.result`); `settings["row"]` is what was drawn, before it was cut into tokens."""
        own = state.seats[seat]
        assert own is not None, f"nobody sits in seat {seat}"
        settings = {
            "method": self.name, "models": {"dlm": type(self.model).__name__}, "guidance": self.guidance,
            "sampling": asdict(self.sampling), "max_new_tokens": state.limit, "row": state.rows.get(seat),
        }
        forwards = Forwards(own.forwards, own.forwards, 0, 0, 0)
        return own.result(
            settings, forwards=forwards, detokenize=getattr(self.pair, "decode", None), reasons=[f"{self.name}: {WHY}"]
        )

    def reseat(self, state: Drawing, seats: Sequence[int], requests: Sequence[Request | None]) -> Drawing:
        """Other prompts in some seats (`Decoder.reseat`)."""
        held = list(state.seats)
        for place, request in zip(seats, requests, strict=True):
            held[place] = Seat.of(request)
        return state._replace(seats=tuple(held), rows={p: row for p, row in state.rows.items() if p not in seats})

    def _known(self, requests: Sequence[Request]) -> Known:
        """The columns that prompts give, the first ones of a row; their numbers are drawn within their bins."""
        if self.sampling.skipping is not None:
            raise ValueError(
                f"growth = {self.sampling.skipping.growth:g} with a prompt that gives columns: leave growth out, or "
                "give the beginning of a row alone"
            )
        tables = []
        for request in requests:
            row = [*request.prompt, *[0] * (len(self.codec.sizes) - len(request.prompt))]
            tables.append(self.codec.rows(torch.tensor([row]), seed=request.seed % 2**32))
        scores, categories = (torch.cat(parts) for parts in zip(*map(self.model.encode, tables), strict=True))
        given = torch.tensor([len(request.prompt) - 1 for request in requests], device=self.model.device)[:, None]
        of_kind = {
            kind: torch.tensor([j for j, c in enumerate(self.codec.columns) if c.kind == kind], device=given.device)
            for kind in ("number", "category")
        }
        known = of_kind["number"] < given, of_kind["category"] < given
        return Known(scores, categories, *known, guidance=self.guidance)


def _plain(table: Table) -> list[dict[str, Any]]:
    """Rows as plain data."""
    held = {
        c.name: [c.values[i] for i in table.of(c.name).tolist()] if c.kind == "category" else table.of(c.name).tolist()
        for c in table.columns
    }
    return [dict(zip(held, row, strict=True)) for row in zip(*held.values(), strict=True)]


@method(
    "tabdiff", role="baseline", targets="the law of TabDiff's rows", proper=False, reference="arXiv 2410.20626",
    why=WHY, examples=(), published="seven tables: pair-wise correlations up to 22.5 % better than before (abstract)",
)
def tabdiff(
    pair: ModelPair, *, steps: int = 50, churn: float = 1.0, heun: bool = True, guidance: float = 0.0,
    growth: float | None = None, model: str | os.PathLike[str] | nn.Module | None = None,
) -> TableDiffusion:
    """Rows of a table, from noise: numbers by a diffusion of normal noise, categories by one of masks, in one network.

    A row's numbers, as normal scores, are seen through noise of level `sigma_j(t) = (a + t (b - a))^rho_j`, with
    `a, b = .002^(1/rho_j), 80^(1/rho_j)`, and its categories are masked with probability `t^k_j`; each column has
    learnt its own pace. From t = 1, each of `steps` steps goes back a little (churn, to `1 + churn / steps` times the
    noise), then moves the numbers along `dx / dsigma = (x - D(x)) / sigma` by Heun's method, where D is the network's
    clean row, and lifts masks with probability `1 - m(s) / m(t)`. The columns that a prompt gives are shown clean;
    `guidance` w sharpens what the others learn from them, `(1 + w) l_all - w l_y` for logits and for clean numbers. The
    rows are cut into the pair's tokens; as they were drawn they stand in `settings["row"]`.

    Role: a biased baseline for the AR law, on pairs of models of a table alone: it has no density of its rows, so no
    weight can correct them. Every call of its network counts as a forward of the diffusion model.

    Changed: one network for the laws with and without known columns, where the authors have two, of about a twentieth
    of their size and without the time as an input; numbers enter as normal scores. In training, k and rho are softplus
    + 0.1 (theirs + 1 and + 5), k has a score function for their straight-through Gumbel-softmax, the loss of numbers
    keeps its weight where theirs falls to 0, and weights decay. Times are 1 / steps apart; theirs 1 / (steps - 1), with
    a last step from the least noise. With `growth`, Spectrum's forecast (arXiv 2603.01623) of the numbers' features as
    published: 5 steps call the network, then one in a window of 2, 2 + growth, .. steps, and masks are lifted there
    alone.

    Args:
        pair: models of a table.
        steps: from noise to rows, at least 2.
        churn: how far a step goes back, as a share churn / steps of its noise; 0 for none.
        heun: whether a second call corrects each step of the numbers.
        guidance: w, at least 0.
        growth: of the windows in which one step calls the network, 0.75 or 3 as published; none calls it at each.
        model: file of a TabDiff of this table, or the network; the pair's own unless it is given.
    Raises:
        ValueError: an argument out of range, or the pair has no TabDiff and none is given, or of another table.
        UnsuitedError: the pair's tokens are not columns of a table.
    """
    check_pair(pair)
    check_guidance(guidance)
    sampling = Sampling(steps, churn, heun, None if growth is None else Skipping(growth=growth))
    codec = getattr(pair, "tokenizer", None)
    if not isinstance(codec, Codec):
        raise UnsuitedError(f"pair = {said(pair)}: its tokens are not columns of a table; give load_pair('adult')")
    part: Any = getattr(pair, "part", None)
    network = model if isinstance(model, nn.Module) or part is None else part("table_diffusion", model)
    if not isinstance(network, TabDiff) or network.columns != codec.columns:
        raise ValueError(f"model = {said(model)}: give a TabDiff of the columns of {said(getattr(pair, 'name', pair))}")
    return TableDiffusion(pair, codec, network, sampling, guidance)
