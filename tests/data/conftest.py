"""A small generated task whose files a test may spoil."""

import shutil
from pathlib import Path

import pytest

from medvisionllama.data.decathlon import read_task
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.data.plan import Plan
from medvisionllama.data.planning import make_plan
from medvisionllama.data.task import Task


@pytest.fixture(scope="session")
def unspoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that :func:`task` copies: of five cases."""
    folder = tmp_path_factory.mktemp("unspoilt") / "Phantom"
    return write_phantom_task(folder, 5, settings=PhantomSettings(spacing_mm=(2.6, 3.4)))


@pytest.fixture
def task(unspoilt: Path, tmp_path: Path) -> Task:
    """A copy that may be spoilt."""
    shutil.copytree(unspoilt, tmp_path / "Phantom")
    return read_task(tmp_path / "Phantom")


@pytest.fixture
def plan(task: Task) -> Plan:
    """Of all its cases."""
    return make_plan(task, task.cases)
