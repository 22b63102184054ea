"""Walking a matrix of cells: what is finished is skipped, what was interrupted goes on, what failed is told.

A worker walks the whole list and takes each cell that has no row and that no other worker holds. So any number of
workers, launched together or apart, on one machine or several that share the folders, split the work among
themselves; none waits for another, and one that dies leaves a cell that the next walk goes on with.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from medvisionllama.data.splits import Splits
from medvisionllama.errors import InputError
from medvisionllama.experiments.cells import Cell
from medvisionllama.experiments.rows import collect, read_rows, row_path, write_row
from medvisionllama.experiments.source import state_of_source
from medvisionllama.held import held
from medvisionllama.listener import Listener, Silent
from medvisionllama.loading import Inference, load_member
from medvisionllama.machine import Machine, choose_device, default_cache
from medvisionllama.run import train_run
from medvisionllama.run_folder import RunFolder, read_json, write_text
from medvisionllama.score_part import predict_part

Ended = Literal["measured", "there already", "held by another", "failed"]
Tell = Callable[[str], None]
RETRIES = 1


@dataclass(frozen=True)
class Work:
    """What workers are handed: plain values, so that a launcher can send it to another process or machine.

    Attributes:
        cells: In the order in which they are wanted.
        datasets: Task name to the task's folder.
        splits: By their digest, as cells name them.
        rows: Folder of the small results, one file a cell.
        runs: Folder of the run folders, which may be lost.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        threads: CPU threads of a worker; None for as many as torch takes.
        cache: For prepared cases and fetched blocks; None for the usual place.
        offline: Never ask a hub.
    """

    cells: tuple[Cell, ...]
    datasets: Mapping[str, Path]
    splits: Mapping[str, Splits]
    rows: Path
    runs: Path
    device: str = "auto"
    threads: int | None = None
    cache: Path | None = None
    offline: bool = False


@dataclass
class Walked:
    """How the cells of a walk ended, by their names.

    Attributes:
        ended: Each cell's last attempt.
        faults: Why, for those that failed to the end.
        lost: Workers that ended before they had walked the list, and why.
    """

    ended: dict[str, Ended] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def named(self, how: Ended) -> list[str]:
        """The cells that ended so."""
        return [name for name, ended in self.ended.items() if ended == how]


def walk(work: Work, worker: int = 0, workers: int = 1, tell: Tell = print, listener: Listener | None = None) -> Walked:
    """Measure every cell that nobody has measured and nobody else is measuring.

    Args:
        work: What there is to do.
        worker: Which of the workers this is: it begins with its own share, then looks after the others'.
        workers: How many there are.
        tell: Told one line a cell.
        listener: Told of the progress within a cell.
    """
    if work.threads:
        torch.set_num_threads(work.threads)
    walked = Walked()
    known = set(read_rows(work.rows))
    for attempt in range(1 + RETRIES):
        failed = walked.named("failed")
        for cell in _in_turn(work.cells, worker, workers):
            if attempt and cell.name not in failed:
                continue
            started = time.perf_counter()
            try:
                ended = "there already" if cell.key in known else measure(cell, work, worker, listener)
            except InputError as error:
                ended, fault = "failed", str(error)
            except Exception as error:  # one cell's fault must not take the others with it
                ended, fault = "failed", f"{type(error).__name__}: {error}"
                write_text(work.runs / f"{cell.name}.fault.txt", traceback.format_exc())
            walked.ended[cell.name] = ended
            walked.faults.pop(cell.name, None)  # of the attempt before
            if ended == "failed":
                walked.faults[cell.name] = fault
            elif ended == "measured":
                known.add(cell.key)  # another may have this key under other labels
            if ended in ("measured", "failed"):
                note = f": {fault}" if ended == "failed" else ""
                tell(f"{cell.name}: {ended} after {time.perf_counter() - started:.0f} s{note}")
    return walked


def measure(cell: Cell, work: Work, worker: int = 0, listener: Listener | None = None) -> Ended:
    """Train and score one cell and leave its row, unless that is there or another process is at it.

    Both parts are scored as the network leaves them, the test part once, after the training. Which classes to clean up
    would be chosen by the validation part, in one cell and not in its pair; papers and other programs do no such thing.

    Raises:
        InputError: Data, weights or settings are not as they should be.
    """
    listener = listener or Silent()
    path = row_path(work.rows, cell)
    if path.exists():
        return "there already"
    with held(work.runs / f"{cell.name}.lock") as ours:
        if not ours:
            return "held by another"
        if path.exists():  # finished by another between the look and the lock
            return "there already"
        started = time.perf_counter()
        run = RunFolder(work.runs / cell.name)
        splits = work.splits[cell.splits]
        experiment = cell.experiment(work.datasets[cell.task])
        # A cell that another began, on a machine that mounts the folders elsewhere, has places of that one.
        machine = replace(machine_of(work, worker), dataset=experiment.dataset, block_source=experiment.folder_of_block)
        train_run(
            experiment,
            run.path,
            machine,
            splits=splits,
            resume=True,
            cleanup=False,
            listener=listener,
        )
        cleaned = run.postprocessing.exists()  # by an older version, or by a user who scored this folder
        for part, names in (("validation", splits.validation(cell.fold)), ("test", splits.test)):
            if names and (cleaned or part not in read_json(run.summary)):
                predict_part(run, part, machine, inference=Inference(cleanup=False), listener=listener)
        run.postprocessing.unlink(missing_ok=True)
        forward_ms = timed_forward_ms(run, machine) if cell.protocol == "paper" else None
        seconds = time.perf_counter() - started
        write_row(collect(cell, run, seconds, state_of_source(), forward_ms), path)
        (work.runs / f"{cell.name}.fault.txt").unlink(missing_ok=True)
    return "measured"


def machine_of(work: Work, worker: int) -> Machine:
    """Where a worker computes: with several GPUs at hand and none named, each worker takes its own by turns."""
    name = work.device
    if name in ("auto", "cuda") and torch.cuda.device_count() > 1:
        name = f"cuda:{worker % torch.cuda.device_count()}"
    return Machine(choose_device(name), work.cache or default_cache(), work.cache, work.offline)


@torch.inference_mode()
def timed_forward_ms(run: RunFolder, machine: Machine) -> float:
    """One volume of the planned window through the trained network: the faster of two, after one to warm up."""
    member = load_member(run.path, machine)
    image = torch.zeros((1, member.plan.in_channels, *member.plan.window), device=machine.device)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        float(member.model(image).flatten()[0])  # a number read back: a GPU has finished by then
        times.append(1000 * (time.perf_counter() - started))
    return round(min(times[1:]), 3)


def _in_turn(cells: Sequence[Cell], worker: int, workers: int) -> Iterator[Cell]:
    """A worker's own share in order, then all others': what a dead worker left."""
    yield from cells[worker::workers]
    yield from (cell for index, cell in enumerate(cells) if index % workers != worker)
