"""The papers' tables, typed once, and what can be checked in them by arithmetic alone.

``v1`` and ``v2`` are the two versions of arXiv:2410.02458. Every number stands as printed; where two tables print the
same result, both stand, also where they disagree. SD is NaN where none is printed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Version = Literal["v1", "v2"]

TASKS = (
    "Task01_BrainTumour",
    "Task02_Heart",
    "Task03_Liver",
    "Task04_Hippocampus",
    "Task05_Prostate",
    "Task06_Lung",
    "Task07_Pancreas",
    "Task08_HepaticVessel",
    "Task09_Spleen",
    "Task10_Colon",
)
MODALITIES: Mapping[str, str] = dict(  # both papers' Table 1
    zip(TASKS, ("MRI", "MRI", "CT", "MRI", "MRI", "CT", "CT", "CT", "CT", "CT"), strict=True)
)
AVERAGE = "average"  # in place of a task: over all ten


def decathlon_name(task: str) -> str:
    """``Task04_Hippocampus`` of ``Hippocampus``, as dataset.json calls it; other names stay as they are."""
    return next((name for name in TASKS if task in (name, name.partition("_")[2])), task)


@dataclass(frozen=True)
class Published:
    """One printed number.

    Attributes:
        version: Which version of the paper.
        table: As the paper numbers it; appendix tables by their letter, such as ``A1``.
        row: The model or setting, as printed.
        task: A Decathlon task, :data:`AVERAGE`, or empty where the number belongs to the model.
        metric: Our name of it: a metric of :data:`~medvisionllama.run_folder.METRICS` (HD95 and NSD carry no unit in
            the papers), ``parameters_m``, ``trainable_m``, ``frozen_m``, ``gflops``, ``inference_ms``,
            ``training_hours`` or ``cases``.
        value: As printed.
        sd: What follows the ±; NaN where nothing does.
        significant: Whether an asterisk follows.
    """

    version: Version
    table: str
    row: str
    task: str
    metric: str
    value: float
    sd: float = math.nan
    significant: bool = False


def published(
    version: str | None = None,
    table: str | None = None,
    row: str | None = None,
    task: str | None = None,
    metric: str | None = None,
) -> list[Published]:
    """The printed numbers that agree with all that is given, in the papers' order."""
    wanted = {"version": version, "table": table, "row": row, "task": task, "metric": metric}
    asked = {name: value for name, value in wanted.items() if value is not None}
    return [cell for cell in PUBLISHED if all(getattr(cell, name) == value for name, value in asked.items())]


@dataclass(frozen=True)
class ImpossibleCell:
    """A mean Jaccard below what the mean Dice beside it allows."""

    dice: Published
    jaccard: Published
    least_jaccard: float


def impossible_cells(version: Version, rounding: float = 0.005) -> list[ImpossibleCell]:
    """Cells of Table 2 whose mean Jaccard cannot go with their mean Dice.

    Jaccard is f(D) = D / (2 - D) of Dice, case by case, and f is convex: the mean of f is at least f of the mean
    (Jensen). So mean Jaccard >= f(mean Dice), whatever the cases were. Both means are printed rounded: a cell counts
    only where J + ``rounding`` < f(D - ``rounding``).
    """
    found = []
    for dice in published(version=version, table="2", metric="dice"):
        (jaccard,) = published(version=version, table="2", row=dice.row, task=dice.task, metric="jaccard")
        least = jaccard_of(dice.value - rounding)
        if jaccard.value + rounding < least:
            found.append(ImpossibleCell(dice, jaccard, least))
    return found


def jaccard_of(dice: float) -> float:
    """The Jaccard index of one pair of masks from its Dice coefficient."""
    return dice / (2 - dice)


def _by_task(version: Version, table: str, row: str, metric: str, text: str) -> list[Published]:
    """Ten printed cells ``mean±sd``, one per task, an asterisk behind the significant ones."""
    cells = text.split()
    if len(cells) != len(TASKS):
        raise ValueError(f"{version} table {table}, {row}, {metric}: {len(cells)} cells for {len(TASKS)} tasks")
    return [
        _cell(Published(version, table, row, task, metric, 0), cell) for task, cell in zip(TASKS, cells, strict=True)
    ]


def _cell(place: Published, text: str) -> Published:
    value, _, sd = text.rstrip("*").partition("±")
    return replace(place, value=float(value), sd=float(sd) if sd else math.nan, significant=text.endswith("*"))


def _row(version: Version, table: str, row: str, task: str = "", **cells: str | float) -> list[Published]:
    """Cells of one row by metric."""
    return [_cell(Published(version, table, row, task, metric, 0), str(cell)) for metric, cell in cells.items()]


