"""A small generated task, and cells on it that take a second each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from medvisionllama.data.decathlon import read_task
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.data.splits import Splits, make_splits
from medvisionllama.experiments.cells import Cell, splits_digest
from medvisionllama.experiments.suite import Work
from medvisionllama.models.zoo import named
from medvisionllama.recipe import Recipe

TINY = Recipe(steps=2, batch_size=2, validations=0, precision="float32")


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "task"
    return write_phantom_task(folder, cases=8, settings=PhantomSettings(spacing_mm=(2.6, 3.0)))


@pytest.fixture(scope="session")
def splits(phantom: Path) -> Splits:
    return make_splits([case.name for case in read_task(phantom).cases])


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def cell(splits: Splits) -> Cell:
    config = replace(named("vit-u"), width=16, depth=1, heads=2, stem_widths=(4, 8))
    return Cell("Phantom", "vit-u", config, TINY, splits_digest(splits))


@pytest.fixture
def work_of(phantom: Path, splits: Splits, cache: Path, tmp_path: Path) -> Callable[..., Work]:
    """Work on some cells, with folders of its own."""

    def work(*cells: Cell) -> Work:
        folders = {"rows": tmp_path / "rows", "runs": tmp_path / "runs"}
        found = {splits_digest(splits): splits}
        return Work(cells, {"Phantom": phantom}, found, **folders, device="cpu", threads=1, cache=cache, offline=True)

    return work
