"""What a ``reproduce`` was asked for, and whether it can be meant: looked at before anything is read or trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from medvisionllama.errors import InputError
from medvisionllama.experiments.paper_tables import TABLES, block_label
from medvisionllama.experiments.pretraining import NAME
from medvisionllama.language.catalog import CATALOG
from medvisionllama.language.source import find_source
from medvisionllama.machine import device_named

_Value = TypeVar("_Value")

OF_THE_STUDY = ("networks", "middles", "loras")
OF_THE_TABLES = ("grid", "folds", "recipe", "predictions")
OPTIONS = {"loras": "--lora"}  # where an option is called otherwise than its value here


@dataclass(frozen=True)
class Request:
    """What was asked for; None and empty take the table's own.

    Attributes:
        table: A name of ``paper_tables.TABLES``, or that of the study.
        tasks: The tasks' folders.
        out: Folder of the small results.
        work: Folder of the run folders.
        splits: A file for each task; drawn with seed 0 where empty.
        seeds: Trainings of each row.
        fractions: Shares of the training patients.
        folds: Which parts validate, in turn.
        steps: Of every cell.
        grid: Edge of the papers' grid.
        recipe: Name or file, for the papers' tables.
        blocks: Label and source of language models.
        networks: Of the study.
        middles: Of the study.
        loras: Of the study.
        predictions: Name and folder of other programs' label maps.
        only: Measure only cells whose name holds this.
        limit: Measure at most so many cells.
        device: As in ``Work``.
        threads: As in ``Work``.
        cache: As in ``Work``.
        offline: As in ``Work``.
    """

    table: str
    tasks: tuple[Path, ...]
    out: Path
    work: Path
    splits: tuple[Path, ...] = ()
    seeds: tuple[int, ...] = ()
    fractions: tuple[float, ...] = ()
    folds: tuple[int, ...] = ()
    steps: int | None = None
    grid: int | None = None
    recipe: str = ""
    blocks: tuple[tuple[str, str], ...] = ()
    networks: tuple[str, ...] = ()
    middles: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    predictions: tuple[tuple[str, Path], ...] = ()
    only: str = ""
    limit: int | None = None
    device: str = "auto"
    threads: int | None = None
    cache: Path | None = None
    offline: bool = False


def sound(request: Request) -> Request:
    """The request with every value once, and a hub id of the catalog under its name: one setting has one key.

    In the study a language model without a label is called by its folder's name, or its hub id without the slash.

    Raises:
        InputError: The table is unknown, an option is of another kind of table, or a value is out of range.
    """
    _refuse_misplaced(request)
    _refuse_out_of_range(request)
    names = {entry.hub_id: name for name, entry in CATALOG.items()}
    blocks = tuple(
        (names.get(label, label) if label == source else label, names.get(source, source))
        for label, source in request.blocks
    )
    if request.table == NAME:
        blocks = tuple((block_label(source) if label == source else label, source) for label, source in blocks)
    _refuse_blocks(request, blocks)
    if request.device != "auto":  # whether there is such a device is seen where it is used, perhaps elsewhere
        device_named(request.device)
    _refuse_twice("another program's row", [name for name, _ in request.predictions], "Give each a name of its own.")
    return replace(
        request,
        blocks=blocks,
        seeds=_once(request.seeds),
        fractions=_once(request.fractions),
        folds=_once(request.folds),
        networks=_once(request.networks),
        middles=_once(request.middles),
        loras=_once(request.loras),
    )


def _refuse_misplaced(request: Request) -> None:
    if request.table != NAME and request.table not in TABLES:
        raise InputError(
            f"no table or figure is called {request.table!r}",
            expected=", ".join([NAME, *TABLES]),
            mend="Choose one of these.",
        )
    if request.splits and len(request.splits) != len(request.tasks):
        raise InputError(
            "every task needs a split of its own",
            got=f"{len(request.splits)} files for {len(request.tasks)} tasks",
            mend="Name as many --splits as --tasks, in the same order, or none.",
        )
    others, whose = (OF_THE_TABLES, "the papers' tables") if request.table == NAME else (OF_THE_STUDY, NAME)
    misplaced = [OPTIONS.get(name, f"--{name}") for name in others if getattr(request, name)]
    if misplaced:
        raise InputError(f"{', '.join(misplaced)} is of {whose}, not of {request.table}", mend="Leave it out.")
    if request.predictions and TABLES[request.table].of_data:
        raise InputError(
            f"{request.table} counts cases: no program's predictions have a place in it",
            mend="Leave --predictions out.",
        )


def _refuse_out_of_range(request: Request) -> None:
    if wrong := [f"{share:g}" for share in request.fractions if not 0 < share <= 1]:
        raise InputError("a share of the training part", got=", ".join(wrong), expected="--fractions above 0, to 1")
    for option, numbers in (("--seeds", request.seeds), ("--folds", request.folds), ("--limit", [request.limit or 0])):
        if wrong := [str(number) for number in numbers if number < 0]:
            raise InputError(f"{option} {' '.join(wrong)}", expected="whole numbers from 0 on")


def _refuse_blocks(request: Request, blocks: Sequence[tuple[str, str]]) -> None:
    _refuse_twice("a language model", [label for label, _ in blocks], "Give each a label of its own.")
    known = {row.block for row in TABLES[request.table].rows.values() if row.block} if request.table != NAME else set()
    for label, source in blocks:
        if known and label != source and label not in known:
            raise InputError(
                f"{request.table} has no language model {label!r} for another to stand in for",
                expected=", ".join(sorted(known)),
                mend="Correct what stands before the = of --block, or leave it out.",
            )
        if request.table == NAME and (not label or "/" in label):
            raise InputError(
                "a label of a language model is part of its files' names",
                got=f"--block {label}={source}",
                expected="LABEL=SOURCE, a LABEL without slashes",
            )
        find_source(source)


def _refuse_twice(what: str, names: Sequence[str], mend: str) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{what} is named twice", got=", ".join(twice), mend=mend)


def _once(values: tuple[_Value, ...]) -> tuple[_Value, ...]:
    return tuple(dict.fromkeys(values))
