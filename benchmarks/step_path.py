"""What a reader of one step has to follow: files, functions, calls and hops between files.

    python -m benchmarks.step_path [--method smc] [--quick] [--threads N] [--seed 0] [--out runs] [--markdown]

The second step of a run on the embedded pair, under `sys.setprofile`: the Python functions of this project that are
entered, those of sessions and adapters in `models/` among them. A *hop* is a call from a function of one file into one
of another. Counted beside it is the same without `models/`, which is what stands between the forwards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import CodeType, FrameType
from typing import Any, NamedTuple

from benchmarks.harness import own_file
from benchmarks.problems import decoder, embedded
from benchmarks.report import Report, Sheet, execute
from smc_bridge.engine.sampler import Sampler
from smc_bridge.methods import DEFAULT

#: What is the project's own.
PACKAGES = ("models", "smc_bridge")


class Call(NamedTuple):
    """A call of a function of the project.

    Attributes:
        caller: code that called, None for another package's.
        function: code that was called.
        kind: class of the object that it is a method of, or None.
    """

    caller: CodeType | None
    function: CodeType
    kind: type | None


def _own(frame: FrameType | None) -> bool:
    return frame is not None and own_file(frame.f_code.co_filename, PACKAGES) is not None


def traced(run: Callable[[], Any]) -> list[Call]:
    """Every call of a function of the project while `run` runs."""
    calls: list[Call] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not _own(frame):
            return
        caller = frame.f_back
        while caller is not None and not _own(caller):
            caller = caller.f_back
        owner = frame.f_locals.get("self")
        kind = None if owner is None else type(owner)
        calls.append(Call(None if caller is None else caller.f_code, frame.f_code, kind))

    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


def counts(calls: Sequence[Call]) -> dict[str, int]:
    """Files, functions, calls, hops and types."""
    hops = [call for call in calls if call.caller and call.caller.co_filename != call.function.co_filename]
    return {
        "files": len({call.function.co_filename for call in calls}),
        "functions": len({call.function for call in calls}),
        "calls": len(calls),
        "hops": len(hops),
        "types": len({call.kind for call in calls if call.kind and call.kind.__module__.startswith("smc_bridge")}),
    }


def configure(parser: argparse.ArgumentParser, quick: bool) -> None:
    """Add the arguments of this benchmark."""
    parser.add_argument("--method", default=DEFAULT, metavar="NAME", help=f"a program (default: {DEFAULT})")


def measure(options: argparse.Namespace) -> Report:
    """The calls of one step."""
    pair, task, [prompt] = embedded(1)
    sampler = decoder(options.method, pair, task, temperature=1.0)
    if not isinstance(sampler, Sampler):
        raise ValueError(f"--method = {options.method}: is no program with steps; give one such as {DEFAULT}")
    state = sampler.step(sampler.start([prompt], seed=options.seed))
    calls = traced(lambda: sampler.step(state))
    between = [call for call in calls if own_file(call.function.co_filename, ("smc_bridge",))]
    rows = [(name, *map(str, counts(which).values())) for name, which in (("all", calls), ("without models/", between))]
    files = sorted({str(own_file(call.function.co_filename, PACKAGES)) for call in calls})
    sheets = [
        Sheet(f"One step of {options.method}", ("", *counts(calls)), rows),
        Sheet("Files", ("file",), [(file,) for file in files]),
    ]
    return Report(
        sheets,
        {"all": counts(calls), "without_models": counts(between), "files": files}, _draw(files, calls),
    )


def _draw(files: Sequence[str], calls: Sequence[Call]) -> Callable[[Any], None]:
    def draw(figure: Any) -> None:
        ax = figure.subplots()
        each = [sum(call.function.co_filename.endswith(f"/{file}") for call in calls) for file in files]
        ax.barh(files, each)
        ax.set(xlabel="calls in one step")

    return draw


main = partial(execute, "step_path", __doc__, configure, measure)

if __name__ == "__main__":
    main()
