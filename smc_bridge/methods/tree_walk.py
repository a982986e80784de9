"""A walk on a tree of likely continuations, as a method: one forward of the AR model for all lanes, nothing is refused.

At w = 0 it is DDTree (arXiv 2604.12989, of the same tree); other prior art is named in `smc_bridge.kernels.tree`. What
is added here: the walk on any intermediate, its weights, N particles on one forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from smc_bridge.engine.presets import AUTO, NODES, smc, tree_kernel
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.arguments import is_list
from smc_bridge.models.protocols import ModelPair
from smc_bridge.registry import method


@method(
    "tree-walk", role="weighted", targets="AR", proper=True, reference="arXiv 2604.12989 (w = 0)",
    aliases=("tree-<nodes>",), rest=smc, without=("kernel", "bonus"),
)
def tree_walk(
    pair: ModelPair, *, particles: int = 1, nodes: int | Literal["auto"] = NODES, min_probability: float = 0.05,
    temperature: float = 1.0,
    proposal_temperature: float | Sequence[float] | None = None, name: str = "tree-walk", **options: Any,
) -> Sampler:
    """One particle that walks on a tree of at most B nodes, w = 0.3 unless an intermediate is given.

    The tree ranks continuations by the DLM at temperature 0.65, with a temperature for each lane by each lane's own
    marginals. All else is as in `smc`.

    Args:
        nodes: B, budget of the tree; auto: in each tree as many as pay, up to 128.
        min_probability: continuations that are taken less likely than this are left out of the tree.
    """
    own: Any = temperature if proposal_temperature is None else proposal_temperature
    chosen = isinstance(nodes, str) and nodes == AUTO
    most: Any = NODES if chosen else nodes
    kernel = (
        TreeWalk(most, min_probability=min_probability) if is_list(own)
        else tree_kernel(most, proposal_temperature=own, min_probability=min_probability)
    )
    return smc(
        pair, particles, temperature=temperature, proposal_temperature=proposal_temperature, name=name,
        **{"kernel": kernel, **({"nodes": AUTO} if chosen else {}), **options},
    )
