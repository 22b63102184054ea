"""Benchmarks by name. Each is one run that measures ratios, since seconds mean little on another machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from medvisionllama.errors import InputError
from medvisionllama.provenance import environment
from medvisionllama.run_folder import write_json


def _startup(data: Path | None, only: Sequence[str]) -> dict[str, Any]:
    from medvisionllama.experiments.benchmark_startup import benchmark_startup

    return benchmark_startup()


def _block(data: Path | None, only: Sequence[str]) -> dict[str, Any]:
    from medvisionllama.experiments.benchmark_block import benchmark_block

    return benchmark_block()


def _metrics(data: Path | None, only: Sequence[str]) -> dict[str, Any]:
    from medvisionllama.experiments.benchmark_metrics import benchmark_metrics

    return benchmark_metrics(data)


def _overfit(data: Path | None, only: Sequence[str]) -> dict[str, Any]:
    from medvisionllama.experiments.overfit import benchmark_overfit

    return benchmark_overfit(data, only)


BENCHMARKS: dict[str, tuple[str, Callable[[Path | None, Sequence[str]], dict[str, Any]]]] = {
    "startup": ("seconds until `--help` and `import medvisionllama` are done", _startup),
    "block": ("a Llama-3.1-8B-shaped layer against its bare matrix products, and its memory", _block),
    "overfit": ("every named network learns four real cases by heart: proof that it can learn", _overfit),
    "metrics": ("all eight metrics against MONAI's and surface-distance's two, and a large CT", _metrics),
}


def run_benchmark(name: str, out: Path, data: Path | None = None, only: Sequence[str] = ()) -> dict[str, Any]:
    """Run one benchmark and write ``benchmark.json`` with machine, versions and date.

    Args:
        name: A key of ``BENCHMARKS``.
        out: The file to write.
        data: The folder with the data sets, for benchmarks on real masks.
        only: Names of networks, for benchmarks of those; all of them where empty.

    Raises:
        InputError: There is none of that name, or the file cannot be written.
    """
    if name not in BENCHMARKS:
        raise InputError(f"no benchmark is called {name!r}", expected=", ".join(BENCHMARKS))
    typed = [*(["--data", "DATA"] if data else []), *(["--only", *only] if only else [])]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    result = {
        "benchmark": name,
        "machine": environment(torch.device("cpu"), ["medvisionllama", "benchmark", name, *typed]),
        # Others at work on the same cores make seconds, and sometimes ratios, worthless: the reader must see it.
        "load_before": load,
        "measured": BENCHMARKS[name][1](data, only),
    }
    write_json(out, result)
    return result
