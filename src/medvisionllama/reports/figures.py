"""Charts of what runs measured: curves and boxes. Each function takes what runs left and returns one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medvisionllama.reports.drawing import INK, MARKERS, chart, run_colour, run_dashes, styled
from medvisionllama.reports.run_contents import RunContents
from medvisionllama.reports.volumes import limits_of_agreement
from medvisionllama.reports.wording import millilitres
from medvisionllama.run_folder import VolumeRow

METRIC_TITLES = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall (sensitivity)",
    "specificity": "Specificity",
    "hd95_mm": "HD95 in mm",
    "nsd": "NSD",
}
# A curve is drawn with at most this many points: finer than a screen, and a long run does not bloat the page.
MOST_POINTS = 300


@dataclass(frozen=True)
class Curve:
    """One quantity that runs log while they train.

    Attributes:
        key: Its name in ``log.jsonl``.
        title: What the chart is called.
        measured: What the vertical axis says.
        words: The text alternative, followed by the runs' names.
        marker: Whether every measurement gets a marker: those that are far apart.
    """

    key: str
    title: str
    measured: str
    words: str
    marker: bool = True


CURVES = (
    Curve("loss", "Training loss", "loss on patches", "Training loss over steps", marker=False),
    Curve("validation_loss", "Validation loss", "loss of whole volumes", "Loss of whole validation volumes over steps"),
    Curve(
        "validation_dice",
        "Validation Dice",
        "mean Dice of whole volumes",
        "Dice of whole validation volumes over steps",
    ),
)


@styled
def curve_chart(runs: Sequence[RunContents], curve: Curve) -> Figure:
    """One quantity over steps, one line a run (thin lines: folds); each point is the mean of the steps it covers."""
    figure, axes = chart(curve.title, "step", curve.measured)
    draw_curves(axes, runs, curve.key, marker=curve.marker)
    return figure


def has_curve(runs: Sequence[RunContents], key: str) -> bool:
    """Whether any run has logged numbers of that name."""
    return any(len(logged(entries, key)) for run in runs for entries in run.logs.values())


@styled
def score_boxes(runs: Sequence[RunContents], part: str, metric: str) -> Figure:
    """One box a class and run, and every case a dot: median, quartiles, whiskers to 1.5 interquartile ranges.

    Args:
        runs: Runs to compare; those without this part or metric leave their place empty.
        part: A part's title, such as ``validation`` or ``test, native grid``.
        metric: One of the metrics of the scores.
    """
    parts = [(index, run.label, run.part(part)) for index, run in enumerate(runs)]
    classes = list(dict.fromkeys(name for _, _, scored in parts if scored for name in scored.classes))
    rows = len(classes) * len(runs)
    figure, axes = chart(
        "", METRIC_TITLES.get(metric, metric), "", height=0.95 + 0.34 * rows + 0.16 * len(classes), width=3.7
    )
    for index, label, scored in parts:
        for place, name in enumerate(classes):
            values = [v for v in (scored.values(metric, name) if scored else {}).values() if not math.isnan(v)]
            _box(axes, values, place * (len(runs) + 0.6) + index, index, label if place == 0 else None)
    middle = (len(runs) - 1) / 2
    axes.set_yticks([place * (len(runs) + 0.6) + middle for place in range(len(classes))], classes)
    axes.set_ylim((len(classes) - 1) * (len(runs) + 0.6) + len(runs) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=6)
    if len(runs) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


@styled
def bland_altman(volumes: Sequence[tuple[str, Sequence[VolumeRow]]], class_name: str) -> Figure:
    """Difference of the two volumes over their mean, with bias and limits of agreement (Bland and Altman 1986).

    One panel a run, on one scale.

    Args:
        volumes: Per run its label and the volumes of one class; a run without any gets no panel.
        class_name: The class, for the title.
    """
    shown = [(index, label, measured) for index, (label, measured) in enumerate(volumes) if measured]
    columns = min(2, max(1, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(4.6, 3.1 if rows == columns == 1 else 0.8 + 1.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (index, label, measured) in zip(panels.flat, shown, strict=False):
        _agreement_panel(axes, measured, index, label if len(shown) > 1 else "")
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
        panels[rows - 2, -1].tick_params(axis="x", labelbottom=True)  # the panel above it has none below any more
    figure.suptitle(class_name, x=0.02, ha="left", fontsize=10, fontweight="bold")
    figure.supxlabel("mean of reference and prediction in ml", fontsize=9)
    figure.supylabel("prediction less reference in ml", fontsize=9)
    return figure


def _agreement_panel(axes: Axes, measured: Sequence[VolumeRow], index: int, label: str) -> None:
    """Dots of the cases; bias and limits as lines, with their numbers at the right."""
    colour = run_colour(index)
    pairs = np.array([(volume.reference_ml, volume.prediction_ml) for volume in measured])
    means, differences = pairs.mean(axis=1), pairs[:, 1] - pairs[:, 0]
    axes.plot(means, differences, MARKERS[index % len(MARKERS)], color=colour, markersize=4, alpha=0.8)
    axes.set_title(label, fontsize=8.5, fontweight="normal")
    bias, low, high = limits_of_agreement(list(measured))
    for value, dashes in ((bias, "-"), (low, run_dashes(1)), (high, run_dashes(1))):
        if not math.isnan(value):
            axes.axhline(value, color=colour, linewidth=1.3, linestyle=dashes)
            axes.annotate(
                millilitres(value, high),
                (1, value),
                xycoords=axes.get_yaxis_transform(),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
            )
    axes.axhline(0, color=INK, linewidth=0.6)


def draw_curves(
    axes: Axes, runs: Sequence[RunContents], key: str, *, marker: bool = False, legend: bool = True
) -> None:
    """Draw what the runs logged under ``key`` over steps, one line a run and fold."""
    drawn = 0
    for index, run in enumerate(runs):
        folds = [series for entries in run.logs.values() if len(series := logged(entries, key))]
        for fold, series in enumerate(folds):
            points = thinned(series)
            axes.plot(
                points[:, 0],
                points[:, 1],
                color=run_colour(index),
                linestyle=run_dashes(index),
                linewidth=1.8 if len(folds) == 1 else 1.0,
                marker=MARKERS[index % len(MARKERS)] if marker and len(points) <= 40 else None,
                markersize=4,
                label=run.label if fold == 0 else None,
            )
        drawn += bool(folds)
    axes.margins(x=0.02)
    if legend and (drawn > 1 or any(len(run.logs) > 1 for run in runs)):
        axes.legend()


def logged(entries: Sequence[dict[str, Any]], key: str) -> Any:
    """``(n,2)`` of step and value of the entries in which both are finite numbers."""
    pairs = [(entry.get("step"), entry.get(key)) for entry in entries]
    known = [(float(step), float(value)) for step, value in pairs if _is_number(step) and _is_number(value)]
    return np.array(known, dtype=np.float64).reshape(-1, 2)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def thinned(series: Any) -> Any:
    """Means of neighbouring points, so that at most ``MOST_POINTS`` are left."""
    groups = np.array_split(series, min(len(series), MOST_POINTS))
    return np.array([group.mean(axis=0) for group in groups])


def _box(axes: Axes, values: Sequence[float], at: float, index: int, label: str | None) -> None:
    colour = run_colour(index)
    if label is not None:
        axes.plot([], [], color=colour, marker=MARKERS[index % len(MARKERS)], linestyle="", label=label)
    if not values:
        return
    axes.boxplot(
        [values],
        positions=[at],
        orientation="horizontal",
        widths=0.62,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": f"{colour}33", "edgecolor": colour},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        medianprops={"color": INK, "linewidth": 1.8},
        manage_ticks=False,
    )
    # The golden ratio spreads neighbours apart without chance, so that the same scores give the same picture.
    spread = (np.arange(len(values)) * 0.618034) % 1 - 0.5
    marker = MARKERS[index % len(MARKERS)]
    axes.plot(values, at + 0.4 * spread, marker, markersize=3, color=colour, alpha=0.75, markeredgewidth=0)
