"""The page: what was trained on what, how well it does, and how it looks; one file that opens from disk, offline.

Everything drawn comes from run folders alone. Style and figures lie inside ``index.html``; the same figures lie beside
it as PNG and SVG for papers and talks.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from medvisionllama.errors import InputError
from medvisionllama.reports import drawing, figures
from medvisionllama.reports.facts import FACTS, said
from medvisionllama.reports.mosaic import CONVENTION, case_mosaic
from medvisionllama.reports.paper_figures import qualitative_grid
from medvisionllama.reports.published import published, published_command
from medvisionllama.reports.run_contents import Picture, RunContents, ScoredPart, read_picture, read_runs
from medvisionllama.reports.score_table import (
    ALL_CLASSES,
    TABLE_METRICS,
    ClassScores,
    Difference,
    SeedSpread,
    differences,
    metrics_of,
    overall,
    score_table,
    seed_spread,
)
from medvisionllama.reports.viewer import VIEWER_FILE, ViewerCase, copy_viewer, viewer_is_there, write_case
from medvisionllama.reports.volumes import StructureVolume, limits_of_agreement, structure_volumes
from medvisionllama.reports.wording import count, duration, interval, millilitres, number, p_value, signed
from medvisionllama.run_folder import METRICS, write_text

SAME_CASES = 6
OWN_FILES = (
    "index.html",
    *(
        f"figures/{kind}-*.{end}"
        for kind in ("boxes", "case", "curve", "same-cases", "volumes")
        for end in ("png", "svg")
    ),
    "viewer/case-*.js",
    f"viewer/{VIEWER_FILE}",
)
MOST_AGREEMENT_PLOTS = 6


@dataclass(frozen=True)
class Drawing:
    """One figure on the page.

    Attributes:
        name: File name without ending.
        title: What it is called.
        description: What it shows, in words.
        markup: Its element.
    """

    name: str
    title: str
    description: str
    markup: Markup


@dataclass(frozen=True)
class CasePicture:
    """A chosen case: why it was chosen, its arrays, its Dice and its drawing."""

    why: str
    picture: Picture
    dice: float
    drawing: Drawing


@dataclass(frozen=True)
class ScoreLine:
    """A line of the score table: what it is called, and the place of its run where the name is a run's."""

    name: str
    scores: ClassScores
    place: int | None = None


@dataclass
class PartView:
    """One part of the split on one grid, over all runs that have it."""

    title: str
    slug: str
    tables: list[tuple[RunContents, ScoredPart, list[ClassScores]]]
    groups: list[tuple[str, list[ScoreLine]]]
    differences: list[tuple[str, str, dict[str, Difference]]]
    seeds: list[SeedSpread]
    boxes: list[Drawing]
    agreement: list[Drawing]
    pictures: list[tuple[RunContents, list[CasePicture]]]
    same_cases: Drawing | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> list[str]:
        """The columns of the score table: the metrics that any run has."""
        return metrics_of([part for _, part, _ in self.tables])

    @property
    def compared_metrics(self) -> list[str]:
        """The columns of the table of differences: the metrics that the first run shares with any other."""
        return [metric for metric in TABLE_METRICS if any(metric in cells for _, _, cells in self.differences)]

    @property
    def tolerance_mm(self) -> float | None:
        """The tolerance of NSD, where all runs that tell one tell the same."""
        found = {part.tolerance_mm for _, part, _ in self.tables} - {None}
        return found.pop() if len(found) == 1 else None

    @property
    def references(self) -> list[bool]:
        """Of each picture shown, whether it has a reference: some may, others may not."""
        return [case.picture.reference is not None for _, cases in self.pictures for case in cases]


def write_page(runs: Sequence[Path], out: Path, *, images: bool = True) -> Path:
    """Write ``OUT/index.html`` and ``OUT/figures/*.png, *.svg`` about one or several runs.

    Args:
        runs: Run folders, as ``train`` and ``predict`` leave them. What one lacks is said on the page.
        out: The folder to write to; made where missing.
        images: Whether voxels may be shown. Without them, no picture of a patient is written anywhere.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: A run is not a folder, or ``out`` cannot be written.
    """
    contents = read_runs(runs)
    _clear(out)
    gallery = _Gallery(out / "figures")
    parts = [_part_view(title, contents, gallery, images) for title in _part_titles(contents)]
    viewer_cases = _fill_viewer(parts, out / "viewer")
    for view in parts:
        view.notes[:] = [published(note, runs) for note in view.notes]
    page = _environment().get_template("page.html.jinja")
    text = page.render(
        runs=contents,
        parts=parts,
        curves=_curves(contents, gallery),
        title=_title(contents),
        summary=_in_a_sentence(contents),
        notes=_comparability(contents),
        gaps=[(run.label, published(sentence, runs)) for run in contents for sentence in run.missing],
        facts=[(name, [said(tell, run) for run in contents]) for name, tell in FACTS],
        networks=_alike(contents, lambda run: run.summary.get("stages")),
        versions=_alike(contents, lambda run: run.environment.get("packages")),
        images=images,
        viewer_cases=viewer_cases,
        viewer_there=viewer_is_there(),
        convention=CONVENTION,
        metrics=METRICS,
        made_by=_version(),
        all_classes=ALL_CLASSES,
    )
    write_text(out / "index.html", text)
    return out / "index.html"


