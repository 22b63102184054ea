"""The two papers' figures by name, one function each, drawn from run folders alone.

``v1`` and ``v2`` are the paper's versions; ``v1-D-F3`` is figure 3 of the first version's appendix D. What a label
calls a model is the run's label (:func:`~medvisionllama.reports.run_contents.read_runs`); charts take the seeds and
folds of a table's row together, and have a panel a task (:mod:`~medvisionllama.reports.settings`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medvisionllama.errors import InputError
from medvisionllama.reports.comparison import marks
from medvisionllama.reports.drawing import (
    INK_SOFT,
    MARKERS,
    PLATE,
    PLATE_INK,
    run_colour,
    run_dashes,
    save,
    styled,
)
from medvisionllama.reports.figures import CURVES, METRIC_TITLES, draw_curves, has_curve, logged, thinned
from medvisionllama.reports.mosaic import (
    PLANES,
    class_legend,
    draw_note,
    draw_slice,
    field_of_view,
    fullest_slice,
    labels_in,
)
from medvisionllama.reports.run_contents import Picture, RunContents, read_maps, read_picture, read_runs
from medvisionllama.reports.settings import Setting, compared, settings_of, task_of, tasks_of
from medvisionllama.reports.statistics import holm, summary_of
from medvisionllama.reports.wording import p_value

RADAR_METRICS = ("dice", "jaccard", "precision", "recall", "specificity", "nsd", "hd95_mm")
MOST_COLUMNS = 10
MOST_PANELS = 5  # beside each other

_Column = tuple[str, str]  # task and case


def draw_paper_figure(name: str, runs: Sequence[Path], out: Path, part: str = "validation") -> list[Path]:
    """Draw one figure of the papers as ``OUT/NAME.png`` and ``OUT/NAME.svg``.

    Args:
        name: A key of ``PAPER_FIGURES``.
        runs: The run folders it compares.
        out: Where to write.
        part: The part's title, such as ``validation`` or ``test, native grid``.

    Raises:
        InputError: There is no such figure, or the runs lack what it shows.
    """
    if name not in PAPER_FIGURES:
        raise InputError(f"no figure named {name!r}", expected=", ".join(PAPER_FIGURES))
    return save(PAPER_FIGURES[name](read_runs(runs), part), out, name)


@styled
def qualitative_grid(runs: Sequence[RunContents], part: str, cases: Sequence[str] = ()) -> Figure:
    """v2 figure 2, v1 figures 5 and C2: rows image, reference, and one prediction a run; columns cases; Dice per panel.

    Each column is the axial slice with most reference. Runs on different tasks fill different columns; a table's row
    of several tasks is one row. Columns are ``cases``; without them :func:`shown_columns`.

    Raises:
        InputError: No run has pictures of that part.
    """
    pictures = _by_row(runs, part)
    kept = {column for of_row in pictures.values() for column in of_row}
    columns = [column for case in cases for column in sorted(kept) if column[1] == case] or shown_columns(pictures)
    if not columns:
        raise _unscored(runs, part, "pictures of cases")
    rows = ["image", "reference", *pictures]
    firsts = [next(of_row[c][0] for of_row in pictures.values() if c in of_row) for c in columns]
    proportions = [_width_over_height(picture, field_of_view(picture)) for picture in firsts]
    figure, grid = _plates(proportions, len(rows), foot=0.28)
    for place, column in enumerate(columns):
        shown = {label: of_row[column] for label, of_row in pictures.items() if column in of_row}
        first = firsts[place]
        plane, box = PLANES[0], field_of_view(first)
        index = fullest_slice(first, plane)
        for row, name in enumerate(rows):
            axes = figure.add_subplot(grid[row, place])
            picture, dice = shown.get(name, (first, math.nan))
            labels = {"image": None, "reference": first.reference}.get(name, picture.prediction)
            if name in pictures and name not in shown:
                axes.set_axis_off()
                axes.text(
                    0.5,
                    0.5,
                    "no picture\nwas kept",
                    transform=axes.transAxes,
                    ha="center",
                    va="center",
                    color=PLATE_INK,
                )
            else:
                draw_slice(axes, picture, plane, index, labels, box)
            if not math.isnan(dice):
                draw_note(axes, 0.97, 0.03, f"{dice:.2f}", "right", "bottom", size=8)
            if place == 0:
                axes.text(
                    -0.08, 0.5, name, transform=axes.transAxes, rotation=90, va="center", ha="right", color=PLATE_INK
                )
            if row == 0:
                axes.set_title(column[1], fontsize=6, loc="center", pad=3, color=PLATE_INK, fontweight="normal")
    shown_labels = {
        int(v) for of_row in pictures.values() for c in columns if c in of_row for v in labels_in(of_row[c][0])
    }
    names: dict[int, str] = {}
    for value, name in (item for run in runs for item in run.class_names.items()):
        known = names[value].split(" / ") if value in names else []
        names[value] = " / ".join(dict.fromkeys([*known, name]))  # tasks have their own names for a number
    class_legend(figure, shown_labels, names, "lower left")  # where a phone shows it without scrolling
    return figure


@styled
def activation_maps(runs: Sequence[RunContents], part: str = "") -> Figure:
    """v2 figure 3, v1 figure 4: one row a run, one column a stage in the networks' order, attention last.

    Maps are those that ``explain`` kept in ``RUN/maps/CASE.npz``; each is scaled to its own 2nd and 98th percentile,
    so that shapes compare and strengths do not. ``part`` has no meaning here.

    Raises:
        InputError: No run has maps.
    """
    rows = [(run, read_maps(path)) for run in runs for path in sorted((run.path / "maps").glob("*.npz"))[:1]]
    if not rows:
        raise _lacking("activation maps", "Collect them with `medvisionllama explain`.")
    columns = stage_columns([list(maps.stages) for _, maps in rows])
    shape = [_width_over_height(maps.picture, _whole(maps.picture)) for _, maps in rows]
    figure, grid = _plates([max(shape)] * (len(columns) + 1), len(rows))
    axes_grid = grid.subplots(squeeze=False)
    for row, (run, maps) in enumerate(rows):
        plane = PLANES[0]
        index = fullest_slice(maps.picture, plane)
        draw_slice(axes_grid[row, 0], maps.picture, plane, index, maps.picture.prediction, _whole(maps.picture))
        axes_grid[row, 0].text(
            -0.06,
            0.5,
            run.label,
            transform=axes_grid[row, 0].transAxes,
            rotation=90,
            va="center",
            ha="right",
            color=PLATE_INK,
        )
        for column, stage in enumerate(columns, start=1):
            axes = axes_grid[row, column]
            axes.set_axis_off()
            if stage in maps.stages:
                seen = plane.cut(maps.stages[stage], index)
                low, high = np.percentile(maps.stages[stage], (2, 98))
                aspect = maps.picture.spacing_mm[plane.up] / maps.picture.spacing_mm[plane.across]
                axes.imshow(seen, cmap="inferno", vmin=low, vmax=max(high, low + 1e-12), aspect=aspect)
    for axes, title in zip(axes_grid[0], ["input and output", *columns], strict=True):
        axes.set_title(title, fontsize=8, loc="center", color=PLATE_INK)
    return figure


def stage_columns(of_runs: Sequence[Sequence[str]]) -> list[str]:
    """All runs' stages, each once: a stage stands after what comes before it in its own network, attention last."""
    columns: list[str] = []
    for stages in of_runs:
        place = 0
        for stage in stages:
            if stage not in columns:
                columns.insert(place, stage)
            place = columns.index(stage) + 1
    return sorted(columns, key=lambda stage: stage.endswith("attention"))


