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
# # Plain importance sampling, and what rejection removes
#
# Why not weigh the drafts of the diffusion model as they are? A block of $V$ tokens is drawn from $q(x_{1:V}) = \prod_i
# q_i(x_i)$ and weighs $p(x_{1:V}) / q(x_{1:V})$. That is proper, needs no rejection, and its variance grows
# exponentially with $V$: if position $i$ has $\chi^2_i = \chi^2(p_i \| q_i)$ whatever the path,
#
# $$1 + \operatorname{Var}(w) = \prod_{i \le V} (1 + \chi^2_i), \qquad
# \mathrm{ESS} \approx \frac{K}{\prod_i (1 + \chi_i^2)}.$$
#
# This notebook measures that on the embedded pair, and takes apart what the detour through the product of experts
# $\pi \propto q^w p^{1-w}$ saves.

# %%
import os
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import torch

from smc_bridge import DLMProposal, ProductOfExperts, load_pair, never, plain_is, smc
from smc_bridge.analysis import block_statistics, ess, log_weight_variance, max_share
from smc_bridge.analysis.local import local_divergences
from smc_bridge.analysis.plots import plot_log_weight_variance
from smc_bridge.analysis.psis import pareto_k
from smc_bridge.models.arithmetic.problems import held_out
from smc_bridge.models.tabular import TabularAR, TabularDLM

REDUCED = os.environ.get("SMC_BRIDGE_NOTEBOOK_SIZE", "full") == "reduced"


def size(full, reduced):
    """How much to compute: the whole notebook takes a minute or two, the reduced one some seconds."""
    return reduced if REDUCED else full


BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"
# The laws along a run are read again at the end, which no cache of the diffusion model may blur.
pair = load_pair("arithmetic", dlm_cache="none")
prompt = pair.encode(held_out()[0].prompt).tolist()
print(held_out()[0].prompt)

# %% [markdown]
# ## Degeneracy against block length
#
# Independent particles (no resampling, so that the weights show themselves) commit the first $V$ tokens of an answer.
# Plain IS takes them from one forward of the DLM. The bridge, $w = 0.3$, stops at a refusal, runs the DLM again and
# goes on until the same $V$ tokens stand.

# %%
N = size(256, 100)
lengths = size([1, 2, 4, 8, 16, 32], [1, 4, 16])


def weigh(make, tokens, *, window=None, count=N, **options):
    """One run of independent particles over the first `tokens` tokens."""
    sampler = make(pair, particles=count, window=window or tokens, lookahead=window or 32, trigger=never, **options)
    return sampler, sampler.run([prompt], seed=1, max_new_tokens=tokens)[0]


plain = {V: weigh(plain_is, V, lanes=1) for V in lengths}
bridge = {V: weigh(smc, V, w=0.3) for V in lengths}
print(f"{'':7}|{'plain IS, p/q':^37}|{'bridge, p/pi':^53}")
print("tokens |   ESS  max share  k-hat  Var(log w) |   ESS  max share  k-hat  Var(log w)  tokens / block")
for V in lengths:
    cells = []
    for _, run in (plain[V], bridge[V]):
        k = pareto_k(run.log_weights).k
        shape = f"{k:6.2f}" if np.isfinite(k) else "  none"
        cells.append(
            f"{run.ess:6.1f}  {max_share(run.log_weights):9.3f} {shape}  {log_weight_variance(run.log_weights):10.3g}"
        )
    print(f"{V:6d} |{cells[0]} |{cells[1]}  {block_statistics(bridge[V][1]).tokens:14.2f}")

# %% [markdown]
# $\hat k$ is the shape of a generalised Pareto law fitted to the largest weights: above 0.7 an estimate should not be
# trusted, above 1 the weights behave as if they had no mean. There is none where the largest weights are all equal,
# and it means nothing over the first tokens, while only a few different blocks exist. Two tokens are enough to
# ruin plain IS: one draft of hundreds carries most of the weight, since it alone happens to be consistent with itself.
# The bridge is weighted too: the two models differ in habits of wording, it accepts some of the diffusion model's, and
# the weights undo that. But over as many tokens its ESS is about a sixth of its particles.

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
for runs, colour, marker, name in ((plain, BLUE, "o", "plain IS, $p/q$"), (bridge, RED, "s", "bridge, $p/\\pi$")):
    style = {"color": colour, "marker": marker, "markersize": 5, "label": name}
    left.plot(lengths, [log_weight_variance(runs[V][1].log_weights) for V in lengths], **style)
    right.plot(lengths, [runs[V][1].ess for V in lengths], **style)
