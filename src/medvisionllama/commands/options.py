"""What commands share: options, where to compute, who is told of the progress."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvisionllama.errors import InputError

if TYPE_CHECKING:
    from medvisionllama.console import Teller
    from medvisionllama.machine import Machine


def add_command(commands: Any, common: argparse.ArgumentParser, name: str, help_text: str) -> argparse.ArgumentParser:
    """A command of its own help, which also is its description."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text, parents=[common], allow_abbrev=False
    )
    return parser


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Options of where to compute."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: all cores)")
    parser.add_argument("--cache", type=Path, help="folder for prepared cases and fetched blocks")
    parser.add_argument("--offline", action="store_true", help="never ask a hub")


def add_places(parser: argparse.ArgumentParser) -> None:
    """Options of where a trained run's things lie now."""
    parser.add_argument("--block", help="where the run's language block lies now, if its folder was moved")
    parser.add_argument("--dataset", type=Path, help="where the run's data set lies now, if its folder was moved")


def add_memory(parser: argparse.ArgumentParser) -> None:
    """The option for which window and batch are planned."""
    parser.add_argument(
        "--memory-gb",
        type=above_zero,
        help="of the device: window and batch are planned to fill it (default: a window of 96x96x96 voxels at most)",
    )


def above_zero(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def usual_processes() -> int:
    """As many as there are cores, but no more than a hard disk and the memory of a small machine bear."""
    return min(4, os.cpu_count() or 1)


def whole(text: str, option: str) -> int:
    """A whole number.

    Raises:
        InputError: It is none.
    """
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"{option} {text}", expected="a whole number, or all") from error


def machine_of(options: argparse.Namespace) -> Machine:
    """Where to compute, as the options of :func:`add_machine` say."""
    import torch

    from medvisionllama.machine import Machine, choose_device, default_cache

    if options.threads:
        torch.set_num_threads(options.threads)
    cache = options.cache or default_cache()
    return Machine(choose_device(options.device), cache, options.cache, options.offline)


def machine_of_run(options: argparse.Namespace) -> Machine:
    """The same for a trained run, whose things lie where the options of :func:`add_places` say."""
    from dataclasses import replace

    moved = str(options.dataset) if options.dataset else None
    return replace(machine_of(options), block_source=options.block, dataset=moved)


def teller_of(title: str = "") -> Teller:
    """Who tells the terminal of the progress."""
    from medvisionllama.console import Teller

    return Teller(title)
