"""The real task that several benchmarks measure on."""

from __future__ import annotations

from pathlib import Path

from medvisionllama.errors import InputError

TASK = "Task04_Hippocampus"


def task04_in(data: Path | None, benchmark: str) -> Path:
    """The folder of Task04 below ``data``.

    Args:
        data: The folder with the data sets, as named by ``--data``; None where it was not.
        benchmark: Who asks.

    Raises:
        InputError: No data folder is named, or Task04 is not in it.
    """
    if data is None or not (data / TASK).is_dir():
        raise InputError(
            f"the benchmark {benchmark} needs Task04",
            got=str(data or "no --data"),
            mend=f"Name the folder of {TASK} by --data.",
        )
    return data / TASK
