"""From the flags of `smc-bridge decode` to a method with options.

A flag stands for an option of the method (`smc_bridge.registry`); what is not given is the method's own. An option that
the method does not have, or that contradicts another, is refused rather than ignored.
"""

from __future__ import annotations

import argparse
from typing import Any

from smc_bridge.commands.base import (
    add_w_argument,
    below_one,
    mass,
    not_negative,
    not_negatives,
    one_of,
    ratio,
    whole,
    whole_or_auto,
)
from smc_bridge.methods import DEFAULT
from smc_bridge.names import INTERMEDIATES, KERNELS, RESAMPLERS, TRIGGERS
from smc_bridge.registry import Spelled, spelled

#: Flags that are options by the same name.
SAME = (
    "particles", "lanes", "w", "beta", "window", "lookahead", "kernel", "intermediate", "resampler", "trigger",
    "temperature", "nodes", "top_p", "reuse",
)


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the method and the options that have a flag of their own."""
    group = parser.add_argument_group("method", "what is not given is the method's own")

    def named(option: str, names: list[str], text: str) -> None:
        group.add_argument(option, type=one_of(names), metavar="NAME", help=f"{text}: {', '.join(names)}")

    group.add_argument(
        "--method", default=DEFAULT, metavar="NAME[,option=value...]",
        help=f"see `smc-bridge methods` (default: {DEFAULT})",
    )
    group.add_argument("--particles", type=whole(1), metavar="N", help="particles that survive a step")
    group.add_argument("--lanes", type=whole(1), metavar="K", help="drafts per particle")
    add_w_argument(group, "exponent (or share) of the diffusion model in the intermediate, in [0, 1] (default: 0.3)")
    group.add_argument("--beta", type=ratio, metavar="b", help="of the intermediate clamp (default: 8)")
    group.add_argument("--window", type=whole_or_auto, metavar="V", help="tokens verified at once, or auto")
    group.add_argument(
        "--lookahead", type=whole_or_auto, metavar="M", help="masked positions per forward of the DLM, or auto"
    )
    named("--kernel", list(KERNELS), "how a draft becomes a block of the intermediate")
    named("--intermediate", list(INTERMEDIATES), "law between proposal and target")
    named("--resampler", list(RESAMPLERS), "how survivors are drawn")
    named("--trigger", list(TRIGGERS), "when particles are resampled")
    group.add_argument("--temperature", type=not_negative, metavar="T", help="of the target, 0 is greedy (default: 1)")
    group.add_argument(
        "--lane-temperatures", type=not_negatives, metavar="a,b,..", help="of the proposal, one per lane"
    )
    group.add_argument("--balance", action="store_true", help="weigh lanes by the balance heuristic")
    group.add_argument("--nodes", type=whole_or_auto, metavar="B", help="of the tree, or auto (default: 128)")
    group.add_argument(
        "--reuse", type=below_one, metavar="P",
        help="probability of the next likeliest tokens above which marginals outlive a refusal (default: 0, never)"
    )
    group.add_argument("--top-p", type=mass, metavar="P", help="see `smc-bridge methods NAME`, in (0, 1]")


def method_of(arguments: argparse.Namespace) -> Spelled:
    """The method that the flags say.

    Raises:
        ValueError: its name or an option is unknown, or an option is given twice, or the method does not have it.
    """
    method = spelled(arguments.method)
    given = {name: getattr(arguments, name) for name in SAME if getattr(arguments, name) is not None}
    options: dict[str, Any] = dict(given)
    if arguments.lane_temperatures is not None:
        options["proposal_temperature"] = list(arguments.lane_temperatures)
    if arguments.balance:
        options["weight"] = "balance"
    method = method.given(options)
    if arguments.lane_temperatures is not None and "lanes" not in method.options:
        return method.given({"lanes": len(arguments.lane_temperatures)})
    return method
