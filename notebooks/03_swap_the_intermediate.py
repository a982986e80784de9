# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Swap the intermediate
#
# Drafts are moved by rejection from the proposal $q$ to an intermediate law $\pi$, and weighed by $p/\pi$. The
# intermediate divides the distance between the two models: what lies between $q$ and $\pi$ is paid in *acceptance*
# (short blocks, more forwards), what lies between $\pi$ and $p$ in *weights* (a low effective sample size, a loose
# bound). Any rule $(\log q_i, \log p_i) \mapsto \log \pi_i$ will do, position by position, and the weights stay right.
# This notebook compares the ones on offer, adds one of its own, draws the frontier, and then swaps the proposal too.

# %%
import os
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np
import torch

from smc_bridge import (
    ARTarget,
    Chernoff,
    Defensive,
    DLMProposal,
    Mixture,
    MostLikelyPath,
    PowerMean,
    ProductOfExperts,
    Target,
    check,
    load_pair,
    smc,
)
from smc_bridge.analysis import block_statistics, ess, kl_per_token
from smc_bridge.analysis.estimates import batch_means
from smc_bridge.analysis.exact_law import oracle
from smc_bridge.analysis.laws import weighted_law
from smc_bridge.analysis.local import chi2, kl
from smc_bridge.analysis.plots import plot_frontier
from smc_bridge.models.arithmetic.problems import held_out
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.testing import assert_biased, assert_proper, tabular_pair

REDUCED = os.environ.get("SMC_BRIDGE_NOTEBOOK_SIZE", "full") == "reduced"


def size(full, reduced):
    """How much to compute: the whole notebook takes a few minutes, the reduced one some seconds."""
    return reduced if REDUCED else full


# %% [markdown]
# ## The ones on offer, and one of our own
#
# - `ProductOfExperts(w)`: $\pi \propto q^w p^{1-w}$, the paper's;
# - `Mixture(w)`: $\pi = w q + (1-w) p$;
# - `PowerMean(alpha, w)`: $\pi \propto (w q^\alpha + (1-w) p^\alpha)^{1/\alpha}$, between the two;
# - `Chernoff()`: the product whose $w$ makes $\mathrm{KL}(\pi \| q) = \mathrm{KL}(\pi \| p)$, position by position;
# - `Defensive(base, eps)`: $(1-\varepsilon)\,\pi + \varepsilon\,p$, which weighs a token at most $1/\varepsilon$.
#
# A new one is a class with one method. With one particle and one lane the certificate is $\mathbb E[-\log \hat Z] =
# \mathbb E \sum_i \mathrm{KL}(\pi_i \| p_i)$. So *choose* it: at every position take the largest $w$ for which
# $\mathrm{KL}(\pi \| p) \le \varepsilon$. It grows with $w$, from 0 at $w = 0$, so bisection finds it; and it depends
# on $q_i$ and $p_i$ only, so it is legal. The run is then certified at $\varepsilon$ nats per token beforehand.


# %%
@dataclass(frozen=True)
class Budget:
    """Product of experts with the largest w that spends at most `eps` nats at a position."""

    eps: float = 0.01
    positionwise: ClassVar[bool] = True  # looks at one position at a time

    def log_prob(self, log_q, log_p):
        inside = log_p > -torch.inf
        log_q = torch.where(inside, log_q.clamp_min(-1e4), 0.0)

        def product(w):
            mixed = torch.where(inside, w * log_q + (1 - w) * log_p, -torch.inf)
            return mixed - mixed.logsumexp(-1, keepdim=True)

        low = torch.zeros_like(log_p[..., :1])
        high = torch.ones_like(low)
        for _ in range(20):
            w = (low + high) / 2
            fits = kl(product(w), log_p)[..., None] <= self.eps
            low, high = torch.where(fits, w, low), torch.where(fits, high, w)
        return product(low)


# %% [markdown]
# ## One position, exactly
#
# Let the DLM be sure of a token that the AR model, itself undecided, hardly believes. Token-level rejection accepts
# with probability $1 - \mathrm{TV}(\pi, q)$, and one token multiplies the relative variance of the weight by $1 +
# \chi^2(p \| \pi)$, so that $1/(1 + \chi^2)$ is the share of the effective sample size that survives it. Each family is
# a curve from the target (even weights, top left) toward the proposal (all accepted, bottom right); higher is better.

