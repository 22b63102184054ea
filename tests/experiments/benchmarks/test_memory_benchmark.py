"""The benchmark of a training's memory: a whole training is measured, in a process of its own."""

from pathlib import Path

import pytest

from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.errors import InputError
from medvisionllama.experiments.benchmarks import memory as module


def test_a_whole_training_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_phantom_task(tmp_path / module.TASK, cases=6, settings=PhantomSettings(spacing_mm=(2.6, 3.4)))
    monkeypatch.setattr(module, "STEPS", 2)
    found = module.benchmark_memory(tmp_path, ["vit-u"])["training"]["vit-u"]
    assert found["validation_cases"] >= 1  # it went on to the scores
    # Torch's own start, weights, gradients and moments of 0.8 M parameters and their batches come on top.
    assert found["of_it_libraries_gb"] > 0.05
    assert found["peak_gb"] > found["of_it_libraries_gb"] + 0.05


def test_without_task04_it_is_refused(tmp_path: Path) -> None:
    for data in (None, tmp_path):
        with pytest.raises(InputError, match="needs Task04"):
            module.benchmark_memory(data)
