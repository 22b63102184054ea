"""What a run tells of its training before ``summary.json`` is written, from the files that lie there from the start.

A run writes its summary last. Until then, and for good where it was broken off, ``config.yaml``, ``plan.json``,
``splits.json`` and ``environment.json`` tell most of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from medvisionllama.errors import InputError
from medvisionllama.run_folder import RunFolder, read_json

# The kinds of middle stage that hold a language block.
WITH_BLOCK = ("language", "trained")


def told_so_far(run: RunFolder, environment: Mapping[str, Any], log: list[dict[str, Any]]) -> dict[str, Any]:
    """What the summary would say, under its names, as far as anything else tells; a file that is torn tells nothing.

    ``steps`` are those of the last log entry, ``planned_steps`` those that the training was meant to have.
    """
    config, plan, splits = _settings(run.config), _read(run.plan), _read(run.splits)
    told = {
        "task": plan.get("task"),
        "classes": plan.get("classes"),
        "model": config.get("model_name"),
        "recipe": config.get("recipe_name"),
        **{key: config.get(key) for key in ("protocol", "seed", "fold", "fraction")},
        "steps": log[-1].get("step") if log else None,
        "planned_steps": _part(config, "recipe").get("steps"),
        "cases": _cases(plan, splits, config.get("fold")),
        "command": environment.get("command"),
    }
    known = {key: value for key, value in told.items() if value is not None and value != {}}
    middle = _part(_part(config, "model"), "middle")
    return known | ({"block": _block(middle)} if middle else {})


def _cases(plan: Mapping[str, Any], splits: Mapping[str, Any], fold: object) -> dict[str, int]:
    folds, test = splits.get("folds"), splits.get("test")
    counts = {"training": plan.get("training_cases")}
    if isinstance(folds, list) and isinstance(fold, int) and fold < len(folds):
        counts["validation"] = len(folds[fold])
    if isinstance(test, list):
        counts["test"] = len(test)
    return {part: number for part, number in counts.items() if isinstance(number, int)}


def _block(middle: Mapping[str, Any]) -> dict[str, Any] | None:
    """The block that was asked for. What its weights are is known only where they were read."""
    block = _part(middle, "block")
    if middle.get("kind") not in WITH_BLOCK or not block.get("source"):
        return None
    asked = {key: block.get(key) for key in ("revision", "layers", "init", "seed", "final_norm")}
    return {"id": str(block["source"])} | asked


def _settings(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}


def _part(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = content.get(key)
    return found if isinstance(found, dict) else {}
