"""Counts of tensor operations and of what makes the host wait for a device, by part of a run and by place.

Counted is each call that reaches torch's dispatcher from Python, with whatever it calls inside: on a GPU it is one
kernel launch or a few. An operation that hands back what it was given (`to` of the same kind) counts for nothing, so
that an *upload* (`torch.tensor(list)`, `torch.from_numpy`) is one operation; uploads are counted by themselves too,
since one from memory that is not pinned is waited for as well unless it says `non_blocking`.

A *wait* is whatever a device has to be waited for: a number that Python reads (`int(t)`, `bool(t)`, `tolist`), a result
whose shape depends on data (`nonzero`, `unique`, an index by a mask), a copy to the host (`cpu`, `numpy`). Each is one
operation too. `tolist`, `numpy` and `cpu` do not reach the dispatcher on a CPU, so they are replaced while it counts.
What was copied to the host is read from there without another wait, and so is all that is made of it alone.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness import own_file
from benchmarks.replay import Tape, networks_watched
from smc_bridge.models.pairs import Pair

#: Parts of a run: the networks, their sessions around them, and the rest.
PARTS = ("networks", "sessions", "program")
#: Operations that always wait on a GPU. Which others do depends on their arguments: `_waits`.
WAITS = frozenset({
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_numpy", "argwhere", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "unique_dim_consecutive", "masked_select", "equal", "allclose", "bincount",
})
#: Methods of a tensor that copy it to the host, and reach the dispatcher with parts of them at best.
READS = ("tolist", "numpy", "cpu")
#: What is the project's own; checks are counted for whoever asks for them.
PACKAGES, CHECKS = ("models", "smc_bridge", "analysis"), ("models/checks.py", "models/arguments.py")
#: Marks a tensor that lies on the host.
_HOST = "_counted_on_the_host"


class Tally:
    """Operations by place, uploads among them by place and line, and waits by these and kind, of one part of a run."""

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is done while it is entered.

    Args:
        host: tensors that lie on the host whatever the device.
    Attributes:
        tallies: by part.
    """

    def __init__(self, host: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tallies = {part: Tally() for part in PARTS}
        self._parts = ["program"]
        self._within = False  # a replaced method, which is counted already
        self._replaced = ExitStack()
        for tensor in host:
            setattr(tensor, _HOST, True)

    def __enter__(self) -> Count:
        for name in READS:
            self._replaced.enter_context(patch.object(Tensor, name, self._read(name, getattr(Tensor, name))))
        self._replaced.enter_context(patch.object(Tensor, "to", self._to(Tensor.to)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._replaced.close()

    def start(self, part: str) -> None:
        """What follows is of this part, until `stop`."""
        self._parts.append(part)

    def stop(self) -> None:
        """The part that was started last is over."""
        self._parts.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._within:
            return out
        name = func.overloadpacket.__name__
        if name == "detach_" or (name == "to" and out is args[0]):  # the end of `torch.tensor`; nothing to do
            return out
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        host = bool(given) and all(hasattr(each, _HOST) for each in given)
        self._add(name if not host and _waits(name, args, kwargs) else None, upload=name == "lift_fresh")
        if host:
            for each in tree_leaves(out):
                if isinstance(each, Tensor):
                    setattr(each, _HOST, True)
        return out

    def _add(self, wait: str | None, upload: bool = False) -> None:
        part = self._parts[-1]
        function, line = ("networks", 0) if part == "networks" else _place()
        place, tally = f"{function}, line {line}" if line else function, self.tallies[part]
        tally.operations[function] += 1
        if upload:
            tally.uploads[place] += 1
        if wait is not None:
            tally.waits[place, wait] += 1

    def _quietly(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Do it without counting what it is made of."""
        before, self._within = self._within, True
        try:
            return work(*arguments, **options)
        finally:
            self._within = before

    def _read(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def read(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            if not self._within:
                self._add(None if hasattr(tensor, _HOST) else name)
            found = self._quietly(method, tensor, *arguments, **options)
            return self._on_host(found) if isinstance(found, Tensor) else found

        return read

    def _to(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def to(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            if "cpu" in arguments or options.get("device") == "cpu":
                if not self._within:
                    self._add(None if hasattr(tensor, _HOST) else "cpu")
                return self._on_host(self._quietly(method, tensor, *arguments, **options))
            found = method(tensor, *arguments, **options)
            moved = "device" in options or any(isinstance(each, torch.device) for each in arguments)
            if moved and hasattr(found, _HOST):  # an upload, though on a CPU it may be the same tensor
                found = self._quietly(found.detach)
            return found

        return to

    def _on_host(self, tensor: Tensor) -> Tensor:
        """Another view of a tensor, marked: on a CPU the copy is the tensor itself."""
        view = self._quietly(tensor.detach)
        setattr(view, _HOST, True)
        assert isinstance(view, Tensor)
        return view


def _waits(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operation makes the host wait for its result.

    A number that is put at a mask is filled in without looking at the mask.
    """
    if name in WAITS:
        return True
    if name in ("index", "index_put", "index_put_"):
        masks = any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1])
        return masks and (name == "index" or args[2].dim() > 0)
    if name == "repeat_interleave":
        return isinstance(args[-1], Tensor) and kwargs.get("output_size") is None
    if name == "where":
        return len(args) == 1
    return name == "one_hot" and (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) == -1


@cache
def _own(name: str) -> str | None:
    file = own_file(name, PACKAGES)
    return None if file is None or file.as_posix() in CHECKS else file.as_posix()


def _place() -> tuple[str, int]:
    """The function of the project that is running, or has called what is, and the line where it stands."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        if (file := _own(frame.f_code.co_filename)) is not None:
            return f"{file}, {frame.f_code.co_name}", frame.f_lineno
        frame = frame.f_back
    return "others", 0


class Sessions(Tape):
    """A tape that keeps nothing, and tells a count which operations are of the sessions."""

    def __init__(self, count: Count) -> None:
        super().__init__(keep=False)
        self.count = count

    def record(self, model: str, session: int, name: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Do `work(*arguments)`, its operations those of the sessions."""
        self.count.start("sessions")
        try:
            return work(*arguments)
        finally:
            self.count.stop()


@contextmanager
def counted(count: Count, pair: Pair) -> Iterator[Count]:
    """Count what is done, that within the networks of a pair as theirs."""
    with networks_watched(pair, lambda *_: count.start("networks"), lambda *_: count.stop()), count:
        yield count
