"""Run folders made of plain numbers, as ``train`` and ``predict`` would leave them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from medvisionllama.run_folder import METRICS, ScoreRow, write_json, write_scores

CLASSES = {1: "Anterior", 2: "Posterior"}
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def make_run(
    folder: Path,
    *,
    model: str = "medvisionllama-u",
    cases: int = 12,
    steps: int = 40,
    lift: float = 0.0,
    seed: int = 0,
    part: str = "validation",
    pictures: bool = True,
    reference: bool = True,
    block: bool = True,
) -> Path:
    """Write a whole run with ``cases`` scored cases, every number drawn from ``seed``; ``lift`` raises the Dice."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    write_json(folder / "summary.json", _summary(model, steps, cases, seed, block))
    write_json(folder / "environment.json", ENVIRONMENT)
    _write_log(folder / "log.jsonl", steps, lift)
    score_part(folder / part, generator, cases, lift)
    if pictures:
        for index in range(cases):
            write_picture(folder / part / "pictures" / f"case_{index:03d}.npz", generator, reference=reference)
    return folder


def score_part(folder: Path, generator: np.random.Generator, cases: int, lift: float = 0.0) -> None:
    """Write scores of every metric and the summary that ``evaluate`` would write."""
    rows = []
    for index in range(cases):
        for name in CLASSES.values():
            dice = min(0.98, 0.6 + 0.3 * generator.random() + lift)
            values = {
                "dice": dice,
                "jaccard": dice / (2 - dice),
                "accuracy": 0.99,
                "precision": dice,
                "recall": dice,
                "specificity": 0.995,
                "hd95_mm": 1 + 3 * generator.random(),
                "nsd": min(1.0, dice + 0.05),
            }
            rows += [ScoreRow(f"case_{index:03d}", name, metric, values[metric]) for metric in METRICS]
    write_scores(folder / "scores.csv", rows)
    write_json(folder / "summary.json", evaluated(rows))


def evaluated(rows: list[ScoreRow], missed: int = 0) -> dict[str, object]:
    """The summary of ``evaluate`` for these rows, with a normal interval in place of a bootstrap."""
    classes: dict[str, dict[str, object]] = {}
    for name in CLASSES.values():
        entry: dict[str, object] = {"missed": missed, "false_alarms": 0, "absent": 0}
        for metric in METRICS:
            values = np.array([r.value for r in rows if r.class_name == name and r.metric == metric])
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            half = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
            entry[metric] = {
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                "low": float(values.mean() - half),
                "high": float(values.mean() + half),
                "n": len(values),
            }
        classes[name] = entry
    return {"classes": classes, "tolerance_mm": 1.0, "grid": "native"}


def write_picture(path: Path, generator: np.random.Generator, *, reference: bool = True) -> None:
    """Two touching ellipsoids in noise, the prediction a voxel off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    i, j, k = np.indices((36, 48, 20))
    front = ((i - 18) / 9) ** 2 + ((j - 30) / 9) ** 2 + ((k - 10) / 6) ** 2 < 1
    back = ((i - 18) / 8) ** 2 + ((j - 15) / 9) ** 2 + ((k - 11) / 5) ** 2 < 1
    labels = np.where(front, 1, np.where(back, 2, 0)).astype(np.uint8)
    image = np.clip(90 + 60 * (labels > 0) + generator.normal(0, 15, labels.shape), 0, 255).astype(np.uint8)
    arrays = {"image": image, "prediction": np.roll(labels, 1, 0), "affine": AFFINE}
    np.savez_compressed(path, **arrays, **({"reference": labels} if reference else {}))


def _write_log(path: Path, steps: int, lift: float) -> None:
    lines = []
    for step in range(1, steps + 1):
        entry = {"step": step, "seconds": 0.2 * step, "loss": 1.2 * math.exp(-step / 15) + 0.2 - lift, "lr": 1e-3}
        if step % 10 == 0:
            entry["validation_dice"] = 0.8 - 0.5 * math.exp(-step / 15) + lift
        lines.append(json.dumps(entry))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


ENVIRONMENT = {
    "python": "3.11.9",
    "platform": "Linux x86_64",
    "processor": "a processor",
    "cores": 2,
    "memory_gb": 24.0,
    "device": "cpu",
    "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
    "date": "2026-01-31",
}


def _summary(model: str, steps: int, cases: int, seed: int, block: bool) -> dict[str, object]:
    stages: list[dict[str, object]] = [
        {"name": "stem", "shape": [32, 20, 28, 20], "trainable": 41_000, "frozen": 0},
        {"name": "encoder", "shape": [175, 128], "trainable": 396_000, "frozen": 0},
        {"name": "mapper in", "shape": [175, 384], "trainable": 4_480, "frozen": 49_152},
        {"name": "language block", "shape": [175, 384], "trainable": 12_288, "frozen": 1_774_464},
        {"name": "mapper out", "shape": [175, 128], "trainable": 4_224, "frozen": 49_152},
        {"name": "decoder", "shape": [3, 40, 56, 40], "trainable": 700_000, "frozen": 0},
    ]
    return {
        "format": 1,
        "task": "Hippocampus",
        "model": model,
        "protocol": "native",
        "block": {
            "id": "minilm-l6",
            "revision": "main",
            "family": "bert",
            "layers": [-1],
            "init": "pretrained",
            "seed": None,
            "dtype": "float32",
            "final_norm": False,
            "sha256": "53aa5117" + "0" * 56,
        }
        if block
        else None,
        "seed": seed,
        "steps": steps,
        "seconds": 0.2 * steps,
        "fold": 0,
        "fraction": 1.0,
        "classes": {str(value): name for value, name in CLASSES.items()},
        "cases": {"training": 4 * cases, "validation": cases, "test": cases},
        "parameters": {"trainable": 1_330_000, "frozen": 1_774_464 if block else 0},
        "stages": stages if block else [stages[0], stages[1], stages[5]],
        "command": f"medvisionllama train DATA/Task04_Hippocampus --model {model} --run runs/{model} --steps {steps}",
        "validation": {"dice_mean": 0.87},
    }
