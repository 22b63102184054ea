"""What commands print: objects, tables, scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def print_object(content: dict[str, Any], as_json: bool) -> None:
    """One JSON object, or a line an entry."""
    from medvisionllama.run_folder import to_json

    if as_json:
        print(to_json(content))
        return
    width = max(len(key) for key in content)
    for key, value in content.items():
        print(f"{key.replace('_', ' '):<{width}}  {_plainly(value)}".rstrip())


def _plainly(value: Any) -> str:
    """As people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plainly, value)) or "none"
    return str(value)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def tell_scores(summaries: dict[str, dict[str, Any]], part: str, as_json: bool) -> None:
    """One run's summary as one object, several runs' as one object by run; or a line a run."""
    from medvisionllama.run_folder import to_json

    if as_json:
        print(to_json(next(iter(summaries.values())) if len(summaries) == 1 else summaries))
        return
    for summary in summaries.values():
        if part not in summary:
            print(f"{summary['model']}: trained for {summary['steps']} steps, no {part} part to score")
            continue
        scores = summary[part]
        by_class = ", ".join(f"{name} {value:.4f}" for name, value in scores["dice"].items() if value is not None)
        mean = "not known" if scores["dice_mean"] is None else f"{scores['dice_mean']:.4f}"
        print(f"{summary['model']}: {part} Dice {mean} ({by_class}), n = {scores['cases']}")
