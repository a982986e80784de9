"""`smc-bridge doctor --dlm NAME --ar NAME`: what loading a pair found, whether it does what it should, what it takes.

The models are loaded without being refused for what their probes find, so that all of it is seen at once.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smc_bridge.commands.base import Command, UsageError, check_writable, deliver, destination, importing, whole
from smc_bridge.commands.decode_file import refuse_other
from smc_bridge.commands.doctor_report import Report
from smc_bridge.commands.models import add_model_arguments, load_models, pair_name
from smc_bridge.commands.threads import use_free_cores
from smc_bridge.commands.words import in_flags
from smc_bridge.files import write_text
from smc_bridge.methods import DEFAULT
from smc_bridge.models.prompts import form_said
from smc_bridge.models.verdicts import Verdict, unprobed
from smc_bridge.registry import spelled
from smc_bridge.tasks import lookahead_of

if TYPE_CHECKING:
    from rich.console import Console

    from smc_bridge.models.pairs import Pair

#: What is decoded unless it is given, and how many tokens of it.
PROMPT, TOKENS = "Ann has 3 apples. Ann buys 4 more. How many apples does Ann have now?", 10
#: Exit code where a probe found a fault.
FAULTY = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `doctor`."""
    parser.epilog = f"Exit code: 0 if all is well, {FAULTY} if a probe finds a fault, 2 if the pair cannot be loaded."
    add_model_arguments(parser)
    sizes = parser.add_argument_group("sizes", f"for which memory is reckoned; what is not given is that of {DEFAULT}")
    sizes.add_argument(
        "--particles", type=whole(1), metavar="N", help="particles that survive a step (default: 4)"
    )
    sizes.add_argument("--lanes", type=whole(1), metavar="K", help="drafts per particle (default: 1)")
    sizes.add_argument("--window", type=whole(1), metavar="V", help="tokens verified at once (default: 32)")
    sizes.add_argument(
        "--lookahead", type=whole(1), metavar="M",
        help="masked positions per forward of the DLM (default: 256; of the embedded pair 32)",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--prompt", metavar="TEXT",
        help=f"{TOKENS} tokens behind it are decoded (default: {PROMPT} Of a table: the beginning of a row)",
    )
    run.add_argument("--seed", type=whole(0), default=0, help="of all draws (default: 0)")
    run.add_argument(
        "--json", type=destination, metavar="FILE",
        help="save what was found; - is standard output, tables then go to standard error",
    )


def run(arguments: argparse.Namespace) -> int:
    """Load the pair, probe it, decode a little and print all that was found; 1 if there is a fault."""
    path: Path | None = arguments.json
    if path is not None:
        check_writable(path, "--json")
        refuse_other(path, _check_report)
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise UsageError(f"--prompt = {arguments.prompt!r}: is empty; give a text")
    given = {name: getattr(arguments, name) for name in ("particles", "lanes", "window", "lookahead")}
    with importing():
        method = spelled(DEFAULT)
        defaults = {option.name: option.default for option in method.method.options}
    with importing():
        from smc_bridge.models.facts import facts_of
        from smc_bridge.requests import check_prompts
    use_free_cores()
    with unprobed():
        pair = load_models(arguments)
    text = arguments.prompt or pair.example or PROMPT
    [prompt] = check_prompts(
        [pair.encode(text).tolist()], {"diffusion": pair.dlm, "autoregressive": pair.ar},
        max_new_tokens=TOKENS, called=lambda _: "--prompt",
    )
    defaults["lookahead"] = lookahead_of(pair_name(arguments))
    sizes = {name: int(defaults[name] if value is None else value) for name, value in given.items()}
    facts = {"dlm": facts_of(pair.dlm, diffusion=True), "ar": facts_of(pair.ar, diffusion=False)}
    report = Report(pair.name, facts, sizes, form_said(pair.format_prompt), probes_of(pair))
    if report.good:
        _decode(report, pair, text, prompt, arguments.seed)
    report.probes = [
        (kind, verdict if verdict.fault is None else replace(verdict, fault=in_flags(verdict.fault, arguments.parser)))
        for kind, verdict in report.probes
    ]

    def save() -> None:
        assert path is not None
        write_text(path, json.dumps(report.data(), indent=2) + "\n", argument="--json")

    def show(out: Console) -> None:
        from smc_bridge.commands.doctor_tables import render_report

        render_report(out, report, pair.tokenizer)

    deliver(path, save, show)
    return 0 if report.good else FAULTY


def probes_of(pair: Pair) -> list[tuple[str, Verdict]]:
    """What probes find of both models, as far as they are networks of transformers."""
    from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM
    from smc_bridge.models.huggingface.causality import probe_causal
    from smc_bridge.models.huggingface.probes import probe_masked

    found: list[tuple[str, Verdict]] = []
    if isinstance(pair.dlm, HuggingFaceMaskedLM):
        found += [("dlm", verdict) for verdict in probe_masked(pair.dlm)]
    if isinstance(pair.ar, HuggingFaceCausalLM):
        found += [("ar", verdict) for verdict in probe_causal(pair.ar)]
    return found


def _decode(report: Report, pair: Pair, text: str, prompt: list[int], seed: int) -> None:
    """Decode a few tokens of the prompt, given as ids too; an error is a verdict on the pair."""
    name = f"decodes {TOKENS} tokens"
    try:
        decoder: Any = spelled(DEFAULT).given(report.sizes).make(pair, max_new_tokens=TOKENS)
        begun = time.perf_counter()
        [result] = decoder.run([prompt], seed=seed, max_new_tokens=TOKENS)
    except (ValueError, MemoryError, RuntimeError) as error:
        report.probes.append(("pair", Verdict(name, " ".join(str(error).split()) or type(error).__name__)))
        return
    report.probes.append(("pair", Verdict(name)))
    report.decoded = {
        "prompt": text, "text": str(result.sample(seed=seed)) if result.alive else None,
        "tokens": result.tokens, "tokens_per_dlm_forward": result.tokens_per_dlm_forward,
        "seconds": time.perf_counter() - begun,
    }


def _check_report(path: Path) -> None:
    """Raise ValueError unless a file is a report."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not {"models", "probes"} <= data.keys():
        raise ValueError(f"{path} is no report")


command = Command("doctor", "Say what loading a pair found, whether it is run rightly, what it takes.", configure, run)