class _Gallery:
    """Writes each figure once as PNG and SVG and hands back its element for the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def chart(self, figure: Figure, name: str, title: str, description: str) -> Drawing:
        drawing.save(figure, self.folder, name)
        return Drawing(name, title, description, Markup(drawing.inline_svg(figure, name, title, description)))

    def picture(self, figure: Figure, name: str, title: str, description: str) -> Drawing:
        drawing.save(figure, self.folder, name)
        element = Markup('<img src="{}" alt="{}" width="{}" height="{}">').format(
            drawing.data_uri(figure),
            description,
            round(figure.get_figwidth() * 100),
            round(figure.get_figheight() * 100),
        )
        return Drawing(name, title, description, element)


def _clear(out: Path) -> None:
    """Take away what an earlier page left here, so that a page without images has none beside it either."""
    earlier = [path for pattern in OWN_FILES for path in out.glob(pattern)]
    try:
        for path in earlier:
            path.unlink()
    except OSError as error:
        raise InputError(
            f"cannot replace {path}", got=error.strerror or str(error), mend="Choose another folder."
        ) from error


def _part_titles(runs: Sequence[RunContents]) -> list[str]:
    return list(dict.fromkeys(part.title for run in runs for part in run.parts))


def _part_view(title: str, runs: Sequence[RunContents], gallery: _Gallery, images: bool) -> PartView:
    slug = title.replace(", ", "-").replace(" ", "-")
    scored = [(run, part) for run in runs if (part := run.part(title))]
    tables = [(run, part, score_table(part)) for run, part in scored]
    groups = _score_groups(runs, tables)
    view = PartView(title, slug, tables, groups, _difference_rows(runs, title), seed_spread(runs, title), [], [], [])
    view.boxes.extend(_boxes(runs, title, slug, metric, gallery) for metric in view.metrics)
    view.notes.extend(_unmeasured(scored))
    view.agreement.extend(_agreement(scored, slug, gallery, view.notes))
    if images:
        for place, (run, part) in enumerate(scored):
            view.pictures.append((run, _chosen_cases(run, part, f"{slug}-{place + 1}", gallery, view.notes)))
    if images and len(scored) > 1 and any(part.pictures for _, part in scored):
        view.same_cases = _same_cases([run for run, _ in scored], title, slug, gallery, view.notes)
    return view


def _unmeasured(scored: Sequence[tuple[RunContents, ScoredPart]]) -> list[str]:
    """One sentence for each of the table's metrics that all or some of the runs have no value of."""
    notes = []
    for metric in TABLE_METRICS:
        without = [run.label for run, part in scored if metric not in part.metrics]
        name = "NSD" if metric == "nsd" else figures.METRIC_TITLES[metric]
        if len(without) == len(scored):
            why = "it needs a tolerance in mm, and none is known for this task" if metric == "nsd" else "no case has it"
            notes.append(f"{name} was not measured: {why}.")
        elif without:
            compared = (
                "; as the first run is among them, no differences are given" if scored[0][0].label in without else ""
            )
            notes.append(f"{name} was not measured in {', '.join(without)}{compared}.")
    return notes


def _score_groups(
    runs: Sequence[RunContents], tables: Sequence[tuple[RunContents, ScoredPart, list[ClassScores]]]
) -> list[tuple[str, list[ScoreLine]]]:
    """The score table's lines: of one run its classes; of several, class by class, so that like stands by like."""
    if len(runs) == 1:
        return [("", [ScoreLine(line.name, line) for line in tables[0][2]])]
    names = list(dict.fromkeys(line.name for _, _, lines in tables for line in lines))
    names.sort(key=lambda name: name == ALL_CLASSES)
    return [
        (
            name,
            [
                ScoreLine(run.label, line, runs.index(run))
                for run, _, lines in tables
                for line in lines
                if line.name == name
            ],
        )
        for name in names
    ]


