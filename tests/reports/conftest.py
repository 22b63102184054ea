"""Run folders to draw, made once for all tests of the reports."""

from pathlib import Path

import pytest
from run_maker import make_run

from medvisionllama.reports.page import write_page


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole run of 12 scored cases with pictures; do not change it."""
    return make_run(tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture(scope="session")
def rivals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of different models on the same cases; do not change them."""
    folder = tmp_path_factory.mktemp("rivals")
    return [
        make_run(folder / "with", cases=6, seed=1),
        make_run(folder / "without", cases=6, seed=2, model="vit-u", lift=-0.1, block=False),
    ]


@pytest.fixture(scope="session")
def one_page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of ``run``; do not change it."""
    return write_page([run], tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="session")
def comparison(rivals: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of ``rivals``; do not change it."""
    return write_page(rivals, tmp_path_factory.mktemp("comparison"))