_CASES = (484, 20, 100, 260, 32, 53, 281, 303, 41, 126)

_V1_TABLE_2 = {
    "ViT": {
        "dice": ".72±.14 .75±.14 .68±.09 .71±.12 .64±.07 .76±.12 .82±.11 .76±.14 .79±.14 .75±.10",
        "accuracy": ".94±.03 .88±.04 .92±.02 .94±.03 .95±.03 .92±.02 .97±.04 .91±.03 .92±.03 .96±.02",
        "precision": ".70±.04 .68±.03 .72±.05 .68±.04 .66±.03 .73±.04 .69±.05 .69±.03 .65±.04 .63±.03",
        "recall": ".90±.04 .86±.03 .88±.04 .85±.03 .92±.05 .87±.02 .94±.04 .89±.03 .90±.04 .94±.03",
        "jaccard": ".54±.05 .58±.04 .51±.05 .61±.04 .55±.06 .62±.05 .66±.09 .60±.13 .58±.09 .63±.08",
        "hd95_mm": "14.7±3.5 15.4±4.2 16.5±5.1 15.9±4.3 14.8±4.6 16.2±5.2 15.7±4.8 14.9±4.4 15.6±5.0 14.4±4.7",
    },
    "MedVisionLlama": {
        "dice": ".84±.11 .78±.13 .72±.08 .72±.15 .77±.08 .82±.10 .89±.11 .78±.09 .81±.13 .77±.12",
        "accuracy": ".95±.01 .93±.02 .94±.01 .95±.02 .98±.01 .95±.02 .99±.01 .93±.01 .97±.02 .98±.01",
        "precision": ".78±.02 .74±.01 .77±.02 .72±.01 .79±.03 .76±.02 .80±.01 .74±.02 .77±.01 .73±.02",
        "recall": ".91±.01 .89±.02 .92±.01 .88±.02 .94±.03 .89±.01 .96±.02 .92±.01 .94±.01 .95±.02",
        "jaccard": ".62±.02 .64±.03 .59±.01 .65±.08 .62±.09 .65±.11 .72±.11 .71±.10 .68±.13 .68±.12",
        "hd95_mm": "11.2±2.3 12.1±3.1 10.8±2.5 11.6±2.8 12.3±2.6 11.0±2.4 12.0±2.7 11.8±2.5 11.5±2.8 12.2±2.6",
    },
}

_V1_TABLE_4 = {
    "ViT": ".72±.14 .75±.14 .68±.09 .71±.11 .64±.07 .76±.12 .82±.11 .76±.14 .79±.14 .75±.12",
    "ViT + Gemma": ".77±.12 .73±.08 .75±.08 .72±.12 .73±.08 .79±.14 .83±.08 .80±.13 .77±.12 .75±.10",
    "ViT + Llama": ".84±.11 .78±.13 .72±.11 .72±.10 .77±.08 .82±.10 .89±.11 .78±.09 .81±.13 .77±.12",
    "ViT + Mistral": ".74±.13 .79±.14 .65±.12 .69±.13 .81±.09 .75±.10 .82±.05 .81±.08 .85±.10 .74±.13",
    "ViT + Qwen": ".82±.13 .76±.13 .76±.13 .78±.13 .83±.07 .83±.13 .87±.07 .73±.10 .83±.13 .80±.13",
    "ViT + Yi": ".86±.12 .79±.12 .73±.10 .77±.10 .79±.09 .86±.12 .88±.10 .77±.12 .86±.11 .83±.09",
}
_V1_PARAMETERS_M = {
    "ViT": 0.84,
    "ViT + Gemma": 264.25,
    "ViT + Llama": 218.12,
    "ViT + Mistral": 218.12,
    "ViT + Qwen": 233.06,
    "ViT + Yi": 202.39,
}

