"""`smc-bridge decode --prompts FILE.jsonl`: every prompt of a file, the text drawn for it, and what it cost.

`--json` saves a result a line, as `Result.to_dict` gives it; `settings` has the prompt's `id`, and its `answer` and
whether the drawn text is `correct` where an answer is known.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from smc_bridge.commands.base import INTERRUPTED, PROGRAM, UsageError, check_writable, deliver, importing, tell
from smc_bridge.commands.models import load_shown, models_of, pair_name
from smc_bridge.commands.prompts import count_of, described, task_of
from smc_bridge.commands.threads import use_free_cores
from smc_bridge.commands.waiting import Counted, waiting
from smc_bridge.files import is_stream, shown, write_text
from smc_bridge.tasks import Item, Task, encode_prompts, lookahead_of, prompts_of

if TYPE_CHECKING:
    from rich.console import Console

    from smc_bridge.decode import Decoder
    from smc_bridge.registry import Spelled
    from smc_bridge.result import Result

#: Prompts that are decoded together, and length limit unless it is given or models have fewer positions, tokens.
BATCH, LIMIT = 32, 128


def run_file(arguments: argparse.Namespace, method: Spelled) -> int:
    """Decode the prompts of a file and print what came of each; returns the exit code."""
    models, name = models_of(arguments), pair_name(arguments)
    task = task_of(arguments, name)
    items = task.problems(count_of(arguments, task, 0))
    path: Path | None = arguments.json
    if path is not None:
        check_writable(path, "--json")
    with importing():
        from smc_bridge.commands.trace_rendering import render_trace, texts_of, token_texts
        from smc_bridge.decode import Interrupted
        from smc_bridge.requests import limit_that_fits
        from smc_bridge.result import Result
    if path is not None:
        refuse_other(path, lambda file: Result.from_dict(json.loads(file.open(encoding="utf-8").readline())))
    use_free_cores()
    pair = load_shown(models)
    ids = prompts_of(pair, task, items)
    arguments.max_new_tokens = limit_that_fits(arguments.max_new_tokens, ids, (pair.dlm, pair.ar), default=LIMIT)
    decoder = method.make(pair, lookahead=lookahead_of(name), max_new_tokens=arguments.max_new_tokens)
    task = replace(task, max_new_tokens=arguments.max_new_tokens)  # type: ignore[type-var]  # ours are dataclasses
    prompts = encode_prompts(pair, task, items)

    def finish(found: Sequence[Result], chosen: Sequence[Item]) -> list[Result]:
        for result, item in zip(found, chosen, strict=True):
            result.settings.update(told(result, item, task, seed=arguments.seed))
            if arguments.trace:
                result.settings["tokens"] = token_texts(result, decode=texts_of(pair), eos_id=pair.ar.eos_id)
        return list(found)

    def save(found: Sequence[Result]) -> None:
        assert path is not None
        lines = [json.dumps(result.to_dict(), allow_nan=False) + "\n" for result in found]
        write_text(path, "".join(lines), argument="--json")

    try:
        results = finish(run_decoder(arguments, decoder, prompts, batch=arguments.batch or BATCH), items)
    except Interrupted as interrupt:
        what = "nothing is saved"
        if path is not None and interrupt.results:
            done = sorted(interrupt.results)
            save(finish([interrupt.results[i] for i in done], [items[i] for i in done]))
            what = f"{len(interrupt.results)} of {len(items)} results, some of them partial, are saved as {shown(path)}"
        tell(f"{PROGRAM}: interrupted: {what}")
        return INTERRUPTED

    def show(out: Console) -> None:
        for item, result in zip(items, results, strict=True):
            out.print(Text(str(item.id), style="bold"))
            if arguments.trace:
                render_trace(out, result, decode=texts_of(pair), eos_id=pair.ar.eos_id)
            text = drawn(result, seed=arguments.seed)
            out.print(Text("none: every weight is zero" if text is None else str(text)))
            out.print(Text(figures(result)))
            out.print()
        out.print(Text(summary(results, task)))

    deliver(path, lambda: save(results), show)
    return 0


def run_decoder(
    arguments: argparse.Namespace, decoder: Decoder[Any], prompts: Sequence[Sequence[int]], *, batch: int | None = None
) -> list[Result]:
    """The results of prompts, with the steps of their lanes under `--trace`.

    Raises:
        UsageError: a trace is asked of a method that keeps no steps.
    """
    from smc_bridge.decode import decode
    from smc_bridge.engine.sampler import Sampler

    if arguments.trace and not isinstance(decoder, Sampler):
        raise UsageError(f"--trace with --method = {decoder.name}, which has no lanes to show: leave it out")
    limit = arguments.max_new_tokens
    options: dict[str, Any] = {"seed": arguments.seed, "max_new_tokens": limit, "batch": batch}
    with waiting("decoding") as say:
        if say is not None and len(prompts) == 1 and not arguments.trace:
            return decode(Counted(decoder, limit, say), prompts, **options)
        if say is not None:
            options["progress"] = lambda done: say(f"decoding: {done} of {len(prompts)} prompts")
        if isinstance(decoder, Sampler):
            return decoder.run(prompts, **options, keep_drafts=arguments.trace)
        return decode(decoder, prompts, **options)


def drawn(result: Result, *, seed: int) -> Any:
    """The text drawn from the weights; None if every weight is zero."""
    return result.sample(seed=seed) if result.alive else None


def told(result: Result, item: Item, task: Task, *, seed: int) -> dict[str, Any]:
    """Entries of a saved result about its prompt: id, answer, and whether a draw from the weights gives it."""
    if item.answer is None:
        return {"id": item.id}
    text = drawn(result, seed=seed)
    return {"id": item.id, "answer": item.answer, "correct": text is not None and task.grade(text, item.answer)}


def figures(result: Result) -> str:
    """Verdict, evidence, ESS, tokens and forwards of a result, on one line."""
    size = f"{result.ess:.2f} of {len(result.sequences)} particles"
    worth = f"log Z {result.log_evidence:.4f} nats, ESS {size}" if result.proper else "not properly weighted"
    verdict = {True: "right, ", False: "wrong, "}.get(result.settings.get("correct"), "")  # type: ignore[arg-type]
    return (
        f"({verdict}{worth}, {result.tokens:.1f} tokens, {result.forwards.dlm_forwards} DLM and "
        f"{result.forwards.ar_forwards} AR forwards)"
    )


def summary(results: Sequence[Result], task: Task) -> str:
    """Share of right answers and means of all prompts, on one line."""
    count = len(results)
    right = [result.settings["correct"] for result in results if "correct" in result.settings]
    share = f"{100 * sum(right) / len(right):.1f} % right ({sum(right)} of {len(right)}), " if right else ""
    tokens, dlm, ar = (sum(each) / count for each in zip(*(
        (result.tokens, result.forwards.dlm_forwards, result.forwards.ar_forwards) for result in results
    ), strict=True))
    return (
        f"{described(task)}: {count} prompts, {share}{tokens:.1f} tokens, {dlm:.1f} DLM and {ar:.1f} AR forwards a "
        "prompt"
    )


def refuse_other(path: Path, load: Callable[[Path], Any]) -> None:
    """Refuse to overwrite a file with something in it that `load` does not know as a saved result.

    Raises:
        UsageError: naming the file.
    """
    if is_stream(path) or not path.exists() or path.stat().st_size == 0:
        return
    try:
        load(path)
    except ValueError as error:
        raise UsageError(f"--json = {shown(path)}: is not a saved result; give another file") from error
