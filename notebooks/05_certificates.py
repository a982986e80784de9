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
RUNS = size(2000, 300)
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
# Two-step problems, one run per problem; the bound is the mean over them, on the *average* divergence over such
# problems. The two models have different habits of wording. A bridge accepts some of the diffusion model's, and the
# weights have to undo that. What do particles buy there? At temperature 1 the AR model itself is the target; at 0.2,
# the paper's regime, every law is sharp, and a habit costs many nats.

# %%
pair = load_pair("arithmetic")
problems = [x for x in held_out() if x.response.count("=") == 2][: size(24, 8)]
prompts = [pair.encode(x.prompt).tolist() for x in problems]


def bridge(particles=1, lanes=1, w=0.3, temperature=1.0, **options):
    return smc(pair, particles, lanes=lanes, window=16, lookahead=32, temperature=temperature,
               **({"w": w} if "intermediate" not in options else {}), **options)


WEIGHTS, TEMPERATURES = (0.3, 0.7), (1.0, 0.2)
COUNTS = {1.0: size((1, 2, 4, 8, 16), (1, 4)), 0.2: size((1, 4, 16), (1, 4))}
runs = {
    (t, w, n, k): bridge(n, k, w, t).run(prompts, seed=0, max_new_tokens=64)
    for t in TEMPERATURES for w in WEIGHTS for n, k in [(n, 1) for n in COUNTS[t]] + [(1, 4)]
}
bounds = {key: kl_certificate(found) for key, found in runs.items()}

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.6), layout="constrained")
falls = {}
for ax, t in zip(axes, TEMPERATURES, strict=True):
    for w, colour, marker in zip(WEIGHTS, ("#0072B2", "#D55E00"), "os", strict=True):
        line = [bounds[t, w, n, 1] for n in COUNTS[t]]
        spread = np.array([[c.kl - c.low, c.high - c.kl] for c in line]).T
        ax.errorbar(COUNTS[t], [c.kl for c in line], spread, fmt=f"{marker}-", color=colour, capsize=3,
                    label=f"w = {w}, N particles")
        one = bounds[t, w, 1, 4]
        ax.errorbar([4.5], [one.kl], [[one.kl - one.low], [one.high - one.kl]], fmt=f"{marker}", mfc="none",
                    color=colour, capsize=3, label=f"w = {w}, one particle, 4 lanes")
        ax.plot(COUNTS[t], line[0].kl / np.array(COUNTS[t]), ":", color="0.6", label="1/N" if w == 0.7 else None)
        falls[t, w] = float(np.polyfit(np.log(COUNTS[t]), np.log([c.kl for c in line]), 1)[0])
    ax.set(xscale="log", yscale="log", xlabel="N, particles", title=f"temperature {t}")
    ax.set_xticks(COUNTS[t], COUNTS[t])
    ax.xaxis.minorticks_off()
axes[0].set_ylabel("bound on KL(r || p), nats per sequence")
_ = figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
for (t, w), slope in falls.items():
    print(f"temperature {t}, w = {w}: the bound falls like N to the power of {slope:.2f}")

# %% [markdown]
# (Dotted: 1/N from the first point.) At temperature 1 the bound falls about as 1/N with either $w$: particles buy back
# what a bolder bridge spends. At 0.2 they hardly do. With $w = 0.3$ the bound falls far more slowly than 1/N, with $w =
# 0.7$ next to nothing is gained. Sharp laws make all particles write nearly the same text: their weights are even, so
# that the ESS is nearly N (below), and none of them has the wording that the target asks for.

# %%
rows = {}
for t, w, n, k in runs:
    if n * k in (1, 4):
        found, tokens = runs[t, w, n, k], sum(run.tokens for run in runs[t, w, n, k])
        ar, dlm = (sum(getattr(run.forwards, name) for run in found) / tokens for name in ("ar_rows", "dlm_rows"))
        c = bounds[t, w, n, k]
        rows[f"temperature {t}, w = {w}", f"N = {n}, K = {k}"] = {
            "bound, nats": f"{c.kl:.2f} [{c.low:.2f}, {c.high:.2f}]", "AR rows / token": f"{ar:.2f}",
            "DLM rows / token": f"{dlm:.2f}", "ESS": f"{np.mean([run.ess for run in found]):.2f}",
        }
display(pd.DataFrame(rows).T)

