"""``medvisionllama check``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE, FAULTS_FOUND
from medvisionllama.commands.options import add_command, teller_of


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "check", "Look through a data set for everything that would go wrong.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from medvisionllama.data.check import check_task
    from medvisionllama.data.decathlon import parse_task
    from medvisionllama.run_folder import to_json

    report = check_task(options.dataset, progress=teller_of().counted("Checking"))
    if options.json:
        print(to_json(report.to_dict()))
    else:
        for finding in report.errors:
            print(f"error  {finding.case}: {finding.file}: {finding.fault}. {finding.mend}")
        for note in report.notes:
            print(f"note   {note}")
        if report.cases:
            print(parse_task(options.dataset).sides)
        print(f"{report.cases} cases, {len(report.errors)} errors, {len(report.notes)} notes")
    return FAULTS_FOUND if report.errors else DONE
