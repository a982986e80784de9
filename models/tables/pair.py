"""A pair of models of a table's rows: a masked diffusion model over the columns, and one that is autoregressive in
them.

A token is a column (`smc_bridge.models.tables.codec`), so a row is C tokens long and no token ends it. A position gives
`-inf` to all ids that are not of its column: each position has an alphabet of its own, of which neither the program nor
its kernels know. The diffusion model's columns are independent of each other in a forward, which is what a table can
least afford: how columns hang together is the autoregressive model's, at a forward a column.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from smc_bridge.models.arguments import said
from smc_bridge.models.host import arrays, sent
from smc_bridge.models.learned.store import command, load, save
from smc_bridge.models.pair import Pair
from smc_bridge.models.prompts import plain_prompt
from smc_bridge.models.protocols import Scored
from smc_bridge.models.rows import Rows
from smc_bridge.models.tables.codec import Codec
from smc_bridge.models.tables.columns import ColumnNetwork
from smc_bridge.models.tables.row_text import START

WEIGHTS = Path(__file__).with_name("weights")
#: What the files of the networks say that they are.
KIND = "columns"


class ColumnModel:
    """What both models of a table tell: one network, and a position for each column.

    Args:
        network: of the model, in evaluation mode.
    Raises:
        ValueError: it is of the other kind.
    """

    causal: bool
    eos_id = None
    banned_ids: Sequence[int] = ()
    min_length = 0
    limited_by = "a token for each column"

    def __init__(self, network: ColumnNetwork) -> None:
        if network.causal != self.causal:
            raise ValueError(f"network is {'' if network.causal else 'not '}causal: give the other one")
        self.network = network
        self.vocab_size = network.vocab_size
        self.max_length: int | None = len(network.sizes)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.network.parameters())
        return f"{type(self).__name__}({len(self.network.sizes) - 1} columns, {self.vocab_size} ids, {count:,} numbers)"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.head.weight.device

    def check_prompt(self, ids: Sequence[int], name: str) -> None:
        """Raise ValueError unless ids, which are called `name`, begin a row, or are none."""
        if ids and ids[0] != self.bos_id:
            raise ValueError(f"{name} = {said(list(ids))} begins no row: begin with {self.bos_id}, as pair.encode does")
        for j, (token, size) in enumerate(zip(ids[1:], self.network.sizes[1:], strict=False), 1):
            if not 0 <= token < size:
                raise ValueError(f"{name} has {token} for column {j} of the table: give an id below {size}")

    @property
    def bos_id(self) -> int:
        """The token that begins a row."""
        return self.vocab_size - 1


class ColumnDLM(ColumnModel):
    """Marginals of the columns that are masked, given those that are not (implements `MaskedDiffusionLM`)."""

    causal = False

    @property
    def hidden_size(self) -> int:
        """Size D of a place's features."""
        return self.network.head.in_features

    def session(self, tokens: Tensor, length: Tensor) -> ColumnDiffusionSession:
        """Open a session on prefixes `tokens: [R, S]`, `length: [R]`."""
        return ColumnDiffusionSession(self, tokens, length)


class ColumnAR(ColumnModel):
    """Conditionals of each column given those before it (implements `CausalLM`).

    Attributes:
        placed: that a token means something at its own place alone: a text with gaps left out is another one.
    """

    causal = True
    placed = True

    def session(self, tokens: Tensor, length: Tensor) -> ColumnCausalSession:
        """Open a session on prefixes `tokens: [R, S]`, `length: [R]`."""
        return ColumnCausalSession(self, tokens, length)


