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
# # Certificates
#
# A sequence drawn from the final weights of a run follows some law $r$. The AR model has the law $p$. With finitely
# many particles the two differ, and on a real model neither can be listed. Yet every run reports an estimate $\hat Z$
# of the target's normaliser, which is 1, and how far $\log \hat Z$ strays from 0 bounds the distance between $r$ and
# $p$, from both sides:
#
# $$\mathrm{KL}(r \,\|\, p) \;\le\; \mathbb E[-\log \hat Z], \qquad
#   \mathrm{KL}(p \,\|\, r) \;\le\; \mathbb E[\log \hat Z_{\mathrm{cond}}].$$
#
# The second run is *conditional*: one of its particles retains an exact sample of the AR model. The sum of the two
# bounds $\mathrm{KL}(r\|p) + \mathrm{KL}(p\|r)$ (Grosse et al. 2015; Cusumano-Towner & Mansinghka 2017). The proofs
# are in `docs/theory.md`; here both bounds are compared with exact values, then estimated on the embedded pair, and
# at the end comes what they do not say.
#
# They are estimated by means over runs. Since $\mathbb E[\hat Z] = 1$, the terms $\hat Z - 1 - \log \hat Z$ have the
# mean of $-\log \hat Z$; they are never negative, mostly vary less, and are what is averaged (in the other direction
# $1/\hat Z - 1 + \log \hat Z$). Where the runs fall clearly short of $\mathbb E[\hat Z] = 1$, the plain terms are.

# %%
import itertools
import os
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.enum import iter_discrete_traces
from scipy import stats

from smc_bridge import Target, ar_sampling, load_pair, never, released, smc
from smc_bridge.analysis import kl, kl_certificate, kl_per_token, oracle
from smc_bridge.analysis.reverse import bidirectional
from smc_bridge.certificate import kl_terms
from smc_bridge.models.arithmetic.problems import extract_answer, held_out
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.pyro_program import BridgeProgram

SIZE = os.environ.get("SMC_BRIDGE_NOTEBOOK_SIZE", "full")


def size(full, reduced):
    """The test suite runs this notebook on less data."""
    return full if SIZE == "full" else reduced


# %% [markdown]
# ## Where everything is known
#
# Three tokens, sequences of two: nine in all, and a diffusion model with blurred and perturbed marginals.

# %%
table = TabularAR.random(3, 2, seed=4)
tables = SimpleNamespace(ar=table, dlm=TabularDLM(table, noise=0.9, seed=1))


def toy(particles, w=0.8):
    return smc(tables, particles, w=w, window=2, lookahead=2, trigger=never)


p = oracle(toy(1).target, max_new_tokens=2).posterior()
print(", ".join(f"{''.join(map(str, x))}: {mass:.3f}" for x, mass in p.items()))

# %% [markdown]
# Without resampling, particles are independent, and one particle can end in a few ways only: a sequence, cut into
# blocks in one way or another, with a weight. Listing them is one loop over the executions of the program's Pyro
# guide (notebook `06_in_pyro` explains it). These *atoms* have probability $g_a$ and weight $w_a$.


# %%
@torch.inference_mode()
def atoms(sampler):
    """Sequence, probability and weight of everything that one particle can do."""
    program = BridgeProgram(sampler, [], max_new_tokens=2)
    guide, model = program.unrolled(is_target=False), program.unrolled(is_target=True)
    found = {}
    for trace in iter_discrete_traces("flat", config_enumerate(guide, default="sequential")):
        log_g = float(trace.log_prob_sum())
        if log_g > -np.inf:
            scored = poutine.trace(poutine.replay(model, trace=trace)).get_trace()
            key = tuple(scored.nodes["_RETURN"]["value"].tolist()), round(float(scored.log_prob_sum()) - log_g, 9)
            found[key] = found.get(key, 0.0) + np.exp(log_g)
    sequences, log_w = zip(*found, strict=True)
    return sequences, np.array(list(found.values())), np.exp(log_w)