# %%
q = torch.tensor([0.60, 0.20, 0.10, 0.06, 0.04], dtype=torch.float64)
p = torch.tensor([0.01, 0.30, 0.10, 0.29, 0.30], dtype=torch.float64)


def trade(intermediate):
    """Acceptance and the share of the ESS that survives one token."""
    log_pi = intermediate.log_prob(q.log()[None], p.log()[None])[0]
    return torch.minimum(log_pi.exp(), q).sum().item(), 1 / (1 + chi2(p.log(), log_pi).item())


families = {
    "PoE": (ProductOfExperts, np.linspace(0, 1, 41)),
    "Mixture": (Mixture, np.linspace(0, 1, 41)),
    "PowerMean 0.5": (lambda w: PowerMean(0.5, w), np.linspace(0, 1, 41)),
    "Defensive PoE": (lambda w: Defensive(ProductOfExperts(w), 0.1), np.linspace(0, 1, 41)),
    "Budget": (Budget, np.geomspace(1e-3, kl(q.log(), p.log()).item(), 41)),
}
exact_trade = {name: np.array([trade(make(float(w))) for w in grid]) for name, (make, grid) in families.items()}

fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for (name, points), style in zip(exact_trade.items(), ("-", "--", "-.", ":", (0, (1, 4))), strict=True):
    ax.plot(*points.T, linestyle=style, linewidth=2, label=name)
ax.plot(*trade(Chernoff()), "k*", markersize=11, label="Chernoff")
ax.set(xlabel="acceptance of one token, $1 - TV(\\pi, q)$", ylabel="share of ESS kept, $1 / (1 + \\chi^2(p \\| \\pi))$")
ax.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# Here the mixture wins, and the power mean lies between it and the product: the product's normaliser gives the AR
# model's own tokens less than the mixture does. `Defensive` bends the product's curve up at its lower end, where
# weights would be large, and never gets to the proposal itself. `Budget` and `Chernoff` lie on the product's curve: on
# one position both are a product. Which family wins depends on the two laws; so look at real ones.

# %% tags=["hide-input"]
for name in ("PoE", "Mixture", "PowerMean 0.5"):
    first, last = exact_trade[name][0], exact_trade[name][-1]
    assert abs(first[1] - 1) < 1e-9, (name, first)  # w = 0 is the target: even weights
    assert abs(last[0] - 1) < 1e-9, (name, last)  # w = 1 is the proposal: all accepted
    assert (np.diff(exact_trade[name][:, 0]) > -1e-9).all(), name  # acceptance grows with w
    assert (np.diff(exact_trade[name][:, 1]) < 1e-9).all(), name  # evenness falls
for eps in families["Budget"][1]:
    log_pi = Budget(float(eps)).log_prob(q.log()[None], p.log()[None])
    assert kl(log_pi, p.log()[None]).item() <= eps + 1e-9
poe = exact_trade["PoE"]
for acceptance, kept in exact_trade["Budget"]:
    assert abs(np.interp(acceptance, *poe.T) - kept) < 2e-2, (acceptance, kept)
assert (exact_trade["Mixture"][10:31, 1] > np.interp(exact_trade["Mixture"][10:31, 0], *poe.T)).all()
assert abs(np.interp(trade(Chernoff())[0], *poe.T) - trade(Chernoff())[1]) < 2e-2

# %% [markdown]
# ## On the embedded pair
#
# Target temperature 1, one particle and one lane, several seeds for each of a few problems. Independent runs on one
# problem are independent weights: their effective sample size says how even $p/\pi$ is over a whole answer.

# %%
pair = load_pair("arithmetic")
prompts = [pair.encode(problem.prompt).tolist() for problem in held_out()[: size(5, 2)]]
seeds = size(8, 4)
grids = {
    "PoE": (ProductOfExperts, size([0.5, 0.7, 0.8, 0.9], [0.3, 0.9])),
    "Mixture": (Mixture, size([0.05, 0.2, 0.5, 0.8], [0.2])),
    "PowerMean 0.5": (lambda w: PowerMean(0.5, w), size([0.05, 0.2, 0.5], [0.2])),
    "Defensive PoE": (lambda w: Defensive(ProductOfExperts(w), 0.1), size([0.7, 0.9], [0.9])),
    "Budget (eps)": (Budget, size([0.01, 0.1, 0.5], [0.01])),
    "Chernoff": (lambda w: Chernoff(), [0.5]),
    "Target": (lambda w: Target(), [0.0]),
}


