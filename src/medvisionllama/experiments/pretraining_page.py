"""The study's answer as a page: every measured number on it is computed from the rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from medvisionllama.experiments.origin import provenance, unlike_pairs
from medvisionllama.experiments.pretraining import NAME, Scope, gaps_of, told_apart
from medvisionllama.experiments.pretraining_contrasts import CONTRASTS, Contrast, Measured, by_place, lines_of, to_csv
from medvisionllama.experiments.pretraining_figure import draw_effects
from medvisionllama.experiments.pretraining_limits import limits, missing, total_of
from medvisionllama.experiments.pretraining_norms import READING as READING_NORMS
from medvisionllama.experiments.pretraining_norms import norms_table
from medvisionllama.experiments.pretraining_wording import (
    data_of,
    interval,
    network_of,
    page_order,
    points,
    spread,
)
from medvisionllama.experiments.rows import Row
from medvisionllama.reports.comparison import SIGNIFICANCE
from medvisionllama.reports.drawing import save
from medvisionllama.reports.wording import MINUS, UNKNOWN, counted, p_value, signed
from medvisionllama.run_folder import write_table, write_text

PARTS = ("validation", "test")
METRICS = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 in mm"}
DECIDING = ("validation", "dice")  # what the answer is read from; all else stands beside it

QUESTION = """\
The papers put a frozen layer of a language model between a segmentation network's encoder and decoder and call what \
follows a gain of pre-training. They compare with the network *without the whole stage*, which differs in more than \
pre-training. The question here: **does the same network segment better around the pre-trained layer than around the \
same layer with its pre-training destroyed**, at equal steps, data and seeds?"""

STARTS = {
    "pretrained": "with its pre-trained weights",
    "shuffled": "with the same entries shuffled within each tensor",
    "random-matched": "with random weights of each tensor's mean and SD",
    "random": "with the family's own random start",
}

READING = f"""\
A difference is second less first, paired by case within a seed, averaged over seeds and cases. Its 95 % interval \
holds both spreads at once, over seeds and over cases, as crossed samples: the variance of the mean is that of the \
seeds' means by their number plus that of the cases' means by theirs (what neither explains is counted twice), with \
the degrees of freedom of the smaller sample, one less than the seeds: strict, but where both spreads are normal it \
errs no more often than it says, also at the levels that the correction below asks for. p is this t-test's, whose \
square is Clark's min F'; `*` says raw p < {SIGNIFICANCE:g}.

`detected` is the one decision: p after Holm's correction below {SIGNIFICANCE:g} (†). It corrects over a declared \
family: pre-trained against shuffled and against random (matched), in each network, share of the data and block that \
was planned; comparisons not measured yet count in it. All other comparisons are a family of their own, and \
exploratory. Each metric of each part is corrected by itself; the answer is read from Dice on the validation part \
alone. One seed allows no decision. `detectable from` is how large the difference measured had to be, with this line's \
spread, to be the first that passes the correction; once others have passed, less is enough. A true effect of that \
size would be missed by about every second study.

`seeds` is the t-interval over the seeds' mean differences (what other trainings would give on these cases), `cases` \
the bootstrap interval over cases of the seed-averaged differences (what other cases would give with these trainings); \
neither decides. Intervals are of single comparisons, not widened for their number."""

RULES_SET = """\
When these rules were set: on 2026-11-22 one family of all contrasts gave way to the declared one, and an uncorrected \
interval to this test, when some cells of the first seed had been measured and none of another (`2b1471a`). The test \
was made stricter once more when cells of the second seed had been: degrees of freedom had been estimated from five \
seeds on, with which about 9 % of families of ten true zeros held a detection in the worst simulated setting (about \
1 % there now; `tests/experiments/test_effects.py`). No decision hung on it then: with two seeds both rules are one."""


def write_page(rows: Collection[Row], scope: Scope, out: Path, commands: Sequence[str]) -> list[Path]:
    """Write ``README.md``, the table of effects as Markdown and CSV, and the figure.

    Args:
        rows: All that were measured.
        scope: Which seeds of which places the study is about; others that were measured are shown too.
        out: The folder.
        commands: What finishes the study, and makes this page again.
    """
    measured = by_place(rows)
    lines = {(part, metric): lines_of(measured, part, metric, scope) for part in PARTS for metric in METRICS}
    figure = save(draw_effects(lines[DECIDING]), out, NAME) if lines[DECIDING] else []
    write_table(out / f"{NAME}.csv", to_csv([line for some in lines.values() for line in some]))
    tables = "\n\n".join(
        f"### {METRICS[metric]}, {part} part\n\n{_families(some)}" for (part, metric), some in lines.items() if some
    )
    write_text(out / f"{NAME}.md", f"# Effects in {NAME}\n\n{READING}\n\n{tables}\n")
    write_text(out / "README.md", _page(measured, scope, lines, bool(figure), commands))
    return [out / "README.md", out / f"{NAME}.md", out / f"{NAME}.csv", *figure]


