"""`smc-bridge study CONFIG.toml`: a Cartesian experiment and its summary. What is done survives an interruption."""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.workers import check_workers
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
from smc_bridge.commands.tables import print_table
from smc_bridge.files import is_stream, shown


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `study`."""
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help="axes and source; docs/study.toml is one")
    parser.add_argument(
        "--out", type=destination, metavar="FILE",
        help="where the rows are kept, as JSON lines; a second call continues it (default: runs/<CONFIG>.jsonl)",
    )
    parser.add_argument(
        "--workers", type=whole(1), default=1, metavar="N",
        help='processes that share the work, with the same rows. More than 1 needs the extra: pip install '
        '"smc-bridge[ray]" (default: 1)',
    )
    parser.add_argument("--fresh", action="store_true", help="start anew, whatever study FILE holds")


def run(arguments: argparse.Namespace) -> int:
    """Run or continue a study and print its summary; 0, or 130 after Ctrl-C."""
    with importing():
        from analysis.study.config import Config
        from analysis.study.run import study
        from analysis.study.store import cells
        from analysis.study.table import render
    config = Config.from_toml(arguments.config)
    check_workers(arguments.workers, name="--workers")
    path: Path = arguments.out or Path("runs") / f"{arguments.config.stem}.jsonl"
    check_writable(path, "--out", make_folder=True)
    total, saved = len(cells(config)), 0

    def report(record: object, done: int, total: int) -> None:
        nonlocal saved
        saved = done

    try:
        frame = study(
            config, path=path, fresh=arguments.fresh, workers=arguments.workers, report=report, show=True
        )
    except KeyboardInterrupt:
        kept = saved and not is_stream(path)
        what = f"{saved} of {total} rows are saved in {shown(path)}" if kept else "nothing new was saved"
        again = "the same command without --fresh" if arguments.fresh else "the same command"
        tell(f"{PROGRAM}: interrupted: {what}; {again} {'goes on from there' if kept else 'begins anew'}")
        return INTERRUPTED
    except ImportError as error:
        raise UsageError(str(error)) from error
    title = f"{arguments.config.name}: {len(frame)} rows, pooled over seeds and prompts"
    deliver(path, lambda: None, lambda out: print_table(out, render(frame, title=title)))
    return 0


command = Command("study", "Run a Cartesian experiment over samplers, models and seeds.", configure, run)
