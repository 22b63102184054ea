"""What the page shows of one part of the split: scores, differences, boxes, agreement of volumes, chosen cases."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from medvisionllama.errors import InputError
from medvisionllama.reports import figures
from medvisionllama.reports.gallery import Drawing, Gallery
from medvisionllama.reports.mosaic import case_mosaic
from medvisionllama.reports.paper_figures import qualitative_grid
from medvisionllama.reports.run_contents import Picture, RunContents, ScoredPart, read_picture
from medvisionllama.reports.score_table import (
    ALL_CLASSES,
    TABLE_METRICS,
    ClassScores,
    Difference,
    SeedSpread,
    differences,
    metrics_of,
    score_table,
    seed_spread,
)
from medvisionllama.reports.volumes import limits_of_agreement, structure_volumes
from medvisionllama.reports.wording import millilitres, number
from medvisionllama.run_folder import VolumeRow

SAME_CASES = 6
MOST_AGREEMENT_PLOTS = 6


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


def part_view(title: str, runs: Sequence[RunContents], gallery: Gallery, images: bool) -> PartView:
    """All that the page shows of one part, its figures drawn.

    Args:
        title: The part's, as :class:`~medvisionllama.reports.run_contents.ScoredPart` tells it.
        runs: All runs of the page, those without this part too.
        gallery: Draws.
        images: Whether voxels may be shown.
    """
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
    runs: Sequence[RunContents], title: str, slug: str, gallery: Gallery, notes: list[str]
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


def _boxes(runs: Sequence[RunContents], title: str, slug: str, metric: str, gallery: Gallery) -> Drawing:
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
    scored: Sequence[tuple[RunContents, ScoredPart]], slug: str, gallery: Gallery, notes: list[str]
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


def _agreement_in_words(label: str, volumes: list[VolumeRow]) -> str:
    limits = limits_of_agreement(volumes)
    bias, low, high = (millilitres(value, limits[2]) for value in limits)
    return f"{label}: bias {bias} ml, limits of agreement {low} to {high} ml, {len(volumes)} cases"


def _chosen_cases(
    run: RunContents, part: ScoredPart, slug: str, gallery: Gallery, notes: list[str]
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


def _mosaic(run: RunContents, picture: Picture, dice: float, slug: str, gallery: Gallery) -> Drawing:
    figure = case_mosaic(picture, run.class_names, dice)
    outlines = "outlines of reference and prediction" if picture.reference is not None else "the prediction's outlines"
    description = (
        f"Case {picture.case} by {run.label}: axial, coronal and sagittal slice with {outlines}. Mean Dice {dice:.3f}."
    )
    return gallery.picture(figure, f"case-{slug}", picture.case, description)
