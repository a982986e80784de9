"""Exact tabular models: every conditional of a short sequence is a row of a table, in float64.

`TabularAR` holds `p(x_t | x_<t)` for every prefix of up to `depth` tokens. `TabularDLM` gives the exact marginals of
the next M positions under such a table, `q_i(x_i | c) = sum_{x_<i} p(x_{1:i} | c)`, optionally perturbed: the mean
field that a perfectly trained masked diffusion model would return. Everything can be enumerated, so every claim about
the samplers can be checked to round-off on these.

Positions past `depth` are uniform: a caller with a length limit of at most `depth` never reads them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from smc_bridge.models.arguments import is_list, real_between, said, whole_number, whole_numbers
from smc_bridge.models.ends import EosId, as_eos_id, ends_of
from smc_bridge.models.protocols import MASKED, Scored
from smc_bridge.models.rows import Rows
from smc_bridge.models.tabular_skips import thinned

#: Continuations that an enumeration may list.
ENUMERABLE = 65536
#: Seeds that torch's generator tells apart on the CPU.
SEEDS = 2**32
#: The least of a feature, nats: `log 0` among features would leave no number of what a network makes of them.
LEAST_FEATURE = -100.0


def generator_of(seed: int) -> torch.Generator:
    """The generator of a seed of 32 bits; ValueError if it is none."""
    remedy = f"tables are made from 32 bits, give a whole number from 0 to {SEEDS - 1}"
    found = whole_number("seed", seed, least=0, most=None, remedy=remedy)
    if found >= SEEDS:
        raise ValueError(f"seed = {said(seed)}: {remedy}")
    return torch.Generator().manual_seed(found)


class TabularAR:
    """Autoregressive model whose conditionals are tabulated (implements `CausalLM`).

    Args:
        tables: for each depth d = 0 .. depth-1 the conditionals, `[A**d, A]` with rows in base-A order of the prefix,
            or `[A, .., A]` with an axis for each token; tensors, arrays, or nested lists.
        eos_id: token that ends a sequence, several of them, or None.
        banned_ids: ids to remove from both laws.
    Raises:
        ValueError: a table of another shape or with rows that are no probabilities, or an id outside of the alphabet.
    """

    max_length: int | None = None
    min_length = 0

    def __init__(
        self, tables: Sequence[Any] | Tensor, *, eos_id: EosId = None, banned_ids: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        if not is_list(tables):
            raise ValueError(f"tables = {said(tables)}: give a list with a table for each depth")
        tables = list(tables)
        if not tables:
            raise ValueError("tables is empty: give at least the table of the first token, [1, A]")
        self.tables = [_table(f"tables[{d}]", table, d, device) for d, table in enumerate(tables)]
        size = self.tables[0].shape[1]
        for d, table in enumerate(self.tables):
            if table.shape != (size**d, size):
                raise ValueError(f"tables[{d}] is over {table.shape[1]} tokens: give {size}, as in tables[0]")
        self.depth = len(self.tables)
        self.vocab_size = size
        self.eos_id = as_eos_id(ends_of(eos_id, size))
        self.banned_ids = _ids("banned_ids", banned_ids, size)
        self.device = torch.device(device)
        uniform = torch.full((1, size), 1.0 / size, dtype=torch.float64, device=self.device)
        self._flat = torch.cat([*self.tables, uniform]).log()  # [rows, A], log 0 = -inf
        self._offset = torch.tensor([sum(size**e for e in range(d)) for d in range(self.depth)], device=self.device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size} ids, depth {self.depth}, eos_id {self.eos_id})"

    @classmethod
    def random(
        cls, vocab_size: int, depth: int, *, seed: int, concentration: float = 0.7, eos_id: EosId = None,
        banned_ids: Sequence[int] = (), device: torch.device | str = "cpu",
    ) -> TabularAR:
        """Seeded Dirichlet tables, asymmetric: token a has concentration `concentration * (a + 1)`."""
        vocab_size, depth = whole_number("vocab_size", vocab_size), whole_number("depth", depth)
        generator = generator_of(seed)
        positive = "give a positive number up to 1e6"
        concentration = real_between("concentration", concentration, 0.0, 1e6, remedy=positive, strictly=True)
        alpha = concentration * torch.arange(1, vocab_size + 1, dtype=torch.float64)
        tables = []
        for d in range(depth):
            gamma = torch._standard_gamma(alpha.expand(vocab_size**d, vocab_size), generator=generator)
            gamma = gamma.clamp_min(1e-6)
            tables.append(gamma / gamma.sum(-1, keepdim=True))
        return cls(tables, eos_id=eos_id, banned_ids=banned_ids, device=device)

    @property
    def layers(self) -> int:
        """How many layers `without` can leave out sub-layers of: one for each depth."""
        return self.depth

    def without(self, attention: Sequence[int] = (), mlp: Sequence[int] = ()) -> TabularAR:
        """A table in the place of a model without some layers (`smc_bridge.models.tabular_skips`).

        Args:
            attention, mlp: layers, counted from 0.
        Raises:
            ValueError: there is no such layer.
        """
        tables = thinned(self.tables, attention, mlp)
        return TabularAR(tables, eos_id=self.eos_id, banned_ids=self.banned_ids, device=self.device)

    def session(self, tokens: Tensor, length: Tensor) -> TabularCausalSession:
        """Open a session on prefixes `tokens: [R, S]`, `length: [R]`."""
        return TabularCausalSession(self, tokens, length)

    def log_conditional(self, prefix: Tensor, length: Tensor) -> Tensor:
        """`log p(. | prefix)`: prefixes `[..., S]` with lengths `[...]` -> `[..., A]`."""
        return self._flat[self.row(prefix, length)]

    def row(self, prefix: Tensor, length: Tensor) -> Tensor:
        """Row of the flat table for each prefix: `[..., S]`, `[...]` -> `[...]`."""
        code = torch.zeros_like(length)
        for s in range(prefix.shape[-1]):
            code = torch.where(s < length, code * self.vocab_size + prefix[..., s], code)
        inside = length < self.depth
        start = self._offset[length.clamp(max=self.depth - 1)]
        return torch.where(inside, start + torch.where(inside, code, 0), self._flat.shape[0] - 1)


def _ids(name: str, ids: Sequence[int], size: int) -> tuple[int, ...]:
    """Ids of an alphabet; ValueError if one is none of it."""
    known = f"give ids from 0 to {size - 1}"
    found = tuple(whole_numbers(name, ids, remedy=known))
    if any(not 0 <= i < size for i in found):
        raise ValueError(f"{name} = {said(ids)}: {known}")
    return found


def _table(name: str, table: Any, depth: int, device: torch.device | str) -> Tensor:
    """The conditionals of one depth as `[A**depth, A]` float64."""
    try:
        found = torch.as_tensor(table if isinstance(table, Tensor) else np.asarray(table, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} = {said(table)}: give numbers, rows of one length") from error
    size = found.shape[-1] if found.dim() else 0
    if size == 0 or tuple(found.shape) not in ((size**depth, size), (size,) * (depth + 1)):
        raise ValueError(
            f"{name} has shape {tuple(found.shape)}: give [{size**depth}, {size}], a row of probabilities for each "
            f"prefix of {depth} tokens"
        )
    found = found.to(device=device, dtype=torch.float64).reshape(-1, size)
    if not bool(((found >= 0).all(-1) & ((found.sum(-1) - 1).abs() <= 1e-12)).all()):
        raise ValueError(f"{name} has rows that are not probabilities: normalise them in float64")
    return found


class TabularCausalSession(Rows):
    """Session of a `TabularAR` (implements `CausalSession`); looking up costs nothing, so it keeps no cache."""

    def __init__(self, model: TabularAR, tokens: Tensor, length: Tensor) -> None:
        super().__init__(tokens, length)
        self.model = model

    def score(self, rows: Tensor, drafts: Tensor) -> Tensor:
        """Log-conditionals along drafts, `[B, V, A]`, looked up (`CausalSession.score`)."""
        tokens, length = self.tokens[rows], self.length[rows]
        columns = torch.arange(drafts.shape[1], device=drafts.device)
        whole = torch.cat([tokens, torch.zeros_like(drafts)], dim=1)
        whole = whole.scatter(1, length[:, None] + columns, drafts)  # [B, S + V]
        grown = length[:, None] + columns  # [B, V]
        return self.model.log_conditional(whole[:, None, :].expand(-1, drafts.shape[1], -1), grown)

    def score_tree(self, rows: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        """Log-conditionals after every node, `[B, T + 1, A]`, along its path from the root
        (`CausalSession.score_tree`)."""
        prefix, length = self.tokens[rows], self.length[rows]
        batch, nodes = tokens.shape
        size = self.model.vocab_size
        # Base-A code and depth of every node's whole sequence, parents first.
        code = torch.zeros(batch, nodes + 1, dtype=torch.long, device=tokens.device)
        for s in range(prefix.shape[1]):
            code[:, 0] = torch.where(s < length, code[:, 0] * size + prefix[:, s], code[:, 0])
        depth = length[:, None].repeat(1, nodes + 1)
        every = torch.arange(batch, device=tokens.device)
        for j in range(nodes):
            parent = parents[:, j]
            depth[:, j + 1] = depth[every, parent] + 1
            code[:, j + 1] = code[every, parent] * size + tokens[:, j]
        inside = depth < self.model.depth
        start = self.model._offset[depth.clamp(max=self.model.depth - 1)]
        flat = self.model._flat
        return flat[torch.where(inside, start + torch.where(inside, code, 0), flat.shape[0] - 1)]


class TabularDLM:
    """Exact or perturbed marginals of a `TabularAR` (implements `MaskedDiffusionLM`).

    Args:
        ar: the table whose marginals are given.
        noise: standard deviation, in nats, of the Gaussian perturbation of every log-marginal; 0 gives exact marginals.
        seed: of the perturbation, which is fixed for each (prefix, position, token).
    """

    max_length: int | None = None
    min_length = 0

    def __init__(self, ar: TabularAR, *, noise: float = 0.0, seed: int = 0) -> None:
        if not isinstance(ar, TabularAR):
            raise ValueError(f"ar = {said(ar)}: give a TabularAR, whose marginals these are")
        noise = real_between("noise", noise, 0.0, 1e6, remedy="give a standard deviation of at least 0")
        self.ar = ar
        self.vocab_size = ar.vocab_size
        self.eos_id = ar.eos_id
        self.banned_ids = ar.banned_ids
        self.device = ar.device
        size, depth = ar.vocab_size, ar.depth
        # marginal[d]: [A**d, depth - d, A], by backward recursion over the first of the masked tokens.
        marginal: list[Tensor] = [torch.empty(0)] * depth
        for d in range(depth - 1, -1, -1):
            first = ar.tables[d][:, None, :]
            if d == depth - 1:
                marginal[d] = first
                continue
            later = marginal[d + 1].reshape(size**d, size, depth - d - 1, size)
            marginal[d] = torch.cat([first, torch.einsum("na,namb->nmb", ar.tables[d], later)], dim=1)
        flat = torch.full((ar._flat.shape[0], depth, size), 1.0 / size, dtype=torch.float64, device=self.device)
        for d in range(depth):
            start = int(ar._offset[d])
            flat[start : start + size**d, : depth - d] = marginal[d]
        generator = generator_of(seed)
        shift = torch.randn(flat.shape, generator=generator, dtype=torch.float64).to(self.device)
        self._noise = noise * shift
        self._flat = flat.log() + self._noise
        self._deviation = noise
        #: Size D of a place's features, which are its log-marginals.
        self.hidden_size = self.vocab_size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.ar!r}, noise {self._deviation:g})"

    def session(self, tokens: Tensor, length: Tensor) -> TabularDiffusionSession:
        """Open a session on prefixes `tokens: [R, S]`, `length: [R]`."""
        return TabularDiffusionSession(self, tokens, length)

    def embed(self, tokens: Tensor) -> Tensor:
        """One-hot rows `[..., A]` of token ids `[...]`, zeros of `MASKED` (`FeaturedLM.embed`)."""
        known = (tokens != MASKED)[..., None]
        return torch.nn.functional.one_hot(tokens.clamp_min(0), self.vocab_size).double() * known

    def head(self, hidden: Tensor) -> Tensor:
        """Features `[..., A]` are logits (`FeaturedLM.head`)."""
        return hidden


class TabularDiffusionSession(Rows):
    """Session of a `TabularDLM` (implements `DiffusionSession`)."""

    def __init__(self, model: TabularDLM, tokens: Tensor, length: Tensor) -> None:
        super().__init__(tokens, length)
        self.model = model

    @overload
    def score(self, rows: Tensor, canvas: Tensor, *, hidden: Literal[False] = False) -> Tensor: ...

    @overload
    def score(self, rows: Tensor, canvas: Tensor, *, hidden: Literal[True]) -> Scored: ...

    def score(self, rows: Tensor, canvas: Tensor, *, hidden: bool = False) -> Tensor | Scored:
        """Log-marginals, `[B, M, A]` (`DiffusionSession.score`); as features they are at least `LEAST_FEATURE`."""
        out = self._scores(rows, canvas)
        return Scored(out, out.clamp_min(LEAST_FEATURE)) if hidden else out

    def _scores(self, rows: Tensor, canvas: Tensor) -> Tensor:
        """Log-marginals, `[B, M, A]`; revealed tokens are conditioned on by enumeration."""
        tokens, length = self.tokens[rows], self.length[rows]
        flat = self.model.ar.row(tokens, length)
        lookahead = canvas.shape[1]
        table = self.model._flat[flat]  # [B, depth, A]
        missing = max(0, lookahead - table.shape[1])
        out = torch.nn.functional.pad(table, (0, 0, 0, missing))[:, :lookahead]
        revealed = (canvas >= 0).any(1).nonzero().flatten()
        if revealed.numel():
            out = out.clone()
            out[revealed] = self._condition(rows[revealed], canvas[revealed])
        return out

    def _condition(self, rows: Tensor, canvas: Tensor) -> Tensor:
        """Marginals given the revealed tokens of `canvas: [B, M]`, perturbed where there is none."""
        marginal, lookahead = self.marginals(rows, canvas), canvas.shape[1]
        noise = self.model._noise[self.model.ar.row(self.tokens[rows], self.length[rows])][:, :lookahead]
        noise = torch.nn.functional.pad(noise, (0, 0, 0, lookahead - noise.shape[1]))
        return torch.where((canvas < 0)[..., None], marginal + noise, marginal)

    def marginals(self, rows: Tensor, canvas: Tensor) -> Tensor:
        """Exact log-marginals given the revealed tokens of `canvas: [B, M]`, `[B, M, A]`, by listing all `A**M`
        continuations."""
        batch, lookahead = canvas.shape
        size = self.model.vocab_size
        if size**lookahead > ENUMERABLE:
            raise ValueError(
                f"canvas of {lookahead} positions over {size} tokens has {size**lookahead} continuations, more than "
                f"{ENUMERABLE}: shorten the lookahead"
            )
        every = torch.tensor(list(itertools.product(range(size), repeat=lookahead)), device=canvas.device)
        count = every.shape[0]
        drafts = every.expand(batch, count, lookahead).reshape(-1, lookahead)
        session = TabularCausalSession(self.model.ar, self.tokens, self.length)
        along = session.score(rows.repeat_interleave(count), drafts)
        joint = along.gather(-1, drafts[..., None])[..., 0].sum(-1).reshape(batch, count)
        agree = ((canvas[:, None] < 0) | (canvas[:, None] == every)).all(-1)
        joint = joint.masked_fill(~agree, -torch.inf)
        total = joint.logsumexp(-1, keepdim=True)
        if bool((total == -torch.inf).any()):
            row = int((total[:, 0] == -torch.inf).nonzero()[0])
            raise ValueError(f"canvas {canvas[row].tolist()} has probability 0: reveal tokens that the table allows")
        joint = joint - total
        one_hot = torch.nn.functional.one_hot(every, size).to(joint.dtype)  # [C, M, A]
        return torch.einsum("bc,cma->bma", joint.exp(), one_hot).log()