def _page(
    measured: Measured,
    scope: Scope,
    lines: Mapping[tuple[str, str], Sequence[Contrast]],
    figure: bool,
    commands: Sequence[str],
) -> str:
    rows = [row for of_place in measured.values() for row in of_place.values()]
    parts = [
        "# Does pre-training matter?",
        f"*Made by `medvisionllama reproduce {NAME}` from the files in `rows/`, which hold every number measured.*",
        "## What was asked",
        QUESTION,
        "## What was done",
        _done(measured) if measured else "Nothing has been measured yet.",
        _design(measured),
        "## What was found",
        _answer(lines[DECIDING], measured, scope),
    ]
    if figure:
        parts.append(
            f"![Differences in Dice with their intervals]({NAME}.png)\n\n"
            "*Differences in mean Dice on the validation part; above the dotted line the declared family. "
            "Thick bar: the 95 % interval over both spreads, which decides (none for one seed). Thin bar: 95 % "
            "bootstrap interval over cases alone. Dots: one seed each. A filled diamond was detected, an empty one was "
            f"not. ([SVG]({NAME}.svg))*"
        )
    parts += ["### How to read the tables", READING, RULES_SET if scope.is_planned else ""]
    parts += ["### Dice, validation part", _families(lines["validation", "dice"])]
    if lines["test", "dice"]:
        parts += ["### Dice, test part (scored once, chosen by nothing)", _families(lines["test", "dice"])]
    parts += [
        f"NSD and HD95 stand in [{NAME}.md]({NAME}.md), all of it in [{NAME}.csv]({NAME}.csv).",
        "### The means behind the differences",
        "Mean over cases of the mean Dice over classes, then mean ± SD over seeds (the SD is the spread of trainings, "
        "not of cases).",
        _means_table(measured),
        *_norms(measured),
        "## What this cannot say",
        limits(measured),
        "## Where the numbers come from",
        provenance(rows),
        unlike_pairs(_pairs(measured, lines[DECIDING]), "their middle"),
        "## What was not run",
        missing(measured, scope, commands),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _pairs(measured: Measured, lines: Sequence[Contrast]) -> list[tuple[Row, Row]]:
    """The trainings behind the lines."""
    return [
        (measured[line.place.with_middle(line.first)][seed], measured[line.place][seed])
        for line in lines
        for seed in line.effect.seeds
    ]


def _done(measured: Measured) -> str:
    """Which middles one network was trained with."""
    middles = {place.middle for place in measured}
    around = [words for middle, words in STARTS.items() if middle in middles]
    said = ["with nothing in between"] * ("none" in middles) + ["with mappers alone"] * ("identity" in middles)
    said += [f"around the frozen block ({'; '.join(around)})"] * bool(around)
    said += ["around a block of its shape that trains"] * ("trained" in middles)
    done = f"One network is trained {_listed(said)}."
    if {"pretrained"} < middles & {"pretrained", "shuffled", "random-matched"}:
        done += " Between the pre-trained start and its destroyed copies nothing differs but the pre-training."
    return done


def _listed(words: Sequence[str]) -> str:
    """Such as ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _norms(measured: Measured) -> list[str]:
    table = norms_table(measured)
    return ["### What passes through the block", READING_NORMS, table] if table else []


def _answer(lines: Sequence[Contrast], measured: Measured, scope: Scope) -> str:
    declared = [line for line in lines if line.declared]
    others = [line for line in lines if not line.declared]
    sentences = [_provisional(measured, scope)]
    if not declared:
        sentences.append("No pre-trained block has been compared with its declared controls yet.")
    for block in sorted({line.place.block for line in declared}):
        sentences.append(_answer_of(block, [line for line in declared if line.place.block == block]))
    copies = [line for line in others if line.first in ("shuffled", "random-matched", "random")]
    for block in sorted({line.place.block for line in copies}):
        sentences.append(_answer_of(block, [line for line in copies if line.place.block == block]))
    whole, mappers = ([line for line in lines if _contrast(line) == ("none", m)] for m in ("pretrained", "identity"))
    if whole:
        sentences.append(
            "**Against no middle stage at all** (exploratory), of "
            f"{counted(len(whole), 'comparison')} of the pre-trained block {_verdicts(whole)}. This is what the "
            "papers' comparison sees, whatever its cause."
            + (f" Of {counted(len(mappers), 'comparison')} of mappers alone {_verdicts(mappers)}." if mappers else "")
        )
    return "\n\n".join(sentence for sentence in sentences if sentence)


def _contrast(line: Contrast) -> tuple[str, str]:
    return line.first, line.place.middle


def _answer_of(block: str, lines: Sequence[Contrast]) -> str:
    means = [line.effect.difference for line in lines]
    tasks = " and ".join(sorted({line.place.task for line in lines}))
    steps = " and ".join(f"{n:,}" for n in sorted({line.place.steps for line in lines}))
    exploratory = "" if lines[0].declared else " (exploratory)"
    said = (
        f"**{block} on {tasks}, {steps} steps**{exploratory}. Of {counted(len(lines), 'comparison')} of the "
        f"pre-trained block with its shuffled or random copy {_verdicts(lines)}. Differences in mean Dice ran from "
        f"{points(min(means))} to {points(max(means))} (in hundredths)."
    )
    for line in (line for line in lines if line.detected):
        both = line.effect.both
        said += (
            f" Detected: {network_of(line.place)}, {data_of(line.place)}, {line.place.middle} {MINUS} {line.first}: "
            f"{points(both.value)} ({interval(both.low, both.high, 'dice')})."
        )
    open_lines = [line.effect.both for line in lines if line.decided and not line.detected]
    bounds = [max(abs(both.low), abs(both.high)) for both in open_lines]
    if len(bounds) == 1:
        said += f" The 95 % interval of what was not detected leaves room for effects up to ±{100 * bounds[0]:.2f}."
    elif bounds:
        said += (
            f" Where nothing was detected, the tightest 95 % interval leaves room for effects up to "
            f"±{100 * min(bounds):.2f}, the widest for up to ±{100 * max(bounds):.2f}."
        )
    needed = [100 * line.detectable for line in lines if line.decided]
    if needed:
        said += f" To be the first detected, a difference had to reach {min(needed):.2f}"
        said += f" to {max(needed):.2f}, by line." if len(needed) > 1 else "."
    return said


def _verdicts(lines: Sequence[Contrast]) -> str:
    gains = sum(line.detected and line.effect.difference > 0 for line in lines)
    losses = sum(line.detected and line.effect.difference < 0 for line in lines)
    undecided = sum(not line.decided for line in lines)
    if undecided == len(lines):
        return "none allows a decision yet (one seed)"
    neither = len(lines) - gains - losses - undecided
    said = f"{gains} detected a gain, {losses} a loss, {neither} neither"
    return said + (f", and {undecided} allowed no decision (one seed)" if undecided else "")


def _provisional(measured: Measured, scope: Scope) -> str:
    left, added = total_of(gaps_of(measured, scope.planned)), scope.added
    more_seeds = any(place in scope.planned for place in added)
    said = []
    if left and measured:
        said.append(f"**Provisional**: {left} of {total_of(scope.planned)} planned cells are not measured yet.")
        if scope.is_planned and not more_seeds:
            said.append("The number of seeds was set before the first.")
        said.append("What is said here counts once all are there.")
    if added:
        said.append(f"**Beyond the plan** {counted(total_of(added), 'cell')} more asked for or measured.")
        said.append("Comparisons of other places than planned are exploratory.")
    if more_seeds:
        said.append(
            "Seeds beyond the plan enter the comparisons of planned places: where they were added after these had been "
            "looked at, the test errs more often than it says."
        )
    return " ".join(said)


def _families(lines: Sequence[Contrast]) -> str:
    if not lines:
        return "No two middles have been trained from a common seed yet."
    declared, others = ([line for line in lines if line.declared is which] for which in (True, False))
    text = [f"The declared family:\n\n{_effects_table(declared)}"] if declared else []
    text += [f"Exploratory:\n\n{_effects_table(others)}"] if others else []
    unit = "mm, lower is better" if lines[0].metric.endswith("_mm") else "hundredths"
    return "\n\n".join([*text, f"Differences and intervals in {unit}."])


def _effects_table(lines: Sequence[Contrast]) -> str:
    head = "| network | data | second less first | difference: interval | p | after Holm | detected | detectable from "
    text = [head + "| seeds: interval (SD, n) | cases: interval (n) | d_z over cases |", "|" + "---|" * 11]
    for line in lines:
        effect, place, metric = line.effect, line.place, line.metric
        cases = effect.cases
        text.append(
            f"| {network_of(place)} | {data_of(place, line.apart)} | "
            f"{place.middle} {MINUS} {line.first} | "
            f"{points(effect.difference, metric)}: {interval(effect.both.low, effect.both.high, metric)} | "
            f"{p_value(effect.both.p)}{line.marks} | {p_value(line.holm_p)} | {_decision(line)} | "
            f"{_size(line.detectable, metric)} | "
            f"{interval(effect.seed_low, effect.seed_high, metric)} "
            f"({spread(effect.seed_sd, metric)}{len(effect.seeds)}) | "
            f"{interval(cases.low, cases.high, metric)} ({cases.n}) | {signed(cases.cohens_dz, '_mm')} |"
        )
    return "\n".join(text)


def _size(value: float, metric: str) -> str:
    """A difference of either sign."""
    return UNKNOWN if math.isnan(value) else points(value, metric).removeprefix("+")


def _decision(line: Contrast) -> str:
    if line.decided:
        return "**yes**" if line.detected else "no"
    return "one seed: no decision" if len(line.effect.seeds) < 2 else "one case: no decision"


def _means_table(measured: Measured) -> str:
    text = ["| network | data | middle | validation Dice | test Dice | seeds |", "|" + "---|" * 6]
    apart = told_apart([*measured])
    for place in sorted(measured, key=page_order):
        rows = measured[place]
        cells = []
        for part in PARTS:
            means = [scores.mean("dice") for row in rows.values() if (scores := row.parts.get(part)) is not None]
            spread = f" ± {np.std(means, ddof=1):.4f}" if len(means) > 1 else ""
            cells.append(f"{np.mean(means):.4f}{spread}" if means else UNKNOWN)
        seeds = ", ".join(map(str, sorted(rows)))
        text.append(
            f"| {network_of(place)} | {data_of(place, apart[place])} | {place.middle} | {cells[0]} | {cells[1]} | "
            f"{seeds} |"
        )
    return "\n".join(text)


def _design(measured: Measured) -> str:
    """What was done, and of the design what was measured alone."""
    rows = [row for of_place in measured.values() for row in of_place.values()]
    if not rows:
        return ""
    recipe = rows[0].settings["recipe"]
    steps = ", ".join(f"{n:,}" for n in sorted({row.steps for row in rows}))
    contrasts = "; ".join(
        f"{second} {MINUS} {first}: {meaning}"
        for (first, second), meaning in CONTRASTS.items()
        if {first, second} <= {place.middle for place in measured}
    )
    ranks = {one["rank"] for row in rows if (one := row.settings["config"]["middle"])["kind"] != "none"}
    loras = {place.lora for place in measured if place.lora}
    adapted = f"rank {' or '.join(map(str, sorted(ranks)))} in the mappers and in the block's queries and values"
    off = "`LoRA off`: trainable linear mappers, and nothing that trains in the block"
    lora = "; ".join([adapted] * ("both" in loras) + [off] * ("none" in loras))
    return "\n".join(
        [
            f"- **Data**: {'; '.join(_cases_of(rows))}. Native protocol (the image's own grid, each class by itself), "
            "one fixed split.",
            f"- **Budget**: {steps} steps of batch {recipe['batch_size']} for every middle, {recipe['optimizer']} at "
            f"{recipe['learning_rate']:g}, {recipe['schedule']} after {recipe['warmup']:.0%} of warm-up, "
            f"{recipe['loss']}, {recipe['precision']}. At a smaller share of the data the same steps are more epochs.",
            "- **No choosing**: the last step's weights are scored; the validation part has no say in the training. "
            "Label maps are scored as the network leaves them.",
            "- **Pairs**: within a seed all middles start with equal stem, encoder and decoder, and see equal batches, "
            "bent equally. Random and shuffled blocks are drawn anew for each seed; each row's file holds the block's "
            "SHA-256.",
            "- **Frozen is frozen**: after each training the block's hash is compared with that before.",
            *([f"- **LoRA**: {lora}."] if lora else []),
            *([f"- **Contrasts**: {contrasts}."] if contrasts else []),
        ]
    )


def _cases_of(rows: Sequence[Row]) -> list[str]:
    """Each task's cases by part; training cases by share."""
    found: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: (row.task, row.fraction)):
        found[row.task][f"{row.content['cases']['training']} training cases at {100 * row.fraction:g}%"] = None
    for row in rows:
        cases = row.content["cases"]
        found[row.task][f"{cases['validation']} to validate, {cases['test']} to test"] = None
    return [f"{task}: {', '.join(said)}" for task, said in found.items()]