class ColumnDiffusionSession(Rows):
    """Session of a `ColumnDLM` that recomputes (implements `DiffusionSession`)."""

    def __init__(self, model: ColumnDLM, tokens: Tensor, length: Tensor) -> None:
        super().__init__(tokens.to(model.device), length.to(model.device))
        self.model = model

    @overload
    def score(self, rows: Tensor, canvas: Tensor, *, hidden: Literal[False] = False) -> Tensor: ...

    @overload
    def score(self, rows: Tensor, canvas: Tensor, *, hidden: Literal[True]) -> Scored: ...

    def score(self, rows: Tensor, canvas: Tensor, *, hidden: bool = False) -> Tensor | Scored:
        """Logits of the columns that follow, `[B, M, A]` (`DiffusionSession.score`); every other column is masked."""
        index, masks = arrays(rows, canvas)
        last = len(self.model.network.sizes) - 1
        lengths = np.array(self.lengths, dtype=np.int64)[index]
        whole = np.full((len(index), last + 1), -1)
        width = min(self.texts.shape[1], last + 1)
        known = np.arange(width) < lengths[:, None]
        whole[:, :width] = np.where(known, self.texts[index, :width], -1)
        at = lengths[:, None] + np.arange(masks.shape[1])
        shown, place = ((masks >= 0) & (at <= last)).nonzero()
        whole[shown, at[shown, place]] = masks[shown, place]
        whole[:, 0] = self.model.bos_id  # there is no other token
        network, device = self.model.network, self.model.device
        about = sent(at.clip(max=last), device)
        features = network(sent(whole, device), torch.arange(last + 1, device=device)[None])
        picked = features.gather(1, about[..., None].expand(-1, -1, features.shape[-1]))
        logits = network.logits(picked, about)
        return Scored(logits, picked) if hidden else logits


class ColumnCausalSession(Rows):
    """Session of a `ColumnAR` that recomputes (implements `CausalSession`); a draft is a tree of one branch."""

    def __init__(self, model: ColumnAR, tokens: Tensor, length: Tensor) -> None:
        super().__init__(tokens.to(model.device), length.to(model.device))
        self.model = model

    def score(self, rows: Tensor, drafts: Tensor) -> Tensor:
        """Logits along drafts, `[B, V, A]` (`CausalSession.score`)."""
        [tokens] = arrays(drafts)
        return self._after(rows, tokens[:, :-1], np.broadcast_to(np.arange(tokens.shape[1] - 1), tokens[:, 1:].shape))

    def score_tree(self, rows: Tensor, tokens: Tensor, parents: Tensor) -> Tensor:
        """Logits after every node, `[B, T + 1, A]` (`CausalSession.score_tree`).

        Raises:
            ValueError: shapes that differ, or a parent after its child.
        """
        if tokens.shape != parents.shape:
            raise ValueError(f"tokens {tuple(tokens.shape)} and parents {tuple(parents.shape)}: give both as [B, T]")
        return self._after(rows, *arrays(tokens, parents))

    def _after(self, rows: Tensor, nodes: np.ndarray, parents: np.ndarray) -> Tensor:
        """One forward of prefixes and, behind them, the nodes of their trees, each of which sees its own path."""
        [index] = arrays(rows)
        lengths = np.array(self.lengths, dtype=np.int64)[index][:, None]
        held = max(1, int(lengths.max(initial=0)))
        prefix = np.zeros((len(index), held), dtype=np.int64)
        width = min(held, self.texts.shape[1])
        prefix[:, :width] = self.texts[index, :width]
        lineage = paths(parents)
        column, depth = np.arange(held), lineage.sum(-1)
        sees = np.zeros((len(index), held + nodes.shape[1], held + nodes.shape[1]), dtype=bool)
        sees[:, :held, :held] = column <= column[:, None]
        sees[:, held:, :held] = (column < lengths)[:, None]
        sees[:, held:, held:] = lineage
        places = np.concatenate([np.broadcast_to(column, prefix.shape), lengths + depth - 1], 1)
        about = np.concatenate([lengths, lengths + depth], 1)
        own = np.broadcast_to(held + np.arange(nodes.shape[1]), nodes.shape)
        at = np.concatenate([(lengths - 1).clip(min=0), own], 1)
        network, device, last = self.model.network, self.model.device, len(self.model.network.sizes) - 1
        features = network(
            sent(np.concatenate([prefix, nodes], 1), device), sent(places.clip(max=last), device), sent(sees, device)
        )
        picked = features.gather(1, sent(at, device)[..., None].expand(-1, -1, features.shape[-1]))
        return network.logits(picked, sent(about.clip(max=last), device))


