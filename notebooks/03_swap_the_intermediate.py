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
    Clamp,
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
from smc_bridge.analysis import beta_of, block_statistics, ess, kl_per_token
from smc_bridge.analysis.estimates import batch_means
from smc_bridge.analysis.exact_law import oracle
from smc_bridge.analysis.laws import weighted_law
from smc_bridge.analysis.local import chi2, kl
from smc_bridge.analysis.plots import plot_frontier
from smc_bridge.models.arithmetic.problems import extract_answer, held_out
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
# - `Defensive(base, eps)`: $(1-\varepsilon)\,\pi + \varepsilon\,p$, which weighs a token at most $1/\varepsilon$;
# - `Clamp(beta)`: $\pi = \mathrm{clamp}(q, c\,p, c\beta\,p)$, with the $c$ that makes it sum to one. Of all laws it
#   maximises $P(\text{accept}) - \lambda\,\mathrm{KL}(\pi \| p)$, $\lambda = 1 / \log \beta$ (`docs/theory.md`,
#   section 9): every position pays the same *price* for a nat, whatever it buys.
#
# A new one is a class with one method. With one particle and one lane the certificate is $\mathbb E[-\log \hat Z] =
# \mathbb E \sum_i \mathrm{KL}(\pi_i \| p_i)$. So *choose* it: at every position take the largest $w$ for which
# $\mathrm{KL}(\pi \| p) \le \varepsilon$, by bisection. It depends on $q_i$ and $p_i$ only, so it is legal, and the run
# is certified at $\varepsilon$ nats per token beforehand: a constant *budget*, where `Clamp` has a constant price.


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
    """Acceptance, the share of the ESS that survives one token, and its KL in nats."""
    log_pi = intermediate.log_prob(q.log()[None], p.log()[None])[0]
    evenness = 1 / (1 + chi2(p.log(), log_pi).item())
    return torch.minimum(log_pi.exp(), q).sum().item(), evenness, kl(log_pi, p.log()).item()


families = {
    "PoE": (ProductOfExperts, np.linspace(0, 1, 41)),
    "Mixture": (Mixture, np.linspace(0, 1, 41)),
    "PowerMean 0.5": (lambda w: PowerMean(0.5, w), np.linspace(0, 1, 41)),
    "Defensive PoE": (lambda w: Defensive(ProductOfExperts(w), 0.1), np.linspace(0, 1, 41)),
    "Budget": (Budget, np.geomspace(1e-3, kl(q.log(), p.log()).item(), 41)),
    "Clamp": (Clamp, np.geomspace(1, 500, 41)),
}
exact_trade = {name: np.array([trade(make(float(w))) for w in grid]) for name, (make, grid) in families.items()}

fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
styles = ("-", "--", "-.", ":", (0, (1, 4)), (0, (5, 1, 1, 1, 1, 1)))
for (name, points), style in zip(exact_trade.items(), styles, strict=True):
    ax.plot(*points.T[:2], linestyle=style, linewidth=2, label=name)
ax.plot(*trade(Chernoff())[:2], "k*", markersize=11, label="Chernoff")
ax.set(xlabel="acceptance of one token, $1 - TV(\\pi, q)$", ylabel="share of ESS kept, $1 / (1 + \\chi^2(p \\| \\pi))$")
ax.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# `Clamp` is on top, as it must be for the cost $\mathrm{KL}(\pi \| p)$. Drawn here is another one, $\chi^2(p \| \pi)$,
# and at one position clamps are the best for that as well: any cost $\sum p\,f(\pi / p)$ with a convex $f$ asks for one
# ratio $\pi / p$ where $\pi$ lies below $q$, and another one where it lies above. Over *many* positions it is the KL
# divergence that one constant $\beta$ spends best, not $\chi^2$.
#
# The mixture comes close, and the power mean lies between it and the product. `Defensive` bends the product's curve up
# where weights would be large, and never gets to the proposal. `Budget` and `Chernoff` lie on it: at one position both
# are a product. How far apart they all are depends on the two laws; so look at real ones.

# %% tags=["hide-input"]
for name in ("PoE", "Mixture", "PowerMean 0.5", "Clamp"):
    first, last = exact_trade[name][0], exact_trade[name][-1]
    assert abs(first[1] - 1) < 1e-9, (name, first)  # w = 0 (beta = 1) is the target: even weights
    assert abs(last[0] - 1) < 1e-9, (name, last)  # the other end is the proposal: all accepted
    assert (np.diff(exact_trade[name][:, 0]) > -1e-9).all(), name  # acceptance grows
    assert (np.diff(exact_trade[name][:, 1]) < 1e-9).all(), name  # evenness falls
for eps in families["Budget"][1]:
    log_pi = Budget(float(eps)).log_prob(q.log()[None], p.log()[None])
    assert kl(log_pi, p.log()[None]).item() <= eps + 1e-9