def runs_of(intermediate):
    """Independent runs, all seeds of the first problem first."""
    sampler = smc(pair, particles=1, intermediate=intermediate, window=16, lookahead=32)
    every = [prompt for prompt in prompts for _ in range(seeds)]
    return sampler.run(every, seed=list(range(seeds)) * len(prompts), max_new_tokens=96)


runs = {(name, w): runs_of(make(w)) for name, (make, grid) in grids.items() for w in grid}


# %%
def observed(group):
    """Acceptance, tokens per DLM forward, ESS share of the weights of one problem, KL bound per token."""
    log_weights = np.array([run.log_evidence for run in group]).reshape(len(prompts), seeds)
    forwards = sum(run.forwards.dlm_forwards for run in group)
    return SimpleNamespace(
        acceptance=block_statistics(group).acceptance, speed=sum(run.tokens for run in group) / forwards,
        ess=float(np.mean([ess(row) for row in log_weights])) / seeds, bound=kl_per_token(group),
    )


table = {key: observed(group) for key, group in runs.items()}
print(f"{'intermediate':14} {'w':>5}  acceptance  ESS share  tokens/forward  KL bound, nats per 1,000 tokens")
for (name, w), row in table.items():
    parameter = "" if len(grids[name][1]) == 1 and name in ("Chernoff", "Target") else f"{w:g}"
    print(
        f"{name:14} {parameter:>5}  {row.acceptance:10.3f}  {row.ess:9.3f}  {row.speed:14.2f}"
        f"  {1000 * row.bound.value:9.2f}  [{1000 * row.bound.low:.2f}, {1000 * row.bound.high:.2f}]"
    )

# %%
fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for name, marker in zip(grids, "os^DvP*", strict=True):
    rows = [table[name, w] for w in grids[name][1]]
    ax.plot([r.acceptance for r in rows], [r.ess for r in rows], marker=marker, linewidth=1, label=name)
ax.set(xlabel="acceptance (share of committed tokens that the DLM drafted)", ylabel=f"ESS of {seeds} runs / {seeds}")
ax.set_ylim(0, 1.05)
ax.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## The frontier
#
# Up is fast, left is faithful; the numbers at the points are $w$ (of `Budget`, $\varepsilon$ in nats per token; that of
# `Chernoff`, which has no parameter, means nothing).

# %%
lines = {
    name: tuple(
        np.array(column) for column in zip(
            *((w, r.bound.value, r.speed, r.bound.low, r.bound.high) for w in grid for r in [table[name, w]]),
            strict=True,
        )
    )
    for name, (_, grid) in grids.items()
}
ax = plot_frontier(lines)
plt.show()

# %% [markdown]
# Acceptance and speed hardly move until $w$ is large: this AR model is almost certain of most tokens, and where the DLM
# disagrees with certainty, a geometric mean sides with the AR model until $w$ is near 1. That makes the product cheap
# in weights, and it bounds its gain. A mixture believes the DLM even there, with probability $w$, and pays for each
# such token in full. What won on the single position above loses here: at a comparable bound the mixture is slower, and
# its small $w$ may be slower than the target, because a wrong token that is accepted makes what follows harder to
# draft.
#
# `Budget` is where it was told to be, at most $\varepsilon$ nats per token, but it lies below the plain product: it
# spends up to $\varepsilon$ at every position, also where that buys no acceptance. A certificate by construction is not
# a better frontier. That took one class and one cell to find out.
#
# All bounds are those of one particle; they fall like $1/N$ with more (notebook 05). They are means of terms of which a
# few are large. Few runs can miss those: the estimate is then too low, and so may be the upper end of its interval.

