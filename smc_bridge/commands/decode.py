"""`smc-bridge decode PROMPT`: decode a prompt, and show its weighted particles, evidence and diagnostics."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from smc_bridge.commands.base import (
    INTERRUPTED,
    PROGRAM,
    Command,
    UsageError,
    check_writable,
    deliver,
    destination,
    importing,
    tell,
    whole,
)
from smc_bridge.commands.decode_file import BATCH, LIMIT, refuse_other, run_decoder, run_file
from smc_bridge.commands.models import add_model_arguments, load_models, pair_name
from smc_bridge.commands.options import add_method_arguments, method_of
from smc_bridge.commands.prompts import add_prompts_arguments
from smc_bridge.commands.threads import use_free_cores
from smc_bridge.files import shown
from smc_bridge.tasks import lookahead_of

if TYPE_CHECKING:
    from rich.console import Console

    from smc_bridge.decode import Interrupted


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `decode`."""
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="text to continue, in quotes")
    prompts = parser.add_argument_group("prompts", "in place of PROMPT, those of a file")
    add_prompts_arguments(prompts)
    prompts.add_argument("--n", type=whole(1), help="how many, the first ones (default: all)")
    prompts.add_argument("--batch", type=whole(1), help=f"how many are decoded together (default: {BATCH})")
    add_model_arguments(parser)
    add_method_arguments(parser)
    run = parser.add_argument_group("run")
    run.add_argument(
        "--max-new-tokens", type=whole(1), metavar="T", help=f"length limit (default: {LIMIT}, or what fits)"
    )
    run.add_argument("--seed", type=whole(0), default=0, help="of all draws (default: 0)")
    run.add_argument(
        "--json", type=destination, metavar="FILE",
        help="save the result; - is standard output, tables then go to standard error",
    )
    run.add_argument("--trace", action="store_true", help="show every step: drafts, what became of them, lane weights")


def run(arguments: argparse.Namespace) -> int:
    """Decode the prompt, or the file of prompts, and print what came of it; returns the exit code."""
    with importing():
        method = method_of(arguments)
        method.check(max_new_tokens=arguments.max_new_tokens or LIMIT)
    if arguments.prompts is not None:
        if arguments.prompt is not None:
            raise UsageError("PROMPT with --prompts: give one of them")
        return run_file(arguments, method)
    for name in ("grader", "n", "batch"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} = {getattr(arguments, name)} is for a file of prompts: give --prompts too")
    if arguments.prompt is None:
        raise UsageError(f"PROMPT is missing: give it, or --prompts FILE.jsonl, see `{PROGRAM} decode --help`")
    if not arguments.prompt.strip():
        raise UsageError(f"PROMPT = {arguments.prompt!r}: is empty; give a text")
    if arguments.json is not None:
        check_writable(arguments.json, "--json")
    with importing():
        from smc_bridge.commands.rendering import render_result
        from smc_bridge.commands.trace_rendering import render_trace, texts_of, token_texts
        from smc_bridge.decode import Interrupted
        from smc_bridge.requests import check_prompts, limit_that_fits
        from smc_bridge.result import Result
    if arguments.json is not None:
        refuse_other(arguments.json, Result.load)
    use_free_cores()
    pair = load_models(arguments)
    ids = pair.encode(arguments.prompt).tolist()
    arguments.max_new_tokens = limit_that_fits(arguments.max_new_tokens, [ids], (pair.dlm, pair.ar), default=LIMIT)
    decoder = method.make(
        pair, lookahead=lookahead_of(pair_name(arguments)), max_new_tokens=arguments.max_new_tokens
    )
    [prompt] = check_prompts(
        [ids], decoder.models, max_new_tokens=arguments.max_new_tokens, called=lambda _: "PROMPT"
    )
    try:
        [result] = run_decoder(arguments, decoder, [prompt])
    except Interrupted as interrupt:
        tell(f"{PROGRAM}: interrupted{_save_partial(interrupt, arguments.json)}")
        return INTERRUPTED
    if arguments.trace:
        result.settings["tokens"] = token_texts(result, decode=texts_of(pair), eos_id=pair.ar.eos_id)

    def save() -> None:
        result.save(arguments.json)

    def show(out: Console) -> None:
        if arguments.trace:
            render_trace(out, result, decode=texts_of(pair), eos_id=pair.ar.eos_id)
        render_result(out, result, seed=arguments.seed)

    deliver(arguments.json, save, show)
    return 0


def _save_partial(interrupt: Interrupted, path: Path | None) -> str:
    """Save what an interrupted run has done, and say so."""
    if path is None:
        return ""
    if not interrupt.results:
        return ": no step was finished, nothing is saved"
    result = interrupt.results[0]
    result.save(path)
    done = f"{result.tokens:.1f} tokens in {len(result.trace)} steps"
    return f": the partial result ({done}, complete = False) is saved as {shown(path)}"


command = Command(
    "decode", "Decode a prompt, or those of a file, and show weighted particles, evidence and diagnostics.", configure,
    run,
)
