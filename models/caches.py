"""What a diffusion model keeps of the rows that it has read: cache policies, by name or as objects.

In a bidirectional model the keys and values of a token depend on all that stands beside it, so that what is kept from
an earlier forward is in general approximate. A *place* that a forward reads again is computed anew; one that it takes
from the cache counts as an earlier forward left it. The policies differ in which places are which:

- `prefix` (`CommittedOnce`): a token is kept as the forward that first saw it committed computed it. That is the
  delayed cache of dKV-Cache (Ma et al. 2025, arXiv 2505.15781), and FreeCache with blocks of one token;
- `freecache` (`FreeCache`; FlashDLM, Hu et al. 2025, arXiv 2505.21467): the prompt is kept from the first forward, and
  a block from the first one in which it has no mask; the unfinished block and all that follows is computed anew;
- `refresh` (`Refreshed`): Fast-dLLM's *prefix* cache (Wu et al. 2025, arXiv 2505.22618): what stands before a block is
  kept while the block is filled, and all is computed anew when another begins;
- `dual` (`Dual`): Fast-dLLM's *dual* cache: as `refresh`, and the masks behind the block are kept too, with their
  scores, so that a forward is over the block alone;
- `window` (`Window`; APD, Israel et al. 2025, arXiv 2506.00413): the last W committed tokens are computed anew;
- `spectrum` (`Spectrum`; arXiv 2603.01623): no keys and values are kept, but features of whole forwards, from which
  those of the next ones are forecast (`smc_bridge.models.spectrum`).

Blocks are counted from the end of the prompt, which is what a row holds when it is first scored. Of a *block-causal*
model the K/V of finished blocks depend on nothing that comes later (BD3LM, Arriola et al. 2025, arXiv 2503.09573):
there `prefix` and `freecache` are the same, with the model's own blocks, counted from position 0, and exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from smc_bridge.models.arguments import real_between, said, whole_number

#: Tokens of a block unless they are given, as in Fast-dLLM.
BLOCK = 32


@dataclass(frozen=True)
class CachePolicy(ABC):
    """Which tokens of a row a forward takes from the cache, and which it leaves there.

    Attributes:
        name: that it is asked for by.
        exact: whether scores are those of recomputation: a function of a row's tokens, and not of earlier forwards.
        suffix: whether what stands behind the block (`block_of`) is kept, too.
    """

    name: ClassVar[str] = ""
    exact: ClassVar[bool] = False
    suffix: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def kept(self, length: int, place: int, prompt: int) -> int:
        """How many tokens of a row are kept once it was scored.

        Args:
            length: tokens of the row.
            place: first masked place behind them, counted from the row's first token.
            prompt: tokens that the row had when it was first scored.
        """

    def read(self, known: int, length: int) -> int:
        """How many of the `known` tokens that are kept a forward takes from the cache; the others are computed anew."""
        return known

    def block_of(self, place: int, prompt: int) -> tuple[int, int] | None:
        """First place of the block that a place stands in, and first one behind it: where another block begins, all
        is computed anew. None if nothing ever is."""
        return None


@dataclass(frozen=True)
class CommittedOnce(CachePolicy):
    """Every token is kept as the forward that first saw it committed computed it."""

    name: ClassVar[str] = "prefix"

    def kept(self, length: int, place: int, prompt: int) -> int:
        """All of its tokens."""
        return length


@dataclass(frozen=True)
class FinishedBlocks(CachePolicy):
    """Finished blocks of a block-causal model, counted from position 0: exact.

    Attributes:
        block_size: the model's.
    """

    block_size: int
    name: ClassVar[str] = "prefix"
    exact: ClassVar[bool] = True

    def kept(self, length: int, place: int, prompt: int) -> int:
        """Up to the beginning of the block that is unfinished."""
        return length - length % self.block_size


@dataclass(frozen=True)
class _Blocks(CachePolicy):
    """A policy of blocks that are counted from the end of the prompt.

    Attributes:
        block: tokens of a block.
    """

    block: int = BLOCK

    def __post_init__(self) -> None:
        remedy = "give the tokens of a block, a whole number of at least 1"
        object.__setattr__(self, "block", whole_number(f"block of the cache {self.name}", self.block, remedy=remedy))

    def __str__(self) -> str:
        return self.name if self.block == BLOCK else f"{self.name}:{self.block}"

    def begin(self, place: int, prompt: int) -> int:
        """Where the block begins that a place stands in."""
        return place - (place - prompt) % self.block if place > prompt else prompt


@dataclass(frozen=True)
class FreeCache(_Blocks):
    """The prompt from the first forward, and each block from the first one in which it has no mask."""

    name: ClassVar[str] = "freecache"

    def kept(self, length: int, place: int, prompt: int) -> int:
        """The prompt and the finished blocks."""
        return min(length, self.begin(length, prompt))


@dataclass(frozen=True)
class Refreshed(_Blocks):
    """All that stands before a block, while it is filled."""

    name: ClassVar[str] = "refresh"

    def kept(self, length: int, place: int, prompt: int) -> int:
        """What stands before the block of the first masked place."""
        return min(length, self.begin(place, prompt))

    def block_of(self, place: int, prompt: int) -> tuple[int, int]:
        """The block, and where the next one begins (`CachePolicy.block_of`)."""
        begin = self.begin(place, prompt)
        return begin, begin + self.block


@dataclass(frozen=True)
class Dual(Refreshed):
    """All that stands before a block and behind it, while it is filled."""

    name: ClassVar[str] = "dual"
    suffix: ClassVar[bool] = True


@dataclass(frozen=True)
class Window(CachePolicy):
    """All but the last tokens, each as the last forward that computed it left it.

    Attributes:
        tokens: W, that every forward computes anew.
    """

    tokens: int
    name: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        remedy = "give the committed tokens that are computed anew, a whole number of at least 0"
        width = whole_number("tokens of the cache window", self.tokens, least=0, remedy=remedy)
        object.__setattr__(self, "tokens", width)

    def __str__(self) -> str:
        return f"{self.name}:{self.tokens}"

    def kept(self, length: int, place: int, prompt: int) -> int:
        """All of its tokens."""
        return length

    def read(self, known: int, length: int) -> int:
        """Those before the last W."""
        return min(known, max(0, length - self.tokens))


@dataclass(frozen=True)
class Spectrum(CachePolicy):
    """The first forwards of a row, then one of each window of forwards; between them features are forecast.

    Attributes:
        window: forwards of the first window, of which one is computed; 1 for all of them as long as it does not grow.
        growth: of the window with each that is computed.
        warmup: forwards that are computed before the first window.
        degree: of the Chebyshev polynomials that features are continued by.
        ridge: penalty on their coefficients, above 0.
        keep: computed forwards that they are fitted to.
    """

    window: int = 2
    growth: float = 0.75
    warmup: int = 5
    degree: int = 4
    ridge: float = 0.1
    keep: int = 10
    name: ClassVar[str] = "spectrum"

    def __post_init__(self) -> None:
        for name, least, remedy in (
            ("window", 1, "give the forwards of a window, a whole number of at least 1"),
            ("warmup", 0, "compute a whole number of forwards first"),
            ("degree", 0, "give a degree of at least 0"), ("keep", 2, "keep at least 2 forwards, a whole number"),
        ):
            value = whole_number(f"{name} of the cache spectrum", getattr(self, name), least=least, remedy=remedy)
            object.__setattr__(self, name, value)
        for name, strictly, remedy in (
            ("growth", False, "give a number of at least 0"), ("ridge", True, "give a penalty above 0"),
        ):
            found = real_between(
                f"{name} of the cache spectrum", getattr(self, name), 0.0, 1e12, remedy=remedy, strictly=strictly
            )
            object.__setattr__(self, name, float(found))

    def __str__(self) -> str:
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        odd = {name: value for name, value in own.items() if value != getattr(Spectrum, name)}
        if odd.keys() <= {"window"}:
            return f"{self.name}:{self.window}" if odd else self.name
        return f"{self.name}({', '.join(f'{name}={value:g}' for name, value in odd.items())})"

    def kept(self, length: int, place: int, prompt: int) -> int:
        """None of its tokens."""
        return 0


#: What may be asked for besides a policy object.
CACHES = ("auto", "none", "prefix", "freecache[:B]", "refresh[:B]", "dual[:B]", "window:W", "spectrum[:N]")
_SIZED: dict[str, type[FreeCache | Refreshed | Window | Spectrum]] = {
    "freecache": FreeCache, "refresh": Refreshed, "dual": Dual, "window": Window, "spectrum": Spectrum,
}


def cache_named(cache: str | CachePolicy, *, argument: str = "cache") -> str | CachePolicy:
    """The policy that is meant; "auto" and "none" as they are.

    Args:
        cache: a policy, or the name of one (`CACHES`), where B is the tokens of a block, 32 unless they are given,
            and N the forwards of the first window, 2 unless they are given.
        argument: what the cache is called in messages.
    Raises:
        ValueError: there is no such policy, or its number is out of range.
    """
    if isinstance(cache, CachePolicy) or cache in ("auto", "none"):
        return cache
    if cache == "prefix":
        return CommittedOnce()
    name, sign, number = cache.partition(":") if isinstance(cache, str) else ("", "", "")
    sized = bool(sign) and number.isascii() and number.isdigit()
    if name not in _SIZED or (sign and not sized) or (name == "window" and not sized):
        raise ValueError(f"{argument} = {said(cache)}: give one of {', '.join(CACHES)}")
    try:
        return _SIZED[name](int(number)) if sized else _SIZED[name]()  # type: ignore[call-arg]
    except ValueError as error:
        remedy = str(error).rsplit(": ", 1)[-1]
        raise ValueError(f"{argument} = {said(cache)}: {remedy}") from None


def fitting(cache: str | CachePolicy, *, block_size: int | None, lacks: str | None) -> CachePolicy | None:
    """The policy that a model has if this one is asked for, for "auto" the best that there is; None for none.

    Args:
        cache: as `cache_named`.
        block_size: tokens of a block of a block-causal model, else None.
        lacks: why the model can have none, or None.
    Raises:
        ValueError: the model cannot have what is asked for.
    """
    asked = cache_named(cache)
    if asked == "none" or (asked == "auto" and lacks is not None):
        return None
    if lacks is not None:
        raise ValueError(f"cache = {str(asked)!r}{lacks}: use cache = 'none'")
    policy = asked if isinstance(asked, CachePolicy) else CommittedOnce()
    if block_size is None:
        if isinstance(policy, FinishedBlocks):
            raise ValueError(f"cache = {policy}: the model has no blocks; use cache = 'freecache'")
        return policy
    own = isinstance(policy, FreeCache) and policy.block in (BLOCK, block_size)
    if not (own or policy in (CommittedOnce(), FinishedBlocks(block_size))):
        raise ValueError(
            f"cache = {str(policy)!r} of a block-causal model with block_size = {block_size}: its finished blocks are "
            "kept, exactly; use cache = 'prefix'"
        )
    return FinishedBlocks(block_size)


def recomputing(model: Any) -> Any:
    """The same diffusion model without a cache by which its scores depend on earlier forwards; itself if it has none.

    Decoders that give a session nothing but the prompt gain little by such a cache, and their rows of one prompt would
    be scored one after the other.
    """
    policy = getattr(model, "policy", None)
    return model if policy is None or policy.exact else model.with_cache("none")
