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
# # The same program in Pyro
#
# A decoder that drafts, rejects, weighs and resamples is a probabilistic program: a *guide* that runs the kernel, a
# *model* that says what the tokens should have been drawn from, and sequential Monte Carlo between the two. Here it
# is one in the literal sense. The pair of programs is written in Pyro, so Pyro's handlers apply: `trace` looks into
# an execution, `replay` weighs it, `condition` scores a given text, enumeration lists everything that can happen, and
# `factor` changes the target.

# %%
import os
from collections import Counter
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import torch
from IPython.display import display
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.enum import iter_discrete_traces

from smc_bridge import Rejection, ar_sampling, load_pair, smc
from smc_bridge.analysis import oracle, total_variation, weighted_law
from smc_bridge.models.arithmetic.problems import extract_answer, held_out
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.pyro_program import BridgeProgram, enumerate_program, run_program, score
from smc_bridge.testing import KernelTable, block_law, kernel_density, kernel_law

SIZE = os.environ.get("SMC_BRIDGE_NOTEBOOK_SIZE", "full")


def size(full, reduced):
    """The test suite runs this notebook on less data."""
    return full if SIZE == "full" else reduced


# %% [markdown]
# ## Model and guide
#
# A pair of models with three tokens, sequences of up to three; token 0 ends a sequence.

# %%
LIMIT = 3
table = TabularAR.random(3, LIMIT, seed=5, eos_id=0)
tables = SimpleNamespace(ar=table, dlm=TabularDLM(table, noise=0.9, seed=1))


def toy(particles=1, w=0.6, **options):
    return smc(tables, particles, w=w, window=2, lookahead=3, **options)


program = BridgeProgram(toy(), [], max_new_tokens=LIMIT)
guide, model = program.unrolled(is_target=False), program.unrolled(is_target=True)

# %% [markdown]
# Each step has a site for the block, a law over token sequences *of random length*, and one that says whether its
# last token was the draft's own (it decides whether the rest of the draft's marginals is kept). Run the guide, then
# replay the model on what it drew:

# %%
pyro.set_rng_seed(5)
with torch.inference_mode():
    drawn = poutine.trace(guide).get_trace()
    scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace()
drawn.compute_log_prob()
scored.compute_log_prob()
sites = {
    name: {
        "value": drawn.nodes[name]["value"].tolist()[0], "guide, log g": float(drawn.nodes[name]["log_prob_sum"]),
        "model, log p": float(scored.nodes[name]["log_prob_sum"]),
    }
    for name in drawn.stochastic_nodes if name.startswith(("block", "accepted"))
}
frame = pd.DataFrame(sites).T
frame["log weight"] = frame["model, log p"] - frame["guide, log g"]
display(frame)
print("sequence:", drawn.nodes["_RETURN"]["value"].tolist())

# %% [markdown]
# (-1 is padding.) A block of length $L$ has the law $\pi(x_{1:L})\,\kappa(L \mid x_{1:L})$ in the guide and
# $p(x_{1:L})\,\kappa(L \mid x_{1:L})$ in the model: what stops it is the same on both sides. So the weight of a block
# is $\prod_{i \le L} p(x_i)/\pi(x_i)$ although $L$ is random, and the second site, of one law on both sides, weighs
# nothing.

# %% tags=["hide-input"]
assert abs(frame.filter(like="accepted", axis=0)["log weight"].astype(float)).max() < 1e-9
whole = float(scored.log_prob_sum() - drawn.log_prob_sum())
assert abs(frame["log weight"].astype(float).sum() - whole) < 1e-9

# %% [markdown]
# ## Scoring a text
#
# To score is to condition: `score` puts the text in place of the target's draws by `poutine.condition` and sums the
# log-probabilities of the sites. On the embedded pair that must be the AR model's own log-probability, token by
# token.

# %%
pair = load_pair("arithmetic")
problem = held_out()[23]
prompt = pair.encode(problem.prompt).tolist()
sampler = smc(pair, 2, w=0.3, window=16, lookahead=32)
print(problem.prompt)
print(problem.response)