# %% [markdown]
# Four lanes of one particle and four particles are as many drafts in a step, and about as many rows of the AR model.
# Their bounds are alike within the intervals. Lanes are cheaper, since they share a prefix and so a row of the
# diffusion model; but one of them is chosen at the end of each block and the others are forgotten, while particles
# live on. The large study, with more of both and other bridges, is `docs/benchmarks/what_smc_buys.md`.
#
# At $w = 0$ every weight is one and every bound exactly 0, whatever the models: a certificate without noise.

# %%
nothing = kl_certificate(bridge(2, intermediate=Target()).run(prompts, max_new_tokens=64))
print(nothing)

# %% tags=["hide-input"]
assert nothing.kl == nothing.low == nothing.high == 0.0
for w in WEIGHTS:
    ones, many = ([bounds[t, w, n, 1].kl for t in TEMPERATURES] for n in (1, COUNTS[0.2][-1]))
    assert many[0] < 0.6 * ones[0], (w, ones, many)  # temperature 1
    assert 0.3 * ones[1] < many[1], (w, ones, many)  # temperature 0.2
    assert SIZE != "full" or -1.6 < falls[1.0, w] < -0.6, falls
    assert falls[1.0, w] < falls[0.2, w], falls
    assert bounds[1.0, w, 1, 4].kl < bounds[1.0, w, 1, 1].kl
    for t in TEMPERATURES:
        lanes, particles = (bounds[t, w, n, k] for n, k in ((1, 4), (4, 1)))
        assert max(lanes.low, particles.low) < min(lanes.high, particles.high), (lanes, particles)
        spent = [sum(run.forwards.dlm_rows for run in runs[t, w, n, k]) for n, k in ((1, 4), (4, 1))]
        assert spent[0] < 0.85 * spent[1], spent
for t in TEMPERATURES:
    assert bounds[t, 0.7, 1, 1].low > bounds[t, 0.3, 1, 1].high

# %% [markdown]
# ## Both directions
#
# The reverse bound sees what the forward one cannot: texts that the AR model writes and the decoder hardly ever does.
# It costs an exact AR sample and a conditional run per problem.

# %%
PROGRAMS = {f"N = {n}, K = {k}": bridge(n, k) for n, k in ((1, 1), (4, 1), (1, 4))}
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
# The brackets are 95% intervals of the *bound*: their upper end is what may be claimed, and from so few problems they
# are wide. The two divergences punish different faults: the forward one grows with the log of how unlikely a written
# text is under $p$, the reverse one is large only if texts that $p$ writes are missing. Here both bounds are of like
# size, and particles or lanes lower both: neither fault outweighs the other.

# %% tags=["hide-input"]
for b in both.values():
    assert abs(b.symmetric.kl - b.forward.kl - b.reverse.kl) < 1e-9
    assert b.symmetric.high > 0
assert both["N = 1, K = 1"].symmetric.kl > both["N = 4, K = 1"].symmetric.kl

# %% [markdown]
# ## What they do not say
#
# **One run is not a bound.** It gives one noisy term of a mean. **The mean is over problems**, and a small one can hide
# a problem on which the decoder is far off. **Its interval trusts the tail.** Here are all terms of one particle at
# $w = 0.3$, by problem, several seeds each. Most runs have a term below the mean; a few have accepted what the
# AR model would hardly write, and a single particle cannot take it back. They make much of the mean. The interval is
# made for such skewed terms, and its upper end stands far above the estimate where a few terms carry it; but of what no
# run has met it cannot know, and of fewer than 100 runs it is too low more often than it says. Nor does a full ESS
# speak for a run: at temperature 0.2 and $w = 0.7$ it was nearly N, where the bound is the largest of all.

# %%
SEEDS = size(6, 3)
few = prompts[: size(16, 6)]
again = [run for s in range(SEEDS) for run in bridge().run(few, seed=100 + s, max_new_tokens=64)]
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
ax.set_ylim(bottom=-0.05)
_ = ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
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
    program = bridge(4, w=0.2, temperature=temperature)
    again = [seed for seed in range(size(10, 3)) for _ in prompts]
    every = prompts * (len(again) // len(prompts))
    exact_texts = ar_sampling(program.target, every, seed=again, max_new_tokens=64, detokenize=pair.decode)
    runs = program.run(prompts, seed=3, max_new_tokens=64)
    accuracy[temperature] = np.mean(right(exact_texts)), np.mean(right(runs))
    rows[f"AR sampling, temperature {temperature}"] = [f"{accuracy[temperature][0]:.0%}", "0, exactly"]
    rows[f"N = 4, temperature {temperature}"] = [f"{accuracy[temperature][1]:.0%}", cell(kl_certificate(runs))]
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