poe, best = exact_trade["PoE"][:, :2], [trade(Clamp(float(beta))) for beta in np.geomspace(1, 500, size(2001, 401))]
for name, points in exact_trade.items():  # none accepts more for its KL, or keeps more ESS for its acceptance
    for acceptance, kept, nats in points:
        assert acceptance <= np.interp(nats, [each[2] for each in best], [each[0] for each in best]) + 1e-4, name
        assert kept <= np.interp(acceptance, [each[0] for each in best], [each[1] for each in best]) + 1e-4, name
for acceptance, kept, _ in exact_trade["Budget"]:
    assert abs(np.interp(acceptance, *poe.T) - kept) < 2e-2, (acceptance, kept)

# %% [markdown]
# ## On the embedded pair
#
# One particle and one lane, several seeds for each of a few problems, at target temperatures 1 and 0.2. Independent
# runs on one problem are independent weights: their effective sample size says how even $p/\pi$ is over whole answers.
# The two models of this pair know the same arithmetic, the DLM less carefully, and word it by different habits.

# %%
pair = load_pair("arithmetic")
problems = held_out()[: size(5, 2)]
prompts = [pair.encode(problem.prompt).tolist() for problem in problems]
seeds = size(8, 2)
grids = {
    "PoE": (ProductOfExperts, size([0.3, 0.5, 0.7, 0.9], [0.3, 0.9])),
    "Clamp (beta)": (Clamp, size([4, 64, 1e3, 1e5], [16, 1e5])),
    "Mixture": (Mixture, size([0.05, 0.2], [0.2])),
    "PowerMean 0.5": (lambda w: PowerMean(0.5, w), [0.2]),
    "Defensive PoE": (lambda w: Defensive(ProductOfExperts(w), 0.1), [0.9]),
    "Budget (eps)": (Budget, size([0.1, 0.3], [0.1])),
    "Chernoff": (lambda w: Chernoff(), [np.nan]),
    "Target": (lambda w: Target(), [0.0]),
}


def runs_of(intermediate, temperature=1.0, proposal="marginals"):
    """Independent runs, all seeds of the first problem first."""
    options = {"proposal": proposal, "temperature": temperature, "window": 16, "lookahead": 32}
    sampler = smc(pair, particles=1, intermediate=intermediate, **options)
    every, each = [prompt for prompt in prompts for _ in range(seeds)], list(range(seeds)) * len(prompts)
    return sampler.run(every, seed=each, max_new_tokens=size(128, 32))


laws = {(name, w): make(w) for name, (make, grid) in grids.items() for w in grid}
runs = {1.0: {key: runs_of(law, 1.0) for key, law in laws.items()}}

# %%
runs[0.2] = {key: runs_of(law, 0.2) for key, law in laws.items()}


# %%
def refused(group):
    """Tokens that the AR model put in the place of a draft's, for each answer: digits, and others."""
    found = [0, 0]
    for run in group:
        at = 0
        for step in run.trace:
            at += step.length[0][0]
            if step.accepted[0][0] < step.length[0][0]:
                found[not pair.decode([run.sequences[0][at - 1]]).strip().isdigit()] += 1
    return np.array(found) / len(group)


