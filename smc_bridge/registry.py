"""Decoders by name: the one registry that commands, studies, benchmarks and docs read.

A method is a function from a pair of models and options to a decoder, with what is known of it:

    @method("tree-walk", role="weighted", targets="AR", proper=True, reference="...", aliases=("tree-<nodes>",))
    def tree_walk(pair, *, nodes: int = 128, ...): ...

Its keyword arguments are its options everywhere (`smc_bridge.signature`). A user spells `NAME[,option=value...]`, e.g.
`smc,particles=4,w=0.5`, or an alias, e.g. `smc-4`, which may be followed by options as well.

The modules of `smc_bridge.methods` register the package's own. Another package names a module, or the function, as an
entry point of the group `smc_bridge.methods`; one that is broken is kept in `unavailable()` with the reason.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from smc_bridge.entry_points import declared, reason_of
from smc_bridge.facts import Method as Method
from smc_bridge.facts import Role, UnsuitedError, check_call, ours
from smc_bridge.models.arguments import said
from smc_bridge.names import idle, meant
from smc_bridge.patterns import clash, met
from smc_bridge.signature import written

if TYPE_CHECKING:
    from smc_bridge.decode import Decoder
    from smc_bridge.models.protocols import ModelPair

GROUP = "smc_bridge.methods"

#: Options that a table may give to all its methods: whoever says one, even its default, is not given the table's.
SHARED = ("temperature", "w", "window", "lookahead", "max_new_tokens")

Make = TypeVar("Make", bound=Callable[..., Any])


def method(
    name: str, *, role: Role, targets: str, proper: bool, reference: str, why: str = "",
    aliases: Mapping[str, Mapping[str, Any]] | Sequence[str] = (), examples: Sequence[str] | None = None,
    rest: Callable[..., Any] | None = None, without: Sequence[str] = (), published: str = "",
) -> Callable[[Make], Make]:
    """Register a function `make(pair, *, option=default, ...)` as a method; arguments as the attributes of `Method`.

    Args:
        aliases: patterns, as `"smc-<particles>x<lanes>"`, or from patterns to options, as `{"all": {"tokens": None}}`.
        examples: the name alone by default.
    Raises:
        ValueError: the name or an alias is taken by another method, or cannot be typed; an alias says an option that
            there is not; an argument has no default; a method that is not proper says no why.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ValueError(f"method = {name!r}: give a name of lower-case letters, digits and hyphens")
    if role not in get_args(Role):
        raise ValueError(f"role = {role!r} of method {name}: choose from {', '.join(get_args(Role))}")
    if not (proper or why):
        raise ValueError(f"method {name} is not proper and does not say why: give why=")

    def register(make: Make) -> Make:
        if not ours(make):
            _read_own()  # so that it meets the package's own names, and not they its
        known = _TABLE.get(name)
        if known is not None and _home(known.make) != _home(make):
            raise ValueError(f"method = {name!r} is the name of {_home(known.make)} already: give another")
        own = aliases if isinstance(aliases, Mapping) else {pattern: {} for pattern in aliases}
        found = Method(
            name, make, role, targets, proper, reference, why, own, (name,) if examples is None else tuple(examples),
            rest, tuple(without), published,
        )
        check_call(found)
        _check_names(found)
        _TABLE[name] = replace(found)  # without what the checks have cached: its module is not read to the end yet
        return make

    return register


#: What was registered so far, and entry points that cannot be used, with the reason.
_TABLE: dict[str, Method] = {}
_BROKEN: dict[str, str] = {}


def _check_names(found: Method) -> None:
    """Raise ValueError if some text means a method by its name or an alias, and something else already."""
    taken = [(each.name, text) for each in _TABLE.values() if each.name != found.name
             for text in (each.name, *each.aliases)]
    for text in (found.name, *found.aliases):
        for owner, other in taken:
            if clash(text, other):
                what = "method" if text == found.name else f"alias of {found.name}"
                raise ValueError(f"{what} = {text!r} is a spelling of {other}, which means {owner}: give another")
        taken.append((found.name, text))


def _home(make: Callable[..., Any]) -> str:
    return f"{make.__module__}.{make.__qualname__}"


