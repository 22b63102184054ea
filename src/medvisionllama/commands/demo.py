"""``medvisionllama demo``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import above_zero, add_command, add_machine, machine_of, teller_of


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(
        commands, common, "demo", "Generate a task, train two networks, segment, score, draw the page."
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write (default: %(default)s)")
    parser.add_argument("--minutes", type=above_zero, default=5.0, help="time for all of it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    add_machine(parser)
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from medvisionllama.demo import run_demo

    page = run_demo(
        options.out,
        machine_of(options),
        minutes=options.minutes,
        seed=options.seed,
        command=options.typed,
        listener_named=teller_of,
    )
    print(page)
    return DONE
