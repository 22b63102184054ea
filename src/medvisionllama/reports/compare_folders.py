"""Evaluated folders in, their comparison as files and a table out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvisionllama.errors import InputError
from medvisionllama.reports.comparison import Test, compare, unpaired_cases
from medvisionllama.reports.comparison_text import left_out_notes, to_csv, to_latex, to_markdown
from medvisionllama.reports.evaluated import read_alike
from medvisionllama.run_folder import write_json, write_text


def compare_folders(folders: Sequence[Path], out: Path | None = None, *, test: Test = "t") -> dict[str, Any]:
    """Compare folders that ``evaluate`` wrote, each with the first.

    Args:
        folders: Two or more with ``scores.csv``; their ``summary.json`` is heeded where it is there.
        out: Where ``comparison.csv``, ``.json``, ``.md`` and ``.tex`` go; None writes nothing.
        test: Whose p the marks and Holm's correction are about; both are always given.

    Returns:
        What ``comparison.json`` holds, and under ``"markdown"`` the table to print.

    Raises:
        InputError: Cases, classes or references are not the same everywhere (they are named), NSD was scored with
            different tolerances, or on different grids.
    """
    if len(folders) < 2:
        raise InputError("nothing to compare", expected="two evaluated folders or more")
    scores, notes = read_alike(folders)
    cells = compare(scores, test)
    unpaired = unpaired_cases(scores)
    notes += left_out_notes(scores, unpaired, cells)
    markdown = to_markdown(scores, cells, test, notes)
    result = {
        "folders": {each.name: str(folder) for each, folder in zip(scores, folders, strict=True)},
        "pairing_unit": "case",
        "cases": list(scores[0].cases),
        "tolerance_mm": scores[0].tolerance_mm,
        "grid": scores[0].grid,
        "marks_from": test,
        "notes": notes,
        "unpaired": unpaired,
        "comparisons": [cell.as_dict() for cell in cells],
    }
    if out is not None:
        write_json(out / "comparison.json", result)
        write_text(out / "comparison.csv", to_csv(cells))
        write_text(out / "comparison.md", markdown)
        write_text(out / "comparison.tex", to_latex(scores, cells, test, notes))
    return result | {"markdown": markdown}