sequences, g, w = atoms(toy(1))
print(f"{len(g)} atoms of total probability {g.sum():.12f}; mean weight {g @ w:.12f}")

# %% [markdown]
# A run of $N$ particles is a draw of counts $n \sim \mathrm{Multinomial}(N, g)$. It has $\hat Z = \sum_a n_a w_a /
# N$, and an output of law $r(x) = \mathbb E\big[\sum_{a \to x} n_a w_a / (N \hat Z)\big]$. So all that the bounds
# speak of can be summed exactly; the conditional run has law $\hat Z \cdot \mathrm{Multinomial}$, hence $\mathbb
# E[\log \hat Z_{\mathrm{cond}}] = \mathbb E[\hat Z \log \hat Z]$.


# %%
def exact(particles):
    """Both divergences and both bounds, nats."""
    runs = np.array(list(itertools.combinations_with_replacement(range(len(g)), particles)))
    counts = (runs[:, :, None] == np.arange(len(g))).sum(1)
    probability = stats.multinomial(particles, g / g.sum()).pmf(counts)
    z = counts @ w / particles
    share = probability @ (counts * w / (particles * z[:, None]))
    r = {x: sum(s for y, s in zip(sequences, share, strict=True) if y == x) for x in p}
    return {
        "KL(r||p)": kl(r, p), "E[-log Z]": -probability @ np.log(z),
        "KL(p||r)": kl(p, r), "E[log Z_cond]": probability @ (z * np.log(z)),
    }


SIZES = (1, 2, 3, 4, 5)
truth = pd.DataFrame({n: exact(n) for n in SIZES}).T.rename_axis("N")
display(truth.style.format("{:.5f}"))

# %% [markdown]
# Now the same from runs, as on any model: `bidirectional` runs the program freely and conditionally.

# %%
RUNS = size(2000, 1000)
found = {n: bidirectional(toy(n), [[]] * RUNS, seed=list(range(RUNS)), max_new_tokens=2, level=0.999) for n in SIZES}

figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.6), sharey=True, layout="constrained")
sides = (("KL(r||p)", "E[-log Z]", "forward"), ("KL(p||r)", "E[log Z_cond]", "reverse"))
for ax, (divergence, bound, side) in zip(axes, sides, strict=True):
    estimates = [getattr(found[n], side) for n in SIZES]
    spread = np.array([[c.kl - c.low, c.high - c.kl] for c in estimates]).T
    ax.plot(SIZES, truth[bound], "-", color="#0072B2", label="bound, exact")
    ax.errorbar(SIZES, [c.kl for c in estimates], spread, fmt="o", color="#0072B2", capsize=3,
                label=f"bound, {RUNS:,} runs (99.9% interval)")
    ax.plot(SIZES, truth[divergence], "s--", color="#D55E00", label="divergence, exact")
    ax.set(xscale="log", yscale="log", xlabel="N, particles", title=divergence.replace("||", " || "))
    ax.set_xticks(SIZES, SIZES)
    ax.minorticks_off()
axes[0].set_ylabel("nats per sequence")
_ = figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)

# %% [markdown]
# Both bounds hold at every $N$, and the intervals cover the exact bounds. With one particle they are nearly tight:
# what separates them from the divergence is only how the sequence was cut into blocks. Then they part. The bound
# falls like $1/N$, as half the variance of $\hat Z$ does; the divergence falls like $1/N^2$, because the bias of a
# self-normalised estimate is of order $1/N$ in each probability and KL is quadratic in it. *A loose bound is not a
# large divergence*, and the more particles there are, the more it overstates.

# %%
falls = np.log(truth.loc[SIZES[-1]] / truth.loc[SIZES[1]]) / np.log(SIZES[-1] / SIZES[1])
print("from N = 2 to N = 5 the values fall like N to the power of")
print(falls.round(2).to_string())