# %%
def ids(text):
    return [*pair.tokenizer.encode(text, add_special_tokens=False), pair.ar.eos_id]


def by_hand(continuation):
    """Sum of `log p(x_i | x_<i)` by one forward of the AR model."""
    session = pair.ar.session(torch.tensor([prompt]), torch.tensor([len(prompt)]))
    log_p = sampler.target.log_probs(session.score(torch.tensor([0]), torch.tensor([continuation])))[0]
    return float(log_p.gather(1, torch.tensor(continuation)[:, None]).double().sum())


answer = problem.answer
texts = {"as written": problem.response}
for wrong in (answer + 1, answer + 10):
    texts[f"with #### {wrong}"] = problem.response.replace(f"#### {answer}", f"#### {wrong}")
texts["answer only"] = f"#### {answer}"
with torch.inference_mode():
    scores = {name: (score(sampler, prompt, ids(text)), by_hand(ids(text))) for name, text in texts.items()}
display(pd.DataFrame(scores, index=["poutine.condition, nats", "AR model, nats"]).T.round(4))

# %% tags=["hide-input"]
for name, (conditioned, own) in scores.items():
    assert abs(conditioned - own) < 1e-3, (name, conditioned, own)
assert scores["as written"][0] > max(s for name, (s, _) in scores.items() if name != "as written")

# %% [markdown]
# ## Enumerating a kernel
#
# The rejection kernel accepts drafted tokens with probability $\min(1, \pi_i/q_i)$ and corrects the first refusal
# from $(\pi_i - q_i)_+$. Is its output really distributed like $g = \pi\,\kappa$? Not "on average over many draws":
# exactly. A kernel draws through a *source* of randomness, and `smc_bridge.testing` has one that takes the real code
# through everything it can draw, as `iter_discrete_traces` does with a program.
#
# The laws of the first block of the toy: $q$ from the diffusion model, $\pi$ the product of experts after every prefix.

# %%
V = 3
first = BridgeProgram(smc(tables, 1, w=0.6, window=V, lookahead=V), [], max_new_tokens=LIMIT)
laws = first.laws(first.start(1), 0)
q = laws.proposal.along(torch.zeros(1, V, dtype=torch.long))[0]
with torch.inference_mode():
    laws_of_block = KernelTable.of_laws(q, laws.intermediate.along, eos_id=table.eos_id)
    law = block_law(kernel_law(Rejection(), laws_of_block))
    closed = dict(zip(law, kernel_density(Rejection(), laws_of_block, list(law)), strict=True))
gap = max(abs(law[block] - closed[block]) for block in law)
print(f"{len(law)} possible blocks, total probability {sum(law.values()):.12f}, largest gap to log_density {gap:.1e}")

# %%
order = sorted(law, key=lambda block: -law[block])[:18]
_, ax = plt.subplots(figsize=(8.6, 3.4), layout="constrained")
place = np.arange(len(order))
ax.bar(place, [law[b] for b in order], color="#56B4E9", label="code, all executions")
ax.plot(place, [closed[b] for b in order], "k_", markersize=12, label="closed form $\\pi\\,\\kappa$")
ax.set_xticks(place, ["".join(map(str, b)) for b in order], rotation=60)
ax.set(xlabel="committed block (0 ends the sequence)", ylabel="probability")
_ = ax.legend(frameon=False)

# %% [markdown]
# A stopping kernel has another signature: along every path of tokens the probabilities of stopping sum to one,
# $\sum_L g(x_{1:L})/\pi(x_{1:L}) = 1$. That is why a text has the target's probability whatever the blocks that it
# was cut into.

# %%
def stops(path):
    """`kappa(L | path)` for every L at which the enumerated kernel stops."""
    prefixes = [tuple(path[: n + 1]) for n in range(len(path))]
    return [law[prefix] / laws_of_block.mass(prefix) for prefix in prefixes if prefix in law]


for path in ([1, 1, 1], [2, 1, 2], [2, 2, 1]):
    print("".join(map(str, path)), [round(k, 4) for k in stops(path)], "sum", round(sum(stops(path)), 12))

