"""What decodes for `benchmarks.versus`, with whichever checkout of the project is on the path.

    PYTHONPATH=FOLDER python -P versus_worker.py THREADS

A request is a line of JSON on standard input, an answer one on standard output. It uses nothing of the benchmarks,
which are those of one checkout, and little of the package, so that others than today's can be asked.
"""

from __future__ import annotations

import json
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

import smc_bridge
from smc_bridge.decode import Decoder, decode
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.registry import spelled
from smc_bridge.tasks import TASKS

TASK = TASKS["arithmetic"]


@cache
def pair_with(kind: Any) -> Pair:
    """The embedded pair, its diffusion model with a cache of this kind."""
    return load_pair(TASK.pair, dlm_cache=kind)


@cache
def made(method: str, kind: str, temperature: float) -> Decoder[Any]:
    """The decoder of a spelling on that pair."""
    decoder: Decoder[Any] = spelled(method).make(
        pair_with(kind), temperature=temperature, lookahead=TASK.lookahead, window=TASK.window
    )
    return decoder


@cache
def prompts(count: int, kind: str) -> list[list[int]]:
    """The first problems, encoded."""
    return [pair_with(kind).encode(item.prompt).tolist() for item in TASK.problems(count)]


def clock() -> float:
    """Time in seconds, after the accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Decode problems `first` to `last`, all at a time: seconds, and of each problem tokens, forwards and sequences."""
    decoder = made(request["method"], request["cache"], request["temperature"])
    chosen = prompts(request["last"], request["cache"])[request["first"] :]
    began = clock()
    results = decode(decoder, chosen, seed=request["seed"], max_new_tokens=request["tokens"])
    return {
        "seconds": clock() - began, "tokens": [result.tokens for result in results],
        "dlm_forwards": sum(result.forwards.dlm_forwards for result in results),
        "sequences": [[[*map(int, row)] for row in result.sequences] for result in results],
    }


def main() -> None:
    """Say which package this is, then answer line by line until there are no more."""
    out, sys.stdout = sys.stdout, sys.stderr  # what anything else prints is no answer
    torch.set_num_threads(int(sys.argv[1]))
    folders = [Path(smc_bridge.__file__), Path(sys.modules["smc_bridge.models.pairs"].__file__ or "")]
    print(json.dumps([str(file.resolve().parents[1]) for file in folders]), file=out, flush=True)
    for line in sys.stdin:
        try:
            found = answer(json.loads(line))
        except ValueError as error:
            found = {"error": str(error)}
        print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__":
    main()
