"""``medvisionllama compare``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import add_command


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "compare", "Test the differences between evaluated folders, case by case.")
    parser.add_argument(
        "folders", type=Path, nargs="+", help="folders with scores.csv; each is compared with the first"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(), help="folder for comparison.csv, .json, .md and .tex (default: this one)"
    )
    parser.add_argument("--test", choices=("t", "wilcoxon"), default="t", help="whose p is marked and corrected")
    parser.add_argument("--json", action="store_true", help="print the comparison as one JSON object")
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from medvisionllama.reports.compare_folders import compare_folders
    from medvisionllama.run_folder import to_json

    result = compare_folders(options.folders, options.out, test=options.test)
    markdown = result.pop("markdown")
    print(to_json(result) if options.json else markdown)
    return DONE
