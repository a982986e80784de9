"""TabDiff: rows of numbers and categories by one diffusion of both (Shi et al., arXiv 2410.20626, ICLR 2025).

Numbers, as normal scores (`marginals`), are seen through normal noise, `x + sigma_j(t) e`, categories behind masks with
probability `m_j(t) = t^k_j`; each column has a pace of its own (`noise`). A network tells the clean row,

    D_j = c_skip x_j + c_out F_j(row)  (the preconditioning of EDM, Karras et al. 2022),   p_j(. | row)  for categories,

and is trained by EDM's weighted square error of the numbers plus the bound `(k_j / t) * (-log p_j(clean))` of the
masked categories, each as a mean over its columns. Rows are drawn from noise by `sampler`.

For imputation some training rows show a set of columns clean, or not at all: the same network then tells the law of
columns given others, and without them, which guidance divides by. (As published, a second network tells the latter.)

Which masks are drawn depends on the exponents of masks, so that the gradient of the bound has a term for it: here that
of the score function, where the published one goes through the network by a straight-through Gumbel-softmax.
"""

from __future__ import annotations

import json
from typing import Literal

import torch
from torch import Tensor, nn

from smc_bridge.models.arguments import whole_number
from smc_bridge.models.tables.data import Column, Table
from smc_bridge.models.tables.marginals import Marginal, stacked
from smc_bridge.models.tables.network import RowNetwork
from smc_bridge.models.tables.noise import Noise
from smc_bridge.models.tables.sampler import Known, Sampling, Source, draw
from smc_bridge.models.tabular import generator_of

#: Share of training rows that show a set of columns clean, or not at all.
CONTEXT_SHARE = 0.3
#: Least time that is trained at: the weight of a mask is 1 / t.
FIRST = 1e-3
#: Factor of the gradient of the exponents k, which is noisy: AdamW does not see it, the clip of all gradients would.
FACTOR_OF_K = 0.01
#: Rows that are drawn at once.
ROWS = 256


