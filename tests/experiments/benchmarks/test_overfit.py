"""Overfitting as a proof that a network can learn, and that the proof can fail."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.errors import InputError
from medvisionllama.experiments.benchmarks.overfit import (
    ENOUGH_DICE,
    _affordable,
    benchmark_overfit,
    first_cases,
    overfit,
)
from medvisionllama.models.zoo import MODELS, named


def test_a_small_network_learns_and_one_without_steps_does_not(tmp_path: Path) -> None:
    task = write_phantom_task(tmp_path / "task", cases=4, settings=PhantomSettings(spacing_mm=(2.2, 2.8)))
    plan, cases = first_cases(task, tmp_path / "prepared")
    config = replace(named("vit-u"), depth=1)
    learned = overfit("vit-u", config, plan, cases, steps=150)
    assert learned.learned
    assert learned.dice >= ENOUGH_DICE
    assert learned.steps % 25 == 0
    starved = overfit("vit-u", config, plan, cases, steps=2)
    assert not starved.learned
    assert starved.dice < 0.5


def test_only_what_a_cpu_cannot_do_is_made_small() -> None:
    for name, config in MODELS.items():
        small, form = _affordable(config)
        assert (form == "full") == (small == config) == (name != "vit-depth")
        assert (small.attention, small.decoder, small.middle) == (config.attention, config.decoder, config.middle)


def test_data_must_be_named() -> None:
    with pytest.raises(InputError, match="--data"):
        benchmark_overfit(None)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", list(MODELS))
def test_every_named_network_overfits_four_real_cases(name: str, real_data: Path) -> None:
    torch.set_num_threads(1)
    (result,) = benchmark_overfit(real_data, [name])["networks"]
    assert result["learned"], result