# %% tags=["hide-input"]
assert abs(g.sum() - 1) < 1e-9
assert abs(g @ w - 1) < 1e-7
assert (truth["KL(r||p)"] < truth["E[-log Z]"]).all()
assert (truth["KL(p||r)"] < truth["E[log Z_cond]"]).all()
for n in SIZES:
    assert found[n].forward.low <= truth.loc[n, "E[-log Z]"] <= found[n].forward.high, (n, found[n].forward)
    assert found[n].reverse.low <= truth.loc[n, "E[log Z_cond]"] <= found[n].reverse.high, (n, found[n].reverse)
    assert found[n].symmetric.high > truth.loc[n, "KL(r||p)"] + truth.loc[n, "KL(p||r)"]
assert truth.loc[1, "E[-log Z]"] < 1.3 * truth.loc[1, "KL(r||p)"]
assert falls["KL(r||p)"] < -1.5 < falls["E[-log Z]"] < -0.7
assert falls["KL(p||r)"] < falls["E[log Z_cond]"]

# %% [markdown]
# ## On the embedded pair
#
# Two-step problems at target temperature 1, where the AR model is least sure of itself and the bound has most to say.
# One run per problem; the bound is the mean over them, on the *average* divergence over such problems. First the
# exponent $w$ of the diffusion model in the product of experts.

# %%
pair = load_pair("arithmetic")
problems = [x for x in held_out() if x.response.count("=") == 2][: size(24, 10)]
prompts = [pair.encode(x.prompt).tolist() for x in problems]


def bridge(particles=1, lanes=1, w=0.7, **options):
    return smc(pair, particles, lanes=lanes, window=16, lookahead=32, temperature=1.0,
               **({"w": w} if "intermediate" not in options else {}), **options)


def certificate(seed=0, **options):
    return kl_certificate(bridge(**options).run(prompts, seed=seed, max_new_tokens=64))


WEIGHTS = size((0.1, 0.3, 0.5, 0.7, 0.8, 0.9), (0.3, 0.7, 0.9))
MANY = size(4, 2)
over_w = {n: [certificate(particles=n, w=weight) for weight in WEIGHTS] for n in (1, MANY)}

# %%
COUNTS = size((1, 2, 4, 8), (1, 2, 4))
over_n = [certificate(particles=n, w=0.8) for n in COUNTS]
over_k = [certificate(lanes=k, w=0.8) for k in COUNTS]


# %%
def draw(ax, x, certificates, **look):
    """Certificates with their intervals, where they have one."""
    spread = np.array([[c.kl - c.low, c.high - c.kl] if c.has_interval else [np.nan] * 2 for c in certificates]).T
    ax.errorbar(x, [c.kl for c in certificates], spread, capsize=3, **look)


figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.6), sharey=True, layout="constrained")
draw(axes[0], np.array(WEIGHTS) - 0.008, over_w[1], fmt="o-", color="#0072B2", label="N = 1")
draw(axes[0], np.array(WEIGHTS) + 0.008, over_w[MANY], fmt="s--", color="#D55E00", label=f"N = {MANY}")
axes[0].set_yscale("symlog", linthresh=0.1, linscale=0.7)
axes[0].set(xlabel="w, exponent of the diffusion model", ylabel="bound on KL(r || p), nats per sequence")
places = np.arange(len(COUNTS))
draw(axes[1], places - 0.06, over_n, fmt="o-", color="#0072B2", label="N particles, one lane each")
draw(axes[1], places + 0.06, over_k, fmt="^-.", color="#009E73", label="one particle, K lanes")
axes[1].set_xticks(places, COUNTS)
axes[1].set(xlabel="N or K, at w = 0.8")
for ax in axes:
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    ax.minorticks_off()
    ax.legend(frameon=False, loc="upper left" if ax is axes[0] else "upper right")

