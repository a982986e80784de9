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
# # The field
#
# Around PoE-Bridge stand the published decoders of diffusion models, and those that share its parts: early commits,
# self-speculation, energy weights, path search, particles over denoising steps. Here each is a *method* of one
# registry, built from its formula, on the same two models, with its costs counted in the same way. Three questions:
#
# 1. what does each of them sample, and does it sample what it claims?
# 2. what does it buy: accuracy against tokens per forward?
# 3. the program keeps its weights right whoever drafts: what does a better draft buy under one intermediate?

# %%
import os
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display

from smc_bridge import ARTarget, ProductOfExperts, Sampler, load_pair, smc
from smc_bridge.analysis import kl_per_token
from smc_bridge.analysis.claims import judge
from smc_bridge.analysis.comparison import Settings, compare
from smc_bridge.models.arithmetic.problems import held_out
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.registry import METHODS
from smc_bridge.testing import check, tabular_pair

REDUCED = os.environ.get("SMC_BRIDGE_NOTEBOOK_SIZE", "full") == "reduced"


def size(full, reduced):
    """How much to compute: the whole notebook takes a few minutes, the reduced one some seconds."""
    return reduced if REDUCED else full


# %% [markdown]
# ## Who is here
#
# *Exact* methods draw from the law that stands beside them, *weighted* ones give properly weighted samples of it, and
# *baselines* do neither; a published form that is biased is an option of its method, and says so.

# %%
display(pd.DataFrame(
    [(m.name, m.role, m.targets, "yes" if m.proper else m.why, m.reference) for m in METHODS.values()],
    columns=["method", "role", "targets", "proper", "reference"],
).set_index("method"))

# %% [markdown]
# ## Who samples what it claims
#
# On a pair of tables every law is known: three tokens, four deep, a diffusion model that is a nat off. The law of a
# method's output (one sequence drawn by a run's own weights) is held against the law that it claims and against the AR
# law, in total variation: enumerated where that is cheap, else from runs, where *noise* says that draws of the law
# itself look the same. Programs that are properly weighted are exact in their weighted measure, and off in a single
# output by what few particles leave: that is what their KL bound bounds.

# %%
far = tabular_pair(3, 4, noise=1.0, seed=3)
PAIRS = {
    "AR sampling": "ar", "speculative": "speculative", "SpecDiff": "specdiff",
    "SpecDiff, 2 steps": "specdiff,steps=2", "SpecDiff, naive steps": "specdiff,steps=2,form=naive",
    "DiffuSpec": "diffuspec", "DiffuSpec, ratio test": "diffuspec,form=ratio", "APD": "apd,w=0.7",
    "APD, paper": "apd,form=as-published,w=0.7", "FeF-DLLM": "fef-dllm",
    "DLM, 1 token": "dlm-1", "DLM, 4 tokens": "dlm-4",
    "EDLM": "edlm,steps=4,is_start=1,is_end=0",
    "EDLM, released sign": "edlm,steps=4,is_start=1,is_end=0,sign=inverted",
    "best of 4": "best-of-4", "N = 1, w = 0.3": "smc-1", "N = 16, w = 0.3": "smc,particles=16",
    "PoE-Bridge, released": "released",
}
RUNS = size(10_000, 400)
found = {
    name: judge(text, far, 4, runs=RUNS, cheap=0)
    for name, text in (PAIRS if not REDUCED else dict(list(PAIRS.items())[:7])).items()
}
display(pd.DataFrame(
    {name: {"from its claim": "-" if j.claim is None else j.claim.text(), "from the AR law": j.ar.text(),
            "forwards / token": f"{j.forwards:.2f}"} for name, j in found.items()}
).T)

# %% [markdown]
# A ratio test on tokens that were *chosen*, and not drawn, is not exact, as on DiffuSpec's searched path: as a point
# mass the same path is. Nor is one on tokens that several steps have drawn in any order, each scored by its marginal at
# that moment: on the tables above that hardly shows, but let the diffusion model believe that the second token repeats
# the first, where the AR model draws both freely. Drawn from left to right the steps are a chain, and exact.