# %% tags=["hide-input"]
target = table["Target", 0.0]
assert all(run.log_evidence == 0.0 for run in runs["Target", 0.0])
assert target.ess == 1.0
assert all(run.proper for group in runs.values() for run in group)
for name, (_, grid) in grids.items():
    if len(grid) > 1:
        assert table[name, grid[0]].bound.value < table[name, grid[-1]].bound.value, name
        assert table[name, grid[0]].ess > table[name, grid[-1]].ess, name
for eps in grids["Budget (eps)"][1]:
    assert table["Budget (eps)", eps].bound.low <= eps, table["Budget (eps)", eps]
assert table["PoE", 0.9].speed > 1.05 * target.speed, (table["PoE", 0.9].speed, target.speed)
assert table["PoE", 0.9].acceptance > target.acceptance
assert table["PoE", 0.9].bound.low > 0.1
if not REDUCED:  # the mixture of the higher bound is the slower one
    assert table["Mixture", 0.2].bound.value > table["PoE", 0.7].bound.value
    assert table["Mixture", 0.2].speed < table["PoE", 0.7].speed

# %% [markdown]
# ## Top-p on the proposal
#
# Diffusion models are usually sampled with a truncated nucleus. A truncated $q$ leaves out tokens that $p$ may draw; a
# product with it leaves them out as well, and no weight brings back what is never drawn. The sampler says so itself.
# `Defensive` mixes in a little of $p$, and every sequence can be reached again. On a tabular pair the missing mass is a
# number: with one token per forward, a sequence is lost if one of its tokens lies outside the nucleus at its place.

# %%
ar = TabularAR.random(3, 3, seed=3)
toy = SimpleNamespace(ar=ar, dlm=TabularDLM(ar, noise=0.7, seed=2))
options = {"particles": 8, "lookahead": 1, "window": 1, "proposal_top_p": 0.8}
bare = smc(toy, intermediate=ProductOfExperts(0.5), **options)
defended = smc(toy, intermediate=Defensive(ProductOfExperts(0.5), 0.1), **options)
print("PoE:      ", bare.why_improper())
print("Defensive:", defended.why_improper())

# %%
law = oracle(ARTarget(ar), max_new_tokens=3).posterior()


def reachable(sequence):
    """Whether every token of the sequence is in the nucleus at its place."""
    for t, token in enumerate(sequence):
        prefix, length = torch.tensor([sequence[:t]], dtype=torch.long).reshape(1, t), torch.tensor([t])
        logits = toy.dlm.session(prefix, length).score(torch.tensor([0]), torch.tensor([[-1]]))
        if bare.proposal.shaping.log_probs(logits)[0, 0, token] == -torch.inf:
            return False
    return True


lost = {sequence for sequence in law if not reachable(sequence)}
missing = sum(law[sequence] for sequence in lost)
repeats = size(2_000, 1_000)
toy_runs = {
    name: sampler.run([[]] * repeats, seed=list(range(repeats)), max_new_tokens=3)
    for name, sampler in (("PoE", bare), ("Defensive", defended))
}
means = {}
for name, group in toy_runs.items():
    means[name] = batch_means(np.exp([run.log_evidence for run in group]))
    print(f"{name:9} E[Z_hat] = {means[name].value:.4f} ± {1.96 * means[name].error:.4f}")
print(f"1 - exact mass of the {len(lost)} lost sequences = {1 - missing:.4f}")

# %%
fig, ax = plt.subplots(figsize=(8.4, 3.2), layout="constrained")
order = sorted(law, key=lambda s: (s in lost, -law[s]))
place = np.arange(len(order))
ax.bar(place, [law[s] for s in order], color=["0.8" if s not in lost else "#f3c7b5" for s in order], label="exact $p$")
for (name, group), style in zip(toy_runs.items(), ({"marker": "x", "color": "#D55E00"}, {"marker": "."}), strict=True):
    estimate = weighted_law(group)
    ax.plot(place, [estimate.get(s, 0.0) for s in order], linestyle="none", label=f"$E[\\hat{{Z}} W]$, {name}", **style)
ax.set_xticks(place, ["".join(map(str, s)) for s in order], rotation=90, fontsize=8)
ax.set(xlabel="sequence (shaded: outside the nucleus)", ylabel="probability")
ax.legend(frameon=False, fontsize=9)
plt.show()