# %% [markdown]
# (The vertical axis is linear below 0.1 and logarithmic above.) With little weight on the diffusion model the bound
# is a small part of a nat; near $w = 1$ it is many nats, with several particles too. Particles and lanes both lower
# it. Lanes are cheaper, since they share a prefix, but one of them is chosen at the end of each
# block and the others are forgotten, while particles live on.
#
# At $w = 0$ every weight is one and every bound exactly 0, whatever the models: a certificate without noise.

# %%
print(certificate(particles=2, intermediate=Target()))

# %% tags=["hide-input"]
nothing = certificate(particles=2, intermediate=Target())
assert nothing.kl == nothing.low == nothing.high == 0.0
assert over_w[1][-1].low > max(0.0, over_w[1][0].high), (over_w[1][0], over_w[1][-1])
assert over_w[MANY][-1].low > over_w[MANY][0].high
assert over_n[-1].kl < over_n[0].kl, over_n
assert over_k[-1].kl < over_k[0].kl, over_k

# %% [markdown]
# ## Both directions
#
# The reverse bound sees what the forward one cannot: texts that the AR model writes and the decoder hardly ever does.
# It costs an exact AR sample and a conditional run per problem.

# %%
PROGRAMS = {
    "N = 1, K = 1": bridge(w=0.7), f"N = {MANY}, K = 1": bridge(MANY, w=0.7), "N = 1, K = 4": bridge(1, 4, w=0.7),
}
both = {name: bidirectional(program, prompts, seed=7, max_new_tokens=64) for name, program in PROGRAMS.items()}


def cell(c):
    return f"{c.kl:.3f} [{c.low:.3f}, {c.high:.3f}]"


rows = {
    name: {
        "KL(r||p), nats": cell(b.forward), "KL(p||r), nats": cell(b.reverse), "sum, nats": cell(b.symmetric),
        "sum, nats / 1,000 tokens": f"{1000 * (b.forward_per_token.value + b.reverse_per_token.value):.1f}",
    }
    for name, b in both.items()
}
display(pd.DataFrame(rows).T)

# %% [markdown]
# The brackets are 95% intervals of the *bound*: their upper end is what may be claimed. With one particle the forward
# bound is far above the reverse one, and its interval is wide. The two divergences punish different faults: the
# forward one grows with the log of how unlikely a written text is under $p$, the reverse one is large only if texts
# that $p$ writes are missing. So a few of the decoder's texts are ones that the AR model would hardly write. The last
# section looks at them.

# %% tags=["hide-input"]
for b in both.values():
    assert abs(b.symmetric.kl - b.forward.kl - b.reverse.kl) < 1e-9
    assert b.symmetric.high > 0
assert both["N = 1, K = 1"].symmetric.kl > both[f"N = {MANY}, K = 1"].symmetric.kl

# %% [markdown]
# ## What they do not say
#
# **One run is not a bound.** It gives one noisy term of a mean. **The mean is over problems**, and a small one can hide
# a problem on which the decoder is far off. **Its interval trusts the tail.** Here are all terms of one particle at
# $w = 0.7$, by problem, several seeds each. Most runs have a term near 0; some have drafted themselves into a corner,
# and a single particle cannot leave it. They make the mean. The interval is made for such skewed terms, and its upper
# end stands far above the estimate where a few terms carry it; but of what no run has met it cannot know, and of fewer
# than 100 runs it is too low more often than it says.

# %%
SEEDS = size(6, 3)
few = prompts[: size(16, 6)]
again = [run for s in range(SEEDS) for run in bridge(1, w=0.7).run(few, seed=100 + s, max_new_tokens=64)]
whole = kl_certificate(again)
terms = kl_terms([run.log_evidence for run in again]).reshape(SEEDS, len(few))
order = terms.mean(0).argsort()