def _place(make: Callable[..., Any]) -> tuple[bool, str, int]:
    code = getattr(make, "__code__", None)
    return not ours(make), make.__module__, getattr(code, "co_firstlineno", 0)


def _read_own() -> None:
    """Import the modules that register the package's own methods."""
    package = import_module("smc_bridge.methods")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)


class _Methods(Mapping[str, Method]):
    """All methods by name; the modules that register them are imported when it is first read."""

    _read = False

    def _known(self) -> dict[str, Method]:
        if not self._read:
            _read_own()
            self._read = True  # what other packages register may read the package's own
            for entry in sorted(declared(GROUP), key=lambda entry: entry.name):
                _load(entry)
        return _TABLE

    def __getitem__(self, name: str) -> Method:
        return self._known()[name]

    def __iter__(self) -> Iterator[str]:
        """The package's own first, as they stand in its files, whatever was imported first."""
        return iter(sorted(self._known(), key=lambda name: _place(_TABLE[name].make)))

    def __len__(self) -> int:
        return len(self._known())


def _load(entry: Any) -> None:
    """Import what an entry point names; nothing that it registered stays if it fails."""
    before = dict(_TABLE)
    try:
        entry.load()
        modules = {found.make.__module__ for found in _TABLE.values()}
        if len(_TABLE) == len(before) and entry.module not in modules:
            raise ValueError(f"{entry.value} registers no method: decorate a function with smc_bridge.registry.method")
        for name in _TABLE.keys() - before.keys():  # their modules are read to the end now
            check_call(_TABLE[name])
    except (Exception, SystemExit) as error:  # anything: another package's code runs in here
        _TABLE.clear()
        _TABLE.update(before)
        _BROKEN[entry.name] = reason_of(error)


#: All methods by name.
METHODS: Mapping[str, Method] = _Methods()


def unavailable() -> Mapping[str, str]:
    """Methods of other packages that cannot be used, by the names of their entry points, with the reason."""
    len(METHODS)
    return _BROKEN


@dataclass(frozen=True)
class Spelled:
    """A method with options, as a user wrote it.

    Attributes:
        text: what the user wrote, without blanks around commas and equals signs; the name of the decoder in results.
        method, options: what it means.
    """

    text: str
    method: Method
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def meaning(self) -> Hashable:
        """The same for spellings of the same decoder: the method, and the options that are not as it has them anyway.

        What a table may give to all its methods (`SHARED`) counts wherever it is said.
        """
        defaults = {option.name: option.default for option in self.method.options}
        own = {name: value for name, value in self.options.items() if name in SHARED or value != defaults[name]}
        return self.method.name, frozenset(
            (name, tuple(value) if isinstance(value, list) else value) for name, value in own.items()
        )

    def given(self, options: Mapping[str, Any]) -> Spelled:
        """The same method with more options."""
        for name, value in options.items():
            if name in self.options and self.options[name] != value:
                raise ValueError(
                    f"{name} = {written(value)} with method = {self.text}, which says {written(self.options[name])}: "
                    "give one of them"
                )
            if all(option.name != name for option in self.method.options):
                names = ", ".join(option.name for option in self.method.options)
                raise ValueError(
                    f"{name} = {written(value)} with method = {self.method.name}, which has none: leave it out; it has "
                    f"{names or 'no options'}"
                )
        return replace(self, options={**self.options, **options})

    def check(self, **shared: Any) -> None:
        """Refuse bad options before any model is loaded, as far as they do not depend on the models.

        A method may ask more of its models than is at hand here (`UnsuitedError`); one of another package is not tried.

        Raises:
            ValueError: as `make`.
        """
        if ours(self.method.make):
            with suppress(UnsuitedError):
                self.make(_stand_in(), **shared)

    def make(self, pair: ModelPair, **shared: Any) -> Decoder[Any]:
        """The decoder.

        Args:
            pair: the models.
            shared: options for every method of a table, such as the temperature: this one takes those that it has, and
                that neither the text decides nor a part in it leaves unread.
        Raises:
            ValueError: options contradict each other, or are out of range for the pair; a method of another package
                fails, or makes no decoder.
        """
        has = {option.name for option in self.method.options} - self.options.keys()
        has -= set(idle(self.options.get("kernel"), self.options.get("intermediate"))) & {"w"}
        options = {name: value for name, value in shared.items() if name in has and value is not None}
        return self._made(pair, {**options, **self.options})

    def _made(self, pair: ModelPair, options: Mapping[str, Any]) -> Decoder[Any]:
        """What the method makes, checked, under the name of the text."""
        from smc_bridge.decode import lacking

        name = self.method.name
        try:
            decoder: Decoder[Any] = self.method.make(pair, **options)
        except ValueError:
            raise
        except Exception as error:
            if ours(self.method.make):
                raise
            raise ValueError(f"method {name} failed: {reason_of(error)}; repair or remove its package") from error
        with suppress(AttributeError, TypeError):  # what cannot be named is told of below
            decoder.name = self.text
        if lacks := lacking(decoder):
            raise ValueError(f"method {name} made {said(decoder)}, which{lacks}: return a decoder, such as a Sampler")
        if decoder.name != self.text:
            raise ValueError(f"method {name} made {said(decoder)}, whose name cannot be set: let name be an attribute")
        return decoder


