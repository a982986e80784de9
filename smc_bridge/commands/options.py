"""From the options of `smc-bridge decode` to a `Sampler`.

A method is a preset (`smc_bridge.methods.poe_bridge`); an option that is not given is the preset's own. An option
that contradicts another, or that the method cannot use, is refused rather than ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import smc_bridge
from smc_bridge.commands.base import UsageError
from smc_bridge.engine.names import named

if TYPE_CHECKING:
    from smc_bridge.models.pairs import Pair

# What has a name here is imported when it is made, so that the names can be shown without it (`smc_bridge.exports`).

Method = Literal["smc", "paper", "released", "speculative", "plain-is", "tree-walk"]

#: Nodes of a tree unless they are given.
NODES = 128

#: Intermediates by name; each is made with w, which not every one reads.
INTERMEDIATES: dict[str, Callable[[float], smc_bridge.Intermediate]] = {
    "poe": lambda w: smc_bridge.ProductOfExperts(w),
    "mixture": lambda w: smc_bridge.Mixture(w),
    "power-mean": lambda w: smc_bridge.PowerMean(w=w),
    "chernoff": lambda w: smc_bridge.Chernoff(),
    "defensive": lambda w: smc_bridge.Defensive(smc_bridge.ProductOfExperts(w)),
    "proposal": lambda w: smc_bridge.Proposal(),
    "target": lambda w: smc_bridge.Target(),
}
WITHOUT_W = ("chernoff", "proposal", "target")

#: What a preset is about, and so may not be changed.
FIXED_KERNEL = {"plain-is": "accept-all", "tree-walk": "tree"}
FIXED_INTERMEDIATE = {"speculative": "target", "plain-is": "proposal"}
DEFAULT_LANES = {"paper": 4, "released": 4, "plain-is": 4}
DEFAULT_W = 0.3

#: Options that the released decoder does not have.
NOT_RELEASED = (
    "particles", "kernel", "intermediate", "resampler", "trigger", "lane_temperatures", "balance", "nodes",
)


@dataclass(frozen=True)
class Options:
    """Options of `decode` that shape the sampler; None (or False) is the method's own.

    Attributes:
        w: exponent or share of the diffusion model in the intermediate, in [0, 1].
        temperature, top_p: of the target; for the released decoder `top_p` is that of the drafts.
        lane_temperatures: of the proposal, one per lane.
        balance: weigh lanes by the balance heuristic.
        nodes: budget of the tree walk.
    """

    method: Method = "smc"
    particles: int | None = None
    lanes: int | None = None
    w: float | None = None
    window: int | None = None
    lookahead: int | None = None
    kernel: str | None = None
    intermediate: str | None = None
    resampler: str | None = None
    trigger: str | None = None
    temperature: float = 1.0
    lane_temperatures: tuple[float, ...] | None = None
    balance: bool = False
    nodes: int | None = None
    top_p: float | None = None

    @property
    def kernel_name(self) -> str:
        """Kernel that will run."""
        return self.kernel or FIXED_KERNEL.get(self.method, "rejection")

    @property
    def intermediate_name(self) -> str:
        """Intermediate that will be used; plain importance sampling implies the proposal."""
        implied = "proposal" if self.kernel_name == "accept-all" else "poe"
        return self.intermediate or FIXED_INTERMEDIATE.get(self.method, implied)

    @property
    def lane_count(self) -> int:
        """K that will be used."""
        given = self.lanes if self.lanes is not None else len(self.lane_temperatures or ())
        return given or DEFAULT_LANES.get(self.method, 1)


def _refuse(option: str, value: Any, because: str) -> NoReturn:
    shown = ",".join(f"{x:g}" for x in value) if isinstance(value, tuple) else value
    given = "" if value is True else f" = {shown}"
    raise UsageError(f"--{option.replace('_', '-')}{given} {because}")


def check_options(options: Options) -> None:
    """Refuse options that contradict each other.

    Raises:
        UsageError: naming both sides and the remedy.
    """
    method, kernel, intermediate = options.method, options.kernel_name, options.intermediate_name
    if method == "released":
        for name in NOT_RELEASED:
            if getattr(options, name) not in (None, False):
                _refuse(name, getattr(options, name), "with --method = released: that one is fixed; use --method smc")
    if kernel != FIXED_KERNEL.get(method, kernel):
        _refuse("kernel", kernel, f"with --method = {method}: it is defined by its kernel; use --method smc")
    if intermediate != FIXED_INTERMEDIATE.get(method, intermediate):
        _refuse("intermediate", intermediate, f"with --method = {method}: it is defined by its own; use --method smc")
    if kernel == "accept-all" and intermediate != "proposal":
        _refuse(
            "kernel", kernel, f"with an intermediate = {intermediate}: it commits the proposal's own draft; use "
            "--intermediate proposal, or --kernel rejection",
        )
    if options.w is not None and intermediate in WITHOUT_W:
        _refuse(
            "w", options.w, f"with an intermediate = {intermediate}, which has none: leave it out, or use "
            "--intermediate poe",
        )
    if options.nodes is not None and kernel != "tree":
        _refuse("nodes", options.nodes, f"with a kernel = {kernel}, which has none: leave it out, or use --kernel tree")
    if options.lane_temperatures is not None:
        count = len(options.lane_temperatures)
        if method == "paper":
            _refuse("lane_temperatures", options.lane_temperatures, "with --method = paper, which has its own: use smc")
        if count != options.lane_count:
            _refuse(
                "lane_temperatures", options.lane_temperatures,
                f"has {count} entries for {options.lane_count} lanes: give one per lane",
            )
    if options.balance and options.lane_count == 1:
        _refuse("balance", True, "with one lane has nothing to balance: give --lanes 2 or more, or leave it out")
    if options.resampler is not None and options.trigger == "never":
        _refuse("resampler", options.resampler, "with --trigger = never is not used: leave one of them out")


def build_sampler(pair: Pair, options: Options) -> smc_bridge.Sampler:
    """The sampler that the options describe.

    Raises:
        UsageError: options contradict each other. ValueError: an option is out of range for the pair.
    """
    check_options(options)
    given = {
        "w": options.w, "window": options.window, "lookahead": options.lookahead, "lanes": options.lanes,
        "top_p": options.top_p, "temperature": options.temperature, "particles": options.particles,
    }
    arguments: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.method == "released":
        return smc_bridge.released(pair, **arguments)
    if options.lane_temperatures is not None:
        arguments |= {"lanes": options.lane_count, "proposal_temperature": list(options.lane_temperatures)}
    if options.intermediate_name != "poe" and options.method not in FIXED_INTERMEDIATE:
        # The preset's w is that of its product of experts, which this one replaces.
        w = arguments.pop("w", DEFAULT_W)
        arguments["intermediate"] = INTERMEDIATES[options.intermediate_name](w)
    if options.method == "tree-walk":
        arguments["nodes"] = options.nodes or NODES
    elif options.kernel is not None and options.method not in FIXED_KERNEL:
        arguments["kernel"] = _kernel(options)
    if options.resampler is not None:
        arguments["resampler"] = options.resampler
    if options.trigger is not None:
        arguments["trigger"] = options.trigger
    if options.balance:
        arguments["weight"] = "balance"
    return PRESETS[options.method](pair, **arguments)


def _kernel(options: Options) -> smc_bridge.Kernel:
    """The kernel that is named; a tree ranks as that of the preset where all lanes have one temperature."""
    assert options.kernel is not None
    nodes = options.nodes or NODES
    if options.kernel != "tree":
        return named("kernel", options.kernel)  # type: ignore[no-any-return]
    if options.lane_temperatures is None and options.method != "paper":
        from smc_bridge.methods.poe_bridge import tree_kernel

        return tree_kernel(nodes, proposal_temperature=options.temperature)
    return smc_bridge.TreeWalk(nodes)


#: Presets by the names of the command line.
PRESETS: dict[str, Callable[..., smc_bridge.Sampler]] = {
    "smc": lambda *given, **options: smc_bridge.smc(*given, **options),
    "paper": lambda *given, **options: smc_bridge.paper(*given, **options),
    "released": lambda *given, **options: smc_bridge.released(*given, **options),
    "speculative": lambda *given, **options: smc_bridge.speculative(*given, **options),
    "plain-is": lambda *given, **options: smc_bridge.plain_is(*given, **options),
    "tree-walk": lambda *given, **options: smc_bridge.tree_walk(*given, **options),
}