def _same_cases(
    runs: Sequence[RunContents], title: str, slug: str, gallery: _Gallery, notes: list[str]
) -> Drawing | None:
    """Cases that most runs have pictures of (two at least), evenly spread in rank by the mean Dice of all runs."""
    dice: dict[str, list[float]] = defaultdict(list)
    kept_by: Counter[str] = Counter()
    for run in runs:
        part = run.part(title)
        scored = {case: v for case, v in part.values("dice").items() if not math.isnan(v)} if part else {}
        for case, value in scored.items():
            dice[case].append(value)
        kept_by.update(scored.keys() & part.pictures.keys() if part else ())
    most = max(kept_by.values(), default=0)
    if most < 2:
        notes.append("No case has pictures in two runs: they cannot be shown beside one another.")
        return None
    ranked = sorted(dice, key=lambda case: -fmean(dice[case]))
    kept = [case for case in ranked if kept_by[case] == most]
    chosen = [kept[round(rank)] for rank in np.linspace(0, len(kept) - 1, min(SAME_CASES, len(kept)))]
    try:
        figure = qualitative_grid(runs, title, chosen)
    except InputError:  # a broken picture: it is named where the run's own cases are shown
        return None
    names = ", ".join(run.label for run in runs)
    whose = "every run" if most == len(runs) else f"{most} of the {len(runs)} runs"
    shown = cases_in_words(chosen, kept, ranked, whose=whose, names=names)
    caption = f"{shown}; axial slices, Dice in each panel."
    return gallery.picture(
        figure, f"same-cases-{slug}", caption, f"Image, reference and predictions of {names}. {caption}"
    )


def cases_in_words(chosen: Sequence[str], kept: Sequence[str], ranked: Sequence[str], *, whose: str, names: str) -> str:
    """Which cases are shown, and which are not: the worst is nobody's to leave out unsaid.

    Args:
        chosen: The cases shown, best first.
        kept: Those that could have been.
        ranked: All cases, best first.
        whose: Of whom pictures were needed.
        names: Over whom means were taken.
    """
    first, last = (ranked.index(case) + 1 for case in (chosen[0], chosen[-1]))
    ranks = f"ranks {first} to {last}" if first < last else f"rank {first}"
    those = "those" if len(chosen) == len(kept) else f"from the {len(kept)}"
    shown = f"{len(chosen)} of the {len(ranked)} cases"
    limits = "" if len(kept) == len(ranked) else f"{those} of which {whose} kept pictures, "
    beyond = "" if ranked[-1] in chosen else f"; the worst of all is {ranked[-1]} (not pictured)"
    return f"{shown}: {limits}{ranks} by mean Dice over {names}{beyond}"


def _difference_rows(runs: Sequence[RunContents], title: str) -> list[tuple[str, str, dict[str, Difference]]]:
    """Differences by run and class, one row each: its cells by metric, as a run may lack one."""
    rows: dict[tuple[str, str], dict[str, Difference]] = {}
    for difference in differences(runs, title):
        rows.setdefault((difference.run, difference.class_name), {})[difference.metric] = difference
    return [(run, name, cells) for (run, name), cells in rows.items()]


def _boxes(runs: Sequence[RunContents], title: str, slug: str, metric: str, gallery: _Gallery) -> Drawing:
    name = figures.METRIC_TITLES.get(metric, metric)
    lines = [
        f"{run.label}, {line.name}: mean {number(line.cells[metric].mean, metric)}"
        for run in runs
        if (part := run.part(title))
        for line in score_table(part)
        if metric in line.cells and line.name != ALL_CLASSES
    ]
    description = f"Box plot of {name} per class over the cases of the {title} part. {'; '.join(lines)}."
    return gallery.chart(figures.score_boxes(runs, title, metric), f"boxes-{slug}-{metric}", name, description)


def _agreement(
    scored: Sequence[tuple[RunContents, ScoredPart]], slug: str, gallery: _Gallery, notes: list[str]
) -> list[Drawing]:
    """Bland-Altman plots of volumes, one a class, as far as anything tells the volumes."""
    by_run = []
    for run, part in scored:
        try:
            by_run.append((run.label, structure_volumes(run, part)))
        except InputError as error:
            notes.append(str(error))
    classes = list(dict.fromkeys(volume.class_name for _, volumes in by_run for volume in volumes))
    drawings = []
    for place, name in enumerate(classes[:MOST_AGREEMENT_PLOTS]):
        of_class = [(label, [v for v in volumes if v.class_name == name]) for label, volumes in by_run]
        said = "; ".join(_agreement_in_words(label, volumes) for label, volumes in of_class if volumes)
        description = f"Bland-Altman plot of the volume of {name}. {said}."
        figure = figures.bland_altman(of_class, name)
        caption = said if len(by_run) == 1 else f"{name}: the numbers at the lines are bias and limits of agreement."
        drawings.append(gallery.chart(figure, f"volumes-{slug}-{place + 1}", caption, description))
    if len(classes) > MOST_AGREEMENT_PLOTS:
        notes.append(f"Volumes are drawn for the first {MOST_AGREEMENT_PLOTS} of {len(classes)} classes.")
    return drawings


