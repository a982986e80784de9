"""Parts of a program that do not fit together are refused in one line that names them, when it is made."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge.distributions.intermediate import ProductOfExperts, Proposal
from smc_bridge.distributions.table import Dense
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.importance import AcceptAll, BalanceHeuristic, OwnWeights
from smc_bridge.kernels.protocol import going_on
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods.released import ReleasedRejection
from smc_bridge.proposals.chain import PrefixFilled
from smc_bridge.proposals.path import MostLikelyPath
from smc_bridge.proposals.protocol import Asked
from tests.smc_bridge.programs import program


class Reads(Rejection):
    """A user's kernel that asks for more than the draft."""

    reads_marginals = True


class Meets:
    """A user's weight rule that looks at all lanes."""

    proper, lanewise = True, False

    def __call__(self, lanes: Any, **rest: Any) -> Tensor:
        return OwnWeights()(lanes, **rest)


class Silent:
    """A weight rule that does not say if its lanes weigh by themselves."""

    proper = True

    __call__ = Meets.__call__


def sampler(chain: bool = False, **parts: Any) -> Sampler:
    """A program, with a proposal whose laws depend on the draft if wanted."""
    plain: Any = program(Rejection(), lanes=2)
    return replace(plain, proposal=PrefixFilled(plain.proposal) if chain else plain.proposal, **parts)


@pytest.mark.parametrize(("parts", "named", "instead"), [
    ({"kernel": TreeWalk(3)}, "kernel = TreeWalk(3", "Rejection()"), ({"kernel": Reads()}, "kernel = ", "Rejection()"),
    ({"weight": BalanceHeuristic()}, "weight = ", "OwnWeights()"), ({"weight": Meets()}, "weight = ", "OwnWeights()"),
], ids=["tree walk", "user's kernel", "balance", "user's rule"])
def test_what_asks_for_laws_off_the_draft_is_refused_where_they_depend_on_it(
    parts: dict[str, Any], named: str, instead: str
) -> None:
    sampler(**parts)  # they have them where q factorises
    with pytest.raises(ValueError, match="^" + re.escape(named)) as caught:
        sampler(chain=True, **parts)
    message = str(caught.value)
    assert "\n" not in message
    assert f"which PrefixFilled has not: its laws depend on the draft; use {instead}, or a proposal that" in message


def test_parts_that_look_at_the_draft_alone_take_a_chain_and_all_take_a_path() -> None:
    assert sampler(chain=True).proper
    whole: Any = program(Rejection(), lanes=1)
    for kernel in (Rejection(), TreeWalk(3), Reads()):
        replace(whole, kernel=kernel, proposal=MostLikelyPath(whole.proposal))


def test_a_proposal_says_if_it_has_as_many_temperatures_as_there_are_lanes() -> None:
    with pytest.raises(ValueError, match=r"^temperature has 2 entries for 3 lanes: give one per lane$"):
        sampler(lanes=3)
    with pytest.raises(ValueError, match=r"^temperature has 2 entries for 3 lanes: give one per lane$"):
        sampler(chain=True, lanes=3)


def test_a_kernel_says_if_it_serves_the_intermediate() -> None:
    """`Kernel.check`, of the package's own and of a user's."""

    class Picky(Rejection):
        def check(self, intermediate: Any) -> None:
            if isinstance(intermediate, ProductOfExperts):
                raise ValueError(f"intermediate = {intermediate!r} with Picky: use Proposal()")

    for kernel in (AcceptAll(), Picky()):
        kernel.check(Proposal())
        with pytest.raises(ValueError, match=r"^intermediate = ProductOfExperts.* with .*: use Proposal\(\)$"):
            sampler(kernel=kernel)
    Rejection().check(ProductOfExperts())
    with pytest.raises(ValueError, match=r"^kernel = .*: give a Kernel, such as Rejection\(\)$"):
        sampler(kernel=OwnWeights())


def test_a_weight_rule_says_if_lanes_weigh_by_themselves() -> None:
    with pytest.raises(ValueError, match=r"^weight = .* does not say if lanes weigh .*: give it a bool `lanewise`$"):
        sampler(weight=Silent())
    with pytest.raises(ValueError, match=r"^retained needs a proper program whose lanes have their own weights: "):
        sampler(weight=Meets()).run([[]], max_new_tokens=1, retained=[[0]])


def test_a_kernel_without_a_stopping_law_says_so() -> None:
    q, block, length = Dense(torch.full((1, 2, 2), 0.5).log()), torch.zeros(1, 2).long(), torch.ones(1).long()
    kernel: Any = ReleasedRejection()
    for ask in (
        lambda: kernel.log_stop(q, q, block, length), lambda: kernel.log_density(q, q, block, length),
        lambda: going_on(kernel, q, q, block, horizon=None),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"^kernel ReleasedRejection has no stopping law: use a proper"):
            ask()


def test_a_chain_has_no_law_without_a_draft() -> None:
    chain: Any = sampler(chain=True)
    state = chain.start([[]], max_new_tokens=2)
    asked = Asked(torch.arange(1), state.prefix, state.limit - state.prefix.length, 2, 2, chain.chunks)
    with pytest.raises(ValueError, match=r"^source = None: a chain has no law without a draft; give draws$"):
        chain.proposal.draft(state.drafts, asked, source=None)
