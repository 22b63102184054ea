"""Both papers' Table 1: what each task holds, as printed and as it lies here."""

from __future__ import annotations

from collections.abc import Mapping

from medvisionllama.data.task import Task
from medvisionllama.experiments.tables import TASKS, published


def data_table(version: str, tasks: Mapping[str, Task]) -> str:
    """The ten tasks with the paper's count of cases and the one here, as Markdown.

    Args:
        version: Of the paper.
        tasks: Those that are here, by the Decathlon's names.
    """
    head = "| task | modalities | channels | classes | cases in the paper | cases here |"
    lines = [head, "|" + "---|" * 6]
    printed = {cell.task: cell.value for cell in published(version, "1", metric="cases")}
    for name in TASKS:
        task = tasks.get(name)
        if task is None:
            lines.append(f"| {name} | not here |  |  | {printed[name]:g} |  |")
            continue
        modalities, classes = ", ".join(task.modalities), ", ".join(task.classes.values())
        lines.append(f"| {name} | {modalities} | {task.channels} | {classes} | {printed[name]:g} | {len(task.cases)} |")
    return "## The data\n\n" + "\n".join(lines) + "\n"
