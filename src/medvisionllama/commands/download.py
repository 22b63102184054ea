"""``medvisionllama download``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import add_command, teller_of


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "download", "Bring one of the ten Decathlon tasks here.")
    parser.add_argument("task", help="such as Task04_Hippocampus")
    parser.add_argument("--to", type=Path, required=True, help="folder to put the task's folder in")
    parser.set_defaults(run=_download)


def _download(options: argparse.Namespace) -> int:
    from medvisionllama.data.download import download_task

    teller = teller_of()
    told = download_task(options.task, options.to, progress=lambda done, total: teller.bytes(options.task, done, total))
    print(told)
    return DONE
