"""``medvisionllama benchmark``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import add_command, positive


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "benchmark", "Measure speed and memory, as ratios in one run.")
    parser.add_argument("name", help="startup, block ...; an unknown name lists them")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"), help="file to write (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder with the data sets, for benchmarks on real masks")
    parser.add_argument("--only", nargs="+", default=[], metavar="MODEL", help="networks, for benchmarks of those")
    parser.add_argument("--device", default="cpu", help="for the block: cpu, cuda, cuda:1 ... (default: %(default)s)")
    parser.add_argument("--threads", type=positive, help="for block and attention: CPU threads (default: all cores)")
    parser.set_defaults(run=_benchmark)


def _benchmark(options: argparse.Namespace) -> int:
    from medvisionllama.experiments.benchmarks.by_name import run_benchmark
    from medvisionllama.run_folder import to_json

    result = run_benchmark(
        options.name, options.out, options.data, options.only, device=options.device, threads=options.threads
    )
    print(to_json(result["measured"]))
    return DONE
