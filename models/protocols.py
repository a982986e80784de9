"""What a language model must offer to the sampler: two protocols, each with a session that owns its caches.

A *session* holds R rows, one committed prefix each (of its own length), and offers exactly four things: `score`,
`commit`, `gather` (by ancestor) and `crop`. A session may recompute everything on each `score` or keep caches; callers
cannot tell. `score` takes `rows`, so that K lanes of a particle, or a subset of the particles, are scored against
prefixes that exist once.

Shapes: R rows of the session, B rows of one call, M lookahead, V window, T tree nodes, A alphabet size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.models.ends import EosId

#: Entry of a canvas that is still masked.
MASKED = -1
#: Entry of a canvas where there is no position: rows of one call may draft different numbers of tokens.
ABSENT = -2


class Scored(NamedTuple):
    """Scores of a diffusion model with its features; both may be views of one tensor."""

    logits: Tensor
    """`[B, M, A]`."""
    hidden: Tensor
    """`[B, M, D]`: what the model's head reads to predict each place, of the logits' type."""


class Session(Protocol):
    """Committed prefixes of R rows, and whatever a model caches for them."""

    def commit(self, block: Tensor, length: Tensor) -> None:
        """Append the first `length[r]` tokens of `block[r]` to row r (`block: [R, L]`, `length: [R]`, 0 allowed)."""
        ...

    def gather(self, ancestors: Tensor) -> None:
        """Let row r become a copy of the former row `ancestors[r]` (`[R']`; R' may differ from R)."""
        ...

    def crop(self, length: Tensor) -> None:
        """Forget everything past the first `length[r]` tokens of row r (`[R]`)."""
        ...


class DiffusionSession(Session, Protocol):
    """Session of a masked diffusion model: committed prefixes, and marginals of what follows them."""

    @property
    def has_history(self) -> bool:
        """Whether scores depend on which forwards came before, as those of an approximate cache do."""
        ...

    @overload
    def score(self, rows: Tensor, canvas: Tensor, *, hidden: Literal[False] = False) -> Tensor: ...

    @overload
    def score(self, rows: Tensor, canvas: Tensor, *, hidden: Literal[True]) -> Scored: ...

    def score(self, rows: Tensor, canvas: Tensor, *, hidden: bool = False) -> Tensor | Scored:
        """Logits of the M positions that follow the prefixes of `rows`, one forward.

        Args:
            rows: which prefixes, `[B]`.
            canvas: the M positions after them, `[B, M]`; `MASKED` where the token is not known, `ABSENT` in trailing
                places that a row does not have (their scores are arbitrary).
            hidden: give the features of each position too, of the same forward.
        Returns:
            `[B, M, A]` unnormalised log-marginals of each position given prefix and canvas; with `hidden` these and
            `[B, M, D]` last hidden states, those from which the model's head makes the logits.
        """
        ...


class CausalSession(Session, Protocol):
    """Session of an autoregressive model: committed prefixes, and conditionals along drafts and trees."""

    def score(self, rows: Tensor, drafts: Tensor) -> Tensor:
        """Logits along drafts: entry i is for position i given the prefix and `drafts[:, :i]`.

        Args:
            rows: which prefixes, `[B]`.
            drafts: `[B, V]`; the last token of a draft is never read.
        Returns:
            `[B, V, A]`.
        """
        ...

    def score_tree(self, rows: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        """Logits after every node of a token tree.

        Args:
            rows: which prefixes, `[B]`.
            tokens: token of each node, `[B, T]`.
            parents: index of each node's parent, `[B, T]`: 0 is the root (the prefix), j + 1 is node j. A parent stands
                before its children.
        Returns:
            `[B, T + 1, A]`: entry 0 after the prefix alone, entry j + 1 after the path that ends in node j.
        """
        ...


class LanguageModel(Protocol):
    """What both kinds of model tell about their alphabet and their positions.

    A run is held against the positions before the first forward. A model may also have `limited_by`, a text that says
    what of it sets the limit.
    """

    @property
    def vocab_size(self) -> int:
        """Alphabet size A: the last dimension of every score."""
        ...

    @property
    def eos_id(self) -> EosId:
        """Token that ends a sequence, several of which each does, or None if only the length limit ends them."""
        ...

    @property
    def banned_ids(self) -> Sequence[int]:
        """Ids that are not text (mask, padding, unused rows) and must be removed from both laws."""
        ...

    @property
    def device(self) -> torch.device:
        """Device on which scores are returned."""
        ...

    @property
    def max_length(self) -> int | None:
        """Positions that the model was built for; None for any number."""
        ...

    @property
    def min_length(self) -> int:
        """Fewest tokens that a prefix must have."""
        ...


@runtime_checkable
class MaskedDiffusionLM(LanguageModel, Protocol):
    """Gives independent marginals of the next M positions of ragged prefixes.

    A *block-causal* model says so by an attribute `block_size`, the tokens of a block (None, or no attribute: a place
    sees all others). Blocks are counted from the first token of the prompt, place i sees place j iff
    `j // block_size <= i // block_size`, and nothing is drafted past the block that the first masked place stands in
    (`within_block`).
    """

    @property
    def hidden_size(self) -> int:
        """Size D of a place's features, the last dimension of `Scored.hidden`."""
        ...

    def session(self, tokens: Tensor, length: Tensor) -> DiffusionSession:
        """Open a session on prefixes `tokens: [R, S]`, of which the first `length: [R]` count."""
        ...


@runtime_checkable
class FeaturedLM(MaskedDiffusionLM, Protocol):
    """A diffusion model that lends its embedding and its head to a small network that works on its features.

    One whose output at a column is about the next place says so by an attribute `shift = True`.
    """

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings `[..., E]` of token ids, `[...]`, `MASKED` among them; without gradient."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `[..., A]` of features `[..., D]`; a gradient flows to the features, and to no weight."""
        ...


@runtime_checkable
class CausalLM(LanguageModel, Protocol):
    """Gives next-token logits along drafts of ragged prefixes."""

    def session(self, tokens: Tensor, length: Tensor) -> CausalSession:
        """Open a session on prefixes `tokens: [R, S]`, of which the first `length: [R]` count."""
        ...


class ModelPair(Protocol):
    """A diffusion model and an autoregressive model over one alphabet."""

    @property
    def dlm(self) -> MaskedDiffusionLM:
        """The diffusion model, which gives the proposal."""
        ...

    @property
    def ar(self) -> CausalLM:
        """The autoregressive model, which gives the target."""
        ...


_Numbers = TypeVar("_Numbers", npt.NDArray[np.int64], Tensor)


def within_block(model: Any, length: _Numbers, places: _Numbers) -> _Numbers:
    """How many of the `places` after prefixes of `length` tokens stand in the block of the first of them.

    What a block-causal model says of a later block, while this one is masked, is noise: it was trained on finished
    blocks before it.

    Args:
        model: of whatever kind; all of the places count if it has no `block_size`.
        length, places: integers of one shape, arrays or tensors.
    """
    size = getattr(model, "block_size", None)
    if size is None:
        return places
    inside: _Numbers = places - (places - (size - length % size)).clip(min=0)
    return inside