def _stand_in() -> Any:
    """Tables of two tokens in the place of a pair of models, and networks of their size in that of any learned part."""
    from smc_bridge.models.learned import untrained
    from smc_bridge.models.tabular import TabularAR, TabularDLM

    ar = TabularAR.random(2, 2, seed=0, eos_id=0)
    dlm = TabularDLM(ar)
    return SimpleNamespace(dlm=dlm, ar=ar, part=lambda name, given=None: untrained(name, dlm))


def spelled(text: str) -> Spelled:
    """The method and options of `NAME[,option=value...]`, where NAME may be an alias.

    Raises:
        ValueError: a name, option or value is unknown; one line with the nearest valid ones.
    """
    head, *pieces = (" ".join(piece.split()) for piece in text.split(","))
    found, options = _named(head)
    parts = [head]
    for piece in pieces:
        name, sign, value = (part.strip() for part in piece.partition("="))
        if not sign:
            raise ValueError(f"method = {text!r}: write options as option=value, not {piece!r}")
        option = found.option(name)
        if name in options:
            raise ValueError(f"method = {text!r} says {name} twice: say it once")
        options[name] = option.parse(value)
        parts.append(f"{name}={value}")
    return Spelled(",".join(parts), found, options)


def spelled_list(text: str) -> list[Spelled]:
    """The methods of a list with commas between them, where a piece with `=` belongs to the method before it.

    Raises:
        ValueError: as `spelled`; there is none; one stands there twice, if under two spellings.
    """
    groups: list[list[str]] = []
    for piece in (piece.strip() for piece in text.split(",")):
        if "=" in piece and groups:
            groups[-1].append(piece)
        elif piece:
            groups.append([piece])
    found = [spelled(",".join(group)) for group in groups]
    if not found:
        raise ValueError(f"methods = {text}: give at least one, and none twice")
    first: dict[Hashable, str] = {}
    for each in found:
        if each.meaning in first:
            again = f"{each.text} is {first[each.meaning]} again"
            raise ValueError(f"methods = {' '.join(text.split())}: {again}; give at least one, and none twice")
        first[each.meaning] = each.text
    return found


def _named(text: str) -> tuple[Method, dict[str, Any]]:
    """The method that a name or alias stands for, and the options that it says."""
    if text in METHODS:
        return METHODS[text], {}
    for found in METHODS.values():
        for pattern, fixed in found.aliases.items():
            if (numbers := met(pattern, text)) is not None:
                return found, {**fixed, **{name: found.option(name).parse(number) for name, number in numbers.items()}}
    if text in unavailable():
        raise ValueError(f"method = {text!r} is unavailable: {_BROKEN[text]}; repair or remove its package")
    aliases = [pattern for found in METHODS.values() for pattern in found.aliases]
    known = [*METHODS, *aliases]
    raise ValueError(f"method = {text!r}: {meant(text, known)}choose from {', '.join(known)}")