def _agreement_in_words(label: str, volumes: list[StructureVolume]) -> str:
    limits = limits_of_agreement(volumes)
    bias, low, high = (millilitres(value, limits[2]) for value in limits)
    return f"{label}: bias {bias} ml, limits of agreement {low} to {high} ml, {len(volumes)} cases"


def _chosen_cases(
    run: RunContents, part: ScoredPart, slug: str, gallery: _Gallery, notes: list[str]
) -> list[CasePicture]:
    """Best, median and worst by mean Dice, or those with pictures that come nearest."""
    dice = {case: value for case, value in part.values("dice").items() if not math.isnan(value)}
    if not part.pictures and part.grid != "model":
        notes.append(f"{run.label}: no pictures were kept for these cases; `predict` writes them.")
    chosen = choose_cases(dice, set(part.pictures))
    pictures = []
    without = []
    for why, case in chosen.items():
        try:
            picture = read_picture(part.pictures[case])
        except InputError as error:
            notes.append(str(error))
            continue
        mosaic = _mosaic(run, picture, dice[case], f"{slug}-{why}".replace(" ", "-"), gallery)
        pictures.append(CasePicture(why, picture, dice[case], mosaic))
        without += [case] if picture.reference is None else []
    if without:
        notes.append(
            f"{run.label}: the pictures of {', '.join(without)} hold no reference; the prediction is shown alone."
        )
    return pictures


