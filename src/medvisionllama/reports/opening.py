"""What the page says first: of what it is, what came out in one sentence, and what may not be compared."""

from __future__ import annotations

from collections.abc import Sequence

from medvisionllama.reports.run_contents import RunContents
from medvisionllama.reports.score_table import overall
from medvisionllama.reports.wording import number


def part_titles(runs: Sequence[RunContents]) -> list[str]:
    """Of all parts that any run has, once each."""
    return list(dict.fromkeys(part.title for run in runs for part in run.parts))


def page_title(runs: Sequence[RunContents]) -> str:
    """The tasks, or the runs where no task is told."""
    tasks = list(dict.fromkeys(str(run.summary["task"]) for run in runs if run.summary.get("task")))
    return " and ".join(tasks) if tasks else ", ".join(run.label for run in runs)


def in_a_sentence(runs: Sequence[RunContents]) -> str:
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
    titles = part_titles(runs)
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


def comparability(runs: Sequence[RunContents]) -> list[str]:
    """Why numbers of these runs may not be set beside one another."""
    if len(runs) < 2:
        return []
    notes = []
    for key, what in (("task", "tasks"), ("protocol", "protocols"), ("steps", "numbers of steps"), ("seed", "seeds")):
        found = dict.fromkeys(str(run.summary[key]) for run in runs if run.summary.get(key) is not None)
        if len(found) > 1:
            notes.append(f"The runs have different {what}: {', '.join(found)}.")
    for title in part_titles(runs):
        scored = [part for run in runs if (part := run.part(title))]
        if len({frozenset(part.cases) for part in scored}) > 1:
            notes.append(f"The {title} parts do not hold the same cases: means are not comparable case by case.")
        if len({part.tolerance_mm for part in scored}) > 1:
            notes.append(f"NSD of the {title} parts was taken at different tolerances.")
    return notes
