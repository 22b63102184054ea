"""The two papers' figures by name, one function each, drawn from run folders alone.

``v1`` and ``v2`` are the paper's versions; ``v1-D-F3`` is figure 3 of the first version's appendix D. What a label
calls a model is the run's label (:func:`~medvisionllama.reports.run_contents.read_runs`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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
    chart,
    run_colour,
    run_dashes,
    save,
    styled,
)
from medvisionllama.reports.figures import CURVES, METRIC_TITLES, draw_curves, has_curve, logged
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
from medvisionllama.reports.score_table import overall
from medvisionllama.reports.statistics import Paired, holm, paired
from medvisionllama.reports.wording import p_value

RADAR_METRICS = ("dice", "jaccard", "precision", "recall", "specificity", "nsd", "hd95_mm")
MOST_COLUMNS = 10


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

    Each column is the axial slice with most reference. Runs on different tasks fill different columns. Columns are
    ``cases``; without them at most ten, best first: those that no other case outdoes in the runs that have a picture.

    Raises:
        InputError: No run has pictures of that part.
    """
    pictures = {run.label: _pictures(run, part) for run in runs}
    cases = [case for case in cases if any(case in of_run for of_run in pictures.values())] or _widely_kept(pictures)
    if not cases:
        raise _unscored(runs, part, "pictures of cases")
    rows = ["image", "reference", *pictures]
    firsts = [next(of_run[case][0] for of_run in pictures.values() if case in of_run) for case in cases]
    proportions = [_width_over_height(picture, field_of_view(picture)) for picture in firsts]
    figure, grid = _plates(proportions, len(rows), foot=0.28)
    for column, case in enumerate(cases):
        shown = {label: of_run[case] for label, of_run in pictures.items() if case in of_run}
        first = firsts[column]
        plane, box = PLANES[0], field_of_view(first)
        index = fullest_slice(first, plane)
        for row, name in enumerate(rows):
            axes = figure.add_subplot(grid[row, column])
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
            if column == 0:
                axes.text(
                    -0.08, 0.5, name, transform=axes.transAxes, rotation=90, va="center", ha="right", color=PLATE_INK
                )
            if row == 0:
                axes.set_title(case, fontsize=6, loc="center", pad=3, color=PLATE_INK, fontweight="normal")
    shown_labels = {
        int(v) for of_run in pictures.values() for case in cases if case in of_run for v in labels_in(of_run[case][0])
    }
    names = {value: name for run in reversed(runs) for value, name in run.class_names.items()}
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

    The loss is that of whole validation volumes where every run has logged it, else the training loss on patches. Runs
    of the same model and share (other tasks, seeds) are averaged where they have logged the same steps. ``part`` has
    no meaning here.
    """
    groups: dict[tuple[float, str], list[RunContents]] = defaultdict(list)
    for run in runs:
        groups[float(run.summary.get("fraction") or 1), str(run.summary.get("model") or run.label)].append(run)
    fractions = sorted({fraction for fraction, _ in groups})
    models = list(dict.fromkeys(model for _, model in groups))
    validated = all(has_curve([run], "validation_loss") for run in runs)
    loss, loss_title = ("validation_loss", "validation loss") if validated else ("loss", "training loss")
    figure = Figure(figsize=(5.6, 5.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for (fraction, model), members in sorted(groups.items()):
        place = models.index(model)
        style: dict[str, Any] = {"color": run_colour(fractions.index(fraction)), "linestyle": run_dashes(place)}
        # Later models lie thinner upon earlier ones and have markers of their own, so that none hides another.
        style |= {"linewidth": max(1.0, 3.4 - 1.2 * place), "zorder": 2 + place / 10}
        style |= {"marker": MARKERS[place % len(MARKERS)], "markersize": 5, "markeredgecolor": "white"}
        for axes, key in ((upper, "validation_dice"), (lower, loss)):
            points = _averaged(members, key)
            every = max(1, len(points) // 8)
            if len(points):
                # Markers of curves that run together stand at different steps.
                which = slice(place * every // len(models), None, every)
                axes.plot(
                    points[:, 0], points[:, 1], label=f"{model}, {fraction:.0%} of the data", markevery=which, **style
                )
    upper.set(ylabel="validation Dice")
    lower.set(ylabel=loss_title, xlabel="step")
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def language_model_boxes(runs: Sequence[RunContents], part: str) -> Figure:
    """v2 figure 5: one box a run, of each case's mean Dice over classes; the mean is a diamond.

    Above each later box stands the p of the paired t-test against the first run on the cases they share, ``*`` below
    .05, and a dagger where it stays there after Holm's correction over the tests of this figure.
    """
    scored = [(index, run, found) for index, run in enumerate(runs) if (found := run.part(part))]
    if not scored:
        raise _unscored(runs, part)
    figure, axes = chart("", "", "Dice, mean of classes", width=1.4 + 1.1 * len(scored))
    for place, (index, _, found) in enumerate(scored):
        values = [value for value in found.values("dice").values() if not math.isnan(value)]
        _upright_box(axes, values, place, index)
    first = scored[0][2].values("dice")
    results = [_against(first, found.values("dice")) for _, _, found in scored[1:]]
    for place, (result, adjusted) in enumerate(zip(results, holm([r.t_p for r in results]), strict=True), start=1):
        said = f"p {p_value(result.t_p)}{marks(result.t_p, adjusted)}\nn = {result.n}"
        axes.annotate(said, (place, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(scored)), [run.label.replace(", ", "\n") for _, run, _ in scored])
    axes.grid(visible=False, axis="x")
    return figure


@styled
def training_curves(runs: Sequence[RunContents], part: str = "") -> Figure:
    """v1 figure 3: validation Dice, training loss and, where logged, validation loss; one line a run.

    ``part`` has no meaning here.
    """
    charts = [chart for chart in CURVES if has_curve(runs, chart.key)]
    if not charts:
        raise _lacking("a training log", "Train again.")
    figure = Figure(figsize=(4 * len(charts), 3.6), layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        axes.set(title=curve.title, xlabel="step", ylabel=curve.measured)
        draw_curves(axes, runs, curve.key, marker=curve.marker, legend=False)
    figure.legend(*_all_handles(figure), loc="outside lower center", ncols=3)
    return figure


@styled
def radar(runs: Sequence[RunContents], part: str) -> Figure:
    """v1 figure D-F3: every metric on its own spoke, the rim is better.

    Shares run from 0 to 1; HD95 runs backwards from twice the worst run's value (the centre) to 0 mm (the rim).
    """
    scored = [(index, run, found) for index, run in enumerate(runs) if (found := run.part(part))]
    metrics = [m for m in RADAR_METRICS if any(m in found.metrics for _, _, found in scored)]
    if not metrics:
        raise _unscored(runs, part)
    angles = np.linspace(0, 2 * np.pi, len(metrics), endpoint=False)
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes: Any = figure.add_subplot(projection="polar")
    centre_mm = 2 * max((overall(found, "hd95_mm").mean for _, _, found in scored), default=math.nan)
    for index, run, found in scored:
        means = [overall(found, metric).mean for metric in metrics]
        radii = [
            1 - mean / centre_mm if metric == "hd95_mm" else mean for metric, mean in zip(metrics, means, strict=True)
        ]
        closed = [*radii, radii[0]]
        style: dict[str, Any] = {"color": run_colour(index), "linestyle": run_dashes(index)}
        axes.plot([*angles, angles[0]], closed, label=run.label, **style)
    names = [
        f"HD95\n(rim 0 mm,\ncentre {centre_mm:.1f} mm)" if m == "hd95_mm" else METRIC_TITLES[m].split(" (")[0]
        for m in metrics
    ]
    axes.set_xticks(angles, names)
    axes.set_ylim(0, 1)
    axes.tick_params(axis="x", pad=14)
    axes.set_rlabel_position(180 / len(metrics))
    axes.tick_params(axis="y", labelsize=7, labelcolor=INK_SOFT)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def hybrid_strategies(runs: Sequence[RunContents], part: str) -> Figure:
    """v1 figure A-F1: parameters against Dice with its 95 % interval, one marker a run."""
    figure, axes = chart("", "parameters in millions, trained and frozen", "Dice, mean of classes")
    for index, run in enumerate(runs):
        found, counts = run.part(part), run.summary.get("parameters") or {}
        if found is None or not counts:
            continue
        cell = overall(found, "dice")
        axes.errorbar(
            sum(counts.values()) / 1e6,
            cell.mean,
            yerr=[[cell.mean - cell.low], [cell.high - cell.mean]],
            marker=MARKERS[index % len(MARKERS)],
            color=run_colour(index),
            linestyle="",
            capsize=3,
            label=run.label,
        )
    if not axes.containers:
        raise _unscored(runs, part, "scores with parameter counts")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
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


def _against(first: dict[str, float], second: dict[str, float]) -> Paired:
    shared = [case for case in first if case in second]
    return paired([first[case] for case in shared], [second[case] for case in shared])


def _pictures(run: RunContents, part: str) -> dict[str, tuple[Picture, float]]:
    """Case to its picture and mean Dice, best first."""
    found = run.part(part)
    if found is None:
        return {}
    dice = found.values("dice")
    ordered = sorted(found.pictures, key=lambda case: -np.nan_to_num(dice.get(case, math.nan), nan=-1.0))
    return {case: (read_picture(found.pictures[case]), dice.get(case, math.nan)) for case in ordered}


def _widely_kept(pictures: Mapping[str, Mapping[str, object]]) -> list[str]:
    """At most ten cases, best first; none whose runs with a picture of it all have one of another case, and more do."""
    cases = dict.fromkeys(case for of_run in pictures.values() for case in of_run)
    kept_by = {case: frozenset(run for run, of_run in pictures.items() if case in of_run) for case in cases}
    kinds = set(kept_by.values())
    return [case for case in cases if not any(kept_by[case] < kind for kind in kinds)][:MOST_COLUMNS]


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


def _averaged(runs: Sequence[RunContents], key: str) -> Any:
    """``(n,2)`` of step and mean over runs, at the steps that all of them have logged."""
    series = [dict(logged(entries, key)) for run in runs for entries in run.logs.values()]
    series = [of_run for of_run in series if of_run]
    if not series:
        return np.empty((0, 2))
    steps = sorted(set.intersection(*(set(of_run) for of_run in series)))
    return np.array([(step, np.mean([of_run[step] for of_run in series])) for step in steps]).reshape(-1, 2)


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