# %% tags=["hide-input"]
assert abs(sum(law.values()) - 1) < 1e-12
assert gap < 1e-12, gap
for first in range(3):
    for second in range(3):
        path = [first, second, 1]
        assert abs(sum(stops(path)) - 1) < 1e-12, path

# %% [markdown]
# ## Enumerating the program
#
# One level up: list every execution of the whole guide, weigh each by the replayed model, and add up $\mathbb
# E[w\,1_x]$. A program is properly weighted if that is $p(x)$ for every sequence. To see that the test has teeth, try
# two mistakes that look harmless: a weight divided by the length, and no weight at all.

# %%
p = oracle(toy().target, max_new_tokens=LIMIT).posterior()
proper = enumerate_program(toy(), [], max_new_tokens=LIMIT)


@torch.inference_mode()
def executions():
    """All executions of the guide: probability, log weight and sequence of each."""
    for trace in iter_discrete_traces("flat", config_enumerate(guide, default="sequential")):
        log_g = trace.log_prob_sum()
        if log_g > -torch.inf:
            replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace()
            log_w = float(replayed.log_prob_sum() - log_g)
            yield float(log_g.exp()), log_w, tuple(replayed.nodes["_RETURN"]["value"].tolist())


every = list(executions())


def with_weight(rule):
    """`E[rule(log w, length) 1_x]` over all executions of the guide."""
    mass = dict.fromkeys(p, 0.0)
    for g, log_w, sequence in every:
        mass[sequence] += g * np.exp(rule(log_w, len(sequence)))
    return mass


answers = {
    "target p(x)": p, "E[w 1_x]": proper, "E[w^(1/length) 1_x]": with_weight(lambda log_w, n: log_w / n),
    "law of one particle": with_weight(lambda log_w, n: 0.0),
}
gaps = {name: max(abs(found[x] - p[x]) for x in p) for name, found in answers.items()}
for name in list(answers)[1:]:
    print(f"{name:22s} largest gap to p {gaps[name]:.1e}")

# %%
order = list(p)[:12]
_, ax = plt.subplots(figsize=(8.6, 3.4), layout="constrained")
place = np.arange(len(order))
ax.bar(place, [p[x] for x in order], color="#cbd2d9", label="target p(x)")
looks = {"E[w 1_x]": ("o", "#0072B2"), "E[w^(1/length) 1_x]": ("^", "#E69F00"), "law of one particle": ("s", "#D55E00")}
for shift, (name, (marker, color)) in zip((-0.2, 0, 0.2), looks.items(), strict=True):
    ax.plot(place + shift, [answers[name][x] for x in order], marker, color=color, label=name, markersize=5)
ax.set_xticks(place, ["".join(map(str, x)) for x in order])
ax.set(xlabel="sequence, the 12 likeliest", ylabel="probability")
_ = ax.legend(frameon=False)

# %% tags=["hide-input"]
assert gaps["E[w 1_x]"] < 1e-12, gaps
assert min(gaps["E[w^(1/length) 1_x]"], gaps["law of one particle"]) > 0.005, gaps

# %% [markdown]
# ## A potential
#
# A `pyro.factor` in the model makes the target $p(x)\,\phi(x)/Z$. In a sampler it is the target's `potential`, a
# function from prefixes to $\log \phi$. A *terminal* one says nothing (0) before a sequence is done. Here: the number
# of ones must be even.


# %%
def even_ones(prefix):
    """`log phi`: -inf for finished sequences with an odd number of ones."""
    odd = (prefix.tokens == 1).sum(-1) % 2 == 1
    return torch.where(prefix.done & odd, -torch.inf, 0.0)


tilted = toy(potential=even_ones)
factored = BridgeProgram(tilted, [], max_new_tokens=LIMIT)
pyro.set_rng_seed(1)
with torch.inference_mode():
    sites = poutine.trace(factored.unrolled(is_target=True)).get_trace().nodes
print("sites of the model:", ", ".join(n for n in sites if n.startswith(("block", "accepted", "potential"))))