@styled
def few_shot_curves(runs: Sequence[RunContents], part: str = "") -> Figure:
    """v2 figure 4: validation Dice (top) and loss (bottom) over steps; colour a share of the data, pattern a model.

    A column a task. The loss is that of whole validation volumes where every run has logged it, else the training loss
    on patches. Runs of the same model and share (other seeds) are averaged where they have logged the same steps.
    ``part`` has no meaning here.
    """
    tasks = tasks_of(runs)
    fractions = sorted({float(run.summary.get("fraction") or 1) for run in runs})
    models = list(dict.fromkeys(str(run.summary.get("model") or run.label) for run in runs))
    validated = all(has_curve([run], "validation_loss") for run in runs)
    loss, loss_title = ("validation_loss", "validation loss") if validated else ("loss", "training loss")
    figure = Figure(figsize=(5.6 * len(tasks), 5.8), layout="constrained")
    panels = figure.subplots(2, len(tasks), sharex="col", squeeze=False)
    for (upper, lower), task in zip(panels.T, tasks, strict=True):
        groups: dict[tuple[float, str], list[RunContents]] = defaultdict(list)
        for run in runs:
            if task_of(run) == task:
                fraction, model = run.summary.get("fraction") or 1, run.summary.get("model") or run.label
                groups[float(fraction), str(model)].append(run)
        for (fraction, model), members in sorted(groups.items()):
            place = models.index(model)
            style: dict[str, Any] = {"color": run_colour(fractions.index(fraction)), "linestyle": run_dashes(place)}
            # Later models lie thinner upon earlier ones and have markers of their own, so that none hides another.
            style |= {"linewidth": max(1.0, 3.4 - 1.2 * place), "zorder": 2 + place / 10}
            style |= {"marker": MARKERS[place % len(MARKERS)], "markersize": 5, "markeredgecolor": "white"}
            for axes, key in ((upper, "validation_dice"), (lower, loss)):
                for n, points in enumerate(_curves(members, key)):
                    every = max(1, len(points) // 8)
                    # Markers of curves that run together stand at different steps.
                    which = slice(place * every // len(models), None, every)
                    label = f"{model}, {100 * fraction:g}% of the data" if n == 0 else None
                    axes.plot(points[:, 0], points[:, 1], label=label, markevery=which, **style)
        upper.set(ylabel="validation Dice", title=task if len(tasks) > 1 else "")
        lower.set(ylabel=loss_title, xlabel="step")
    figure.legend(*_all_handles(figure), loc="outside lower center", ncols=2)
    return figure


@styled
def language_model_boxes(runs: Sequence[RunContents], part: str) -> Figure:
    """v2 figure 5: one box a setting, of each case's mean Dice over classes; the mean is a diamond; a panel a task.

    Above each later box stands the p of the paired t-test against the first setting of the task on the cases they
    share, ``*`` below .05, and a dagger where it stays there after Holm's correction over the tests of this figure.
    """
    settings, tasks = _scored(runs, part)
    figure, panels = _panels(tasks, width=1.4 + 1.1 * len(settings), height=3.1, pad=30)
    tests = []
    for axes, task in zip(panels, tasks, strict=True):
        axes.set_ylabel("Dice, mean of classes")
        shown = [(index, each) for index, each in enumerate(settings) if each.scored(task, part)]
        for place, (index, setting) in enumerate(shown):
            values = setting.by_case(task, part, "dice").values()
            _upright_box(axes, [value for value in values if not math.isnan(value)], place, index)
        axes.set_xticks(range(len(shown)), [setting.label.replace(", ", "\n") for _, setting in shown])
        axes.grid(visible=False, axis="x")
        first = shown[0][1]
        tests += [
            (axes, place, compared(first, other, task, part, "dice"))
            for place, (_, other) in enumerate(shown[1:], start=1)
        ]
    adjusted = holm([result.t_p for *_, result in tests])
    for (axes, place, result), holm_p in zip(tests, adjusted, strict=True):
        said = f"p {p_value(result.t_p)}{marks(result.t_p, holm_p)}\nn = {result.n}"
        axes.annotate(said, (place, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
    return figure


@styled
def training_curves(runs: Sequence[RunContents], part: str = "") -> Figure:
    """v1 figure 3: validation Dice, training loss and, where logged, validation loss; one line a setting.

    A row of panels a task. Seeds and folds of a table's row are averaged where they have logged the same steps, and
    each drawn where they have not. ``part`` has no meaning here.
    """
    charts = [chart for chart in CURVES if has_curve(runs, chart.key)]
    if not charts:
        raise _lacking("a training log", "Train again.")
    settings, tasks = settings_of(runs), tasks_of(runs)
    figure = Figure(figsize=(4 * len(charts), 3.6 * len(tasks)), layout="constrained")
    for row, task in zip(figure.subplots(len(tasks), len(charts), squeeze=False), tasks, strict=True):
        for axes, curve in zip(row, charts, strict=True):
            title = f"{curve.title}, {task}" if len(tasks) > 1 else curve.title
            axes.set(title=title, xlabel="step", ylabel=curve.measured)
            if len(tasks) == 1 and len(settings) == len(runs):
                draw_curves(axes, runs, curve.key, marker=curve.marker, legend=False)
                continue
            for index, setting in enumerate(settings):
                style: dict[str, Any] = {"color": run_colour(index), "linestyle": run_dashes(index)}
                if curve.marker:
                    style |= {"marker": MARKERS[index % len(MARKERS)], "markersize": 4}
                _draw_lines(axes, setting.on(task), curve.key, setting.label, style)
    figure.legend(*_all_handles(figure), loc="outside lower center", ncols=3)
    return figure


@styled
def radar(runs: Sequence[RunContents], part: str) -> Figure:
    """v1 figure D-F3: every metric on its own spoke, the rim is better; a panel a task, a line a setting.

    Shares run from 0 to 1; HD95 runs backwards from twice the task's worst mean (the centre) to 0 mm (the rim).
    """
    settings, tasks = _scored(runs, part)
    found = [scored for each in settings for task in tasks for scored in each.scored(task, part).values()]
    metrics = [m for m in RADAR_METRICS if any(m in scored.metrics for scored in found)]
    if not metrics:
        raise _unscored(runs, part)
    angles = np.linspace(0, 2 * np.pi, len(metrics), endpoint=False)
    figure, panels = _panels(tasks, width=5, height=4.6, pad=30, polar=True)
    for axes, task in zip(panels, tasks, strict=True):
        shown = [(index, each) for index, each in enumerate(settings) if each.scored(task, part)]
        means = {index: [_mean_of(each, task, part, metric) for metric in metrics] for index, each in shown}
        of_hd95 = [of[metrics.index("hd95_mm")] for of in means.values()] if "hd95_mm" in metrics else []
        centre_mm = 2 * max((mm for mm in of_hd95 if mm > 0), default=0.5)  # of nothing but perfect ones, a millimetre
        for index, each in shown:
            radii = [
                1 - mean / centre_mm if metric == "hd95_mm" else mean
                for metric, mean in zip(metrics, means[index], strict=True)
            ]
            style: dict[str, Any] = {"color": run_colour(index), "linestyle": run_dashes(index)}
            axes.plot([*angles, angles[0]], [*radii, radii[0]], label=each.label, **style)
        names = [
            f"HD95\n(rim 0 mm,\ncentre {centre_mm:.1f} mm)" if m == "hd95_mm" else METRIC_TITLES[m].split(" (")[0]
            for m in metrics
        ]
        axes.set_xticks(angles, names)
        axes.set_ylim(0, 1)
        axes.tick_params(axis="x", pad=14)
        axes.set_rlabel_position(180 / len(metrics))
        axes.tick_params(axis="y", labelsize=7, labelcolor=INK_SOFT)
    figure.legend(*_all_handles(figure), loc="outside lower center", ncols=2)
    return figure


@styled
def hybrid_strategies(runs: Sequence[RunContents], part: str) -> Figure:
    """v1 figure A-F1: parameters against Dice with its 95 % interval over cases; a marker a setting, a panel a task."""
    settings, tasks = _scored(runs, part)
    figure, panels = _panels(tasks, width=4.6, height=3.1)
    for axes, task in zip(panels, tasks, strict=True):
        axes.set(xlabel="parameters in millions, trained and frozen", ylabel="Dice, mean of classes")
        for index, each in enumerate(settings):
            counts = next((c for run in each.on(task) if (c := run.summary.get("parameters"))), None)
            if not counts or not each.scored(task, part):
                continue
            cell = summary_of(list(each.by_case(task, part, "dice").values()))
            axes.errorbar(
                sum(counts.values()) / 1e6,
                cell.mean,
                yerr=[[cell.mean - cell.low], [cell.high - cell.mean]],
                marker=MARKERS[index % len(MARKERS)],
                color=run_colour(index),
                linestyle="",
                capsize=3,
                label=each.label,
            )
    if not any(axes.containers for axes in panels):
        raise _unscored(runs, part, "scores with parameter counts")
    figure.legend(*_all_handles(figure), loc="outside lower center", ncols=2)
    return figure


PAPER_FIGURES: dict[str, Callable[[Sequence[RunContents], str], Figure]] = {
    "v1-F3": training_curves,
    "v1-F4": activation_maps,
    "v1-F5": qualitative_grid,
    "v1-A-F1": hybrid_strategies,
    "v1-C2": qualitative_grid,
    "v1-D-F3": radar,
    "v2-F2": qualitative_grid,
    "v2-F3": activation_maps,
    "v2-F4": few_shot_curves,
    "v2-F5": language_model_boxes,
}


def _scored(runs: Sequence[RunContents], part: str) -> tuple[list[Setting], list[str]]:
    """The settings with scores of that part, and the tasks they are of.

    Raises:
        InputError: There are none.
    """
    scored = [run for run in runs if run.part(part)]
    if not scored:
        raise _unscored(runs, part)
    return settings_of(scored), tasks_of(scored)


def _panels(
    tasks: Sequence[str], width: float, height: float, *, pad: float = 6, polar: bool = False
) -> tuple[Figure, list[Any]]:
    """A chart a task, at most ``MOST_PANELS`` beside each other; a single one has no title.

    ``pad`` is the height in points that is left between a chart and its title.
    """
    columns = min(len(tasks), MOST_PANELS)
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = [
        figure.add_subplot(rows, columns, place, projection="polar" if polar else None)
        for place in range(1, len(tasks) + 1)
    ]
    if len(tasks) > 1:
        for axes, task in zip(panels, tasks, strict=True):
            axes.set_title(task, pad=pad)
    return figure, panels


def _mean_of(setting: Setting, task: str, part: str, metric: str) -> float:
    """Over cases of their means over trainings."""
    return summary_of(list(setting.by_case(task, part, metric).values())).mean


def _by_row(runs: Sequence[RunContents], part: str) -> dict[str, dict[_Column, tuple[Picture, float]]]:
    """Row to its pictures and their Dice by task and case: a table's row of several tasks is one row."""
    rows: dict[str, dict[_Column, tuple[Picture, float]]] = {}
    for setting in settings_of(runs):
        found = [(task_of(run), _pictures(run, part)) for run in setting.runs]
        rows[setting.label] = {(task, case): shown for task, of_run in found for case, shown in of_run.items()}
    return rows


def _pictures(run: RunContents, part: str) -> dict[str, tuple[Picture, float]]:
    """Case to its picture and mean Dice, best first."""
    found = run.part(part)
    if found is None:
        return {}
    dice = found.values("dice")
    ordered = sorted(found.pictures, key=lambda case: -np.nan_to_num(dice.get(case, math.nan), nan=-1.0))
    return {case: (read_picture(found.pictures[case]), dice.get(case, math.nan)) for case in ordered}


def shown_columns(pictures: Mapping[str, Mapping[_Column, object]]) -> list[_Column]:
    """At most ten, tasks in turn, best first; of a task none whose rows with a picture all have a more shared one."""
    columns = dict.fromkeys(column for of_row in pictures.values() for column in of_row)
    kept_by = {column: frozenset(row for row, of_row in pictures.items() if column in of_row) for column in columns}
    of_tasks: defaultdict[str, list[_Column]] = defaultdict(list)
    for column in columns:
        others = {kept_by[other] for other in columns if other[0] == column[0]}
        if not any(kept_by[column] < other for other in others):
            of_tasks[column[0]].append(column)
    in_turn = [column for turn in zip_longest(*of_tasks.values()) for column in turn if column]
    return sorted(in_turn[:MOST_COLUMNS], key=lambda column: [*of_tasks].index(column[0]))


def _plates(widths: Sequence[float], rows: int, foot: float = 0.0) -> tuple[Figure, Any]:
    """A dark figure of panels that touch: 1.4 inches high each, as wide as they need to be, with room for names.

    ``foot`` is the height in inches that is left free below them.
    """
    width, height = 0.25 + 1.42 * sum(widths), 0.25 + 1.42 * rows + foot
    figure = Figure(figsize=(width, height), facecolor=PLATE)
    grid = figure.add_gridspec(
        rows,
        len(widths),
        width_ratios=widths,
        wspace=0.03,
        hspace=0.03,
        left=0.24 / width,
        right=1 - 0.01 / width,
        bottom=(0.01 + foot) / height,
        top=1 - 0.24 / height,
    )
    return figure, grid


def _width_over_height(picture: Picture, box: Sequence[tuple[int, int]]) -> float:
    """Proportions of an axial slice in millimetres."""
    extents = [(last - first) * mm for (first, last), mm in zip(box, picture.spacing_mm, strict=True)]
    return extents[PLANES[0].across] / extents[PLANES[0].up]


def _whole(picture: Picture) -> tuple[tuple[int, int], ...]:
    return tuple((0, size) for size in picture.image.shape)


def _all_handles(figure: Figure) -> tuple[list[Any], list[str]]:
    """Every run's line once, whichever panel has it."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True)) | named
    return list(named.values()), list(named)


def _draw_lines(axes: Axes, runs: Sequence[RunContents], key: str, label: str, style: Mapping[str, Any]) -> None:
    """The mean of what the runs have logged; each by itself, thinner, where they share no steps."""
    lines = _curves(runs, key)
    for place, points in enumerate(lines):
        shown, told = thinned(points), label if place == 0 else None
        axes.plot(shown[:, 0], shown[:, 1], label=told, linewidth=1.8 if len(lines) == 1 else 1.0, **style)


def _curves(runs: Sequence[RunContents], key: str) -> list[Any]:
    """``(n,2)`` of step and mean over what the runs logged, at the steps that all did; where none is, of each run."""
    series = [found for run in runs for entries in run.logs.values() if len(found := logged(entries, key))]
    shared = sorted(set.intersection(*(set(found[:, 0]) for found in series))) if series else []
    if not shared:
        return series
    values = [[dict(found)[step] for step in shared] for found in series]
    return [np.column_stack([shared, np.mean(values, axis=0)])]


def _upright_box(axes: Axes, values: Sequence[float], at: float, index: int) -> None:
    colour = run_colour(index)
    axes.boxplot(
        [values],
        positions=[at],
        widths=0.55,
        showmeans=True,
        patch_artist=True,
        boxprops={"facecolor": f"{colour}33", "edgecolor": colour},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        medianprops={"color": colour, "linewidth": 1.8},
        meanprops={"marker": "D", "markerfacecolor": colour, "markeredgecolor": colour, "markersize": 4},
        flierprops={"marker": ".", "markeredgecolor": colour},
        manage_ticks=False,
    )


def _unscored(runs: Sequence[RunContents], part: str, what: str = "scores") -> InputError:
    parts = list(dict.fromkeys(found.title for run in runs for found in run.parts))
    return InputError(
        f"none of the runs has {what} of the part {part!r}",
        got=f"parts {', '.join(map(repr, parts))}" if parts else "no scored part",
        mend="Run `medvisionllama predict RUN --part ...`, or choose one of these by --part.",
    )


def _lacking(what: str, mend: str) -> InputError:
    return InputError(f"none of the runs has {what}", mend=mend)
