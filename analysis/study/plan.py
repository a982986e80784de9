"""What a study runs: the Cartesian product of its axes, without the combinations that do not exist.

    method        intermediate    N     K     w       V     temperature
    smc           any             any   any   if any  any   any
    tree-walk     any             any   any   if any  any   any
    plain-is      proposal        any   any   -       any   any
    speculative   target          any   any   -       any   any
    paper         poe             1     any   any     any   any
    released      poe             1     any   any     any   any
    dlm-<tokens>  -               -     -     -       any   any
    ar            -               -     -     -       -     any

An entry other than "any" takes the place of whatever the axis holds, so that what differs on such an axis only is run
once: nine values of w give a single run of plain importance sampling. The intermediates `chernoff`, `proposal` and
`target` have no w. Unknown names, values out of range and repeated values are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from smc_bridge.analysis.comparison.methods import check_methods
from smc_bridge.distributions.intermediate import Intermediate, check_weight
from smc_bridge.distributions.shaping import check_temperature
from smc_bridge.engine.names import INTERMEDIATES, WITHOUT_W

#: Makes an intermediate from w.
MakeIntermediate = Callable[[float], Intermediate]

WEIGHTED = ("smc", "tree-walk", "plain-is", "speculative", "paper", "released")
#: Intermediates that belong to a method; of the paper's two, the product with the lanes' temperatures.
OWN_INTERMEDIATE = {"plain-is": "proposal", "speculative": "target", "paper": "poe", "released": "poe"}
SINGLE = ("paper", "released")
KNOWN = f"{', '.join(WEIGHTED)}, ar, dlm-<tokens per forward>, dlm-<tokens>-entropy, dlm-<tokens>-confidence, dlm-all"


@dataclass(frozen=True)
class Setting:
    """A sampler of a study; None where it has no such parameter.

    Attributes:
        method: by name.
        intermediate: by name.
        particles, lanes, window: N, K, V.
        w: exponent or share of the diffusion model.
        temperature: of the target.
    """

    method: str
    intermediate: str | None
    particles: int | None
    lanes: int | None
    w: float | None
    window: int | None
    temperature: float

    def to_dict(self) -> dict[str, Any]:
        """Fields by name."""
        return asdict(self)


#: Columns of a study that name the sampler.
SETTING_COLUMNS = tuple(item.name for item in fields(Setting))


def check_method(name: Any) -> None:
    """Raise ValueError unless a study knows the method."""
    if name in WEIGHTED:
        return
    if not isinstance(name, str) or (name != "ar" and not name.startswith("dlm-")):
        raise ValueError(f"methods = {name!r}: choose from {KNOWN}")
    check_methods([name])


@dataclass(frozen=True)
class Axes:
    """The values of every axis, in order.

    Raises:
        ValueError: an axis is empty, holds a value twice, or one that is out of range or unknown.
    """

    methods: tuple[str, ...] = ("smc",)
    intermediates: tuple[str, ...] = ("poe",)
    particles: tuple[int, ...] = (4,)
    lanes: tuple[int, ...] = (1,)
    weights: tuple[float, ...] = (0.3,)
    windows: tuple[int, ...] = (32,)
    temperatures: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for item in fields(self):
            check_axis(item.name, getattr(self, item.name))
        for name in self.methods:
            check_method(name)
        for name, least in (("particles", 1), ("lanes", 1), ("windows", 1), ("seeds", 0)):
            for value in getattr(self, name):
                check_whole(name, value, least)
        for w in self.weights:
            check_number("weights", w)
            check_weight(w)
        for value in self.temperatures:
            check_number("temperatures", value)
            check_temperature(value, name="temperatures")
        # Whether 1 was written as 1 or as 1.0 makes no other study.
        for name in ("weights", "temperatures"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))

    def check_intermediates(self, custom: Collection[str] = ()) -> None:
        """Raise ValueError if a name is neither ours nor among the `custom` ones."""
        known = [*INTERMEDIATES, *custom]
        for name in self.intermediates:
            if name not in known:
                raise ValueError(f"intermediates = {name!r}: choose from {', '.join(known)}")

    def settings(self) -> list[Setting]:
        """Every sampler once, in the order of the axes, the first one slowest (module docstring)."""
        product = itertools.product(
            self.methods, self.intermediates, self.particles, self.lanes, self.weights, self.windows, self.temperatures
        )
        return list(dict.fromkeys(_existing(*values) for values in product))


def _existing(
    method: str, intermediate: str, particles: int, lanes: int, weight: float, window: int, temperature: float
) -> Setting:
    """The sampler, with the method's own parameters where it does not leave them open."""
    if method not in WEIGHTED:
        return Setting(method, None, None, None, None, None if method == "ar" else window, temperature)
    own = OWN_INTERMEDIATE.get(method, intermediate)
    return Setting(
        method, own, 1 if method in SINGLE else particles, lanes, None if own in WITHOUT_W else weight, window,
        temperature,
    )


def intermediate_of(setting: Setting, custom: Mapping[str, MakeIntermediate]) -> Intermediate:
    """The intermediate of a setting, the `custom` ones first."""
    assert setting.intermediate is not None
    make = custom.get(setting.intermediate) or INTERMEDIATES[setting.intermediate]
    return make(0.0 if setting.w is None else setting.w)


def check_axis(name: str, values: tuple[Any, ...]) -> None:
    """Raise ValueError unless there are values, and none twice."""
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{name} = {', '.join(map(str, values)) or '[]'}: give at least one value, and none twice")


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} = {value}: give whole numbers of at least {least}")


def check_number(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{name} = {value!r}: give numbers")
