"""The page: what was trained on what, how well it does, and how it looks; one file that opens from disk, offline.

Everything drawn comes from run folders alone. Style and figures lie inside ``index.html``; the same figures lie beside
it as PNG and SVG for papers and talks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from medvisionllama.errors import InputError
from medvisionllama.reports import drawing, figures
from medvisionllama.reports.facts import FACTS, said
from medvisionllama.reports.gallery import Drawing, Gallery
from medvisionllama.reports.mosaic import CONVENTION
from medvisionllama.reports.opening import comparability, in_a_sentence, page_title, part_titles
from medvisionllama.reports.part_view import PartView, part_view
from medvisionllama.reports.run_contents import RunContents, read_runs
from medvisionllama.reports.score_table import (
    ALL_CLASSES,
    overall,
)
from medvisionllama.reports.shareable import shareable, shareable_command
from medvisionllama.reports.viewer import VIEWER_FILE, ViewerCase, copy_viewer, viewer_is_there, write_case
from medvisionllama.reports.wording import count, duration, interval, marked_code, number, p_value, signed
from medvisionllama.run_folder import METRICS, write_text

# In the head of every page, and of nobody else's.
_MARK = '<meta name="generator" content="medvisionllama'
OWN_FILES = (
    "index.html",
    *(
        f"figures/{kind}-*.{end}"
        for kind in ("boxes", "case", "curve", "same-cases", "volumes")
        for end in ("png", "svg")
    ),
    "viewer/case-*.js",
    f"viewer/{VIEWER_FILE}",
)


def write_page(runs: Sequence[Path], out: Path, *, images: bool = True) -> Path:
    """Write ``OUT/index.html`` and ``OUT/figures/*.png, *.svg`` about one or several runs.

    Args:
        runs: Run folders, as ``train`` and ``predict`` leave them. What one lacks is said on the page.
        out: The folder to write to; made where missing.
        images: Whether voxels may be shown. Without them, no picture of a patient is written anywhere.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: A run is not a folder, or ``out`` cannot be written.
    """
    contents = read_runs(runs)
    _clear(out)
    gallery = Gallery(out / "figures")
    parts = [part_view(title, contents, gallery, images) for title in part_titles(contents)]
    viewer_cases = _fill_viewer(parts, out / "viewer")
    for view in parts:
        view.notes[:] = [shareable(note, runs) for note in view.notes]
    page = _environment().get_template("page.html.jinja")
    text = page.render(
        runs=contents,
        parts=parts,
        curves=_curves(contents, gallery),
        title=page_title(contents),
        summary=in_a_sentence(contents),
        notes=comparability(contents),
        gaps=[(run.label, shareable(sentence, runs)) for run in contents for sentence in run.missing],
        facts=[(name, [said(tell, run) for run in contents]) for name, tell in FACTS],
        networks=_alike(contents, lambda run: run.summary.get("stages")),
        versions=_alike(contents, lambda run: run.environment.get("packages")),
        images=images,
        viewer_cases=viewer_cases,
        viewer_there=viewer_is_there(),
        convention=CONVENTION,
        metrics=METRICS,
        made_by=_version(),
        all_classes=ALL_CLASSES,
    )
    write_text(out / "index.html", text)
    return out / "index.html"


def _clear(out: Path) -> None:
    """Take away what an earlier page left here, so that a page without images has none beside it either.

    The page's own ``index.html`` tells that what has the names of a page's files is one. It is put there at once, so
    that of a page that was interrupted the same is known.

    Raises:
        InputError: The folder holds such files of somebody else, or cannot be written.
    """
    earlier = [path for pattern in OWN_FILES for path in out.glob(pattern)]
    if earlier and not _is_ours(out / "index.html"):
        raise InputError(
            f"{out} holds {earlier[0].relative_to(out)}, which no page of this program is beside",
            mend="Name another folder by --out; what lies there is not touched.",
        )
    write_text(out / "index.html", f'{_MARK} {_version()}">A page that was not finished: run `report` again.\n')
    try:
        for path in earlier:
            if path.name != "index.html":
                path.unlink()
    except OSError as error:
        raise InputError(
            f"cannot replace {path}", got=error.strerror or str(error), mend="Choose another folder."
        ) from error


def _is_ours(page: Path) -> bool:
    return page.is_file() and _MARK in page.read_text(encoding="utf-8", errors="replace")[:2000]


def _fill_viewer(parts: Sequence[PartView], out: Path) -> list[ViewerCase]:
    """Write the viewer and the chosen cases' volumes beside the page; only the list where NiiVue is not installed."""
    chosen = [(view, run, case) for view in parts for run, cases in view.pictures for case in cases]
    if not chosen or not viewer_is_there():
        return [ViewerCase(case.picture.case) for _, _, case in chosen]
    copy_viewer(out)
    several = len({run.label for _, run, _ in chosen}) > 1
    cases = []
    for place, (view, run, case) in enumerate(chosen, start=1):
        title = f"{case.picture.case}, {case.why} of {view.title}{f' by {run.label}' if several else ''}"
        cases.append(write_case(case.picture, title, run.class_names, out, f"case-{place}"))
    return cases


def _curves(runs: Sequence[RunContents], gallery: Gallery) -> list[Drawing]:
    names = ", ".join(run.label for run in runs)
    return [
        gallery.chart(
            figures.curve_chart(runs, curve),
            f"curve-{curve.key.replace('_', '-')}",
            curve.title,
            f"{curve.words} for {names}.",
        )
        for curve in figures.CURVES
        if figures.has_curve(runs, curve.key)
    ]


def _alike(runs: Sequence[RunContents], tell: Callable[[RunContents], Any]) -> list[tuple[str, RunContents, Any]]:
    """What runs tell, once for all that tell the same: their labels, the first of them, and what it is."""
    groups: list[tuple[list[str], RunContents, Any]] = []
    for run in runs:
        told = tell(run)
        labels = next((names for names, first, other in groups if other == told and _same_block(first, run)), None)
        if told and labels is None:
            groups.append(([run.label], run, told))
        elif labels is not None:
            labels.append(run.label)
    return [("; ".join(labels), run, told) for labels, run, told in groups]


def _same_block(one: RunContents, other: RunContents) -> bool:
    return (one.summary.get("block") or {}).get("sha256") == (other.summary.get("block") or {}).get("sha256")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("medvisionllama.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "number": number,
        "interval": interval,
        "signed": signed,
        "p_value": p_value,
        "duration": duration,
        "count": count,
        "overall": overall,
        "as_dict": ViewerCase.as_dict,
        "shareable_command": shareable_command,
    }
    environment.filters.update(filters)
    environment.filters["marked_code"] = marked_code
    environment.globals["metric_titles"] = figures.METRIC_TITLES
    environment.globals["run_colour"] = drawing.page_colour
    return environment


def _version() -> str:
    try:
        return version("medvisionllama")
    except PackageNotFoundError:
        return "unknown version"