_V2_TABLE_2 = {
    "ViT-Baseline": {
        "dice": ".74±.03 .76±.04 .71±.08 .72±.04 .68±.05 .76±.09 .81±.03 .75±.04 .78±.07 .72±.04",
        "jaccard": ".62±.04 .61±.06 .55±.04 .56±.04 .52±.06 .61±.05 .73±.03 .60±.04 .64±.07 .59±.03",
        "nsd": ".64±.04 .67±.06 .63±.04 .65±.03 .61±.06 .69±.05 .71±.03 .66±.04 .68±.07 .63±.03",
        "hd95_mm": "14.11±3.7 14.70±3.9 15.36±4.3 14.49±3.6 14.85±3.8 15.58±4.2 14.33±3.7 14.80±3.9 14.42±3.6 "
        "15.07±4.0",
        "specificity": ".93±.03 .92±.07 .90±.04 .91±.03 .90±.07 .92±.06 .95±.02 .90±.04 .91±.08 .89±.04",
        "recall": ".90±.04 .88±.07 .87±.04 .86±.03 .86±.08 .89±.09 .91±.04 .88±.04 .90±.09 .86±.05",
    },
    "MedVisionLlama": {
        "dice": ".91±.04* .87±.07 .81±.02* .84±.03* .83±.06* .88±.07 .95±.04* .87±.03* .90±.08 .86±.03*",
        "jaccard": ".83±.02* .73±.10 .68±.08* .72±.04* .66±.09 .74±.08* .90±.03* .73±.04* .82±.10 .75±.04*",
        "nsd": ".76±.04* .74±.09 .71±.10* .73±.03* .72±.08 .80±.07* .86±.05* .77±.05* .80±.09 .78±.04*",
        "hd95_mm": "10.06±2.2* 11.50±2.9 10.34±2.3* 9.77±1.9* 10.50±2.6 11.50±2.5 9.68±1.9* 10.50±2.1* 10.06±2.8* "
        "10.50±2.55*",
        "specificity": ".98±.02* .94±.06 .95±.05* .96±.02* .94±.06* .95±.05 .98±.02* .94±.03 .97±.03 .95±.03",
        "recall": ".95±.03* .90±.08 .92±.08* .90±.03* .92±.08* .90±.07 .95±.03* .90±.03* .95±.05* .93±.04*",
    },
}

_V2_TABLE_4 = {
    "ViT-MLP": ".85±.04 .74±.06 .82±.07 .77±.06 .74±.04 .82±.05 .85±.06 .79±.04 .83±.03 .85±.06",
    "ViT-Depth": ".86±.06 .76±.05 .80±.04 .74±.03 .75±.07 .83±.07 .84±.06 .83±.04 .84±.05 .81±.03",
    "MedVisionLlama": ".91±.03 .87±.04 .81±.04 .84±.05 .83±.04 .88±.05 .95±.04 .87±.05 .90±.04 .86±.03",
}

_V2_RANKS_M = {"2": 5.04, "4": 5.23, "8": 5.43, "16": 5.62}

_T1, _T3 = TASKS[0], TASKS[2]