left.set(xlabel="tokens V", ylabel="variance of log weight (nats²)", xscale="log", yscale="log")
right.set(xlabel="tokens V", ylabel=f"ESS (of {N} particles)", xscale="log", ylim=(0, 1.05 * N))
for ax in (left, right):
    ax.set_xticks(lengths, map(str, lengths))
    ax.xaxis.minorticks_off()
left.legend(frameon=False)
plt.show()

# %% tags=["hide-input"]
longest = lengths[-1]
assert plain[longest][1].ess < 5, plain[longest][1].ess
assert bridge[longest][1].ess > 0.1 * N, bridge[longest][1].ess
assert pareto_k(plain[longest][1].log_weights).k > 1 > pareto_k(bridge[longest][1].log_weights).k
assert max_share(bridge[longest][1].log_weights) < 0.3 < max_share(plain[longest][1].log_weights)
observed = [log_weight_variance(plain[V][1].log_weights) for V in lengths]
assert observed == sorted(observed), observed
assert all(2 * log_weight_variance(bridge[V][1].log_weights) < seen for V, seen in zip(lengths, observed, strict=True))
assert log_weight_variance(bridge[longest][1].log_weights) < observed[-1] / 100

# %% [markdown]
# ## More lanes?
#
# The standard answer to a low ESS is more lanes. The ESS of $K$ lanes is the mean over random subsets of the weights
# above. A line of slope one below the diagonal is a constant price, $K / (1 + \chi^2)$: the bridge's becomes one, lanes
# are worth about a sixth of their number. Lines that stay flat show weights whose variance is not yet visible: more
# lanes find ever larger weights, and the ESS remains near one.

# %%
rng = np.random.default_rng(0)
counts = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= N / 2]  # small enough for subsets to differ


def ess_of_lanes(run, count):
    weights = np.asarray(run.log_weights)
    return float(np.mean([ess(rng.choice(weights, count, replace=False)) for _ in range(200)]))


fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
curves = {f"plain IS, {V} tokens": plain[V][1] for V in size((2, 4, 8, 32), (4, 16))}
curves[f"bridge, {longest} tokens"] = bridge[longest][1]
for (name, run), marker in zip(curves.items(), "osv^DP", strict=False):
    ax.plot(counts, [ess_of_lanes(run, count) for count in counts], marker=marker, markersize=5, label=name)
ax.plot(counts, counts, color="0.7", linewidth=1, label="ESS = K", zorder=0)
ax.set(xlabel="lanes K", ylabel="ESS (lanes)", xscale="log", yscale="log")
ax.set_xticks(counts, map(str, counts))
ax.xaxis.minorticks_off()
ax.legend(frameon=False, fontsize=8)
plt.show()

# %% tags=["hide-input"]
assert ess_of_lanes(plain[longest][1], counts[-1]) < 5
assert 0.1 < ess_of_lanes(bridge[longest][1], counts[-1]) / counts[-1] < 0.6

# %% [markdown]
# ## Shorter blocks?
#
# Plain IS may also run the DLM afresh after every few tokens. The price is forwards, which is what a diffusion model
# was to save. All points below commit the same number of tokens; to the right fewer forwards, to the bottom more even
# weights.

# %%
total, few = size(32, 16), size(64, 32)
windows = size([1, 2, 4, 8, 16], [1, 4, 16])
short = {V: weigh(plain_is, total, window=V, count=few, lanes=1)[1] for V in windows}
bridged = {w: weigh(smc, total, window=total, count=few, w=w)[1] for w in size((0.1, 0.3, 0.5, 0.7), (0.3, 0.7))}

fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for runs, colour, marker, name in (
    (short, BLUE, "o", "plain IS in blocks of V"), (bridged, RED, "s", "bridge with exponent w"),
):
    speed = [block_statistics(run).tokens for run in runs.values()]
    spread = [log_weight_variance(run.log_weights) for run in runs.values()]
    ax.plot(speed, spread, color=colour, marker=marker, markersize=5, label=name)
    for key, x, y in zip(runs, speed, spread, strict=True):
        letter = "V" if runs is short else "w"
        style = {"xytext": (6, -11), "textcoords": "offset points", "fontsize": 8, "color": colour}
        ax.annotate(f"{letter} = {key:g}", (x, y), **style)
