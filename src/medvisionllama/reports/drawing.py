"""How every figure looks and how it is written: PNG and SVG for papers, SVG inside the page for screens.

Colours are those of Okabe and Ito, told apart with any common colour blindness; line patterns and markers repeat what
colour says. Figures are drawn without pyplot, so that nothing global is touched.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medvisionllama.errors import InputError

RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.6, 1.4, 1.6)))
MARKERS = "osD^vP*"
# One odd shade stands for the ink, so that the page can swap it for the colour of its text.
INK = "#1c2321"
INK_SOFT = "#6b7471"
# Pictures of voxels lie on a dark plate, in the page and in the files, as on a reading room's screen.
PLATE = "#0c0f0e"
PLATE_INK = "#e9eeeb"

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medvisionllama",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    **{f"{what}.color": INK_SOFT for what in ("xtick", "ytick", "grid")},
    **{f"{what}.labelcolor": INK for what in ("xtick", "ytick", "axes")},
    "axes.edgecolor": INK_SOFT,
    "text.color": INK,
}

P = ParamSpec("P")


def run_colour(index: int) -> str:
    """The colour of the run at this place; colours repeat after seven, patterns do not repeat together with them."""
    return RUN_COLOURS[index % len(RUN_COLOURS)]


def page_colour(index: int) -> str:
    """The same as the page's style names it: lighter where the page is dark."""
    return f"var(--run-{index % len(RUN_COLOURS)}, {run_colour(index).lower()})"


def run_dashes(index: int) -> Any:
    """The line pattern of the run at this place."""
    return DASHES[index % len(DASHES)]


def class_colour(value: int) -> str:
    """The colour of a label value (1 and above), the same in every picture and chart."""
    return CLASS_COLOURS[(value - 1) % len(CLASS_COLOURS)]


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a drawing function use the house style, whatever the caller has set."""

    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    drawn.__doc__, drawn.__name__, drawn.__wrapped__ = draw.__doc__, draw.__name__, draw  # type: ignore[attr-defined]
    return drawn


def chart(title: str, x_label: str, y_label: str, height: float = 3.1, width: float = 4.6) -> tuple[Figure, Axes]:
    """One chart, 4.6 inches wide: legible on a phone without shrinking, two beside each other on a desk."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``name.png`` (200 dpi) and ``name.svg``; equal figures give equal files.

    Raises:
        InputError: The folder cannot be written.
    """
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(_STYLE):
            ground = figure.get_facecolor()
            figure.savefig(paths[0], dpi=200, facecolor=ground, metadata={"Software": None})
            figure.savefig(paths[1], dpi=200, facecolor=ground, metadata={"Date": None})
    except OSError as error:
        raise InputError(
            f"cannot write the figure {paths[0]}",
            got=error.strerror or str(error),
            mend="Choose a folder you may write to.",
        ) from error
    return paths


def inline_svg(figure: Figure, identity: str, title: str, description: str) -> str:
    """The figure as an ``<svg>`` element for the page: ink takes the text's colour, ids are unique to ``identity``.

    Args:
        figure: What to draw.
        identity: A name no other figure on the page has; letters, digits and hyphens.
        title: What a screen reader calls it.
        description: What it shows, in words: the text alternative.
    """
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{identity}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{identity}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{identity}-\1"', svg)
    svg = svg.replace(INK, "currentColor").replace(INK_SOFT, "var(--ink-soft)")
    for place, colour in enumerate(RUN_COLOURS):
        svg = svg.replace(colour.lower(), page_colour(place))
    head = (
        f'<svg role="img" aria-labelledby="{identity}-title {identity}-description" '
        f'viewBox="0 0 {figure.get_figwidth() * 72:g} {figure.get_figheight() * 72:g}" '
        f'xmlns="http://www.w3.org/2000/svg"><title id="{identity}-title">{escape(title)}</title>'
        f'<desc id="{identity}-description">{escape(description)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)


def data_uri(figure: Figure) -> str:
    """The figure as a WebP picture inside a URI, for pictures of voxels, which an SVG would only bloat."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="webp", dpi=170, facecolor=PLATE, pil_kwargs={"quality": 88, "method": 4})
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