# %%
posterior = oracle(tilted.target, max_new_tokens=LIMIT)
print(f"exact: Z = {np.exp(posterior.log_evidence):.4f}, the probability of an even number of ones under p")
mass = enumerate_program(tilted, [], max_new_tokens=LIMIT)
print(f"all executions of the guide: E[w] = {sum(mass.values()):.4f}")

# %% [markdown]
# `run_program` is SMC on the Pyro program (a repaired `pyro.infer.SMCFilter`). Its posterior is a self-normalised
# estimate, biased at small $N$; its evidence is unbiased at any $N$.

# %%
REPEATS = size(150, 10)
counts = (1, 4, 16, 64)
runs = {}
for n in counts:
    pyro.set_rng_seed(n)
    runs[n] = [run_program(toy(n, potential=even_ones), [], max_new_tokens=LIMIT) for _ in range(REPEATS)]
evidence = {n: np.array([np.exp(run.log_evidence) for run in group]) for n, group in runs.items()}
distance = {
    n: [total_variation(run, posterior) if run.log_evidence > -np.inf else 1.0 for run in group]
    for n, group in runs.items()
}

figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.4), layout="constrained")
mean = [evidence[n].mean() for n in counts]
error = [1.96 * evidence[n].std(ddof=1) / np.sqrt(REPEATS) for n in counts]
axes[0].errorbar(counts, mean, error, fmt="o", color="#0072B2", capsize=3, label=f"mean of {REPEATS} runs, 95%")
axes[0].axhline(np.exp(posterior.log_evidence), color="0.3", linestyle="--", label="exact Z")
axes[0].set(xlabel="N, particles", ylabel="$\\hat Z$", ylim=(0, 1))
axes[1].plot(counts, [np.mean(distance[n]) for n in counts], "o-", color="#D55E00", label="mean over runs")
axes[1].set(xlabel="N, particles", ylabel="TV of a run to the exact posterior", yscale="log")
axes[1].set_yticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
for ax in axes:
    ax.set_xscale("log", base=2)
    ax.set_xticks(counts, counts)
    ax.legend(frameon=False)
_ = axes[1].minorticks_off()

# %% [markdown]
# The weighted law of all the runs together is unbiased for the exact posterior:

# %%
estimate = weighted_law(runs[64], log_z=posterior.log_evidence)
exact = {x: m for x, m in posterior.posterior().items() if m > 0}
rows = {"".join(map(str, x)): [exact[x], estimate.get(x, 0.0)] for x in sorted(exact, key=exact.get, reverse=True)[:8]}
display(pd.DataFrame(rows, index=["exact posterior", f"{REPEATS} runs of 64 particles"]).T.round(4))

# %% tags=["hide-input"]
Z = np.exp(posterior.log_evidence)
assert abs(sum(mass.values()) - Z) < 1e-12
assert max(abs(mass.get(x, 0.0) - Z * m) for x, m in posterior.posterior().items()) < 1e-12
for n in counts:
    spread = evidence[n].std(ddof=1) / np.sqrt(REPEATS)
    assert abs(evidence[n].mean() - Z) < 4.5 * spread, (n, evidence[n].mean(), Z, spread)
assert np.mean(distance[64]) < np.mean(distance[4]) < np.mean(distance[1])
assert total_variation(estimate, posterior) < 0.05
assert all(even_ones(SimpleNamespace(tokens=torch.tensor([x]), done=torch.tensor([True]))).item() == 0 for x in exact)

# %% [markdown]
# ## The answer must be even
#
# The same on the embedded pair: a terminal potential that reads the finished text. At a high temperature the AR model
# often miscalculates, and the condition bites.


# %%
def even_answer(prefix):
    """`log phi`: a finished text must end in an even answer."""
    log_phi = torch.zeros(prefix.length.shape, dtype=torch.float64)
    for row in prefix.done.nonzero()[:, 0].tolist():
        text = pair.decode(prefix.tokens[row, len(prompt) : int(prefix.length[row])].tolist())
        answer = extract_answer(text)
        if answer is None or answer % 2:
            log_phi[row] = -torch.inf
    return log_phi