# %% tags=["hide-input"]
assert len(bare.why_improper()) == 1
assert "Defensive" in bare.why_improper()[0]
assert defended.proper
assert missing > 0.05, missing
assert abs(means["PoE"].value - (1 - missing)) < 4.5 * means["PoE"].error
assert abs(means["Defensive"].value - 1) < 4.5 * means["Defensive"].error
assert not any(weighted_law(toy_runs["PoE"]).get(s, 0.0) for s in lost)
assert all(weighted_law(toy_runs["Defensive"]).get(s, 0.0) > 0 for s in lost if law[s] > 0.003)

# %% [markdown]
# ## Swap the proposal
#
# The other end can be replaced as well. What a kernel needs of a draft is the law that it was drawn from, and that law
# need not be a product of marginals:
#
# - `"marginals"`: independent tokens from one forward, the mean field of all above;
# - `"chain"`: the DLM's own chain rule, each token drawn given those before it filled in, a forward per token
#   (`PrefixFilled`);
# - `"path"`: the likeliest token of every marginal, not drawn at all. Its law is a point mass (`MostLikelyPath`), so it
#   needs an intermediate that has mass elsewhere; a mixture has.
#
# First the proof, by enumeration on a table. `assert_proper` refuses the program if the weighted output is off by more
# than round-off, and a path that is accepted as if it had been drawn from the marginals is off.


# %%
class Pretending(MostLikelyPath):
    """The likeliest path under the law of the marginals that it was read from."""

    def draft(self, state, asked, *, source):
        found = super().draft(state, asked, source=source)
        return found._replace(q=self.base.draft(state, asked, source=None).q)


PROPOSALS = ("marginals", "chain", "path")
small = tabular_pair(2, 3)
seat = {"particles": 2, "intermediate": Mixture(0.2), "window": 2, "lookahead": 3}
for name in PROPOSALS:
    assert_proper(smc(small, proposal=name, **seat))
    print(f"{name:10} {check(smc(small, proposal=name, **seat))}")
pretending = replace(smc(small, **seat), proposal=Pretending(DLMProposal(small.dlm, lookahead=3)))
print(f"{'pretending':10} {check(pretending)}")

# %% [markdown]
# On the embedded pair, with everything else as above: what a draft yields, and what it takes.

# %%
drafted = {
    name: smc(pair, particles=1, intermediate=Mixture(0.2), proposal=name, window=16, lookahead=32).run(
        [prompt for prompt in prompts for _ in range(seeds)], seed=list(range(seeds)) * len(prompts), max_new_tokens=96
    )
    for name in PROPOSALS
}
per_draft = {name: sum(r.tokens for r in group) / sum(len(r.trace) for r in group) for name, group in drafted.items()}
print("proposal    tokens/draft  DLM forwards/token  AR forwards/token  KL bound, nats per 1,000 tokens")
for name, group in drafted.items():
    tokens, bound = sum(run.tokens for run in group), kl_per_token(group)
    dlm, ar_ = (sum(getattr(run.forwards, field) for run in group) for field in ("dlm_forwards", "ar_forwards"))
    print(
        f"{name:10}  {per_draft[name]:12.2f}  {dlm / tokens:18.2f}  {ar_ / tokens:17.2f}"
        f"  {1000 * bound.value:9.2f}  [{1000 * bound.low:.2f}, {1000 * bound.high:.2f}]"
    )

# %% [markdown]
# Most of what marginals are refused for is that they do not know of each other. The chain does: twice as many tokens of
# a draft stand, which halves the forwards of the AR model, and what the mixture takes from $q$ is far closer to $p$,
# which shows in the bound. It pays with a forward of the DLM for each drafted token, so it is worth that only where the
# DLM is much the cheaper model. The path costs nothing more than the marginals, and is a better guess than a draw from
# them at temperature 1.
#
# A kernel that asks about tokens which no draft led to, a tree for instance, refuses the chain by name. A proposal of
# your own is one class, and tested in the same way (`docs/guides/own_proposal.md`).

# %% tags=["hide-input"]
assert_biased(pretending)
assert all(run.proper for group in drafted.values() for run in group)
assert per_draft["chain"] > per_draft["marginals"], per_draft
