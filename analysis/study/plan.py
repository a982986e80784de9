"""What a study runs: the Cartesian product of its axes, without the combinations that do not exist.

A method is spelled `NAME[,option=value...]` (`smc_bridge.registry`). An axis is about the option of the same meaning,
and varies it for every method that has it and whose spelling leaves it open:

    axis            intermediates   particles   lanes   w   windows   temperatures
    option          intermediate    particles   lanes   w   window    temperature

What a method does not have, or what its spelling says already, takes the place of whatever the axis holds, so that what
differs on such an axis only is run once: nine values of w give a single run of plain importance sampling. So is what
two spellings mean, under the first of them. Some intermediates have no w. Unknown names, values out of range and
repeated values are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from smc_bridge.distributions.intermediate import Intermediate, check_w
from smc_bridge.distributions.shaping import check_temperature
from smc_bridge.methods import DEFAULT
from smc_bridge.models.arguments import real_number, whole_number
from smc_bridge.models.pairs import Pair
from smc_bridge.names import INTERMEDIATES, idle, meant
from smc_bridge.registry import Spelled, spelled
from smc_bridge.tasks import Limits

#: Makes an intermediate from w.
MakeIntermediate = Callable[[float], Intermediate]


@dataclass(frozen=True)
class Setting:
    """A sampler of a study; None where it has no such parameter, or where an axis leaves the method its own.

    Attributes:
        method: as it is spelled.
        intermediate: by name.
        particles, lanes, window: N, K, V.
        w: exponent or share of the diffusion model.
        temperature: of the target.
    """

    method: str
    intermediate: str | None = None
    particles: int | None = None
    lanes: int | None = None
    w: float | None = None
    window: int | None = None
    temperature: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as plain data."""
        return asdict(self)


#: Columns of a study that name the sampler.
SETTING_COLUMNS = tuple(item.name for item in fields(Setting))


def check_methods(names: Collection[Any]) -> list[Spelled]:
    """The methods that are spelled.

    Raises:
        ValueError: one is no method, or is given an option that it does not have.
    """
    found = []
    for text in names:
        try:
            found.append(spelled(str(text)))
        except ValueError as error:
            raise ValueError(of_methods(error, str(text))) from error
    return found


def of_methods(error: ValueError, text: str) -> str:
    """The error that the registry raised about one method, in the words of the axis `methods`."""
    said = str(error).removeprefix("method")
    return f"methods{said}" if said.startswith(" = ") else f"methods = {text!r}: {error}"


@dataclass(frozen=True)
class Axes:
    """The values of every axis of a study, in order; None instead of them leaves every method its own.

    Attributes:
        methods: as they are spelled.
        intermediates: by name.
        particles, lanes, windows: N, K, V.
        w: exponents, or shares, of the diffusion model.
        temperatures: of the target.
        seeds: of all draws.
    Raises:
        ValueError: an axis is empty, holds a value twice, or one that is out of range or unknown.
    """

    methods: tuple[str, ...] = (DEFAULT,)
    intermediates: tuple[str, ...] | None = ("poe",)
    particles: tuple[int, ...] | None = (4,)
    lanes: tuple[int, ...] | None = (1,)
    w: tuple[float, ...] | None = (0.3,)
    windows: tuple[int, ...] | None = (32,)
    temperatures: tuple[float, ...] | None = (1.0,)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) is not None:
                check_axis(item.name, getattr(self, item.name))
        object.__setattr__(self, "methods", tuple(each.text for each in check_methods(self.methods)))
        for name, least in (("particles", 1), ("lanes", 1), ("windows", 1), ("seeds", 0)):
            for value in getattr(self, name) or ():
                check_whole(name, value, least)
        for w in self.w or ():
            real_number("w", w)
            check_w(w)
        for value in self.temperatures or ():
            real_number("temperatures", value)
            check_temperature(value, name="temperatures")
        # Whether 1 was written as 1 or as 1.0 makes no other study.
        for name in ("w", "temperatures"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        own = {setting.method for setting in self.settings()}
        if again := [text for text in self.methods if text not in own]:
            raise ValueError(
                f"methods = {', '.join(self.methods)}: all that {again[0]} runs is run under a spelling before it; "
                "give at least one value, and none twice"
            )

    def check_intermediates(self, custom: Collection[str] = ()) -> None:
        """Raise ValueError if a name is neither ours nor among the `custom` ones."""
        known = list(dict.fromkeys([*INTERMEDIATES, *custom]))
        for name in self.intermediates or ():
            if name not in known:
                raise ValueError(f"intermediates = {name!r}: {meant(str(name), known)}choose from {', '.join(known)}")

    def settings(self) -> list[Setting]:
        """Every sampler once, in the order of the axes, the first one slowest (module docstring)."""
        axes = (self.intermediates, self.particles, self.lanes, self.w, self.windows, self.temperatures)
        methods = check_methods(self.methods)
        combinations: list[tuple[Any, ...]] = [*itertools.product(*(axis or (None,) for axis in axes))]
        found: dict[Hashable, Setting] = {}
        for method, values in itertools.product(methods, combinations):
            setting = _existing(method, values)
            said = {name: value for name, value in asdict(setting).items() if name != "method" and value is not None}
            found.setdefault(replace(method, options={**method.options, **said}).meaning, setting)
        return list(found.values())


def _existing(method: Spelled, values: Collection[Any]) -> Setting:
    """The sampler of a spelling and a value of every axis, where the method leaves it open."""
    has = {option.name for option in method.method.options}
    found = {
        name: method.options.get(name, value) if name in has else None
        for name, value in zip(SETTING_COLUMNS[1:], values, strict=True)
    }
    if "w" not in method.options and "w" in idle(method.options.get("kernel"), found["intermediate"]):
        found["w"] = None
    return Setting(method.text, **found)


def make_decoder(
    setting: Setting, pair: Pair, limits: Limits, custom: Mapping[str, MakeIntermediate] | None = None
) -> Any:
    """The decoder of a setting.

    Args:
        limits: length limit, lookahead and window.
        custom: intermediates of the user's own, which come before ours.
    Raises:
        ValueError: options contradict each other, or are out of range for the pair.
    """
    options: dict[str, Any] = {
        "max_new_tokens": limits.max_new_tokens, "lookahead": limits.lookahead, "window": limits.window,
        **{name: getattr(setting, name) for name in ("particles", "lanes", "w", "temperature", "intermediate")},
    }
    if (own := (custom or {}).get(setting.intermediate or "")) is not None:
        options["intermediate"] = own(0.0 if setting.w is None else setting.w)
        del options["w"]
    return spelled(setting.method).make(pair, **options)


def check_axis(name: str, values: tuple[Any, ...]) -> None:
    """Raise ValueError unless there are values, and none twice."""
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{name} = {', '.join(map(str, values)) or '[]'}: give at least one value, and none twice")


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless `value` is a whole number of at least `least`."""
    whole_number(name, value, least=least, most=None, remedy=f"give whole numbers of at least {least}")
