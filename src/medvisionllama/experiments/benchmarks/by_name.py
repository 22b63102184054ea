"""Benchmarks by name. Each is one run that measures ratios, since seconds mean little on another machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medvisionllama.errors import InputError
from medvisionllama.machine import device_named
from medvisionllama.provenance import environment
from medvisionllama.run_folder import write_json


@dataclass(frozen=True)
class Asked:
    """What a benchmark is told; each takes what concerns it."""

    data: Path | None = None
    """The folder with the data sets, for benchmarks on real masks."""
    only: Sequence[str] = ()
    """Names of networks, for benchmarks of those; all of them where empty."""
    device: str = "cpu"
    """Where the block is measured: `cpu` or a CUDA device."""
    threads: int | None = None
    """Threads of torch for the block and for attention; None leaves its own choice."""

    def typed(self) -> list[str]:
        """As options of the command line, with the user's own folder unnamed."""
        options = ["--data", "DATA"] if self.data else []
        options += ["--only", *self.only] if self.only else []
        options += ["--device", self.device] if self.device != "cpu" else []
        return options + (["--threads", str(self.threads)] if self.threads else [])


def _startup(asked: Asked) -> dict[str, Any]:
    from medvisionllama.experiments.benchmarks.startup import benchmark_startup

    return benchmark_startup()


def _block(asked: Asked) -> dict[str, Any]:
    from medvisionllama.experiments.benchmarks.block import benchmark_block

    return benchmark_block(device=asked.device, threads=asked.threads)


def _attention(asked: Asked) -> dict[str, Any]:
    from medvisionllama.experiments.benchmarks.attention import benchmark_attention

    return benchmark_attention()


def _metrics(asked: Asked) -> dict[str, Any]:
    from medvisionllama.experiments.benchmarks.metrics import benchmark_metrics

    return benchmark_metrics(asked.data)


def _feed(asked: Asked) -> dict[str, Any]:
    from medvisionllama.experiments.benchmarks.feed import benchmark_feed

    return benchmark_feed(asked.data)


def _overfit(asked: Asked) -> dict[str, Any]:
    from medvisionllama.experiments.benchmarks.overfit import benchmark_overfit

    return benchmark_overfit(asked.data, asked.only)


def _predict(asked: Asked) -> dict[str, Any]:
    from medvisionllama.experiments.benchmarks.predict import benchmark_predict

    return benchmark_predict(asked.only)


def _memory(asked: Asked) -> dict[str, Any]:
    from medvisionllama.experiments.benchmarks.memory import benchmark_memory

    return benchmark_memory(asked.data, asked.only)


BENCHMARKS: dict[str, tuple[str, Callable[[Asked], dict[str, Any]]]] = {
    "startup": ("seconds until `--help` and `import medvisionllama` are done", _startup),
    "block": ("a Llama-3.1-8B-shaped layer against its bare matrix products, and its memory", _block),
    "attention": ("torch's fused attention against plain products, by tokens", _attention),
    "feed": ("batches per second without a network, against MONAI's cached pipeline", _feed),
    "overfit": ("every named network learns four real cases by heart: proof that it can learn", _overfit),
    "memory": ("peak resident memory of whole trainings on Task04", _memory),
    "predict": ("segmenting a large CT beside the network: seconds and memory, against MONAI's", _predict),
    "metrics": ("all eight metrics against MONAI's and surface-distance's two, and a large CT", _metrics),
}


def run_benchmark(
    name: str,
    out: Path,
    data: Path | None = None,
    only: Sequence[str] = (),
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, Any]:
    """Run one benchmark and write ``benchmark.json`` with machine, versions and date.

    Args:
        name: A key of ``BENCHMARKS``.
        out: The file to write.
        data: As in :class:`Asked`, and so the others.
        only: Names of networks.
        device: Where the block is measured.
        threads: Threads for the block and for attention.

    Raises:
        InputError: There is none of that name, it takes no device or no threads, there is no such device, or the file
            cannot be written.
    """
    if name not in BENCHMARKS:
        raise InputError(f"no benchmark is called {name!r}", expected=", ".join(BENCHMARKS))
    asked = Asked(data, only, device, threads)
    if name != "block" and device != "cpu":
        raise InputError(f"the benchmark {name} takes no device", mend="Leave out --device.")
    if name not in ("block", "attention") and threads is not None:
        raise InputError(f"the benchmark {name} takes no threads", mend="Leave out --threads.")
    where = _device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    result = {
        "benchmark": name,
        "machine": environment(where, ["medvisionllama", "benchmark", name, *asked.typed()]),
        # Others at work on the same cores make seconds, and sometimes ratios, worthless: the reader must see it.
        "load_before": load,
        "measured": BENCHMARKS[name][1](asked),
    }
    write_json(out, result)
    return result


def _device(name: str) -> torch.device:
    device = device_named(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no NVIDIA GPU that torch can use", mend="Leave out --device.")
    return device