TEMPERATURE = 2.0
common = {"w": 0.2, "window": 16, "lookahead": 32, "temperature": TEMPERATURE, "potential": even_answer}
with torch.inference_mode():
    one = run_program(smc(pair, size(8, 2), **common), prompt, seed=2, max_new_tokens=80)
display(pd.DataFrame({"weight": one.weights.round(3), "text": [text.replace("\n", " / ") for text in one.texts]}))

# %% [markdown]
# Texts with an odd answer, or with none, have weight 0. For numbers, the batched engine, which has the same law
# (`tests/smc_bridge/test_pyro_program.py` enumerates both) and caches; against exact samples of the AR model, of
# which one keeps the even ones. That is rejection sampling: exact, and possible only because the condition is not
# rare.

# %%
REPEATS, N, DRAWS = size(30, 3), 16, size(600, 48)
many = smc(pair, N, **common).run([prompt] * REPEATS, seed=list(range(REPEATS)), max_new_tokens=80)
plain = smc(pair, 1, w=0.2, temperature=TEMPERATURE)
samples = ar_sampling(
    plain.target, [prompt] * DRAWS, seed=list(range(DRAWS)), max_new_tokens=80, detokenize=pair.decode
)

prior = Counter(extract_answer(run.texts[0]) for run in samples)
even = {value: count for value, count in prior.items() if value is not None and value % 2 == 0}
share = sum(even.values()) / DRAWS
z = np.array([np.exp(run.log_evidence) for run in many])
print(f"P(even answer): {share:.3f} +- {np.sqrt(share * (1 - share) / DRAWS):.3f} of {DRAWS} AR samples")
print(f"mean of Z_hat : {z.mean():.3f} +- {z.std(ddof=1) / np.sqrt(REPEATS):.3f} over {REPEATS} runs of {N} particles")

# %%
tilted_law = Counter()
for text, weight in weighted_law(many).items():
    if weight > 0:
        tilted_law[extract_answer(text)] += weight / z.mean()

shown = [value for value, _ in prior.most_common(8)]
shown += [value for value, _ in tilted_law.most_common(6) if value not in shown]
columns = {
    "AR model": (prior, DRAWS, "#cbd2d9"), "AR samples with an even answer": (even, sum(even.values()), "#0072B2"),
    "SMC with the potential": (tilted_law, 1.0, "#D55E00"),
}
_, ax = plt.subplots(figsize=(8.6, 3.4), layout="constrained")
place = np.arange(len(shown))
for shift, (name, (found, total, color)) in zip((-0.27, 0, 0.27), columns.items(), strict=True):
    ax.bar(place + shift, [found.get(value, 0) / total for value in shown], 0.27, color=color, label=name)
ax.set_xticks(place, ["none" if value is None else value for value in shown])
ax.set(xlabel=f"answer (right: {answer}); temperature {TEMPERATURE:g}", ylabel="probability")
_ = ax.legend(frameon=False)

# %% [markdown]
# The potential moved the mass of the other answers to the even ones, in proportion up to the noise of the runs, which
# is what conditioning is. Nothing about the decoder was retrained or searched: one function, and the same weights.

# %% tags=["hide-input"]
assert set(tilted_law) <= {value for value in tilted_law if value is not None and value % 2 == 0}
assert all(weight == 0 or extract_answer(text) % 2 == 0 for text, weight in zip(one.texts, one.weights, strict=True))
spread = np.hypot(np.sqrt(share * (1 - share) / DRAWS), z.std(ddof=1) / np.sqrt(REPEATS))
assert abs(z.mean() - share) < 4.5 * spread, (z.mean(), share, spread)
top = np.array([
    np.exp(run.log_evidence) * run.expectation(lambda text: extract_answer(text) == answer) for run in many
])
kept = even[answer] / sum(even.values())
of_runs = (top - kept * z).std(ddof=1) / z.mean() / np.sqrt(REPEATS)
noise = np.hypot(of_runs, np.sqrt(kept * (1 - kept) / sum(even.values())))
assert abs(tilted_law[answer] - kept) < 4.5 * noise, (tilted_law[answer], kept, noise)
