"""Proof that a network can learn: it overfits a few real cases, through the same data, loss and step as a training.

What cannot reach a high Dice on the very cases it sees is broken or too small, whatever its scores elsewhere. Dropout
is off, since what is asked for is capacity; all else is the named network on the task's own native plan.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from medvisionllama.data.dataset import BatchSource, PreparedCase, prepare
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.plan import Plan
from medvisionllama.data.planning import make_plan
from medvisionllama.experiments.benchmarks.task04 import task04_in
from medvisionllama.models.medvisionllama import ModelConfig, build
from medvisionllama.models.zoo import MODELS, named
from medvisionllama.predict import look_at_volumes
from medvisionllama.recipe import Recipe
from medvisionllama.train import make_optimizer, train_step

ENOUGH_DICE = 0.9
CASES = 4
STEPS = 600
LOOK_EVERY_STEPS = 25
# What trains more than this takes minutes a step on a CPU and is proved in a small form of the same parts.
LARGEST_TRAINABLE = 5_000_000
RECIPE = Recipe(learning_rate=2e-3, batch_size=CASES, steps=STEPS, foreground_share=0.0, schedule="constant")


@dataclass(frozen=True)
class Overfitted:
    """How one network did.

    Attributes:
        model: Its name.
        form: ``full`` as named, or ``small``: the same parts, but at most 128 wide and 4 blocks deep.
        trainable_parameters: Of that form.
        learned: Whether it reached :data:`ENOUGH_DICE`.
        dice: Mean over classes and cases, on the cases it saw, when it stopped.
        steps: After how many it stopped.
        seconds_per_step: The fastest; of four cases at once.
    """

    model: str
    form: str
    trainable_parameters: int
    learned: bool
    dice: float
    steps: int
    seconds_per_step: float


def benchmark_overfit(data: Path | None, only: Sequence[str] = (), *, steps: int = STEPS) -> dict[str, Any]:
    """Let named networks overfit the first cases of Task04.

    Args:
        data: The folder with the data sets.
        only: Names of networks; all of them where empty.
        steps: At most so many.

    Raises:
        InputError: There is no data, or no network of a name.
    """
    task = task04_in(data, "overfit")
    configs = {name: named(name) for name in only or MODELS}
    with TemporaryDirectory() as folder:
        plan, cases = first_cases(task, Path(folder))
        results = [overfit(name, config, plan, cases, steps=steps) for name, config in configs.items()]
    return {
        "cases": [case.name for case in cases],
        "window": list(plan.window),
        "recipe": asdict(RECIPE),
        "networks": [asdict(result) for result in results],
    }


def first_cases(task_folder: Path, prepared: Path) -> tuple[Plan, list[PreparedCase]]:
    """The task's first cases by name, planned from themselves and brought to the model's grid.

    Raises:
        InputError: The task cannot be read.
    """
    task = read_task(task_folder)
    cases = sorted(task.cases, key=lambda case: case.name)[:CASES]
    plan = make_plan(task, cases, protocol="native")
    return plan, prepare(cases, plan, prepared)


def overfit(
    name: str, config: ModelConfig, plan: Plan, cases: Sequence[PreparedCase], *, steps: int = STEPS, seed: int = 0
) -> Overfitted:
    """Train one network on the cases until it knows them, or for ``steps``."""
    config = replace(
        config, in_channels=plan.in_channels, out_channels=plan.out_channels, input_size=plan.window, dropout=0.0
    )
    config, form = _affordable(config)
    device = torch.device("cpu")
    model = build(config, seed=seed)
    optimizer = make_optimizer(model, RECIPE)
    batches = BatchSource(cases, plan.window, CASES, RECIPE.foreground_share, seed)
    dice, step, fastest = 0.0, 0, float("inf")
    while step < steps and dice < ENOUGH_DICE:
        model.train()
        started = time.perf_counter()
        train_step(model, optimizer, batches, RECIPE, step, device)
        fastest = min(fastest, time.perf_counter() - started)
        step += 1
        if step % LOOK_EVERY_STEPS == 0 or step == steps:
            dice = look_at_volumes(model, plan, cases, RECIPE.loss, device, torch.bfloat16).dice["mean"]
    return Overfitted(name, form, _trainable(model), dice >= ENOUGH_DICE, dice, step, fastest)


def _affordable(config: ModelConfig) -> tuple[ModelConfig, str]:
    """The network itself, or a small form of it where a CPU would take minutes a step."""
    if _trainable(build(config, meta=True)) <= LARGEST_TRAINABLE:
        return config, "full"
    return replace(config, width=min(config.width, 128), depth=min(config.depth, 4), heads=4), "small"


def _trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
