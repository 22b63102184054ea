"""How long a user waits before anything happens: ``--help`` and the bare import, as whole processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

RUNS = 7
COMMANDS = {
    "python_alone": [sys.executable, "-c", "pass"],
    "import_medvisionllama": [sys.executable, "-c", "import medvisionllama"],
    "help": [sys.executable, "-m", "medvisionllama.cli", "--help"],
}


def benchmark_startup() -> dict[str, Any]:
    """Seconds of each command, started in turn so that a machine that slows down slows all of them.

    Python's own start is measured beside them: what is above it is ours.
    """
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for run in range(RUNS + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if run:  # the first round warms the file cache
                seconds[name].append(time.perf_counter() - started)
    return {
        f"{name}_seconds": {"min": min(times), "median": statistics.median(times), "max": max(times)}
        for name, times in seconds.items()
    }
