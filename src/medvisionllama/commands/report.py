"""``medvisionllama report``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import add_command


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "report", "Draw one page of one or several runs.")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder for index.html and figures")
    parser.add_argument("--no-images", action="store_true", help="leave out pictures of cases")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from medvisionllama.reports.page import write_page

    print(write_page(options.runs, options.out, images=not options.no_images))
    return DONE
