"""``medvisionllama explain``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import add_command, add_machine, machine_of


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "explain", "Collect activation and attention maps of cases into RUN/maps.")
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--case", dest="cases", nargs="+", required=True, metavar="NAME", help="of the run's data set")
    parser.add_argument(
        "--stages", nargs="+", metavar="STAGE", help="such as encoder, 'mapper in', block, decoder, attention"
    )
    parser.add_argument("--dataset", type=Path, metavar="FOLDER", help="where the run's data set lies now, if moved")
    parser.add_argument("--block", metavar="FOLDER", help="where the run's language block lies now, if moved")
    add_machine(parser)
    parser.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from medvisionllama.explain import explain_run

    moved = str(options.dataset) if options.dataset else None
    machine = replace(machine_of(options), block_source=options.block, dataset=moved)
    for path in explain_run(options.folder, options.cases, machine, options.stages):
        print(path)
    return DONE
