"""``medvisionllama figures``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import add_command

# Told apart from reports/ so that --help needs no matplotlib; a test holds the two together.
NAMES = {
    "v1-F3": "training curves: Dice and loss",
    "v1-F4": "activation maps by stage (after `explain`)",
    "v1-F5": "qualitative grid with Dice in each panel",
    "v1-A-F1": "hybrid strategies: parameters against Dice",
    "v1-C2": "qualitative grid with Dice in each panel",
    "v1-D-F3": "radar of all metrics",
    "v2-F2": "qualitative grid with Dice in each panel",
    "v2-F3": "activation and attention maps by stage (after `explain`)",
    "v2-F4": "few-shot curves: colour a share of the data, pattern a model",
    "v2-F5": "box plot of runs with significance",
}


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "figures", "Draw figures of the papers from run folders, as PNG and SVG.")
    known = "; ".join(f"{name} {shows}" for name, shows in NAMES.items())
    parser.add_argument("name", metavar="NAME", help=f"one of: {known}")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME.png and NAME.svg")
    parser.add_argument(
        "--part", default="validation", help="such as validation, test or 'test, native grid' (default: %(default)s)"
    )
    parser.set_defaults(run=_figures)


def _figures(options: argparse.Namespace) -> int:
    from medvisionllama.reports.paper_figures import draw_paper_figure

    for path in draw_paper_figure(options.name, options.runs, options.out, options.part):
        print(path)
    return DONE