def observed(group):
    """What one row of the table says."""
    log_weights = np.array([run.log_evidence for run in group]).reshape(len(prompts), seeds)
    answers = [extract_answer(pair.decode(run.sequences[0])) for run in group]
    return SimpleNamespace(
        acceptance=block_statistics(group).acceptance, ess=float(np.mean([ess(row) for row in log_weights])) / seeds,
        right=np.mean([answer == problems[i // seeds].answer for i, answer in enumerate(answers)]),
        speed=sum(run.tokens for run in group) / sum(run.forwards.dlm_forwards for run in group),
        bound=kl_per_token(group), refused=refused(group),
    )


table = {t: {key: observed(group) for key, group in rows.items()} for t, rows in runs.items()}
for temperature, rows in table.items():
    print(f"\ntemperature {temperature:g}\nintermediate        w  acceptance  right  ESS share  refused", end="")
    print(" digits, others  tokens/DLM fwd  KL bound, nats per token")
    for (name, w), row in rows.items():
        print(
            f"{name:13} {'' if name in ('Chernoff', 'Target') else format(w, 'g'):>7}  {row.acceptance:10.3f}"
            f"  {row.right:5.2f}  {row.ess:9.3f}  {row.refused[0]:14.1f}  {row.refused[1]:6.1f}  {row.speed:14.2f}"
            f"  {row.bound.value:8.3f}  [{row.bound.low:.3f}, {row.bound.high:.3f}]"
        )

# %% [markdown]
# ## The frontier
#
# Up is fast, left is faithful; the ends say what a line runs along: $w$, of `Clamp` $\beta$, of `Budget` $\varepsilon$
# in nats.

# %%
fig, axes = plt.subplots(2, 1, figsize=(7.2, 8.4), layout="constrained")
for ax, (temperature, rows) in zip(axes, table.items(), strict=True):
    lines = {
        name: tuple(np.array([(w, r.bound.value, r.speed, r.bound.low, r.bound.high) for w, r in points]).T)
        for name, (_, grid) in grids.items() for points in [[(w, rows[name, w]) for w in grid]]
    }
    symbols = {"Clamp (beta)": "$\\beta$", "Budget (eps)": "$\\varepsilon$", "Chernoff": "", "Target": ""}
    plot_frontier(lines, ax, symbols=symbols).set_ylabel(f"tokens per DLM forward, temperature {temperature:g}")

# %% [markdown]
# *What it buys.* Plain speculative decoding (`Target`) refuses 4 digits an answer, and 14 to 16 other tokens. At
# temperature 0.2 the products up to $w = 0.7$ refuse no fewer digits and the rest ever more rarely: they take over the
# DLM's habits of wording, not its sums. That makes 11 tokens a forward in the place of 4, with nearly every answer
# right. $w = 0.9$ believes wrong digits too: 62 % of the answers are right, and 3 % at temperature 1.
#
# *What it costs.* From 0.2 nats per token ($w = 0.3$) to 0.5 ($w = 0.7$): another wording is another law, harmless or
# not. The ESS hides it. It *rises* from $w = 0.3$ to 0.7, for runs that all word alike weigh alike, and no weight
# tells of a wording that none of them drew; the bound does.
#
# *Price or budget.* At temperature 1 `Clamp(64)` commits more than the product of $w = 0.7$ at half its bound, and
# every answer is right against 72 %. At 0.2, where log-ratios are five times as large and so should be $\log \beta$,
# the two are on a par. `Budget` does worse: at temperature 1 `Clamp(4)` has 4.8 tokens at 0.03 nats, `Budget(0.1)` 4.4
# at 0.07. It spends where that buys no acceptance, and stops where it would buy much. Mixtures, good at the one
# position above, are the worst here: they believe the DLM's slips with probability $w$ however sure the AR model is.
#
# Bounds are of one particle; more lower them (notebook 05). `beta_of` calibrates a clamp to nats per token, here 0.1:

# %%
more = [pair.encode(problem.prompt).tolist() for problem in held_out()[: size(16, 2)]]
sizes = {"window": 16, "lookahead": 32, "max_new_tokens": size(128, 48)}
print(beta_of(pair, more, kl=0.1, tolerance=0.1, rounds=size(6, 1), **sizes))

# %% tags=["hide-input"]
for temperature, rows in table.items():
    target, mild, strong = (rows[key] for key in (("Target", 0.0), ("PoE", 0.3), ("PoE", 0.9)))
    assert all(run.log_evidence == 0.0 for run in runs[temperature]["Target", 0.0])
    assert all(run.proper for group in runs[temperature].values() for run in group)
    assert all(rows["Budget (eps)", eps].bound.low <= eps for eps in grids["Budget (eps)"][1])
    assert target.speed < mild.speed < strong.speed
    assert mild.bound.value < 0.5 < strong.bound.value
assert table[0.2]["PoE", 0.3].refused[1] < 0.8 * table[0.2]["Target", 0.0].refused[1]
if not REDUCED:
    plain, words = table[0.2]["Target", 0.0], table[0.2]["PoE", 0.7]
    assert words.refused[1] < 0.3 * plain.refused[1]
    assert abs(words.refused[0] - plain.refused[0]) < 1
    assert words.right > 0.9 > table[0.2]["PoE", 0.9].right
    assert words.ess > table[0.2]["PoE", 0.3].ess
    price, product = table[1.0]["Clamp (beta)", 64], table[1.0]["PoE", 0.7]
    assert price.speed > product.speed
    assert price.bound.high < product.bound.low
    assert table[1.0]["Clamp (beta)", 4].bound.value < table[1.0]["Budget (eps)", 0.3].bound.low

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
# - `"chain"`: the DLM's own chain rule, each token drawn given those before it, at a forward each (`PrefixFilled`);
# - `"path"`: the likeliest token of every marginal, a point mass (`MostLikelyPath`): $\pi$ needs mass elsewhere.
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
drafted = {name: runs_of(Mixture(0.2), proposal=name) for name in PROPOSALS}
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
# The chain's tokens know of each other: nearly twice as many of a draft stand, which nearly halves the forwards of the
# AR model, and what the mixture takes from $q$ is far closer to $p$, which shows in the bound. It pays with a forward
# of the DLM for each drafted token, two for each that stands. The path costs nothing more than the marginals, and is a
# better guess than a draw from them at temperature 1.
#
# A kernel that asks about tokens which no draft led to, such as a tree, refuses the chain by name. A proposal of your
# own is one class, and tested in the same way (`docs/guides/own_proposal.md`).

# %% tags=["hide-input"]
assert_biased(pretending)
assert all(run.proper for group in drafted.values() for run in group)
assert per_draft["chain"] > per_draft["marginals"], per_draft
