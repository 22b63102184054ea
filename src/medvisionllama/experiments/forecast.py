"""What a matrix would take: cells, hours, disk, and what is not at hand yet with the command that brings it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from medvisionllama.errors import InputError
from medvisionllama.experiments.cells import Cell
from medvisionllama.experiments.rows import Row
from medvisionllama.experiments.suite import Work
from medvisionllama.experiments.tables import TASKS
from medvisionllama.language.catalog import CATALOG
from medvisionllama.language.fetch import locate
from medvisionllama.language.source import find_source
from medvisionllama.models.costs import Cost, cost_of
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import NetworkConfig

# A training step is about three forward passes: one forward, twice that backward.
PASSES_A_STEP = 3
# What trainings of such small networks reach, about: the papers' ViT at 64^3 took 0.4 to 0.5 s a step on two cores.
OPERATIONS_A_SECOND_OF_A_CORE = 5e10
OPERATIONS_A_SECOND_OF_A_GPU = 1e13
NATIVE_EDGE = 48  # a window of the native protocol is planned from the data; of small ones about this edge
BYTES_A_WEIGHT = 4
BYTES_OF_PREDICTIONS = 20e6


@dataclass(frozen=True)
class Forecast:
    """What the cells that are not measured yet would take.

    Attributes:
        cells: All of them.
        measured: Those with a row.
        hours: Of training on one worker; rough.
        basis: Where the hours come from.
        gigabytes: Of run folders.
        missing: What is not at hand, and how to get it.
    """

    cells: Sequence[Cell]
    measured: Collection[str]
    hours: float
    basis: str
    gigabytes: float
    missing: Sequence[str]

    def lines(self) -> Iterator[str]:
        """For people."""
        for cell in self.cells:
            yield f"{'there' if cell.key in self.measured else 'to do'}  {cell.name}"
        left = sum(cell.key not in self.measured for cell in self.cells)
        yield f"{len(self.cells)} cells, {left} to do: about {self.hours:.1f} h on one worker ({self.basis})"
        yield f"run folders of about {self.gigabytes:.1f} GB"
        yield from self.missing


def forecast(work: Work, rows: Mapping[str, Row], *, all_tasks: bool = False) -> Forecast:
    """Say what there is to do without doing it; reads no image and asks no hub.

    Args:
        work: The matrix.
        rows: What has been measured, by key.
        all_tasks: Whether the table is about all ten tasks of the Decathlon.
    """
    left = [cell for cell in work.cells if cell.key not in rows]
    paces = _paces(rows.values())
    speed = _speed(work)
    seconds, known = 0.0, 0
    for cell in left:
        steps = _steps(cell, work)
        if _pace_key(cell) in paces:
            seconds, known = seconds + steps * paces[_pace_key(cell)], known + 1
        else:
            seconds += steps * _operations(cell) * PASSES_A_STEP * cell.recipe.batch_size / speed
    basis = "the pace of rows already measured" if known == len(left) else f"counted operations, {speed:.0e} a second"
    size = sum(_trained(cell) * BYTES_A_WEIGHT + BYTES_OF_PREDICTIONS for cell in left) / 1e9
    missing = [*_missing_blocks(left, work), *(_missing_tasks(work) if all_tasks else [])]
    return Forecast(work.cells, set(rows), seconds / 3600, basis, size, missing)


def _pace_key(cell: Cell) -> tuple[str, str, str, int]:
    return (cell.model, cell.block, cell.protocol, cell.grid if cell.protocol == "paper" else 0)


def _paces(rows: Collection[Row]) -> dict[tuple[str, str, str, int], float]:
    """Seconds a step by kind of cell."""
    paces: dict[tuple[str, str, str, int], float] = {}
    for row in rows:
        kind = (row.model, row.block, str(row.settings["protocol"]), int(row.settings["grid"] or 0))
        paces[kind] = row.seconds / max(1, row.steps)
    return paces


def _steps(cell: Cell, work: Work) -> int:
    if cell.recipe.steps:
        return cell.recipe.steps
    training = len(work.splits[cell.splits].training(cell.fold, cell.fraction))
    return cell.recipe.epochs * -(-training // cell.recipe.batch_size)


def _operations(cell: Cell) -> float:
    return float(_cost(cell.config, cell.grid if cell.protocol == "paper" else NATIVE_EDGE).flops)


def _trained(cell: Cell) -> int:
    return _cost(cell.config, cell.grid if cell.protocol == "paper" else NATIVE_EDGE).trainable_parameters


@lru_cache
def _cost(config: NetworkConfig, edge: int) -> Cost:
    return cost_of(replace(config, input_size=(edge, edge, edge)))


def _speed(work: Work) -> float:
    """Operations a second of one worker, assumed: a measurement would tell of the machine's other work."""
    if work.device.startswith("cuda") or (work.device == "auto" and torch.cuda.is_available()):
        return OPERATIONS_A_SECOND_OF_A_GPU
    return OPERATIONS_A_SECOND_OF_A_CORE * (work.threads or os.cpu_count() or 1)


def _missing_blocks(cells: Sequence[Cell], work: Work) -> list[str]:
    told: dict[str, str] = {}
    for cell in cells:
        if not isinstance(cell.config, ModelConfig) or cell.config.middle.kind not in ("language", "trained"):
            continue
        block = cell.config.middle.block
        if block.source in told or block.init == "random":
            continue
        try:
            locate(find_source(block.source, block.revision), block.layers, cache=work.cache, hub=None)
        except InputError:
            entry = CATALOG.get(block.source)
            gate = " (accept its licence on the hub first, and log in)" if entry is not None and entry.gated else ""
            told[block.source] = f"missing weights  {block.source}: medvisionllama blocks fetch {block.source}{gate}"
        else:
            told[block.source] = ""
    return [line for line in told.values() if line]


def _missing_tasks(work: Work) -> list[str]:
    lacking = [task for task in TASKS if task not in work.datasets]
    return [f"missing task  {task}: medvisionllama download {task} --to {_above(work)}" for task in lacking]


def _above(work: Work) -> Path:
    return next((folder.parent for folder in work.datasets.values()), Path("DATA"))