_, ax = plt.subplots(figsize=(8.6, 3.2), layout="constrained")
place = np.arange(len(few))
ax.plot(np.tile(place, SEEDS), terms[:, order].ravel(), ".", color="#56B4E9", label="one run")
ax.plot(place, terms.mean(0)[order], "o", mfc="none", color="#0072B2", label=f"mean of {SEEDS} runs of the problem")
ax.axhline(whole.kl, color="#D55E00", linestyle="--", label="mean over all runs: the certificate's estimate")
ax.axhline(whole.high, color="#D55E00", linestyle=":", label="upper end of its interval: what may be claimed")
ax.axhline(0, color="0.6", linewidth=0.8)
ax.set(xlabel="problem, in increasing order of its mean", ylabel="term of the certificate, nats")
ax.set_yscale("symlog", linthresh=0.1, linscale=0.7)
ax.set_xticks([])
_ = ax.legend(frameon=False, loc="upper left")
print(whole)

# %% [markdown]
# **It is not accuracy.** The bound is about $r$ against $p$ *as the AR model has it*. An exact sampler has bound 0
# and is wrong as often as the AR model is. Two targets, the AR model at temperatures 1 and 2, each sampled by AR
# decoding itself and by the program:


# %%
def right(runs):
    """Share of right answers of each run; runs go over the problems again and again."""
    each = zip(runs, problems * (len(runs) // len(problems)), strict=True)
    return [run.expectation(lambda text, x=x: extract_answer(text) == x.answer) for run, x in each]


rows, accuracy = {}, {}
for temperature in (1.0, 2.0):
    program = smc(pair, MANY, w=0.2, window=16, lookahead=32, temperature=temperature)
    again = [seed for seed in range(10) for _ in prompts]
    exact_texts = ar_sampling(program.target, prompts * 10, seed=again, max_new_tokens=64, detokenize=pair.decode)
    runs = program.run(prompts, seed=3, max_new_tokens=64)
    accuracy[temperature] = np.mean(right(exact_texts)), np.mean(right(runs))
    rows[f"AR sampling, temperature {temperature}"] = [f"{accuracy[temperature][0]:.0%}", "0, exactly"]
    rows[f"smc({MANY}), temperature {temperature}"] = [f"{accuracy[temperature][1]:.0%}", cell(kl_certificate(runs))]
display(pd.DataFrame(rows, index=["right answers", "bound, nats"]).T)

# %% [markdown]
# **It is only there for proper programs.** A decoder that picks the best of its lanes has no certificate, and asking
# for one says why:

# %%
improper = released(pair, lanes=2, window=16, lookahead=32).run(prompts[:2], max_new_tokens=64)
try:
    kl_certificate(improper)
except ValueError as refusal:
    print(refusal)

# %% [markdown]
# **The reverse bound is one for multinomial resampling.** A conditional run is an exact draw from the extended target
# only if ancestors are drawn independently, so `bidirectional` replaces the sampler's resampler on both sides. A run
# with another resampler has the forward bound, not that reverse one.
#
# **It is per sequence.** A bound of 0.1 nats on 30 tokens and one on 1,000 tokens are different statements;
# `kl_per_token` divides, and carries the interval along.

# %%
for name, b in both.items():
    token = kl_per_token(b.free)
    low, high = 1000 * token.low, 1000 * token.high
    length = np.mean([run.drawn_tokens for run in b.free])
    print(f"{name}: {1000 * token.value:6.1f} nats per 1,000 tokens [{low:.1f}, {high:.1f}], {length:.0f} tokens")

# %% tags=["hide-input"]
assert abs(terms.mean() - whole.kl) < 1e-9
assert whole.low < whole.kl < whole.high
assert terms.mean(0).max() > terms.mean()
assert all(hot < cold for hot, cold in zip(accuracy[2.0], accuracy[1.0], strict=True)), accuracy
assert all("ultinomial" in str(run.settings["resampler"]) for b in both.values() for run in b.free + b.retained)
try:
    kl_certificate(improper)
except ValueError:
    pass
else:
    raise AssertionError("an improper method got a certificate")
