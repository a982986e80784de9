"""`Proposal`: who drafts; `Draft`: the tokens and their law, which is what a kernel is handed.

A proposal puts forward tokens together with the very conditionals `q_i(. | c, y_<i)` that they were drawn from. It may
*factorise*, as the marginals of a diffusion model do: then q does not depend on the tokens, it outlives a block
(elastic window), and kernels may ask it for more than the draft (a tree walk, weights across lanes). Or it is a
*chain*, where each conditional depends on the draft before it, down to a *path*, where each is a point mass. Every
kernel that only verifies drafts takes all of them (docs/theory, section 3).

A state goes with the sessions of its models: it is opened for the particles of a run, and carried from step to step.

Shapes: R particles of the run, B of one call, K lanes, V window, Q lanes, U rows that the model scored. Those of a
draft count lanes, R = B * K.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.law import Law
from smc_bridge.models.arguments import called, said
from smc_bridge.models.checks import answer, refuse
from smc_bridge.models.host import known
from smc_bridge.models.protocols import LanguageModel
from smc_bridge.plugins import check_tensor, foreign
from smc_bridge.prefix import Prefix
from smc_bridge.randomness import Source


def known_off_draft(proposal: Any) -> bool:
    """Whether a proposal's law is known at continuations that it did not draft: it factorises, or depends on the token
    before alone and says so by an attribute `first_order = True` (its laws are `FirstOrder`)."""
    return bool(proposal.factorised or getattr(proposal, "first_order", False))


class CausalCost(NamedTuple):
    """Forwards of an autoregressive model behind a draft.

    Attributes:
        prompts: which prompt each scored row was for, `[U]`.
        forward: in which forward it was, `[U]`, counted from 0.
        tokens: that were scored in it, `[U]`.
    """

    prompts: Tensor
    forward: Tensor
    tokens: Tensor

    def per_prompt(self, prompts: int) -> tuple[list[int], list[int], list[int]]:
        """Forwards, rows and tokens of each of so many prompts."""
        calls, rows = Cost(self.prompts, self.forward).per_prompt(prompts)
        tokens = np.bincount(known(self.prompts), known(self.tokens), minlength=prompts)
        return calls, rows, tokens.astype(np.int64).tolist()


class Cost(NamedTuple):
    """Forwards of the proposal's model behind a draft, whatever model that is; they are counted as `dlm_forwards`.

    Attributes:
        prompts: which prompt each scored row was for, `[U]`; a row that serves several prompts counts for each.
        forward: in which forward it was, `[U]`, counted from 0.
        fresh: particles that draw from these forwards, indices in increasing order, where others draw from an earlier
            one; None where nobody does.
        causal: forwards of an autoregressive model that drafts besides; they are counted as `ar_forwards`. None for
            none.
    """

    prompts: Tensor
    forward: Tensor
    fresh: Tensor | None = None
    causal: CausalCost | None = None

    def per_prompt(self, prompts: int) -> tuple[list[int], list[int]]:
        """Forwards and rows of each of so many prompts; what one is charged with does not depend on the others."""
        rows = known(self.prompts)
        taken = np.unique(np.stack([rows, known(self.forward)]), axis=1)[0]
        return np.bincount(taken, minlength=prompts).tolist(), np.bincount(rows, minlength=prompts).tolist()


class Draft(NamedTuple):
    """What a proposal hands to a kernel.

    Attributes:
        tokens: LongTensor `[R, V]`; `PAD` where the proposal has no opinion, and q no mass: the kernel then commits a
            token of pi.
        q: `[R, V, A]`, the very conditionals that the tokens were drawn from, along them. A point mass is a law.
        width: LongTensor `[R]`, places that were drafted, from 1 to V; blocks end there at the latest.
        cost: what it took; None where it does not matter.
        lasting: rows whose laws of later places outlive the draft, `[R]` on the host; None where none do. They get no
            bonus token.
        bonus: place of the bonus token of each row, LongTensor `[R]`, -1 where there is none; None where no row has
            one. The engine sets it.
    """

    tokens: Tensor
    q: Law
    width: Tensor
    cost: Cost | None = None
    lasting: npt.NDArray[np.bool_] | None = None
    bonus: Tensor | None = None

    def of_rows(self, rows: Tensor) -> Draft:
        """The draft of rows `rows: [R']`, without what was read of all rows before: `cost` and `lasting`."""
        bonus = None if self.bonus is None else self.bonus[rows]
        return Draft(self.tokens[rows], self.q.of_rows(rows), self.width[rows], bonus=bonus)


class Asked(NamedTuple):
    """What a step asks a proposal to draft.

    Attributes:
        rows: particles, `[B]` indices in increasing order.
        prefix: all R particles, as they are now.
        room: tokens that each of the R may still grow by, `[R]`.
        lanes: K, drafts of each particle.
        window: V, places of a draft at most.
        chunks: how much of a law is computed at a time.
        ahead: places that each of the R is worth a look ahead at, `[R]`, where that is not its room: a draft may be
            shorter than what is known of later places.
    """

    rows: Tensor
    prefix: Prefix
    room: Tensor
    lanes: int
    window: int
    chunks: Chunks
    ahead: Tensor | None = None

    @property
    def reach(self) -> Tensor:
        """Places that are looked ahead at for each of the R particles, `[R]`, before the proposal's own limit."""
        return self.room if self.ahead is None else self.ahead