def choose_cases(dice: dict[str, float], pictured: set[str]) -> dict[str, str]:
    """Why a case is shown, and which: best, median and worst of all scored cases, each once.

    Where such a case has no picture, the pictured case nearest in rank stands in, and is called so.

    Args:
        dice: Case to its mean Dice, without NaN.
        pictured: The cases that have a picture.
    """
    ranked = sorted(dice, key=lambda case: -dice[case])
    shown = [rank for rank, case in enumerate(ranked) if case in pictured]
    chosen: dict[str, str] = {}
    for why, wanted in (("best", 0), ("median", len(ranked) // 2), ("worst", len(ranked) - 1)):
        nearest = min(shown, key=lambda rank: abs(rank - wanted), default=None)
        if nearest is not None and ranked[nearest] not in chosen.values():
            chosen[why if nearest == wanted else f"near {why}"] = ranked[nearest]
    return chosen


def _mosaic(run: RunContents, picture: Picture, dice: float, slug: str, gallery: _Gallery) -> Drawing:
    figure = case_mosaic(picture, run.class_names, dice)
    outlines = "outlines of reference and prediction" if picture.reference is not None else "the prediction's outlines"
    description = (
        f"Case {picture.case} by {run.label}: axial, coronal and sagittal slice with {outlines}. Mean Dice {dice:.3f}."
    )
    return gallery.picture(figure, f"case-{slug}", picture.case, description)


def _fill_viewer(parts: Sequence[PartView], out: Path) -> list[ViewerCase]:
    """Write the viewer and the chosen cases' volumes beside the page; only the list where NiiVue is not installed."""
    chosen = [(view, run, case) for view in parts for run, cases in view.pictures for case in cases]
    if not chosen or not viewer_is_there():
        return [ViewerCase(case.picture.case) for _, _, case in chosen]
    copy_viewer(out)
    several = len({run.label for _, run, _ in chosen}) > 1
    cases = []
    for place, (view, run, case) in enumerate(chosen, start=1):
        title = f"{case.picture.case}, {case.why} of {view.title}{f' by {run.label}' if several else ''}"
        cases.append(write_case(case.picture, title, run.class_names, out, f"case-{place}"))
    return cases


def _curves(runs: Sequence[RunContents], gallery: _Gallery) -> list[Drawing]:
    names = ", ".join(run.label for run in runs)
    return [
        gallery.chart(
            figures.curve_chart(runs, curve),
            f"curve-{curve.key.replace('_', '-')}",
            curve.title,
            f"{curve.words} for {names}.",
        )
        for curve in figures.CURVES
        if figures.has_curve(runs, curve.key)
    ]


def _alike(runs: Sequence[RunContents], tell: Callable[[RunContents], Any]) -> list[tuple[str, RunContents, Any]]:
    """What runs tell, once for all that tell the same: their labels, the first of them, and what it is."""
    groups: list[tuple[list[str], RunContents, Any]] = []
    for run in runs:
        told = tell(run)
        labels = next((names for names, first, other in groups if other == told and _same_block(first, run)), None)
        if told and labels is None:
            groups.append(([run.label], run, told))
        elif labels is not None:
            labels.append(run.label)
    return [("; ".join(labels), run, told) for labels, run, told in groups]


def _same_block(one: RunContents, other: RunContents) -> bool:
    return (one.summary.get("block") or {}).get("sha256") == (other.summary.get("block") or {}).get("sha256")


def _title(runs: Sequence[RunContents]) -> str:
    tasks = list(dict.fromkeys(str(run.summary["task"]) for run in runs if run.summary.get("task")))
    return " and ".join(tasks) if tasks else ", ".join(run.label for run in runs)


def _in_a_sentence(runs: Sequence[RunContents]) -> str:
    """What the page says, for somebody who reads no further."""
    if len(runs) > 1:
        return _side_by_side(runs)
    run = runs[0]
    cases, steps = run.summary.get("cases") or {}, run.summary.get("steps")
    learned = f"learned from {cases['training']:,} cases" if cases.get("training") else "was trained"
    if run.is_unfinished:
        learned += f"; training stopped at step {steps:,} of {run.summary['planned_steps']:,}"
    elif steps:
        learned += f" in {steps:,} steps"
    if not run.parts:
        return f"{run.label} {learned}. It has not been scored yet."
    part = run.part(_telling_title(runs)) or run.parts[0]
    cell = overall(part, "dice")
    reached = f"{run.label} {learned}{',' if run.is_unfinished else ''} and reached"
    return f"{reached} a mean Dice of {number(cell.mean)} on {cell.n} {part.part} cases it did not learn from."


def _telling_title(runs: Sequence[RunContents]) -> str:
    """The part that tells most of all runs: test, of which nothing was chosen by; else the first."""
    titles = _part_titles(runs)
    tests = [title for title in titles if title.startswith("test") and all(run.part(title) for run in runs)]
    return next(iter(tests + titles), "")


def _side_by_side(runs: Sequence[RunContents]) -> str:
    """The runs' mean Dice where all were scored on the same cases, else only their names."""
    names = f"{len(runs)} runs side by side: {', '.join(run.label for run in runs)}."
    title = _telling_title(runs)
    scored = [part for run in runs if (part := run.part(title))]
    if len(scored) < len(runs) or len({frozenset(part.cases) for part in scored}) > 1:
        return names
    means = [f"{run.label} {number(overall(part, 'dice').mean)}" for run, part in zip(runs, scored, strict=True)]
    return f"{len(runs)} runs on the same {len(scored[0].cases)} {scored[0].part} cases. Mean Dice: {', '.join(means)}."


def _comparability(runs: Sequence[RunContents]) -> list[str]:
    """Why numbers of these runs may not be set beside one another."""
    if len(runs) < 2:
        return []
    notes = []
    for key, what in (("task", "tasks"), ("protocol", "protocols"), ("steps", "numbers of steps"), ("seed", "seeds")):
        found = dict.fromkeys(str(run.summary[key]) for run in runs if run.summary.get(key) is not None)
        if len(found) > 1:
            notes.append(f"The runs have different {what}: {', '.join(found)}.")
    for title in _part_titles(runs):
        scored = [part for run in runs if (part := run.part(title))]
        if len({frozenset(part.cases) for part in scored}) > 1:
            notes.append(f"The {title} parts do not hold the same cases: means are not comparable case by case.")
        if len({part.tolerance_mm for part in scored}) > 1:
            notes.append(f"NSD of the {title} parts was taken at different tolerances.")
    return notes


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("medvisionllama.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "number": number,
        "interval": interval,
        "signed": signed,
        "p_value": p_value,
        "duration": duration,
        "count": count,
        "overall": overall,
        "as_dict": ViewerCase.as_dict,
        "published_command": published_command,
    }
    environment.filters.update(filters)
    environment.filters["marked_code"] = marked_code
    environment.globals["metric_titles"] = figures.METRIC_TITLES
    environment.globals["run_colour"] = drawing.page_colour
    return environment


def marked_code(text: str) -> Markup:
    """What stands between backticks as code, everything else as the text it is."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # a backtick without its fellow
        return Markup("{}").format(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if place % 2 else piece for place, piece in enumerate(pieces)
    )


def _version() -> str:
    try:
        return version("medvisionllama")
    except PackageNotFoundError:
        return "unknown version"
