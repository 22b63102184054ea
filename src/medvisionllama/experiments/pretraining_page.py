"""The study's answer as a page: every number on it is computed from the rows, none is typed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from medvisionllama.experiments.effects import Effect, effect_of
from medvisionllama.experiments.pretraining import MIDDLES, NAME, PLANNED_TASK, RECIPE, Place, place_of
from medvisionllama.experiments.rows import PartScores, Row
from medvisionllama.reports.drawing import INK, INK_SOFT, run_colour, save, styled
from medvisionllama.reports.statistics import holm
from medvisionllama.reports.wording import MINUS, UNKNOWN, p_value
from medvisionllama.run_folder import write_table, write_text

PARTS = ("validation", "test")
METRICS = ("dice", "nsd", "hd95_mm")
SIGNIFICANCE = 0.05
# What is compared, and what a difference would mean; first minus second would be the other way round.
CONTRASTS = {
    ("shuffled", "pretrained"): "the same entries in their learned order",
    ("random-matched", "pretrained"): "learned weights beyond each tensor's mean and SD",
    ("random", "pretrained"): "learned weights beyond the family's random start",
    ("identity", "pretrained"): "the frozen block beyond its mappers and residual",
    ("none", "pretrained"): "the whole middle stage",
    ("none", "identity"): "mappers alone, with no block between them",
    ("trained", "pretrained"): "keeping the block frozen, against training its shape from scratch",
}
ABOUT_PRETRAINING = tuple(pair for pair in CONTRASTS if pair[1] == "pretrained" and pair[0] in MIDDLES[2:5])

Measured = Mapping[Place, Mapping[int, Row]]


@dataclass(frozen=True)
class Line:
    """One line of the table of effects.

    Attributes:
        place: Of the second middle.
        first: The middle it is compared with.
        part: ``validation`` or ``test``.
        metric: Of the scores.
        effect: Second less first.
        holm_p: The t-test over cases, by Holm's method over the lines of this part and metric.
    """

    place: Place
    first: str
    part: str
    metric: str
    effect: Effect
    holm_p: float = math.nan

    @property
    def marks(self) -> str:
        """``*`` for raw p < .05 over cases, a dagger where it survives Holm's correction."""
        raw, held = self.effect.cases.t_p < SIGNIFICANCE, self.holm_p < SIGNIFICANCE
        return "*" * raw + "\N{DAGGER}" * held


