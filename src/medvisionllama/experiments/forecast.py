"""What a matrix would take: cells, hours, disk, and what is not at hand yet with the command that brings it."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import mean, median
from types import MappingProxyType

import torch

from medvisionllama.data.nifti import read_grid
from medvisionllama.data.task import Task
from medvisionllama.errors import InputError
from medvisionllama.experiments.cells import Cell
from medvisionllama.experiments.rows import Row
from medvisionllama.experiments.suite import Work
from medvisionllama.experiments.tables import TASKS
from medvisionllama.language.catalog import CATALOG
from medvisionllama.language.fetch import locate, model_numbers
from medvisionllama.language.source import find_source
from medvisionllama.models.costs import ForwardCost, forward_cost_of
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import NetworkConfig
from medvisionllama.pictures import COMMON_CASES, RANKED_CASES

# A training step is about three forward passes: one forward, twice that backward.
PASSES_A_STEP = 3
# What trainings of such small networks reach, about: the papers' ViT at 64^3 took 0.4 to 0.5 s a step on two cores.
OPERATIONS_A_SECOND_OF_A_CORE = 5e10
OPERATIONS_A_SECOND_OF_A_GPU = 1e13
NATIVE_EDGE = 48  # a window of the native protocol is planned from the data; of small ones about this edge
BYTES_A_WEIGHT = 4
# What compressed files of a finished run on Task04 took for each voxel.
BYTES_A_LABEL = 0.1
BYTES_A_PICTURED_VOXEL = 1.1
HEADERS_READ = 8


@dataclass(frozen=True)
class Forecast:
    """What the cells that are not measured yet would take.

    Attributes:
        cells: All of them.
        measured: Those with a row.
        hours: Of training on one worker; rough.
        basis: Where the hours come from.
        gigabytes: Of run folders: weights, label maps and pictures.
        prepared_gigabytes: Of the cases brought to the model's grid, which trainings share.
        fetched_gigabytes: Of the language models' layers that are missing, as far as their size is known.
        unknown: Cells to do around a language model of unknown shape; hours and weights are without them.
        missing: What is not at hand, and how to get it.
    """

    cells: Sequence[Cell]
    measured: Collection[str]
    hours: float
    basis: str
    gigabytes: float
    prepared_gigabytes: float
    fetched_gigabytes: float
    unknown: int
    missing: Sequence[str]

    def lines(self) -> Iterator[str]:
        """For people."""
        for cell in self.cells:
            yield f"{'there' if cell.key in self.measured else 'to do'}  {cell.name}"
        left = sum(cell.key not in self.measured for cell in self.cells)
        yield f"{len(self.cells)} cells, {left} to do: about {self.hours:.1f} h on one worker ({self.basis})"
        if self.unknown:
            yield (
                f"of these {self.unknown} around a language model whose shape is not known here: "
                "their hours and their weights are in none of the figures"
            )
        yield (
            f"disk: run folders about {self.gigabytes:.2g} GB, prepared cases {self.prepared_gigabytes:.2g} GB, "
            f"language models to fetch {self.fetched_gigabytes:.2g} GB; downloads of data not counted"
        )
        yield from self.missing


def forecast(
    work: Work,
    rows: Mapping[str, Row],
    tasks: Mapping[str, Task],
    absent: Mapping[str, tuple[Path, int]] = MappingProxyType({}),
    *,
    unbuilt: Collection[str] = (),
    all_tasks: bool = False,
) -> Forecast:
    """Say what there is to do without doing it; reads some headers but no image, and asks no hub.

    Args:
        work: The matrix.
        rows: What has been measured, by key.
        tasks: The tasks at hand, by name.
        absent: Of tasks asked for that are not at hand the folder, and how many cells they have; these are in no
            other figure.
        unbuilt: Rows of the table that no network here stands for, as the paper prints them.
        all_tasks: Whether the table is about all ten tasks of the Decathlon.
    """
    to_do = [cell for cell in work.cells if cell.key not in rows]
    left = [cell for cell in to_do if _has_shape(cell, work)]
    on_gpu = _on_gpu(work)
    paces = _paces([row for row in rows.values() if _was_on_gpu(row) == on_gpu])
    speed = _speed(work)
    seconds, known = 0.0, 0
    for cell in left:
        steps = _steps(cell, work)
        if _pace_key(cell) in paces:
            seconds, known = seconds + steps * paces[_pace_key(cell)], known + 1
        else:
            seconds += steps * _cost_of(cell, work).flops * PASSES_A_STEP * cell.recipe.batch_size / speed
    basis = "the pace of rows already measured" if known == len(left) else f"counted operations, {speed:.0e} a second"
    basis = basis if left else "nothing to count"
    voxels = {name: _voxels(tasks[name]) for name in {cell.task for cell in to_do}}
    weights = sum(_cost_of(cell, work).trainable_parameters * BYTES_A_WEIGHT for cell in left)
    size = weights + sum(_scored_bytes(cell, work, voxels[cell.task]) for cell in to_do)
    prepared = {(c.task, c.protocol, c.grid if c.protocol == "paper" else 0): c for c in to_do}
    stored = sum(_prepared_bytes(cell, tasks[cell.task], voxels[cell.task]) for cell in prepared.values())
    blocks = _missing_blocks(to_do, work)
    fetched = sum(CATALOG[source].layer_bytes for source in blocks if source in CATALOG)
    rows_missing = [f"missing row   {row}: no such network here; its label maps by --predictions" for row in unbuilt]
    missing = [
        *rows_missing,
        *blocks.values(),
        *_absent_tasks(absent),
        *(_missing_tasks(work, absent) if all_tasks else []),
    ]
    return Forecast(
        cells=work.cells,
        measured=set(rows),
        hours=seconds / 3600,
        basis=basis,
        gigabytes=size / 1e9,
        prepared_gigabytes=stored / 1e9,
        fetched_gigabytes=fetched / 1e9,
        unknown=len(to_do) - len(left),
        missing=missing,
    )


def _pace_key(cell: Cell) -> tuple[str, str, str, int]:
    return (cell.model, cell.block, cell.protocol, cell.grid if cell.protocol == "paper" else 0)


def _paces(rows: Collection[Row]) -> dict[tuple[str, str, str, int], float]:
    """Seconds a step by kind of cell: the median, since a busy machine tells of its other work."""
    found: defaultdict[tuple[str, str, str, int], list[float]] = defaultdict(list)
    for row in rows:
        kind = (row.model, row.block, str(row.settings["protocol"]), int(row.settings["grid"] or 0))
        found[kind].append(row.seconds / max(1, row.steps))
    return {kind: median(paces) for kind, paces in found.items()}


def _voxels(task: Task) -> float:
    """Of an image, on average, as the headers of some say."""
    some = task.cases[:: max(1, len(task.cases) // HEADERS_READ)]
    return mean(math.prod(read_grid(case.image)[0].shape) for case in some)


def _scored_bytes(cell: Cell, work: Work, voxels: float) -> float:
    """Label maps of the scored parts, and the pictures of some of their cases."""
    splits = work.splits[cell.splits]
    parts = [len(part) for part in (splits.validation(cell.fold), splits.test)]
    maps, pictures = sum(parts), sum(min(n, RANKED_CASES + COMMON_CASES) for n in parts)
    on_model_grid = sum(parts) * cell.grid**3 if cell.protocol == "paper" else 0
    return (maps * voxels + on_model_grid) * BYTES_A_LABEL + pictures * voxels * BYTES_A_PICTURED_VOXEL


def _prepared_bytes(cell: Cell, task: Task, voxels: float) -> float:
    """Float32 channels and a label of every case; the native protocol's spacing changes the number of voxels little."""
    return len(task.cases) * (cell.grid**3 if cell.protocol == "paper" else voxels) * (4 * task.channels + 1)


