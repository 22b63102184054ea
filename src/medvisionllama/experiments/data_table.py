"""Both papers' Table 1: what each task holds, as printed and as it lies here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medvisionllama.data.task import Task
from medvisionllama.experiments.tables import MODALITIES, TASKS, published

HEAD = ("task", "published_modality", "modalities", "channels", "classes", "published_cases", "cases")
_TITLES = ("task", "modality in the paper", "modalities", "channels", "classes", "cases in the paper", "cases here")


def data_rows(version: str, tasks: Mapping[str, Task]) -> list[tuple[str, ...]]:
    """The ten tasks, then those of them here that no paper has: what is printed, and what is here (empty if nothing).

    Args:
        version: Of the paper.
        tasks: Those that are here, by the Decathlon's names.

    Returns:
        A tuple a task, its columns those of :data:`HEAD`.
    """
    counts = {cell.task: f"{cell.value:g}" for cell in published(version, "1", metric="cases")}
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys([*TASKS, *tasks]):
        task = tasks.get(name)
        modalities, channels, classes, cases = ("", "", "", "")
        if task is not None:
            modalities, classes = ", ".join(task.modalities), ", ".join(task.classes.values())
            channels, cases = str(task.channels), str(len(task.cases))
        rows.append((name, MODALITIES.get(name, ""), modalities, channels, classes, counts.get(name, ""), cases))
    return rows


def data_table(rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown."""
    lines = [f"| {' | '.join(_TITLES)} |", "|" + "---|" * len(_TITLES)]
    for *cells, cases in rows:
        lines.append(f"| {' | '.join([*cells, cases or 'not here'])} |")
    return "\n".join(lines)