ax.set(
    xlabel="mean block length (tokens per DLM forward of a particle)", xscale="log", yscale="log",
    ylabel=f"variance of log weight\nover {total} tokens (nats²)",
)
ax.margins(x=0.12, y=0.12)
ax.set_xticks(windows, map(str, windows))
ax.xaxis.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Even in blocks of a single token, which are no blocks, the variance is tens of nats²: the DLM words a text otherwise.
# Two tokens drafted independently can moreover contradict each other, and whatever the DLM is asked next it continues
# a broken text. The bridge's blocks are as long as the drafts are good, and at like length its variance is smaller by
# orders of magnitude. With $w$ the blocks become longer, and the variance grows much faster than they do.

# %% tags=["hide-input"]
bridge_length = block_statistics(bridged[0.3]).tokens
assert bridge_length > 3, bridge_length
assert log_weight_variance(bridged[0.7].log_weights) > 5 * log_weight_variance(bridged[0.3].log_weights)
assert bridge_length < block_statistics(bridged[0.7]).tokens
# Even blocks that are shorter than the bridge's have far more uneven weights.
assert log_weight_variance(bridged[0.3].log_weights) < log_weight_variance(short[4].log_weights) / 50

# %% [markdown]
# ## What the rejection removes, exactly
#
# Write the weight of plain IS in two factors, $\log \frac pq = \log \frac p\pi + \log \frac\pi q$. Since
# $\pi_i = q_i^w p_i^{1-w} / c_i$ with $c_i = \sum q_i^w p_i^{1-w}$,
#
# $$\log \frac{p}{\pi} = w \log \frac pq + \sum_i \log c_i .$$
#
# So two things happen. **The ruler changes:** on the *same* drafts, the log weight shrinks by $w$, and its variance by
# $w^2$ up to the normalisers, for $w = 0.3$ by a factor of about 11. That step is bookkeeping: the part $\log \pi / q$
# has gone into rejection, which pays for it in tokens instead of weights. **The drafts move:** committed blocks are
# draws from $\pi$, no longer from $q$, and the large ratios sit where $\pi$ has little mass and $q$ has some. On a
# tabular pair all three variances can be summed over every block.

# %%
V, A = 5, 4
ar = TabularAR.random(A, V, seed=5)
table = SimpleNamespace(ar=ar, dlm=TabularDLM(ar, noise=0.3, seed=1))
empty, blocks = torch.zeros(1, dtype=torch.long), torch.cartesian_prod(*[torch.arange(A)] * V)  # [A**V, V]
log_p = ar.session(empty[:, None][:, :0], empty).score(empty.expand(len(blocks)), blocks)  # [A**V, V, A]
canvas = torch.full((1, V), -1)
log_q = DLMProposal(table.dlm).shaping.log_probs(table.dlm.session(empty[:, None][:, :0], empty).score(empty, canvas))
log_q = log_q.expand_as(log_p)


def of_block(log_law):
    return log_law.gather(-1, blocks[..., None])[..., 0].sum(-1)  # [A**V]


def variance(log_weight, law):
    mean = (law * log_weight).sum()
    return (law * (log_weight - mean) ** 2).sum().item()


q, p = of_block(log_q), of_block(log_p)
grid = np.linspace(0.0, 1.0, 21)
pis = [of_block(ProductOfExperts(float(w)).log_prob(log_q, log_p)) for w in grid]
same_drafts = np.array([variance(p - pi, q.exp()) for pi in pis])
moved = np.array([variance(p - pi, pi.exp()) for pi in pis])
whole = variance(p - q, q.exp())

fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
ax.axhline(whole, color=BLUE, label="plain IS: $\\log p/q$, drafts from $q$")
ax.plot(grid[1:], same_drafts[1:], color=GREEN, linestyle="--", label="new ruler: $\\log p/\\pi$, drafts from $q$")
ax.plot(grid[1:], moved[1:], color=RED, marker="s", markersize=4, label="bridge: $\\log p/\\pi$, blocks from $\\pi$")
ax.plot(grid[1:], grid[1:] ** 2 * whole, color="0.6", linewidth=1, label="$w^2$ times plain IS", zorder=0)
ax.set(xlabel="exponent w of the DLM", ylabel=f"variance of log weight\nof {V} tokens (nats²)", yscale="log")
ax.legend(frameon=False, fontsize=8)
plt.show()