class TabDiff(nn.Module):
    """The diffusion of the rows of one table.

    Args:
        columns: the columns, as JSON (`TabDiff.of` writes it).
        marginals: laws of the columns of numbers, as JSON.
        width: of a token of a column.
        hidden: width of the network on the row.
    """

    def __init__(self, *, columns: str, marginals: str, width: int = 32, hidden: int = 320) -> None:
        super().__init__()
        self.config: dict[str, int | float | str] = {
            "columns": columns, "marginals": marginals, "width": width, "hidden": hidden,
        }
        self.columns = tuple(
            Column(name, kind, tuple(values), whole) for name, kind, values, whole in json.loads(columns)
        )
        self.marginals = tuple(
            Marginal(tuple(values), tuple(shares), *rest) for values, shares, *rest in json.loads(marginals)
        )
        self.sizes = tuple(len(c.values) for c in self.columns if c.kind == "category")
        self.noise = Noise(len(self.marginals), len(self.sizes))
        self.network = RowNetwork(len(self.marginals), self.sizes, width=width, hidden=hidden)

    @classmethod
    def of(cls, table: Table, *, width: int = 32, hidden: int = 320) -> TabDiff:
        """An untrained one for the columns of a table, with the marginals of its numbers; ValueError if it is empty."""
        if not len(table):
            raise ValueError(f"table = {table!r}: give at least one row")
        columns = [[c.name, c.kind, list(c.values), c.whole] for c in table.columns]
        laws = [Marginal.of(table.of(c.name), whole=c.whole) for c in table.number_columns]
        marginals = [[m.values, m.shares, m.between, m.mean, m.scale, m.whole] for m in laws]
        return cls(columns=json.dumps(columns), marginals=json.dumps(marginals), width=width, hidden=hidden)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.noise.raw_rho.device

    @property
    def masks(self) -> Tensor:
        """Ids of the masks of the columns of categories, `[Cc]`."""
        return torch.tensor(self.sizes, dtype=torch.int64, device=self.device)

    def encode(self, table: Table) -> tuple[Tensor, Tensor]:
        """Normal scores `[n, Cn]`, float32, and ids `[n, Cc]` of a table of these columns.

        Raises:
            ValueError: the table has other columns.
        """
        if table.columns != self.columns:
            raise ValueError(f"table = {table!r}: its columns are not those that this TabDiff was trained on")
        like = torch.zeros(len(table), 0, device=self.device)
        scores = [m.scores(table.numbers[:, j]) for j, m in enumerate(self.marginals)]
        return stacked(scores, like), table.categories.to(self.device)

    def decode(self, scores: Tensor, categories: Tensor) -> Table:
        """The table of normal scores `[n, Cn]` and ids `[n, Cc]`, on the CPU."""
        numbers = [m.numbers(scores[:, j]) for j, m in enumerate(self.marginals)]
        held = stacked(numbers, torch.zeros(len(scores), 0, dtype=torch.float64))
        return Table(self.columns, held, categories.cpu())

    def tokens(self, x: Tensor, sigma: Tensor, categories: Tensor) -> Tensor:
        """Features of the columns of rows seen through noise, `[R, Cn + Cc, width]`."""
        return self.network.tokens(x / (1 + sigma**2).sqrt(), sigma.log(), categories)

    def clean(self, x: Tensor, sigma: Tensor, tokens: Tensor) -> Tensor:
        """Clean numbers, `[R, Cn]`, of features of their columns, `[R, Cn, width]`."""
        scale = (1 + sigma**2).sqrt()
        found: Tensor = x / scale**2 + sigma / scale * self.network.number_of(tokens)
        return found

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits of categories, `[R, Cc, A]`, of features of their columns, `[R, Cc, width]`."""
        return self.network.logits_of(tokens)

    def forward(self, x: Tensor, sigma: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
        """Clean numbers `[R, Cn]` and logits of categories `[R, Cc, A]`.

        Args:
            x: scores seen through noise, `[R, Cn]`.
            sigma: level of it, `[R, Cn]`.
            categories: ids, or masks (`masks`), `[R, Cc]`.
        """
        tokens = self.tokens(x, sigma, categories)
        cut = x.shape[1]
        return self.clean(x, sigma, tokens[:, :cut]), self.logits(tokens[:, cut:])

    def loss(self, scores: Tensor, categories: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of rows, a number: weighted square error of numbers plus nats of categories, means over columns.

        Args:
            scores, categories: of clean rows, `[R, Cn]` and `[R, Cc]`.
            generator: on the CPU, of times, noise and masks.
        """
        (R, Cn), Cc = scores.shape, categories.shape[1]
        uniform = torch.rand(R, generator=generator)
        t = (torch.randperm(R, generator=generator) + torch.rand(1, generator=generator)) / R
        t = t.clamp_min(FIRST)[:, None]
        is_context = (torch.rand(R, Cn + Cc, generator=generator) < torch.rand(R, 1, generator=generator)) & (
            uniform < CONTEXT_SHARE
        )[:, None]
        shown = (uniform < CONTEXT_SHARE / 2).float()[:, None].expand(R, Cn + Cc)
        times = torch.where(is_context, 1 - shown, t).to(scores)
        learnt = (~is_context).to(scores)
        e = torch.randn(R, Cn, generator=generator).to(scores)
        u = torch.rand(R, Cc, generator=generator).to(scores)

        sigma, m = self.noise.sigma(times[:, :Cn]), self.noise.masked(times[:, Cn:])
        is_masked = u < m
        clean, logits = self(scores + sigma * e, sigma, torch.where(is_masked, self.masks, categories))
        of_numbers = (1 + sigma**2) / sigma**2 * (clean - scores) ** 2 * learnt[:, :Cn]
        nats = -logits.log_softmax(-1).gather(2, categories[..., None])[..., 0]
        weights = learnt[:, Cn:] * is_masked / times[:, Cn:].clamp_min(FIRST) / max(Cc, 1)
        rows = of_numbers.sum(1) / max(Cn, 1) + (self.noise.k.detach() * weights * nats).sum(1)

        inside = m.clamp(1e-6, 1 - 1e-6)
        drawn = (torch.where(is_masked, inside.log(), (-inside).log1p()) * learnt[:, Cn:]).sum(1)
        of_k = ((rows - rows.mean()).detach() * drawn + (self.noise.k * weights * nats.detach()).sum(1)).mean()
        found: Tensor = rows.mean() + FACTOR_OF_K * (of_k - of_k.detach())
        return found

    def sample(self, count: int, seed: int, *, sampling: Sampling | None = None) -> Table:
        """Rows drawn from noise.

        Args:
            count: of rows.
            seed: of the draws.
            sampling: steps and orders of the sampler (`Sampling`). Default: as published.
        """
        count, generator = whole_number("count", count), generator_of(seed)
        parts = [
            self.decode(*draw(self, Source((generator,), min(ROWS, count - first)), sampling or Sampling())[:2])
            for first in range(0, count, ROWS)
        ]
        return _joined(parts)

    def impute(
        self,
        table: Table,
        missing: str | tuple[str, ...],
        seed: int,
        *,
        guidance: float = 0.0,
        condition: Literal["clean", "noised"] = "clean",
        rounds: int = 1,
        sampling: Sampling | None = None,
    ) -> Table:
        """The table with some columns drawn anew given the others.

        Args:
            table: what stands in the missing columns is not read.
            missing: their names, or one.
            seed: of the draws.
            guidance: w of `(1 + w) l_all - w l_y`: logits, and clean numbers, given the other columns against those
                without them.
            condition: how the network sees the known columns: "clean", or through the noise of each step.
            rounds: times that each step is taken, each from the noise that the last one went back to.
            sampling: steps and orders of the sampler. Default: as published.
        Raises:
            ValueError: no such column, a negative guidance, or another condition.
        """
        names = (missing,) if isinstance(missing, str) else tuple(missing)
        scores, categories = self.encode(table)
        places = [table.place(name) for name in names]
        known_numbers = torch.ones(scores.shape[1], dtype=torch.bool, device=self.device)
        known_categories = torch.ones(categories.shape[1], dtype=torch.bool, device=self.device)
        for kind, j in places:
            (known_numbers if kind == "number" else known_categories)[j] = False
        generator, parts = generator_of(seed), [table.rows([])]
        for first in range(0, len(table), ROWS):
            x, c = scores[first : first + ROWS], categories[first : first + ROWS]
            known = Known(x, c, known_numbers, known_categories, guidance, condition, rounds)
            parts.append(self.decode(*draw(self, Source((generator,), len(x)), sampling or Sampling(), known)[:2]))
        drawn = _joined(parts)
        held = drawn.numbers.clone(), drawn.categories.clone()
        held[0][:, known_numbers.cpu()] = table.numbers[:, known_numbers.cpu()].cpu()
        held[1][:, known_categories.cpu()] = table.categories[:, known_categories.cpu()].cpu()
        return Table(table.columns, *held)


def _joined(parts: list[Table]) -> Table:
    return Table(
        parts[0].columns, torch.cat([p.numbers for p in parts]), torch.cat([p.categories for p in parts])
    )
