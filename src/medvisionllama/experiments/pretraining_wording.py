"""How the study's page calls places and writes numbers."""

from __future__ import annotations

import math

from medvisionllama.experiments.pretraining import MIDDLES, RECIPE, Place
from medvisionllama.reports.wording import UNKNOWN, signed


def network_of(place: Place) -> str:
    """The network, the block it stands around, and whether adapters are off."""
    return place.network + (f", {place.block}" if place.block else "") + (", LoRA off" if place.lora == "none" else "")


def data_of(place: Place, apart: str = "") -> str:
    """Which data, how many steps where they are not as planned, and what tells the place from others of its names."""
    steps = "" if place.steps == RECIPE.steps else f", {place.steps:,} steps"
    return f"{place.task.partition('_')[0]} {100 * place.fraction:g}%{steps}{f', {apart}' if apart else ''}"


def page_order(place: Place) -> tuple[object, ...]:
    """How tables of places are sorted: middles from none to pre-trained and trained."""
    return place.network, place.fraction, place.block, place.lora, MIDDLES.index(place.middle), place


def points(value: float, metric: str = "dice") -> str:
    """Two decimals, of hundredths or of millimetres."""
    return signed(value if metric.endswith("_mm") else 100 * value, "_mm")


def spread(value: float, metric: str) -> str:
    """An SD before a comma; empty where it is unknown."""
    return "" if math.isnan(value) else f"SD {value if metric.endswith('_mm') else 100 * value:.2f}, "


def interval(low: float, high: float, metric: str) -> str:
    """Its ends, or that it is unknown."""
    return UNKNOWN if math.isnan(low) else f"{points(low, metric)} to {points(high, metric)}"
