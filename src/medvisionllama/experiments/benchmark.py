"""Benchmarks by name. Each is one run that measures ratios, since seconds mean little on another machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medvisionllama.errors import InputError
from medvisionllama.provenance import environment
from medvisionllama.run_folder import write_json


def _startup() -> dict[str, Any]:
    from medvisionllama.experiments.benchmark_startup import benchmark_startup

    return benchmark_startup()


def _block() -> dict[str, Any]:
    from medvisionllama.experiments.benchmark_block import benchmark_block

    return benchmark_block()


BENCHMARKS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "startup": ("seconds until `--help` and `import medvisionllama` are done", _startup),
    "block": ("a Llama-3.1-8B-shaped layer against its bare matrix products, and its memory", _block),
}


def run_benchmark(name: str, out: Path) -> dict[str, Any]:
    """Run one benchmark and write ``benchmark.json`` with machine, versions and date.

    Raises:
        InputError: There is none of that name, or the file cannot be written.
    """
    if name not in BENCHMARKS:
        raise InputError(f"no benchmark is called {name!r}", expected=", ".join(BENCHMARKS))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    result = {
        "benchmark": name,
        "machine": environment(torch.device("cpu"), ["medvisionllama", "benchmark", name]),
        # Others at work on the same cores make seconds, and sometimes ratios, worthless: the reader must see it.
        "load_before": load,
        "measured": BENCHMARKS[name][1](),
    }
    write_json(out, result)
    return result
