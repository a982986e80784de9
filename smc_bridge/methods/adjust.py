"""ADJUST (arXiv 2509.22738): one layer refreshes the diffusion model's laws after every token of a forward."""

from __future__ import annotations

import os

from torch import nn

from smc_bridge.canvas.adjusted import AdjustedCanvas
from smc_bridge.canvas.build import canvas_of
from smc_bridge.canvas.rules import Order, Ordered
from smc_bridge.engine.presets import part_of
from smc_bridge.models.protocols import ModelPair
from smc_bridge.proposals.adjust import as_refiner
from smc_bridge.registry import method


@method(
    "adjust", role="baseline", targets="DLM", proper=False, reference="arXiv 2509.22738",
    why="draws of adjusted marginals",
    aliases={"adjust-<tokens>": {}},
    examples=("adjust-2", "adjust-4", "adjust-4,order=left_to_right"),
    published=(
        "MAUVE .87 at 4 tokens per forward against .31 of naive parallel draws (v1 of the paper), .84 against .19 at 8 "
        "(v2)"
    ),
)
def adjust(
    pair: ModelPair, *, tokens: int = 4, order: Order = "entropy",
    head: nn.Module | str | os.PathLike[str] | None = None, span: int | None = None, lookahead: int | None = 16,
    temperature: float = 1.0, top_p: float = 1.0, tempered: bool = False,
) -> AdjustedCanvas:
    """Several places per forward, each drawn with those before it known: one layer stands for the further forwards.

    A forward of the diffusion model gives hidden states h and laws l of all masked places. Then, K times: the place i
    of least entropy under l is filled, `x_i ~ softmax(l_i)`, and one decoder layer reads the embedded canvas beside h
    and gives the states that the model would give of it, `h <- h + layer([Emb(x); h])`, whose laws the model's own head
    makes. The layer is shared over the K - 1 passes, which are counted as no forward; it was trained to give the
    model's states along the model's own trajectories.

    Role: a biased baseline. What is drawn has the law `prod_j softmax(l^(j)_{i_j})[x_{i_j}]`, which stands for the
    diffusion model's joint and not for the AR law. Its exact form is the proposal adjust of any program,
    `smc-1,proposal=adjust`: the order of places is forced from left to right, each token's law is its conditional given
    the draft before it, at every lane's temperature, and every kernel that verifies drafts takes it.

    Changed: the layer sees the places from the first gap on, as many as it was trained for, which are those that may be
    filled, and not the prompt, which is in h. Its last norm lets a place stay as it is (`Refiner`). Its loss is taken
    at all J states of an excursion where the published one is taken at the last, weighs places by how soon they come,
    and has no term for the states before the excursion. Entropies are those of the untempered law.

    Args:
        pair: the models, of which the diffusion model decodes.
        tokens: K, places filled per forward.
        order: which places come first, by least entropy, greatest top probability or place.
        head: the layer or a file of it, the pair's own unless it is given.
        span: consecutive places that are open at a time, as many as lookahead unless it is given.
        lookahead: masked places per forward, none for the whole continuation.
        temperature: of the laws that tokens are drawn from; 0 is greedy.
        top_p: of those laws.
        tempered: whether the order reads those laws, or the untempered ones.
    Raises:
        ValueError: an argument out of range, or the pair has no layer of this kind.
    """
    plain = canvas_of(
        pair, Ordered(order, tokens, tempered), name="adjust", span=span, lookahead=lookahead,
        temperature=temperature, top_p=top_p,
    )
    layer = as_refiner(part_of(pair, "adjust", head), pair.dlm)
    return AdjustedCanvas(plain, layer, "adjust", getattr(pair, "decode", None))
