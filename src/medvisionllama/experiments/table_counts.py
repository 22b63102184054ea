"""Numbers of a table's networks rather than of their scores: parameters, operations, times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from medvisionllama.experiments.paper_tables import PaperTable
from medvisionllama.experiments.rows import Row
from medvisionllama.experiments.table_entries import Entry
from medvisionllama.experiments.table_lines import number_of
from medvisionllama.experiments.tables import published
from medvisionllama.models.costs import ForwardCost, forward_cost_of
from medvisionllama.models.network import NetworkConfig

CLOCKED = ("inference_ms", "training_hours")


@dataclass(frozen=True)
class Counted:
    """A number of a network rather than of its scores.

    Attributes:
        printed: The row.
        count: Such as ``parameters_m``.
        published: As printed; NaN where nothing is.
        counted: Of the paper's own network at the paper's own size; NaN for what only a clock tells.
        measured: Of the trainings here; NaN where there are none.
    """

    printed: str
    count: str
    published: float
    counted: float
    measured: float


def counts_of(table: PaperTable, entries: Sequence[Entry]) -> list[Counted]:
    """Parameters and operations counted on the papers' own networks, times and sizes as measured here."""
    found = []
    for printed, row in table.rows.items():
        rows = [r for entry in entries if entry.row == printed and entry.outside is None for r in entry.rows]
        for count in table.counts:
            cells = published(table.version, number_of(table), row=printed, metric=count)
            counted = _counted(row.config, count) if count not in CLOCKED else math.nan
            found.append(
                Counted(printed, count, cells[0].value if cells else math.nan, counted, _measured_count(rows, count))
            )
    return found


@lru_cache
def _cost(config: NetworkConfig) -> ForwardCost:
    return forward_cost_of(config)


def _counted(config: NetworkConfig, count: str) -> float:
    cost = _cost(config)
    return {
        "parameters_m": (cost.trainable_parameters + cost.frozen_parameters) / 1e6,
        "trainable_m": cost.trainable_parameters / 1e6,
        "frozen_m": cost.frozen_parameters / 1e6,
        "gflops": cost.flops / 1e9,
    }[count]


def _measured_count(rows: Sequence[Row], count: str) -> float:
    if not rows:
        return math.nan
    if count == "training_hours":
        return float(np.mean([row.seconds for row in rows])) / 3600
    if count == "inference_ms":
        times = [row.content["forward_ms"] for row in rows if row.content.get("forward_ms")]
        return float(np.median(times)) if times else math.nan
    held = rows[0].content["parameters"]
    trainable, frozen = held["trainable"] / 1e6, held["frozen"] / 1e6
    known: dict[str, float] = {"parameters_m": trainable + frozen, "trainable_m": trainable, "frozen_m": frozen}
    return known.get(count, math.nan)