def _steps(cell: Cell, work: Work) -> int:
    if cell.recipe.steps:
        return cell.recipe.steps
    training = len(work.splits[cell.splits].training(cell.fold, cell.fraction))
    return cell.recipe.epochs * -(-training // cell.recipe.batch_size)


def _has_shape(cell: Cell, work: Work) -> bool:
    """Whether its network can be counted: a language model outside the catalog brings its shape when it is fetched."""
    if not isinstance(cell.config, ModelConfig) or cell.config.middle.kind == "none":
        return True
    block = cell.config.middle.block
    return model_numbers(find_source(block.source, block.revision), cache=work.cache) is not None


def _cost_of(cell: Cell, work: Work) -> ForwardCost:
    return _cost(cell.config, cell.grid if cell.protocol == "paper" else NATIVE_EDGE, work.cache)


@lru_cache
def _cost(config: NetworkConfig, edge: int, cache: Path | None) -> ForwardCost:
    try:
        return forward_cost_of(config, (edge, edge, edge), cache=cache)
    except InputError:  # whole as it is; it is a ValueError too
        raise
    except ValueError as error:
        raise InputError(f"a network cannot be made for a grid of {edge}", got=str(error)) from error


def _speed(work: Work) -> float:
    """Operations a second of one worker, assumed: a measurement would tell of the machine's other work."""
    if _on_gpu(work):
        return OPERATIONS_A_SECOND_OF_A_GPU
    return OPERATIONS_A_SECOND_OF_A_CORE * (work.threads or os.cpu_count() or 1)


def _was_on_gpu(row: Row) -> bool:
    return bool(row.content["environment"].get("device", "cpu") != "cpu")


def _on_gpu(work: Work) -> bool:
    return work.device.startswith("cuda") or (work.device == "auto" and torch.cuda.is_available())


def _missing_blocks(cells: Sequence[Cell], work: Work) -> dict[str, str]:
    """Source to what is told of it, of those that are not at hand."""
    told: dict[str, str] = {}
    for cell in cells:
        if not isinstance(cell.config, ModelConfig) or cell.config.middle.kind == "none":
            continue
        block, has_shape = cell.config.middle.block, _has_shape(cell, work)
        needs_weights = cell.config.middle.kind in ("language", "trained") and block.init != "random"
        if block.source in told or (has_shape and not needs_weights):
            continue
        try:
            locate(find_source(block.source, block.revision), block.layers, cache=work.cache, hub=None)
        except InputError:
            entry = CATALOG.get(block.source)
            gate = " (accept its licence on the hub first, and log in)" if entry is not None and entry.gated else ""
            told[block.source] = f"missing weights  {block.source}: medvisionllama blocks fetch {block.source}{gate}"
        else:
            told[block.source] = ""
    return {source: line for source, line in told.items() if line}


def _absent_tasks(absent: Mapping[str, tuple[Path, int]]) -> list[str]:
    return [
        f"missing task  {name}: "
        + (f"medvisionllama download {name} --to {folder.parent}" if name in TASKS else f"there is no folder {folder}")
        + f" (its {cells} cells are in none of the figures above)"
        for name, (folder, cells) in absent.items()
    ]


def _missing_tasks(work: Work, absent: Collection[str]) -> list[str]:
    lacking = [task for task in TASKS if task not in work.datasets and task not in absent]
    return [f"missing task  {task}: medvisionllama download {task} --to {_above(work)}" for task in lacking]


def _above(work: Work) -> Path:
    return next((folder.parent for folder in work.datasets.values()), Path("DATA"))
