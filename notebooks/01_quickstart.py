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
# # Quickstart
#
# Decode a problem with the embedded pair of models, read the weights, look at one step of the program, and swap the
# intermediate distribution. It runs in under a minute on two cores.
#
# A diffusion language model (DLM) *proposes* many tokens at once as if they were independent (law $q$); an
# autoregressive model (AR) is the *target* $p$. Drafts are moved by rejection to an *intermediate* law $\pi$ between
# the two, and weighed by $p/\pi$. Particles that carry such weights are resampled block by block: sequential Monte
# Carlo.

# %%
import os

from IPython.display import display

from smc_bridge import Chernoff, Clamp, Defensive, Mixture, ProductOfExperts, Target, load_pair, smc
from smc_bridge.analysis import block_statistics, kl_certificate, kl_per_token, step_table, summary
from smc_bridge.analysis.plots import plot_block_lengths, plot_steps
from smc_bridge.models.arithmetic.problems import extract_answer, held_out

REDUCED = os.environ.get("SMC_BRIDGE_NOTEBOOK_SIZE", "full") == "reduced"  # the test suite runs it on less data
pair = load_pair("arithmetic")
problem = held_out()[3]
print(problem.prompt)

# %% [markdown]
# ## Decode
#
# Four particles with two lanes each; $\pi \propto q^{0.3} p^{0.7}$, the product of experts of the paper. The target
# is the AR model at temperature 1.

# %%
sampler = smc(pair, particles=4, lanes=2, w=0.3, window=32, lookahead=32, temperature=1.0)
result = sampler.decode(problem.prompt, seed=1, max_new_tokens=160, keep_drafts=True)
display(result)

# %% [markdown]
# The particles are weighted continuations. One text is *drawn* from the weights; an estimate is a weighted mean.

# %%
print(result.sample(seed=0))
right = result.expectation(lambda text: extract_answer(text) == problem.answer)
print(f"answer {problem.answer}; share of the weight that finds it: {right:.3f}")

# %% [markdown]
# `log_evidence` estimates the log of the target's normaliser, which is 0. Its mean shortfall bounds the divergence of
# the output's law from exact AR sampling, `KL <= E[-log Z_hat]`. What is averaged are the terms
# `Z_hat - 1 - log Z_hat`, which have that mean (`E[Z_hat] = 1`) and are never negative; one run is one of them.

# %%
print(f"log Z = {result.log_evidence:+.4f} nats, ESS = {result.ess:.2f} of {len(result.sequences)}")
print(result.certificate())
print(f"{result.tokens_per_dlm_forward:.1f} tokens per DLM forward, {result.forwards.ar_forwards} AR forwards")

# %% [markdown]
# ## One step
#
# Every lane is a draft (draft), the AR model scores it (verify), the kernel keeps what it accepts, corrects the
# first refusal and drops the rest (move), and the block earns a log weight (reweight). Lanes with a number in the
# last column survive (reduce) and are appended to their particle (commit).

# %%
display(step_table(result, 0, decode=pair.decode))

# %% [markdown]
# Along the run: how many particles the weights are worth before each selection, and from how many of the particles at
# that step the final ones descend.

# %%
ax = plot_steps(result)

# %% [markdown]
# ## Swap the intermediate
#
# Any law made position by position of `log q` and `log p` will do: the weights stay right, what changes is how much
# of the draft is accepted and how even the weights are. A new one is a class with one method. This one trusts the DLM
# where the DLM is sure of itself.


# %%
class Confident:
    """Product of experts whose w is half the proposal's largest probability at that position."""

    def log_prob(self, log_q, log_p):
        w = 0.5 * log_q.amax(-1, keepdim=True).exp()
        product = w * log_q + (1 - w) * log_p
        return product - product.logsumexp(-1, keepdim=True)


# %%
intermediates = {
    "Target": Target(),
    "PoE 0.3": ProductOfExperts(0.3),
    "PoE 0.9": ProductOfExperts(0.9),
    "Clamp 16": Clamp(16.0),
    "Mixture 0.3": Mixture(0.3),
    "Chernoff": Chernoff(),
    "Defensive PoE 0.9": Defensive(ProductOfExperts(0.9), 0.1),
    "Confident (ours)": Confident(),
}
prompts = [pair.encode(p.prompt).tolist() for p in held_out()[: 1 if REDUCED else 6]]
runs = {
    name: smc(pair, particles=4, intermediate=pi, window=16, lookahead=32).run(prompts, seed=0, max_new_tokens=128)
    for name, pi in intermediates.items()
}
display(summary(runs))

# %% [markdown]
# Longer blocks (fewer forwards) against more even weights (a tighter bound): that is the trade that the intermediate
# makes. `Target` is plain speculative decoding: exact, with the shortest blocks. The two models know the same
# arithmetic and word it by different habits, so much of what it refuses is merely worded differently. The laws between
# accept some of that, and near the proposal also what is wrong; notebook 03 tells the two apart, also at temperature
# 0.2, where the gain is greater. `Clamp` is the law that accepts most for its price.
#
# The ESS is that of the final weights, which resampling has evened out, and no weight tells of texts that no particle
# drew: read it with the bound. The bounds rest on six prompts, so their intervals are wide, or do not exist;
# `smc-bridge compare` runs hundreds.

# %%
ax = plot_block_lengths({name: runs[name] for name in ("Target", "PoE 0.3", "Clamp 16", "PoE 0.9")})

# %%
for name, group in runs.items():
    whole, token = kl_certificate(group), kl_per_token(group)
    print(f"{name:18s} {whole};  {1000 * token.value:7.3f} nats per 1,000 tokens")

# %% [markdown]
# With the target itself as intermediate every weight is one, whatever the draft; a law near the proposal keeps more of
# the draft.

# %%
assert all(w == 0.0 for run in runs["Target"] for w in run.log_weights)
kept = {name: block_statistics(runs[name]).tokens for name in ("Target", "PoE 0.9")}
assert kept["Target"] < kept["PoE 0.9"], kept
assert all(run.proper for group in runs.values() for run in group)