def by_place(rows: Collection[Row]) -> dict[Place, dict[int, Row]]:
    """The rows that belong to the study, by place and seed."""
    found: defaultdict[Place, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        place = place_of(row.settings, row.model, row.block)
        if place is not None:
            found[place][row.seed] = row
    return dict(found)


def lines_of(measured: Measured, part: str, metric: str) -> list[Line]:
    """Every contrast that two middles with a shared seed allow, in the order of the tables."""
    lines = []
    for first, second in CONTRASTS:
        for place in sorted(measured):
            if place.middle != second:
                continue
            other = measured.get(place.with_middle(first), {})
            effect = effect_of(_by_case(other, part, metric), _by_case(measured[place], part, metric))
            if effect is not None:
                lines.append(Line(place, first, part, metric, effect))
    adjusted = holm([line.effect.cases.t_p for line in lines])
    return [Line(line.place, line.first, part, metric, line.effect, p) for line, p in zip(lines, adjusted, strict=True)]


def write_page(
    rows: Collection[Row], planned: Mapping[Place, Collection[int]], out: Path, commands: Sequence[str]
) -> list[Path]:
    """Write ``README.md``, the table of effects as Markdown and CSV, and the figure.

    Args:
        rows: All that were measured.
        planned: Which seeds of which places the study is about; others that were measured are shown too.
        out: The folder.
        commands: What finishes the study, and makes this page again.
    """
    measured = by_place(rows)
    lines = {(part, metric): lines_of(measured, part, metric) for part in PARTS for metric in METRICS}
    figure = save(draw_effects(lines["validation", "dice"]), out, NAME) if lines["validation", "dice"] else []
    write_table(out / f"{NAME}.csv", _csv([line for some in lines.values() for line in some]))
    tables = "\n\n".join(
        f"### {METRIC_NAMES[metric]}, {part} part\n\n{_effects_table(some)}"
        for (part, metric), some in lines.items()
        if some
    )
    write_text(out / f"{NAME}.md", f"# Effects in {NAME}\n\n{READING}\n\n{tables}\n")
    write_text(out / "README.md", _page(measured, planned, lines, bool(figure), commands))
    return [out / "README.md", out / f"{NAME}.md", out / f"{NAME}.csv", *figure]


METRIC_NAMES = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 in mm"}
READING = (
    "A difference is second less first, paired by case within a seed and averaged over seeds. `seeds` is the "
    "t-interval "
    "over the seeds' mean differences, `cases` the bootstrap interval over cases of the seed-averaged differences; "
    "both "
    "are 95 %. p is the paired t-test over cases; `*` says raw p < .05, a dagger that it survives Holm's correction "
    "over "
    "the table's lines. `detected` asks for more: both intervals on one side of zero."
)


def _page(
    measured: Measured,
    planned: Mapping[Place, Collection[int]],
    lines: Mapping[tuple[str, str], Sequence[Line]],
    figure: bool,
    commands: Sequence[str],
) -> str:
    rows = [row for of_place in measured.values() for row in of_place.values()]
    parts = [
        "# Does pre-training matter?",
        "*Made by `medvisionllama reproduce does-pretraining-matter` from the files in `rows/`; no number here is "
        "typed.*",
        _question(measured),
        "## Answer",
        _answer(lines["validation", "dice"], measured),
    ]
    if figure:
        parts.append(
            f"![Differences in Dice with their intervals]({NAME}.png)\n\n"
            "*Differences in mean Dice on the validation part. Dots: one seed each. Thick bar: 95 % t-interval over "
            f"seeds. Thin bar: 95 % bootstrap interval over cases. ([SVG]({NAME}.svg))*"
        )
    parts += ["## Effects on Dice, validation part", READING, _effects_table(lines["validation", "dice"])]
    if lines["test", "dice"]:
        parts += [
            "## Effects on Dice, test part (scored once, chosen by nothing)",
            _effects_table(lines["test", "dice"]),
        ]
    parts += [
        f"NSD and HD95 stand in [{NAME}.md]({NAME}.md), all of it in [{NAME}.csv]({NAME}.csv).",
        "## What was measured",
        "Mean over cases of the mean Dice over classes, then mean ± SD over seeds (the SD is the spread of trainings, "
        "not of cases).",
        _means_table(measured),
        "## Design",
        _design(rows),
        "## What this can and cannot say",
        _limits(measured),
        "## Where the numbers come from",
        _provenance(rows),
        "## What was not run",
        _missing(measured, planned, commands),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _question(measured: Measured) -> str:
    return (
        "The papers put a frozen layer of a language model between a segmentation network's encoder and decoder and "
        "call "
        "what follows a gain of pre-training. They compare with the network *without the whole stage*. Here the same "
        "network is trained, at equal steps, with nothing in between, with mappers alone, and around the block frozen "
        "at "
        "several starts: its pre-trained weights, the same entries shuffled within each tensor, and random weights. "
        "Only "
        "what differs between the last three is pre-training."
        + ("" if measured else "\n\nNothing has been measured yet.")
    )


def _answer(lines: Sequence[Line], measured: Measured) -> str:
    about = [line for line in lines if (line.first, line.place.middle) in ABOUT_PRETRAINING]
    if not about:
        return "No pre-trained block has been compared with its controls yet."
    sentences = []
    for block in sorted({line.place.block for line in about}):
        some = [line for line in about if line.place.block == block]
        ahead = [line for line in some if line.effect.detected and line.effect.difference > 0]
        behind = [line for line in some if line.effect.detected and line.effect.difference < 0]
        few = [line for line in some if len(line.effect.seeds) < 2]
        bounds = [max(abs(line.effect.seed_low), abs(line.effect.seed_high)) for line in some if line not in few]
        means = [line.effect.difference for line in some]
        sentence = (
            f"**{block}.** Of {_counted(len(some), 'comparison')} of the pre-trained block with a shuffled or random "
            "one, "
            f"{len(ahead)} detected a gain and {len(behind)} a loss. Differences in mean Dice ran from "
            f"{_points(min(means))} to {_points(max(means))} (in hundredths)."
        )
        if bounds:
            sentence += (
                f" The tightest of their intervals over seeds rules out effects beyond ±{100 * min(bounds):.2f}, the "
                f"widest only those beyond ±{100 * max(bounds):.2f}."
            )
        if few:
            sentence += f" {_counted(len(few), 'comparison')} of one seed alone, which says nothing of spread."
        sentences.append(sentence)
    whole = [line for line in lines if line.first == "none" and line.effect.detected]
    if any(line.first == "none" for line in lines):
        gains = sum(line.effect.difference > 0 for line in whole)
        sentences.append(
            f"**Against no middle stage at all**, {gains} of {sum(line.first == 'none' for line in lines)} comparisons "
            f"detected a gain and {len(whole) - gains} a loss: what the papers' comparison would have seen, whatever "
            "its cause."
        )
    return "\n\n".join(sentences)


def _effects_table(lines: Sequence[Line]) -> str:
    if not lines:
        return "No two middles have been trained from a common seed yet."
    head = "| block | network | LoRA | data | second less first | difference | seeds: interval (SD, n) "
    text = [head + "| cases: interval (n) | d_z over cases | p over cases | detected |", "|" + "---|" * 11]
    for line in lines:
        effect, place, metric = line.effect, line.place, line.metric
        spread = f"{_size(effect.seed_sd, metric)}, {len(effect.seeds)}"
        seeds = f"{_interval(effect.seed_low, effect.seed_high, metric)} ({spread})"
        cases = f"{_interval(effect.cases.low, effect.cases.high, metric)} ({effect.cases.n})"
        few = len(effect.seeds) < 2
        text.append(
            f"| {place.block or '-'} | {place.network} | {_lora(place)} | {_share(place)} | "
            f"{place.middle} {MINUS} {line.first} | {_points(effect.difference, metric)} | {seeds} | {cases} | "
            f"{effect.cases.cohens_dz:+.2f} | {p_value(effect.cases.t_p)}{line.marks} | "
            f"{'one seed' if few else 'yes' if effect.detected else 'no'} |".replace("-0.00 ", "0.00 ")
        )
    unit = "in hundredths" if lines[0].metric != "hd95_mm" else "in mm, lower is better"
    return "\n".join(text) + f"\n\nDifferences {unit}."


def _means_table(measured: Measured) -> str:
    text = ["| block | network | LoRA | data | middle | validation Dice | test Dice | seeds |", "|" + "---|" * 8]
    places = sorted(
        measured, key=lambda p: (p.network, p.fraction, p.block, p.lora, MIDDLES.index(p.middle), p.task, p.steps)
    )
    for place in places:
        rows = measured[place]
        cells = []
        for part in PARTS:
            means = [scores.mean("dice") for row in rows.values() if (scores := row.parts.get(part)) is not None]
            spread = f" ± {np.std(means, ddof=1):.4f}" if len(means) > 1 else ""
            cells.append(f"{np.mean(means):.4f}{spread}" if means else UNKNOWN)
        seeds = ", ".join(map(str, sorted(rows)))
        text.append(
            f"| {place.block or '-'} | {place.network} | {_lora(place)} | {_share(place)} | {place.middle} | "
            f"{cells[0]} | {cells[1]} | {seeds} |"
        )
    return "\n".join(text)


def _design(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    recipe = rows[0].settings["recipe"]
    counts = sorted({(row.fraction, row.content["cases"]["training"]) for row in rows})
    first = rows[0].content["cases"]
    training = ", ".join(f"{cases} at {fraction:.0%}" for fraction, cases in counts)
    steps = ", ".join(f"{n:,}" for n in sorted({row.steps for row in rows}))
    return "\n".join(
        [
            f"- **Data**: {', '.join(sorted({row.task for row in rows}))}, native protocol (SPEC 5), one fixed split: "
            f"training cases {training}; {first['validation']} to validate, {first['test']} to test.",
            f"- **Budget**: {steps} steps of batch {recipe['batch_size']} for every middle, {recipe['optimizer']} at "
            f"{recipe['learning_rate']:g}, {recipe['schedule']} after {recipe['warmup']:.0%} of warm-up, "
            f"{recipe['loss']}, {recipe['precision']}. At a smaller share of the data the same steps are more epochs.",
            "- **No choosing**: the last step's weights are scored; the validation part has no say in the training.",
            "- **Pairs**: within a seed all middles start with equal stem, encoder and decoder, and see equal batches, "
            "bent equally. Random and shuffled blocks are drawn anew for each seed; each row's file holds the block's "
            "SHA-256.",
            "- **Frozen is frozen**: after each training the block's hash is compared with that before.",
            "- **LoRA** `on`: rank 8 in the mappers and in the block's query and value projections, as in v2; `off`: "
            "trainable linear mappers, nothing trained in the block.",
            "- **Contrasts**: "
            + "; ".join(f"{second} {MINUS} {first}: {meaning}" for (first, second), meaning in CONTRASTS.items())
            + ".",
        ]
    )


def _limits(measured: Measured) -> str:
    blocks = sorted({place.block for place in measured if place.block})
    sizes = []
    for block in blocks:
        row = next(row for place, rows in measured.items() if place.block == block for row in rows.values())
        numbers = (row.content.get("identity") or {}).get("numbers", {})
        width = numbers.get("hidden_size")
        frozen = (row.content.get("parameters") or {}).get("frozen")
        sizes.append(
            f"{block} ({f'width {width}, ' if width else ''}{frozen:,} frozen parameters in all)" if frozen else block
        )
    tasks = sorted({place.task for place in measured})
    seeds = sorted({seed for rows in measured.values() for seed in rows})
    return "\n".join(
        [
            f"- It speaks of {' and '.join(sizes) or 'no block yet'}, on {' and '.join(tasks) or 'no task yet'}, at "
            "this "
            "budget. Small blocks cannot answer for Llama-3.1-8B (SPEC 12); the command for it is below.",
            f"- {_counted(len(seeds), 'seed')}: the t-interval over so few is wide, and that is its message. One "
            "split: "
            "another would move all means, and the differences by an unknown amount.",
            "- `not detected` is no proof of no effect: read the interval for the effects that remain possible.",
            "- The validation cases are the same under every seed, so the interval over cases says nothing of other "
            "trainings, nor that over seeds of other patients. They are reported side by side and never pooled.",
            "- Longer training, other tasks, larger images and other places for the block are not covered.",
        ]
    )


def _provenance(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    training = sum(row.seconds for row in rows)
    sources = Counter(row.content["source"] for row in rows)
    machines = Counter(
        f"{row.content['environment'].get('processor')}, {row.content['environment'].get('device')}, "
        f"{row.content['environment'].get('cores')} thread(s)"
        for row in rows
    )
    torches = sorted({row.content["environment"]["packages"]["torch"] for row in rows})
    dates = sorted(row.content["environment"]["date"][:10] for row in rows)
    return "\n".join(
        [
            f"- {_counted(len(rows), 'training')}, {training / 3600:.1f} hours of training in all, by the clock.",
            f"- Seeds: {', '.join(str(seed) for seed in sorted({row.seed for row in rows}))}.",
            f"- Machine: {'; '.join(f'{name} ({n} rows)' for name, n in machines.most_common())}.",
            f"- Program: {'; '.join(f'`{name}` ({n} rows)' for name, n in sources.most_common())}; torch "
            f"{', '.join(torches)}; {dates[0]} to {dates[-1]}.",
        ]
    )


def _missing(measured: Measured, planned: Mapping[Place, Collection[int]], commands: Sequence[str]) -> str:
    gaps = {place: sorted(set(seeds) - set(measured.get(place, {}))) for place, seeds in planned.items()}
    gaps = {place: seeds for place, seeds in gaps.items() if seeds}
    total, left = sum(len(set(seeds)) for seeds in planned.values()), sum(map(len, gaps.values()))
    text = [
        f"{total - left} of {total} planned cells are measured." if left else f"All {total} planned cells are measured."
    ]
    if gaps:
        text.append(
            "\n".join(f"- {_described(place)}: seed {', '.join(map(str, s))}" for place, s in sorted(gaps.items()))
        )
    finish = "These commands measure what is missing and write this page anew" if left else "Made by these commands"
    text.append(f"{finish} (finished cells are skipped):")
    text.append("```\n" + "\n".join(commands) + "\n```")
    return "\n\n".join(text)


@styled
def draw_effects(lines: Sequence[Line]) -> Figure:
    """Differences with their intervals, one panel a share of the data, one line a contrast, block and network."""
    fractions = sorted({line.place.fraction for line in lines})
    kinds = list(dict.fromkeys(_kind(line) for line in lines))
    networks = list(dict.fromkeys(line.place.network for line in lines))
    figure = Figure(figsize=(3.4 + 2.6 * len(fractions), 1.3 + 0.36 * len(kinds)), layout="constrained")
    panels = figure.subplots(1, len(fractions), sharey=True, sharex=True, squeeze=False)[0]
    for axes, fraction in zip(panels, fractions, strict=True):
        axes.axvline(0, color=INK_SOFT, linewidth=1)
        axes.set_title(f"{fraction:.0%} of the data")
        axes.set_xlabel("difference in Dice, hundredths")
        for line in (line for line in lines if line.place.fraction == fraction):
            which = networks.index(line.place.network)
            offset = 0.14 * (1 - 2 * which / (len(networks) - 1)) if len(networks) > 1 else 0.0
            at, colour, effect = offset - kinds.index(_kind(line)), run_colour(which), line.effect
            if not math.isnan(effect.seed_low):
                axes.plot([100 * effect.seed_low, 100 * effect.seed_high], [at, at], color=colour, lw=5, alpha=0.35)
            axes.plot([100 * effect.cases.low, 100 * effect.cases.high], [at, at], "|-", color=colour, lw=1.2, ms=6)
            axes.plot([100 * d for d in effect.by_seed], [at] * len(effect.by_seed), ".", color=INK, markersize=3)
            axes.plot(100 * effect.difference, at, "D", color=colour, markersize=4.5)
    panels[0].set_yticks([-place for place in range(len(kinds))], kinds)
    panels[0].set_ylim(0.5 - len(kinds), 0.5)
    marks = [panels[0].plot([], [], "D-", color=run_colour(i), markersize=4.5)[0] for i in range(len(networks))]
    figure.legend(marks, networks, loc="outside lower center", ncols=len(networks))
    return figure


def _kind(line: Line) -> str:
    lora = "" if line.place.lora in ("both", "") else ", LoRA off"
    block = f" ({line.place.block}{lora})" if line.place.block else ""
    others = (line.place.task, line.place.steps) != (PLANNED_TASK, RECIPE.steps)
    elsewhere = f", {line.place.task}, {line.place.steps:,} steps" if others else ""
    return f"{line.place.middle} {MINUS} {line.first}{block}{elsewhere}"


def _csv(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    head = (
        "task", "block", "network", "lora", "fraction", "steps", "first", "second", "part", "metric", "difference",
        "seeds", "seed_differences", "seed_sd", "seed_low", "seed_high", "cases", "case_low", "case_high", "t_p",
        "holm_p", "wilcoxon_p", "cohens_dz", "rank_biserial", "marks", "detected",
    )  # fmt: skip
    table: list[tuple[str, ...]] = [head]
    for line in lines:
        place, effect, cases = line.place, line.effect, line.effect.cases
        numbers = (effect.seed_sd, effect.seed_low, effect.seed_high)
        table.append(
            (
                place.task, place.block, place.network, place.lora, f"{place.fraction:g}", str(place.steps), line.first,
                place.middle, line.part, line.metric, _exact(effect.difference), " ".join(map(str, effect.seeds)),
                " ".join(map(_exact, effect.by_seed)), *map(_exact, numbers), str(cases.n), _exact(cases.low),
                _exact(cases.high), _exact(cases.t_p), _exact(line.holm_p), _exact(cases.wilcoxon_p),
                _exact(cases.cohens_dz), _exact(cases.rank_biserial), line.marks, "yes" if effect.detected else "no",
            )
        )  # fmt: skip
    return table


def _by_case(rows: Mapping[int, Row], part: str, metric: str) -> dict[int, dict[str, float]]:
    found: dict[int, PartScores] = {seed: row.parts[part] for seed, row in rows.items() if part in row.parts}
    return {seed: scores.by_case(metric) for seed, scores in found.items()}


def _described(place: Place) -> str:
    block = f" around {place.block}" if place.block else ""
    budget = f"{place.fraction:.0%}, {place.steps:,} steps"
    return f"{place.task}, {place.network}, {place.middle}{block}, LoRA {_lora(place)}, {budget}"


def _share(place: Place) -> str:
    """Which data, and how many steps where they are not as planned."""
    steps = "" if place.steps == RECIPE.steps else f", {place.steps:,} steps"
    return f"{place.task.partition('_')[0]} {place.fraction:.0%}{steps}"


def _lora(place: Place) -> str:
    return {"both": "on", "none": "off", "": "-"}.get(place.lora, place.lora)


def _points(value: float, metric: str = "dice") -> str:
    text = f"{value if metric.endswith('_mm') else 100 * value:+.2f}"
    return text.replace("-", MINUS)


def _size(value: float, metric: str) -> str:
    return "SD -" if math.isnan(value) else f"SD {value if metric.endswith('_mm') else 100 * value:.2f}"


def _interval(low: float, high: float, metric: str) -> str:
    return UNKNOWN if math.isnan(low) else f"{_points(low, metric)} to {_points(high, metric)}"


def _exact(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
