"""The demo: a generated task, two networks trained for equally many steps, held-out cases segmented, one page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from medvisionllama.config import make_experiment
from medvisionllama.data.phantom import write_phantom_task
from medvisionllama.errors import InputError
from medvisionllama.listener import Listener
from medvisionllama.machine import Machine
from medvisionllama.reports.page import write_page
from medvisionllama.run import train_run
from medvisionllama.run_folder import RunFolder
from medvisionllama.score_part import predict_part

CASES = 40
TOLERANCE_MM = 1.0  # about a voxel of the phantom
# Generating, preparing, segmenting and drawing take about this long on two cores; training gets the rest.
MINUTES_BESIDE_TRAINING = 1.0
LEFT_BEHIND = {"phantom", "runs", "index.html", "figures", "viewer"}
# The slower network goes first, and its number of steps is the other's too: an equal budget for both.
NETWORKS = ("medvisionllama-u", "vit-u")


def run_demo(
    out: Path,
    machine: Machine,
    *,
    minutes: float,
    seed: int,
    command: Sequence[str],
    listener_named: Callable[[str], Listener],
) -> Path:
    """Do all of it below ``out`` and return the page.

    Args:
        out: A new or empty folder, or that of an earlier demo, which is done anew.
        machine: Where to compute.
        minutes: About how long all of it may take.
        seed: Of the phantom and of both networks.
        command: What the user typed.
        listener_named: Makes the listener of one part of the work.

    Raises:
        InputError: ``out`` is occupied, or too little time is given.
    """
    _clear(out)
    for_each = (minutes - MINUTES_BESIDE_TRAINING) / len(NETWORKS)
    if for_each <= 0:
        raise InputError(f"--minutes {minutes:g}", expected=f"more than {MINUTES_BESIDE_TRAINING:g}")
    listener_named("").note(f"Generating {CASES} phantom cases in {out / 'phantom'}")
    counted = listener_named("").counted("Generating")
    task = write_phantom_task(out / "phantom", cases=CASES, seed=seed, progress=counted)
    runs: list[Path] = []
    steps: int | None = None
    for network in NETWORKS:
        listener = listener_named(network)
        folder = out / "runs" / network
        summary = train_run(
            make_experiment(task, model=network, seed=seed, steps=steps, tolerance_mm=TOLERANCE_MM),
            folder,
            machine,
            max_minutes=for_each if steps is None else None,
            command=command,
            listener=listener,
        )
        steps = summary["steps"]
        predict_part(RunFolder(folder), "test", machine, listener=listener)
        runs.append(folder)
    page = write_page(runs, out)
    teller = listener_named("")
    for folder in runs:
        summary = json.loads(RunFolder(folder).summary.read_text(encoding="utf-8"))
        told = ", ".join(f"{part} Dice {summary[part]['dice_mean']:.3f}" for part in ("validation", "test"))
        teller.note(f"{summary['model']}: {told} after {summary['steps']} steps")
    return page


def _clear(out: Path) -> None:
    """Empty an earlier demo's folder; anything else that holds something is refused."""
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if found - LEFT_BEHIND or (found and "phantom" not in found):
        raise InputError(f"{out} is not empty", mend="Name another folder by --out.")
    for name in found:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