PUBLISHED: tuple[Published, ...] = (
    # v1
    *(Published("v1", "1", "", task, "cases", n) for task, n in zip(TASKS, _CASES, strict=True)),
    *(
        c
        for row, cells in _V1_TABLE_2.items()
        for metric, text in cells.items()
        for c in _by_task("v1", "2", row, metric, text)
    ),
    *_row("v1", "3", "MedVisionLlama (SA)", parameters_m=204.48),
    *_row("v1", "3", "MedVisionLlama (SA)", _T1, dice=".79±.04"),
    *_row("v1", "3", "MedVisionLlama (SA)", _T3, dice=".71±.07"),
    *_row("v1", "3", "MedVisionLlama (HA)", parameters_m=218.12),
    *_row("v1", "3", "MedVisionLlama (HA)", _T1, dice=".84±.05"),
    *_row("v1", "3", "MedVisionLlama (HA)", _T3, dice=".72±.07"),
    *_row("v1", "3", "ViT (HA)", parameters_m=0.84),
    *_row("v1", "3", "ViT (HA)", _T1, dice=".72±.08"),
    *_row("v1", "3", "ViT (HA)", _T3, dice=".68±.05"),
    *_row("v1", "3", "ViT + MLP (HA)", parameters_m=0.96),
    *_row("v1", "3", "ViT + MLP (HA)", _T1, dice=".74±.06"),
    *_row("v1", "3", "ViT + MLP (HA)", _T3, dice=".65±.11"),
    *(c for row, n in _V1_PARAMETERS_M.items() for c in _row("v1", "4", row, parameters_m=n)),
    *(c for row, text in _V1_TABLE_4.items() for c in _by_task("v1", "4", row, "dice", text)),
    *_row("v1", "A1", "Sequential", parameters_m=54.2),
    *_row("v1", "A1", "Sequential", _T1, dice=".85±.02"),
    *_row("v1", "A1", "Sequential", _T3, dice=".78±.03"),
    *_row("v1", "A1", "Parallel", parameters_m=52.3),
    *_row("v1", "A1", "Parallel", _T1, dice=".80±.04"),
    *_row("v1", "A1", "Parallel", _T3, dice=".72±.05"),
    *_row("v1", "A1", "Interleaved", parameters_m=62.7),
    *_row("v1", "A1", "Interleaved", _T1, dice=".82±.03"),
    *_row("v1", "A1", "Interleaved", _T3, dice=".75±.04"),
    *_row("v1", "B2", "ViT, 64x64x40", training_hours=1.27, dice=".65±.05"),
    *_row("v1", "B2", "ViT + Llama, 64x64x40", training_hours=1.52, dice=".70±.04"),
    *_row("v1", "B2", "ViT, 128x128x80", training_hours=3.18, dice=".75±.03"),
    *_row("v1", "B2", "ViT + Llama, 128x128x80", training_hours=4.21, dice=".80±.03"),
    *_row("v1", "B2", "ViT, 240x240x156", training_hours=7.54, dice=".79±.02"),
    *_row("v1", "B2", "ViT + Llama, 240x240x156", training_hours=9.15, dice=".83±.02"),
    *(c for row, n in _V1_PARAMETERS_M.items() for c in _row("v1", "D3", row, parameters_m=n)),
    *_row("v1", "D3", "ViT", _T1, dice=".72±.14", hd95_mm="12.5±3.6"),
    *_row("v1", "D3", "ViT + Gemma", _T1, dice=".77±.12", hd95_mm="10.2±3.1"),
    *_row("v1", "D3", "ViT + Llama", _T1, dice=".84±.11", hd95_mm="8.1±2.9"),
    *_row("v1", "D3", "ViT + Mistral", _T1, dice=".74±.13", hd95_mm="12.8±3.2"),
    *_row("v1", "D3", "ViT + Qwen", _T1, dice=".82±.13", hd95_mm="9.7±3.1"),
    *_row("v1", "D3", "ViT + Yi", _T1, dice=".86±.12", hd95_mm="7.9±3.3"),
    # v2
    *(Published("v2", "1", "", task, "cases", n) for task, n in zip(TASKS, _CASES, strict=True)),
    *(
        c
        for row, cells in _V2_TABLE_2.items()
        for metric, text in cells.items()
        for c in _by_task("v2", "2", row, metric, text)
    ),
    *_row("v2", "3", "UNet++", AVERAGE, dice=".79±.04*", nsd=".70±.05*"),
    *_row("v2", "3", "UNETR", AVERAGE, dice=".77±.05*", nsd=".68±.06*"),
    *_row("v2", "3", "nnU-Net", AVERAGE, dice=".81±.05", nsd=".71±.05"),
    *_row("v2", "3", "MissFormer", AVERAGE, dice=".84±.04", nsd=".72±.03"),
    *_row("v2", "3", "TransUNet", AVERAGE, dice=".82±.06", nsd=".69±.04*"),
    *_row("v2", "3", "Swin-UNet", AVERAGE, dice=".85±.05", nsd=".74±.05"),
    *_row("v2", "3", "ViT Baseline", AVERAGE, dice=".74±.04*", nsd=".66±.03*"),
    *_row("v2", "3", "MedVisionLlama", AVERAGE, dice=".87±.04", nsd=".77±.05"),
    *_row("v2", "4", "ViT-MLP", parameters_m=220.45, gflops=0.43, inference_ms=5.75),
    *_row("v2", "4", "ViT-Depth", parameters_m=223.24, gflops=0.48, inference_ms=5.86),
    *_row("v2", "4", "MedVisionLlama", parameters_m=223.67, gflops=0.45, inference_ms=6.48),
    *(c for row, text in _V2_TABLE_4.items() for c in _by_task("v2", "4", row, "dice", text)),
    *_row("v2", "5", "ViT-Baseline", trainable_m=1.16, inference_ms=2.47),
    *_row("v2", "5", "ViT-Baseline", AVERAGE, dice=".74±.04"),
    *_row("v2", "5", "MedVisionLlama (LoRA)", frozen_m=218.24, trainable_m=5.43, inference_ms=6.48),
    *_row("v2", "5", "MedVisionLlama (LoRA)", AVERAGE, dice=".87±.04"),
    *_row("v2", "5", "MedVisionLlama (Linear)", frozen_m=218.12, trainable_m=6.78, inference_ms=7.32),
    *_row("v2", "5", "MedVisionLlama (Linear)", AVERAGE, dice=".81±.06"),
    *(c for rank, n in _V2_RANKS_M.items() for c in _row("v2", "6", rank, trainable_m=n)),
    *_row("v2", "6", "2", AVERAGE, dice=".85±.05", nsd=".75±.06"),
    *_row("v2", "6", "4", AVERAGE, dice=".89±.05", nsd=".78±.06"),
    *_row("v2", "6", "8", AVERAGE, dice=".87±.04", nsd=".77±.05"),
    *_row("v2", "6", "16", AVERAGE, dice=".85±.06", nsd=".74±.04"),
)