# %%
copies = TabularDLM(TabularAR([[[0.5, 0.5]], [[0.99, 0.01], [0.01, 0.99]]]))
tied = SimpleNamespace(dlm=copies, ar=TabularAR([[[0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]]))
steps = {form: judge(f"specdiff,steps=2,form={form}", tied, 2, runs=100).ar for form in ("exact", "naive")}
for name in ("DiffuSpec", "DiffuSpec, ratio test"):
    print(f"{name}: {found[name].ar.text()}")
for form, distance in steps.items():
    print(f"SpecDiff in two steps, {form}: {distance.text()}")
assert found["DiffuSpec"].ar.within_noise
assert not found["DiffuSpec, ratio test"].ar.within_noise
assert steps["exact"].tv.value < 1e-12 < 0.05 < steps["naive"].tv.value

# %% [markdown]
# Whatever they draft by, programs can be checked on every outcome:

# %%
toy = tabular_pair(2, 3)
for proposal in ("marginals", "chain", "entropy-chain", "speculated-chain"):
    print(f"{proposal:17}", check(smc(toy, 2, w=0.5, window=2, proposal=proposal)))

# %% [markdown]
# ## What they buy
#
# Some of them on the embedded pair at temperature 0.2, each with its own dial: how many tokens it commits per forward,
# and what that costs. Tokens per forward of the diffusion model, or of the AR model where there is no other. The page
# of the whole field, 100 problems a row, is `docs/benchmarks/field.md`.

# %%
DIALS = {
    "DLM, by place": ("dlm,tokens={}", size((1, 2, 4, 8), (1, 4))),
    "Fast-dLLM": ("fast-dllm,threshold={}", size((0.95, 0.9, 0.7, 0.5), (0.9,))),
    "EB sampler": ("eb-sampler,bound={}", size((0.05, 0.35, 1.0), ())),
    "guided": ("guided", (None,)),
    "APD": ("apd,w={}", size((0, 0.3, 0.7, 0.9), (0.7,))),
    "APD, released": ("apd,form=as-released,w={}", size((0.3, 0.5, 0.7), ())),
    "bridge, N = 1": ("smc-1,w={}", size((0, 0.3, 0.6, 0.9), (0, 0.3))),
    "bridge, tree": ("tree-walk,w={}", size((0, 0.3, 0.6, 0.9), ())),
}
points = {name: [text.format(value) for value in values] for name, (text, values) in DIALS.items()}
settings = Settings("arithmetic", size(48, 3), tuple(text for texts in points.values() for text in texts))
rows = {row.method: row for row in compare(settings).rows}

# %%
figure, ax = plt.subplots(figsize=(8.0, 4.4), layout="constrained")
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#888888")
for (name, texts), color, marker in zip(points.items(), COLORS, "osD^v<>P", strict=True):
    own = [rows[text] for text in texts]
    ax.plot([row.tokens_per_forward for row in own], [100 * row.accuracy.value for row in own],
            f"{marker}-", color=color, label=name)
ax.set_xlabel("tokens per forward of the diffusion model")
ax.set_ylabel("right answers, %")
ax.grid(alpha=0.3)
ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
plt.show()

# %% [markdown]
# Decoders that commit by the diffusion model's own confidence pay for speed with accuracy, down from an accuracy that
# is the diffusion model's to begin with. What is verified against the AR model starts at the AR model's accuracy, and
# the bridge says by $w$ how much of it is given up.
#
# ## Swapping the proposal under one intermediate
#
# The intermediate is the product of experts with $w = 0.3$ in all rows, and so is the law that blocks are drawn from
# (as far as each proposal's conditionals are the same); who drafts decides how far a block gets. A chain is coherent
# and costs a forward for every group of places; self-speculation draws the same chain in fewer, wider forwards; and
# the AR model without some of its layers drafts without the diffusion model. The diffusion model keeps no cache here:
# under one, rows of one prefix are run one after the other.

# %%
pair = load_pair("arithmetic", dlm_cache="none")
prompts = [pair.encode(x.prompt).tolist() for x in held_out()[: size(24, 2)]]
PROPOSALS = {
    "marginals": {}, "with a bonus token": {"bonus": True},
    "chain, a place a forward": {"proposal": "chain"}, "chain, 4 places a forward": {"proposal": "chain", "places": 4},
    "chain by entropy": {"proposal": "entropy-chain"}, "chain, self-speculated": {"proposal": "speculated-chain"},
}
programs = {
    name: smc(pair, 1, w=0.3, window=8, lookahead=8, temperature=0.2, **options) for name, options in PROPOSALS.items()
}
fewer_layers = METHODS["draft-verify"].make(pair, window=8, temperature=0.2).proposal
target = ARTarget(pair.ar, temperature=0.2)
programs["AR without some layers"] = Sampler(fewer_layers, target, ProductOfExperts(0.3), window=8)
table = {}
for name, program in programs.items():
    runs = program.run(prompts, max_new_tokens=size(96, 24))
    tokens, steps = sum(run.tokens for run in runs), sum(len(run.trace) for run in runs)
    table[name] = {
        "tokens / block": tokens / steps,
        "tokens / forward that drafts": tokens / sum(run.forwards.dlm_forwards for run in runs),
        "rows that draft / token": sum(run.forwards.dlm_rows for run in runs) / tokens,
        "bound, nats / token": kl_per_token(runs).value,
    }
frame = pd.DataFrame(table).T
display(frame.round(3))
assert frame.loc["chain, a place a forward", "tokens / block"] >= frame.loc["marginals", "tokens / block"] - 1.0