@runtime_checkable
class Proposal(Protocol):
    """What drafts for the particles of a run, and knows the law of its drafts.

    One whose q is not the law of its drafts says so by an attribute `proper = False`: a labelled baseline. One whose
    drafts end by what they hold (the width of a draft is a function of its tokens up to its last) has besides a method
    `follow(state, asked, lane, block)`, which returns what `along` does and the width of such a draft, `[Q]`: a
    retained sequence stops where its own draft would. Its model's `kind`, for messages, is "diffusion" unless it says
    another. One whose drafts depend on what became of those before, such as their lengths, says `adaptive = True`: its
    states are not taken for equal because their prefixes are.
    """

    @property
    def model(self) -> LanguageModel:
        """The model whose alphabet, end of sequence and positions the drafts have."""
        ...

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens of probability zero under q."""
        ...

    @property
    def factorised(self) -> bool:
        """Whether q does not depend on the draft."""
        ...

    @property
    def covers(self) -> bool:
        """Whether q has mass at every token that is not banned; if not, the intermediate must dominate by itself."""
        ...

    @property
    def identical_lanes(self) -> bool:
        """Whether every lane of a particle draws from the same law."""
        ...

    @property
    def lookahead(self) -> int:
        """M, greatest number of places that are drafted ahead."""
        ...

    def settings(self) -> dict[str, Any]:
        """What shapes its draws, as plain data for saved results."""
        ...

    def check(self, lanes: int) -> None:
        """Raise ValueError unless it can draft that many lanes."""
        ...

    def open(self, prefix: Prefix, *, particles: int) -> Any:
        """The state of R = P * N particles: P prompts, `particles` = N consecutive rows of each."""
        ...

    def draft(self, state: Any, asked: Asked, *, source: Source | None) -> Draft:
        """Draft K lanes for each of B particles.

        Args:
            state: of `open`.
            asked: for whom, and how much.
            source: draws for B * K rows; None where no tokens are wanted, but the law alone (`known_off_draft` only).
        Returns:
            B * K rows; without a source the tokens are all `PAD`.
        """
        ...

    def along(self, state: Any, asked: Asked, lane: Tensor, block: Tensor) -> Law:
        """q along given blocks: of retained sequences, or of sequences whose density is asked for.

        Args:
            state, asked: see `draft`.
            lane: which of the B * K lanes, `[Q]`.
            block: `[Q, V]`.
        Returns:
            `[Q, V, A]`.
        """
        ...

    def commit(self, state: Any, ancestors: Tensor | None, block: Tensor, length: Tensor, whole: Tensor) -> None:
        """Take note of what became of the draft.

        Args:
            ancestors: particle that each of the R comes from, `[R]`; None if each comes from itself.
            block, length: what it has committed, `[R, V]` and `[R]`; length 0 where it took no part.
            whole: whether that was its ancestor's draft to the last place, and more may follow, `[R]`.
        """
        ...

    def reseat(self, state: Any, length: Tensor, rows: Tensor, fresh: Prefix) -> None:
        """Let particles `rows: [B]` hold other prefixes (B rows); `length: [R]` is that of all before."""
        ...


def check_draft(proposal: Proposal, draft: Draft, asked: Asked) -> Draft:
    """Check what a proposal drafts: ids of the alphabet or `PAD`, and laws at the places that it drafted.

    Raises:
        ValueError: naming the proposal, what is wrong, and the first row where it is.
    """
    name = f"{called(proposal)}.draft"
    if not isinstance(draft, Draft):
        raise ValueError(f"{name} returned {said(draft)}: return a Draft(tokens, q, width)")
    rows, size, device = asked.rows.numel() * asked.lanes, proposal.model.vocab_size, asked.rows.device
    check_tensor(draft.tokens, f"{name} (tokens)", (rows, asked.window), "int64", device)
    check_tensor(draft.width, f"{name} (width)", (rows,), "int64", device)
    check_law(draft.q, f"{name} (q)", (rows, asked.window, size))
    if draft.cost is not None and not isinstance(draft.cost, Cost):
        raise ValueError(f"{name} (cost) is {said(draft.cost)}: give a Cost, or None")
    if foreign(proposal.draft):
        refuse(
            ((draft.tokens < -1) | (draft.tokens >= size)).any(-1),
            lambda at: f"{name} returned {said(draft.tokens[at].tolist())} in row {at[0]}: give ids from 0 to "
            f"{size - 1}, or PAD",
        )
        most = asked.room[asked.rows].repeat_interleave(asked.lanes).clamp_max(asked.window)
        refuse(
            (draft.width < 1) | (draft.width > most),
            lambda at: f"{name} (width) is {int(draft.width[at])} in row {at[0]}: draft 1 to {int(most[at])} places",
        )
        _check_masses(draft, name)
        answer()  # the target reads these tokens next
    return draft


def check_law(law: Any, name: str, shape: tuple[int, ...]) -> Law:
    """The law, if it is one of that shape; ValueError naming it otherwise."""
    if not isinstance(law, Law):
        raise ValueError(f"{name} is a {type(law).__name__}: return a law {list(shape)}, as Dense(tensor) is")
    if tuple(law.shape) != shape:
        raise ValueError(f"{name} has shape {list(law.shape)}: return a law {list(shape)}")
    return law


#: How far the mass of a law may be from 1.
ROUND_OFF = 1e-3


def _check_masses(draft: Draft, name: str) -> None:
    """Raise ValueError unless q has mass 1 where a token is drafted, and 0 where the proposal has no opinion.

    Looked at is the first place of each row, and the first without a token.
    """
    place = torch.arange(draft.tokens.shape[1], device=draft.tokens.device)
    silent = (draft.tokens < 0) & (place < draft.width[:, None])
    first = torch.zeros_like(draft.width)
    for position, asked in ((first, ~silent[:, 0]), (silent.to(torch.uint8).argmax(1), silent.any(1))):
        rows = asked.nonzero().flatten()
        if not rows.numel():
            continue
        mass = draft.q.of_rows(rows).row(position[rows]).double().exp().sum(-1)
        wanted = (draft.tokens[rows, position[rows]] >= 0).double()
        refuse(
            ~((mass - wanted).abs() < ROUND_OFF),
            lambda at, rows=rows, mass=mass, wanted=wanted, position=position: (  # type: ignore[misc]
                f"{name} (q) has mass {float(mass[at]):.4g} at place {int(position[rows[at]])} of row "
                f"{int(rows[at])}: give log-probabilities" if wanted[at] else
                f"{name} drafts nothing (PAD) at place {int(position[rows[at]])} of row {int(rows[at])}, where q has "
                f"mass {float(mass[at]):.4g}: give q no mass there"
            ),
        )