# %% tags=["hide-input"]
assert abs(same_drafts[-1] - whole) < 1e-9  # w = 1 is plain IS
assert abs(moved[-1] - whole) < 1e-9
assert moved[0] < 1e-20  # w = 0: weights of one
assert abs(sum(pi.exp().sum().item() - 1 for pi in pis)) < 1e-9
inner = slice(2, -1)
assert (moved[inner] < same_drafts[inner]).all()
assert ((same_drafts / (grid**2 * whole + 1e-30))[inner] < 2).all()

# %% [markdown]
# On the embedded pair, by Monte Carlo. `local_divergences` reads the laws along a committed sequence, whichever program
# made it; so the middle bar weighs the *plain* drafts with the bridge's ruler.

# %%
some = size(48, 12)
fig, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
bars = {}
for V in [V for V in lengths if V > 2]:
    ruler = bridge[V][0]
    along = [local_divergences(ruler, plain[V][1], particle=i, max_new_tokens=V, foreign=True) for i in range(some)]
    bars[V] = (
        log_weight_variance(plain[V][1].log_weights),
        log_weight_variance([float(one.log_ratio.sum()) for one in along]),
        log_weight_variance(bridge[V][1].log_weights),
    )
names = ("plain IS", "new ruler, same drafts", "bridge: drafts moved by rejection")
for j, (name, colour) in enumerate(zip(names, (BLUE, GREEN, RED), strict=True)):
    heights = [values[j] for values in bars.values()]
    drawn = ax.bar(np.arange(len(bars)) + 0.27 * (j - 1), heights, 0.25, color=colour, label=name)
    ax.bar_label(drawn, [f"{height:.2g}" if height < 10 else f"{height:.0f}" for height in heights], fontsize=7)
ax.set_xticks(range(len(bars)), map(str, bars))
ax.set(xlabel="tokens V", ylabel="variance of log weight (nats²)", yscale="log")
ax.margins(y=0.15)
ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
plt.show()

# %% [markdown]
# The ruler accounts for a factor somewhat below $1/w^2$; the rest, about two orders of magnitude, comes from moving the
# drafts. Independent marginals put tokens side by side that never occur together, such a draft costs tens of
# nats under any ruler, and rejection stops before the second of the two.

# %% tags=["hide-input"]
for V, (first, second, third) in bars.items():
    assert first > 30 * third, (V, bars[V])
    assert V < 16 or first > 3 * second > 30 * third, (V, bars[V])  # over fewer tokens a dozen drafts may all be sound

# %% [markdown]
# ## Predicted from the local chi-square
#
# One token multiplies $1 + \operatorname{Var}(w)$ by $1 + \chi^2(p_i \| \pi_i)$, an exact sum over the alphabet at
# every visited position. For nearly log-normal weights the variance of the *log* weight then grows by $\log(1 +
# \chi^2_i)$ a token.

# %%
tokens = size(64, 24)
sampler, run = weigh(smc, tokens, window=32, count=size(192, 32), w=0.3)
predicted = [local_divergences(sampler, run, particle=i, max_new_tokens=tokens) for i in range(some)]
ax = plot_log_weight_variance({"bridge, w = 0.3": run}, {"bridge, w = 0.3": predicted})
plt.show()

forecast = {}
for name, (maker, made) in (("plain IS", plain[longest]), ("bridge, w = 0.3", bridge[longest])):
    along = [local_divergences(maker, made, particle=i, max_new_tokens=longest) for i in range(some)]
    forecast[name] = float(np.mean([one.predicted_log_variance[-1] for one in along]))
    print(
        f"{name:16} after {longest} tokens: predicted {forecast[name]:8.3g}, "
        f"observed {log_weight_variance(made.log_weights):8.3g} nats²"
    )

# %% [markdown]
# For the bridge the local chi-square, from full conditionals alone and without a single weight, predicts the observed
# variance within a small factor: enough to choose $w$ by. For plain IS it falls short by far. A single token of a draft
# can cost 20 nats, the log weights are nowhere near normal, and the large ratios that make $\chi^2$ are the ones that
# no sample shows. That the prediction fails *there* is one more way of saying that the weights have degenerated.

# %% tags=["hide-input"]
seen = log_weight_variance(bridge[longest][1].log_weights)
assert 1 / 4 < forecast["bridge, w = 0.3"] / seen < 4, (forecast, seen)
assert forecast["plain IS"] < log_weight_variance(plain[longest][1].log_weights) / 3
