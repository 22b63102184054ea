"""What a whole training keeps in memory at its worst: preparing, training, segmenting and scoring Task04."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from medvisionllama.experiments.benchmarks.own_process import apart, peak_gb
from medvisionllama.experiments.benchmarks.task04 import TASK, task04_in

NETWORKS = ("vit-baseline", "medvisionllama", "vit-u", "medvisionllama-u")
# Memory has long stopped growing by then: every kind of step and every part of the run has been there.
STEPS = 30


def benchmark_memory(data: Path | None, only: Sequence[str] = ()) -> dict[str, Any]:
    """Peak resident gigabytes (1e9 bytes) of trainings as users start them, each in a process of its own.

    Args:
        data: The folder of Task04.
        only: Names of networks; the four of the README where empty.

    Raises:
        InputError: No data folder is named, or Task04 is not in it.
    """
    task = task04_in(data, "memory")
    found = {name: apart(_trained, (task, name, STEPS)) for name in only or NETWORKS}
    return {"task": TASK, "steps": STEPS, "recipe": "native", "training": found}


def _trained(task: Path, name: str, steps: int) -> dict[str, Any]:
    from medvisionllama.config import make_experiment
    from medvisionllama.machine import Machine
    from medvisionllama.run import train_run

    imported = peak_gb()
    with TemporaryDirectory() as folder:
        # Its own cache, so that preparing is part of it.
        machine = Machine(torch.device("cpu"), Path(folder) / "cache")
        summary = train_run(make_experiment(task, model=name, seed=0, steps=steps), Path(folder) / "run", machine)
    return {"peak_gb": peak_gb(), "of_it_libraries_gb": imported, "validation_cases": summary["validation"]["cases"]}
