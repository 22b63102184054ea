"""``medvisionllama explain``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import add_command, add_machine, add_places, machine_of_run


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "explain", "Collect activation and attention maps of cases into RUN/maps.")
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--case", dest="cases", nargs="+", required=True, metavar="NAME", help="of the run's data set")
    parser.add_argument(
        "--stages", nargs="+", metavar="STAGE", help="such as encoder, 'mapper in', block, decoder, attention"
    )
    add_places(parser)
    add_machine(parser)
    parser.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> int:
    from medvisionllama.explain import explain_run

    for path in explain_run(options.folder, options.cases, machine_of_run(options), options.stages):
        print(path)
    return DONE
