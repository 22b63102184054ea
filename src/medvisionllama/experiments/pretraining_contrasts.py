"""The study's comparisons: which middles are compared, on which rows, and which differences count as detected.

One metric of one part holds two families, each with its own correction (Holm 1979). The first was declared in advance:
the pre-trained block against its shuffled and its random (matched) copy, in every network, share of the data and block
of the plan. All other comparisons are exploratory. A family is as large as it was planned: a comparison that is not
measured yet, or rests on one seed, counts in it with p = 1, so that what is found early gets no milder judge.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.stats import t as student

from medvisionllama.experiments.effects import Effect, effect_of
from medvisionllama.experiments.pretraining import Place, Scope, place_of, told_apart
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
    ("identity", "pretrained"): "the frozen block and its adapters, beyond mappers and residual",
    ("none", "pretrained"): "the whole middle stage",
    ("none", "identity"): "mappers alone, with no block between them",
    ("trained", "pretrained"): "keeping the block frozen, against training its shape from scratch",
}
CONTRASTS = {**DECLARED, **EXPLORATORY}

Measured = Mapping[Place, Mapping[int, Row]]
Pair = tuple[Place, str]  # the place of the second middle, and the first middle


@dataclass(frozen=True)
class Contrast:
    """One line of the table of effects.

    Attributes:
        place: Of the second middle.
        first: The middle it is compared with.
        part: ``validation`` or ``test``.
        metric: Of the scores.
        effect: Second less first.
        declared: Whether it is of the family declared in advance.
        holm_p: The test over both spreads, corrected within its family; NaN for one seed or one case.
        detectable: The difference that would have passed the correction's first step, with this line's spread; NaN
            where there is no test.
        apart: What tells its place from others of the same names.
    """

    place: Place
    first: str
    part: str
    metric: str
    effect: Effect
    declared: bool
    holm_p: float = math.nan
    detectable: float = math.nan
    apart: str = ""

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


def lines_of(measured: Measured, part: str, metric: str, scope: Scope | None = None) -> list[Contrast]:
    """Every contrast that two middles with a shared seed allow, family by family.

    Args:
        measured: The rows.
        part: ``validation`` or ``test``.
        metric: Of the scores.
        scope: What the study is about: what is planned of it and missing still counts in the corrections; what was
            merely asked for does not, or one more command would change what is detected. By default what was measured,
            all of it declared.
    """
    scope, apart = scope or Scope(), told_apart([*measured])
    counted = [place for place in scope.places if place in scope.planned or place in measured]
    lines = []
    for declared in (True, False):
        there, wanted = (
            [pair for pair in _pairs(places) if _is_declared(pair, scope) is declared] for places in (measured, counted)
        )
        raw = [line for pair in there if (line := _raw_line(measured, pair, part, metric, declared)) is not None]
        missing = len(set(wanted) - {(line.place, line.first) for line in raw})
        lines += [replace(line, apart=apart[line.place]) for line in _corrected(raw, missing)]
    return lines


def _is_declared(pair: Pair, scope: Scope) -> bool:
    place, first = pair
    if (first, place.middle) not in DECLARED:
        return False
    return scope.declared is None or {place, place.with_middle(first)} <= set(scope.declared)


def _raw_line(measured: Measured, pair: Pair, part: str, metric: str, declared: bool) -> Contrast | None:
    place, first = pair
    before, after = (_by_case(measured[one], part, metric) for one in (place.with_middle(first), place))
    effect = effect_of(before, after)
    return None if effect is None else Contrast(place, first, part, metric, effect, declared)


def _corrected(lines: Sequence[Contrast], missing: int) -> list[Contrast]:
    """With Holm's p, and what a difference would have to be to be the first that is detected."""
    p_values = [line.effect.both.p for line in lines]
    adjusted = holm([*(1.0 if math.isnan(p) else p for p in p_values), *[1.0] * missing])
    family = len(lines) + missing
    return [
        replace(
            line,
            holm_p=math.nan if math.isnan(p) else held,
            detectable=_quantile(SIGNIFICANCE / family, line.effect.both.degrees) * line.effect.both.standard_error,
        )
        for line, p, held in zip(lines, p_values, adjusted, strict=False)
    ]


def _quantile(level: float, degrees: float) -> float:
    """Beyond what t lies with the probability ``level``, on both sides together."""
    return math.nan if math.isnan(degrees) else float(student.isf(level / 2, degrees))


def _pairs(places: Collection[Place]) -> list[Pair]:
    """Places of second middles, with the first middle that the same place has too."""
    return [
        (place, first)
        for first, second in CONTRASTS
        for place in sorted(places)
        if place.middle == second and place.with_middle(first) in places
    ]


def _by_case(rows: Mapping[int, Row], part: str, metric: str) -> dict[int, dict[str, float]]:
    return {seed: row.parts[part].by_case(metric) for seed, row in rows.items() if part in row.parts}


def to_csv(lines: Sequence[Contrast]) -> list[tuple[str, ...]]:
    """Every line as plain numbers; ``low``, ``high``, ``p`` and ``degrees`` are of the interval that decides."""
    head = (
        "task", "block", "network", "lora", "fraction", "steps", "splits", "body", "stage", "first", "second", "family",
        "part", "metric", "difference", "standard_error", "degrees", "low", "high", "p", "holm_p", "marks", "detected",
        "detectable_from", "seeds", "seed_differences", "seed_sd", "seed_low", "seed_high", "cases", "case_low",
        "case_high", "case_t_p", "case_wilcoxon_p", "cohens_dz", "rank_biserial",
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
                line.marks, decision, exact(line.detectable), " ".join(map(str, effect.seeds)),
                " ".join(map(exact, effect.by_seed)), *map(exact, over_seeds), str(cases.n), *map(exact, over_cases),
            )
        )  # fmt: skip
    return table
