"""Rows as cells leave them, with scores that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medvisionllama.experiments.cells import Cell
from medvisionllama.experiments.rows import Row, read_row, row_path, write_row
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.run_folder import METRICS


def content_of(cell: Cell, dice: Mapping[str, Sequence[float]], steps: int = 2) -> dict[str, Any]:
    """What ``collect`` would hold: ``dice`` by part, one value a case, the same for both classes."""

    def part(values: Sequence[float]) -> dict[str, Any]:
        tables = {metric: [list(values), list(values)] for metric in METRICS}
        tables["hd95_mm"] = [[10 * (1 - value) for value in values]] * 2
        cases = [f"case_{n}" for n in range(len(values))]
        return {"cases": cases, "classes": ["a", "b"], "tolerance_mm": 1.0} | tables

    kind = cell.config.middle.kind if isinstance(cell.config, ModelConfig) else "none"
    return {
        "format": 1,
        "key": cell.key,
        "name": cell.name,
        "model": cell.model,
        "block": cell.block,
        "settings": cell.settings(),
        "source": "0123abc",
        "environment": {
            "date": "2026-01-02T03:04:05+00:00",
            "processor": "a processor",
            "device": "cpu",
            "cores": 1,
            "packages": {"torch": "2"},
        },
        "identity": {"numbers": {"num_attention_heads": 12, "hidden_act": "gelu"}} if kind == "language" else None,
        "parameters": {"trainable": 1000, "frozen": {"language": 2000, "identity": 500}.get(kind, 0)},
        "cases": {"training": 5, "validation": 3, "test": 3},
        "steps": cell.recipe.steps or steps,
        "best_step": cell.recipe.steps or steps,
        "training_seconds": 36.0,
        "sitting_seconds": 40.0,
        "log": [
            {"step": 1, "seconds": 0.5, "loss": 1.0, "validation_dice": 0.5},
            {"step": 2, "seconds": 1, "loss": 0.5},
        ],
        "parts": {name: part(values) for name, values in dice.items()},
    }


def make_row(cell: Cell, folder: Any, dice: Mapping[str, Sequence[float]]) -> Row:
    """Write a cell's row and read it back."""
    path = row_path(folder, cell)
    write_row(content_of(cell, dice), path)
    return read_row(path)


def scores(mean: float, n: int = 8, seed: int = 0) -> list[float]:
    """Some cases' Dice about a mean."""
    return [float(value) for value in mean + 0.02 * np.random.default_rng(seed).standard_normal(n)]
