"""Check of a CUDA device in under eight minutes: tests, equal draws, time and waits of the programs.

    python -m benchmarks.device_check [--parts tests,equal,embedded,0.5 B,7 B] [--device cuda] [--tiny] [--seed 0]
        [--out runs/device-check]

- *tests*: those that are parametrised over devices (`pytest -m device`), on this one;
- *equal*: draws of the programs beside the CPU's, in three types of weights (`benchmarks.device_equal`);
- *embedded*, *0.5 B*, *7 B*: time per step, tokens per second, what is not the networks', waits of the host and memory
  (`benchmarks.device_speed`), on the embedded pair and on random Qwen2-shaped pairs in bfloat16
  (`benchmarks.random_pair`).

Every part runs in a process of its own, which is ended when its time is over: what it has not come to is told as *out
of time*, what the device has no memory for as *out of memory*. All is in `device_check.json` and `device_check.md`. The
exit code is 1 unless every test passed, all draws were equal, and no measurement failed but for time or memory; without
the device one line says so, and it is 0.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.device_equal import equality
from benchmarks.device_speed import TINY, Sizes, given_steps, speed, whole_runs
from benchmarks.device_tables import Record, sheets
from benchmarks.harness import HERE, Machine, cores
from benchmarks.problems import TABLES, decoder
from benchmarks.random_pair import SHAPES, lacking, random_pair
from benchmarks.report import out_files, several
from smc_bridge.commands.base import LineParser, console, one_of, whole
from smc_bridge.estimate import plain
from smc_bridge.files import write_text
from smc_bridge.models.huggingface.chunks import is_out_of_memory
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.models.placement import as_device
from smc_bridge.tasks import TASKS

#: Seconds of every part, its start included; what a part leaves is the next ones'. Less than eight minutes in all.
BUDGET = {"tests": 130, "equal": 65, "embedded": 65, "0.5 B": 75, "7 B": 115}
PROGRAMS: tuple[str, ...] = tuple(TABLES["device_check"]["methods"])
TYPES = ("float64", "float32", "bfloat16")
#: These have to be well for the check to pass.
REQUIRED = ("tests", "equal")
#: How states begin that say of a measurement that there was no time or memory for it.
LACKING = ("out of time", "out of memory", "needs ")


class Scale(NamedTuple):
    """How much is done.

    Attributes:
        prompts: P of the measurements.
        equal: prompts whose draws are compared.
        sizes: of the measurements.
        tests: what pytest is told to look at.
        shapes: of the random pairs, by the part's name.
    """

    prompts: tuple[int, ...] = (1, 16, 64)
    equal: int = 8
    sizes: Sizes = Sizes()
    tests: tuple[str, ...] = ("tests/smc_bridge", "tests/models")
    shapes: Mapping[str, str] = {"0.5 B": "0.5 B", "7 B": "7 B"}


SMALL = Scale((1, 2), 2, TINY, ("tests/smc_bridge/test_prefix.py",), {"0.5 B": "tiny", "7 B": "tiny"})


def cells(part: str, scale: Scale) -> list[str]:
    """What a part measures, in its order: what costs most comes last."""
    if part == "tests":
        return ["tests"]
    if part == "equal":
        return [f"{program}, {dtype}" for dtype, program in product(TYPES, PROGRAMS[:-1])]
    return [f"{program}, P = {count}" for count, program in product(scale.prompts, PROGRAMS)]


# ---- a part, in a process of its own


def run_part(part: str, device: torch.device, scale: Scale, seed: int) -> Iterator[Record]:
    """The records of a part other than the tests, one as soon as its cell is done.

    What the device has no memory for is told in its record, and the next cell is tried.
    """
    for cell, work in works(part, device, scale, seed):
        try:
            found = work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found = {"state": "out of memory"}
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield {"cell": cell, **found}


def works(
    part: str, device: torch.device, scale: Scale, seed: int
) -> Iterator[tuple[str, Callable[[], Record]]]:
    """The cells of a part, and what measures each."""
    names = iter(cells(part, scale))
    task = TASKS["arithmetic"]
    load = functools.partial(load_pair, task.pair)
    if part == "equal":
        for dtype in TYPES:
            here, there = (load(device=where, dtype=dtype) for where in ("cpu", device))
            prompts = _prompts(here, scale.equal)
            for program in PROGRAMS[:-1]:
                build = functools.partial(decoder, program, task=task, temperature=0.2)
                yield next(names), functools.partial(
                    _equal, build, here, there, prompts, dtype=getattr(torch, dtype), seed=seed,
                    max_new_tokens=scale.sizes.tokens,
                )
        return
    lack = None if part == "embedded" else lacking(SHAPES[scale.shapes[part]], device)
    if lack is not None:
        for name in names:
            yield name, functools.partial(dict, state=lack)
        return
    pair = load(device=device) if part == "embedded" else random_pair(scale.shapes[part], device, seed=seed)
    every = _prompts(pair, max(scale.prompts)) if part == "embedded" else []
    for count, program in product(scale.prompts, PROGRAMS):
        work = (
            whole_runs(program, task, every[:count], scale.sizes, seed=seed) if part == "embedded"
            else given_steps(program, count, scale.sizes, seed=seed)
        )
        yield next(names), functools.partial(_speed, pair, work, prompts=count, given=part != "embedded")


def _prompts(pair: Pair, count: int) -> list[list[int]]:
    return [pair.encode(item.prompt).tolist() for item in TASKS["arithmetic"].problems(count)]


def _equal(*arguments: Any, **options: Any) -> Record:
    found = equality(*arguments, **options)
    return {"state": "ok" if found.equal else "not equal", **found._asdict()}


def _speed(pair: Pair, *arguments: Any, **options: Any) -> Record:
    return {"state": "ok", **speed(pair, *arguments, **options)._asdict()}


# ---- the parts, from outside


def watch_part(
    command: Sequence[str], folder: Path, part: str, seconds: float, tick: Callable[[list[Record]], None]
) -> tuple[list[Record], str | None]:
    """Run a part's command for at most so many seconds.

    Returns:
        its records so far; why there are no more, or None if it came to its end.
    """
    file, log = folder / f"{part.replace(' ', '')}.jsonl", folder / f"{part.replace(' ', '')}.log"
    file.unlink(missing_ok=True)
    until = time.monotonic() + seconds
    with log.open("w", encoding="utf-8") as told:
        # In a session of its own: workers that pytest started end with it.
        process = subprocess.Popen(
            command, cwd=HERE, stdout=told, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
                tick(_read(file))
        finally:
            late = process.poll() is None
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    return _read(file), "out of time" if late else None if code == 0 else f"failed: {lines[-1][:160]}"


def _read(file: Path) -> list[Record]:
    """The whole lines of a file of records."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def told_by_tests(log: str, end: str | None) -> Record:
    """What pytest told, line by line: how many passed, failed and were skipped, as far as it came."""
    words = re.findall(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b(?= +(?:tests/|\[ *\d+%\]))", log)
    found = {name.lower(): words.count(name) for name in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    wrong = found["failed"] + found["error"]
    state = f"{wrong} failed" if wrong else end if end is not None else "ok" if found["passed"] else "no test ran"
    return {"cell": "tests", "state": state, **found}


def pytest_command(device: torch.device, scale: Scale) -> list[str]:
    """Runs the device's variant of every test that is parametrised over devices."""
    workers = ["-n", str(min(4, cores()))] if device.type == "cuda" else ["-p", "no:xdist"]
    return [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-m", "device", "-k", device.type,
            *workers, *scale.tests]


def check(options: argparse.Namespace, scale: Scale) -> dict[str, list[Record]]:
    """Run the parts; a record for every cell, in order, of what was not measured too."""
    found: dict[str, list[Record]] = {}
    spare = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[cell]}"), TimeElapsedColumn())
    shown = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        for part in options.parts:
            expected, began = cells(part, scale), time.monotonic()
            budget = BUDGET[part] + spare
            row = bar.add_task(part, total=budget, cell="")

            def tick(
                records: list[Record], row: Any = row, began: float = began, expected: list[str] = expected
            ) -> None:
                at = min(len(records), len(expected) - 1)
                bar.update(row, completed=time.monotonic() - began, cell=expected[at])

            if part == "tests":
                _, end = watch_part(pytest_command(options.device, scale), options.out, part, budget, tick)
                log = (options.out / "tests.log").read_text(encoding="utf-8", errors="replace")
                found[part] = [told_by_tests(log, end)]
            else:
                command = [
                    sys.executable, "-m", "benchmarks.device_check", "--part", part, "--device", str(options.device),
                    "--seed", str(options.seed), "--out", str(options.out.resolve()),
                    *(["--tiny"] if options.tiny else []),
                ]
                records, end = watch_part(command, options.out, part, budget, tick)
                missing = [{"cell": cell, "state": end or "not measured"} for cell in expected[len(records):]]
                found[part] = records + missing
            bar.remove_task(row)
            spare = max(0.0, budget - (time.monotonic() - began))
    return found


def passed(found: Mapping[str, Sequence[Record]]) -> bool:
    """Whether all cells of the parts that have to be well are, and no other failed but for time or memory."""
    return all(
        record["state"] == "ok" or (part not in REQUIRED and record["state"].startswith(LACKING))
        for part, records in found.items() for record in records
    )


def write_part(options: argparse.Namespace, scale: Scale, out: TextIO) -> None:
    """Write the records of a part, each as soon as it is there."""
    for record in run_part(options.part, options.device, scale, options.seed):
        out.write(json.dumps(plain(record)) + "\n")
        out.flush()


def configure() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = LineParser(prog="python -m benchmarks.device_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", type=several(one_of(tuple(BUDGET))), default=tuple(BUDGET), metavar="a,b,..",
                        help=f"of {', '.join(BUDGET)} (default: all)")
    parser.add_argument("--part", type=one_of(tuple(BUDGET)[1:]), help=argparse.SUPPRESS)  # the process of one part
    parser.add_argument(
        "--device", type=one_of(("cuda", "cpu")), default="cuda", help="that is checked (default: cuda)"
    )
    parser.add_argument("--tiny", action="store_true", help="sizes of a smoke test: seconds, figures of no use")
    parser.add_argument("--seed", type=whole(0), default=0, help="of all draws and random weights (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/device-check"), metavar="FOLDER",
                        help="of the files (default: runs/device-check)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Raises:
        SystemExit: with code 1 if a test or a measurement failed or draws differ, 2 and one line if an argument cannot
            be used.
    """
    parser = configure()
    try:
        options = parser.parse_args(arguments)
        if options.device == "cuda" and not torch.cuda.is_available():
            print(f"device-check: torch {torch.__version__} sees no CUDA device here, so nothing was checked")
            return
        options.device = as_device(options.device, "--device")
        scale = SMALL if options.tiny else Scale()
        if options.part is not None:
            with (options.out / f"{options.part.replace(' ', '')}.jsonl").open("w", encoding="utf-8") as out:
                write_part(options, scale, out)
            return
        if options.seed >= 1 << 63:
            raise ValueError(f"--seed = {options.seed}: give a whole number of less than 64 bits")
        files = out_files(options.out, "device_check", "json", "md")
        machine = Machine.here()
        found = check(options, scale)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    tables = sheets(found, scale.shapes)
    well = passed(found)
    data = {"benchmark": "device_check", "machine": machine, "settings": vars(options), "passed": well, "parts": found}
    write_text(files[0], json.dumps(plain(data), indent=1, default=str))
    write_text(files[1], "\n\n".join([*(sheet.markdown() for sheet in tables), str(machine)]) + "\n")
    out = console(sys.stdout)
    for sheet in tables:
        out.print(sheet.rich())
    out.print(f"{machine}\nsaved as {files[0]} and {files[1]}", markup=False)
    checked = "passed" if set(REQUIRED) & set(found) else f"measured; of {' and '.join(REQUIRED)} nothing was checked"
    print(f"device-check: {checked}" if well else "device-check: FAILED, see the states above")
    if not well:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
