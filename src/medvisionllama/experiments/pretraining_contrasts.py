"""The study's comparisons: which middles are compared, on which rows, and which differences count as detected.

One metric of one part holds two families, each with its own correction (Holm 1979). The first was declared in advance:
the pre-trained block against its shuffled and its random (matched) copy, in every network, share of the data and block.
All other contrasts are exploratory. A family is as large as it was planned: a comparison that is not measured yet, or
rests on one seed, counts in it with p = 1, so that what is found early gets no milder judge.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from medvisionllama.experiments.effects import Effect, effect_of
from medvisionllama.experiments.pretraining import Place, place_of, told_apart
from medvisionllama.experiments.rows import Row
from medvisionllama.reports.comparison import SIGNIFICANCE, marks
from medvisionllama.reports.statistics import holm
from medvisionllama.reports.wording import exact

# First and second middle, and what second less first would mean.
DECLARED = {
    ("shuffled", "pretrained"): "the same entries in their learned order",
    ("random-matched", "pretrained"): "learned weights beyond each tensor's mean and SD",
}
EXPLORATORY = {
    ("random", "pretrained"): "learned weights beyond the family's random start",
    ("identity", "pretrained"): "the frozen block beyond its mappers and residual",
    ("none", "pretrained"): "the whole middle stage",
    ("none", "identity"): "mappers alone, with no block between them",
    ("trained", "pretrained"): "keeping the block frozen, against training its shape from scratch",
}
FAMILIES = (DECLARED, EXPLORATORY)

Measured = Mapping[Place, Mapping[int, Row]]
Planned = Mapping[Place, Collection[int]]


@dataclass(frozen=True)
class Line:
    """One line of the table of effects.

    Attributes:
        place: Of the second middle.
        first: The middle it is compared with.
        part: ``validation`` or ``test``.
        metric: Of the scores.
        effect: Second less first.
        holm_p: The test over both spreads, corrected within its family; NaN for one seed or one case.
        apart: What tells its place from others of the same names.
    """

    place: Place
    first: str
    part: str
    metric: str
    effect: Effect
    holm_p: float = math.nan
    apart: str = ""

    @property
    def declared(self) -> bool:
        """Whether it is of the family declared in advance."""
        return (self.first, self.place.middle) in DECLARED

    @property
    def decided(self) -> bool:
        """Whether there is a decision at all: one seed says nothing of other trainings."""
        return not math.isnan(self.holm_p)

    @property
    def detected(self) -> bool:
        """Whether zero is rejected by the one test that holds both spreads, after its family's correction."""
        return self.holm_p < SIGNIFICANCE

    @property
    def marks(self) -> str:
        """``*`` for raw p < .05 over both spreads, a dagger where it survives the correction."""
        return marks(self.effect.both.p, self.holm_p)


def by_place(rows: Collection[Row]) -> dict[Place, dict[int, Row]]:
    """The rows that belong to the study, by place and seed."""
    found: defaultdict[Place, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        place = place_of(row.settings, row.model, row.block)
        if place is not None:
            found[place][row.seed] = row
    return dict(found)


def lines_of(measured: Measured, part: str, metric: str, planned: Planned | None = None) -> list[Line]:
    """Every contrast that two middles with a shared seed allow, family by family.

    Args:
        measured: The rows.
        part: ``validation`` or ``test``.
        metric: Of the scores.
        planned: The study's places: what is missing of them still counts in the corrections.
    """
    apart = told_apart([*measured])
    return [
        replace(line, apart=apart[line.place])
        for family in FAMILIES
        for line in _corrected(_raw_lines(measured, part, metric, family), _pairs(planned or {}, family))
    ]


def _raw_lines(measured: Measured, part: str, metric: str, family: Mapping[tuple[str, str], str]) -> list[Line]:
    lines = []
    for place, first in _pairs(measured, family):
        effect = effect_of(
            _by_case(measured[place.with_middle(first)], part, metric), _by_case(measured[place], part, metric)
        )
        if effect is not None:
            lines.append(Line(place, first, part, metric, effect))
    return lines


def _corrected(lines: Sequence[Line], planned: Sequence[tuple[Place, str]]) -> list[Line]:
    p_values = [line.effect.both.p for line in lines]
    missing = set(planned) - {(line.place, line.first) for line in lines}
    adjusted = holm([*(1.0 if math.isnan(p) else p for p in p_values), *[1.0] * len(missing)])
    return [
        replace(line, holm_p=math.nan if math.isnan(p) else held)
        for line, p, held in zip(lines, p_values, adjusted, strict=False)
    ]


def _pairs(places: Collection[Place], family: Mapping[tuple[str, str], str]) -> list[tuple[Place, str]]:
    """Places of second middles, with the first middle that the same place has too."""
    return [
        (place, first)
        for first, second in family
        for place in sorted(places)
        if place.middle == second and place.with_middle(first) in places
    ]


def _by_case(rows: Mapping[int, Row], part: str, metric: str) -> dict[int, dict[str, float]]:
    return {seed: row.parts[part].by_case(metric) for seed, row in rows.items() if part in row.parts}


def to_csv(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Every line as plain numbers; ``low``, ``high``, ``p`` and ``degrees`` are of the interval that decides."""
    head = (
        "task", "block", "network", "lora", "fraction", "steps", "splits", "body", "stage", "first", "second", "family",
        "part", "metric", "difference", "standard_error", "degrees", "low", "high", "p", "holm_p", "marks", "detected",
        "seeds", "seed_differences", "seed_sd", "seed_low", "seed_high", "cases", "case_low", "case_high", "case_t_p",
        "case_wilcoxon_p", "cohens_dz", "rank_biserial",
    )  # fmt: skip
    table: list[tuple[str, ...]] = [head]
    for line in lines:
        place, effect, both, cases = line.place, line.effect, line.effect.both, line.effect.cases
        decision = ("yes" if line.detected else "no") if line.decided else ""
        over_both = (effect.difference, both.standard_error, both.degrees, both.low, both.high, both.p, line.holm_p)
        over_seeds = (effect.seed_sd, effect.seed_low, effect.seed_high)
        over_cases = (cases.low, cases.high, cases.t_p, cases.wilcoxon_p, cases.cohens_dz, cases.rank_biserial)
        table.append(
            (
                place.task, place.block, place.network, place.lora, f"{place.fraction:g}", str(place.steps),
                place.splits, place.body, place.stage, line.first, place.middle,
                "declared" if line.declared else "exploratory", line.part, line.metric, *map(exact, over_both),
                line.marks, decision, " ".join(map(str, effect.seeds)), " ".join(map(exact, effect.by_seed)),
                *map(exact, over_seeds), str(cases.n), *map(exact, over_cases),
            )
        )  # fmt: skip
    return table