def paths(parents: np.ndarray) -> np.ndarray:
    """The nodes on the path to each node of a tree, bool `[B, T, T]`, itself included.

    Args:
        parents: `[B, T]`; 0 is the root, j + 1 is node j.
    Raises:
        ValueError: a parent does not stand before its child.
    """
    batch, nodes = parents.shape
    if bool(((parents < 0) | (parents > np.arange(nodes))).any()):
        raise ValueError(f"parents = {said(parents.tolist())}: a parent stands before its child")
    seen, every = np.zeros((batch, nodes + 1, nodes), dtype=bool), np.arange(batch)
    for j in range(nodes):
        seen[:, j + 1] = seen[every, parents[:, j]]
        seen[:, j + 1, j] = True
    return seen[:, 1:]


def table_pair(dlm: ColumnNetwork, ar: ColumnNetwork, codec: Codec, *, name: str = "table") -> Pair:
    """A pair of two networks over the columns of one codec, which is its tokenizer.

    Args:
        dlm, ar: the networks, the second of them causal.
        codec: of the table.
        name: of the pair.
    Raises:
        ValueError: a network over other columns, or of the other kind.
    """
    for what, network in (("dlm", dlm), ("ar", ar)):
        if network.sizes != codec.sizes:
            raise ValueError(f"{what} has columns of {said(network.sizes)} ids: the codec has {said(codec.sizes)}")
    return Pair(name, ColumnDLM(dlm), ColumnAR(ar), codec, plain_prompt, example=START)


def save_table_pair(
    pair: Pair, folder: str | os.PathLike[str], *, diffusion: nn.Module | None = None,
    facts: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:
    """Write a pair of a table for `load_table_pair`: `NAME.json` and its networks, in float16, or nothing at all.

    Args:
        pair: of `table_pair`; its name is that of the files.
        folder: made if it is not there.
        diffusion: a TabDiff of the same table. Default: the pair's own, if it has one.
        facts: of the training of "ar", "dlm" and "table_diffusion", for whoever reads the files.
    Raises:
        ValueError: a pair of something else, a name or a folder that is none, or a TabDiff of another table.
    """
    codec, models = pair.tokenizer, {"ar": pair.ar, "dlm": pair.dlm}
    if not isinstance(codec, Codec) or not all(isinstance(model, ColumnModel) for model in models.values()):
        raise ValueError(f"pair = {said(pair)}: give one of table_pair")
    if not pair.name or Path(pair.name).name != pair.name:
        raise ValueError(f"name = {pair.name!r} of the pair: give one that files can have")
    out = Path(folder)
    if out.exists() and not out.is_dir():
        raise ValueError(f"folder = {os.fspath(folder)!r} is a file: give a folder")
    if diffusion is None and "table_diffusion" in pair.learned:
        diffusion = pair.part("table_diffusion")
    if diffusion is not None and getattr(diffusion, "columns", None) != codec.columns:
        raise ValueError(f"diffusion = {said(type(diffusion))}: give a TabDiff of the columns of {pair.name!r}")
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".new-") as fresh:
        for kind, model in models.items():
            assert isinstance(model, ColumnModel)
            save(model.network, Path(fresh, f"{pair.name}-{kind}.safetensors"), kind=KIND, facts=facts.get(kind, {}))
        if diffusion is not None:
            kind = "table_diffusion"
            save(diffusion, Path(fresh, f"{pair.name}-{kind}.safetensors"), kind=kind, facts=facts.get(kind, {}))
        codec.save(Path(fresh, f"{pair.name}.json"))
        for file in sorted(Path(fresh).iterdir()):
            os.replace(file, out / file.name)


def load_table_pair(
    name: str = "adult", *, folder: str | os.PathLike[str] = WEIGHTS, device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Pair:
    """The trained pair of a table: `NAME.json`, its codec, and the networks beside it (`save_table_pair`).

    Raises:
        FileNotFoundError: there is none of that name. ValueError: a file is damaged, or of another table.
    """
    folder = Path(folder)
    file = folder / f"{name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"pair = {name!r}: no {file}; write it by save_table_pair, or {command(KIND)}")
    dlm, ar = (load(folder / f"{name}-{kind}.safetensors", kind=KIND).to(device, dtype) for kind in ("dlm", "ar"))
    assert isinstance(dlm, ColumnNetwork)
    assert isinstance(ar, ColumnNetwork)
    whole = folder / f"{name}-table_diffusion.safetensors"
    return replace(
        table_pair(dlm, ar, Codec.load(file), name=name), learned={"table_diffusion": whole} if whole.is_file() else {}
    )
