"""Cases as pictures: three planes of image, reference and prediction, in true proportions and labelled directions.

Radiological convention: one looks at the patient from the feet and from the front, so that the patient's left is on
the right of the picture; sagittal slices have the front on the left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from medvisionllama.reports.drawing import PLATE, PLATE_INK, class_colour, styled
from medvisionllama.reports.run_contents import Picture

CONVENTION = "Radiological convention: the patient's left (L) is on the right of axial and coronal pictures."
# The legend has room for two rows of four.
MOST_NAMES = 8
# How far around the labelled voxels a picture reaches.
MARGIN_MM = 25.0


@dataclass(frozen=True)
class Plane:
    """One way to cut a RAS volume.

    Attributes:
        name: As radiologists call it.
        normal: The voxel axis the cut goes across (0 I, 1 J, 2 K).
        across: The voxel axis that runs along the picture's width, against its direction (to the right lies the
            patient's left, or the back).
        up: The voxel axis that runs upwards.
        sides: Letters at the left, right, top and bottom edge.
    """

    name: str
    normal: int
    across: int
    up: int
    sides: tuple[str, str, str, str]

    def cut(self, volume: NDArray[Any], index: int) -> NDArray[Any]:
        """The slice as rows from top to bottom and columns from left to right, as it is looked at."""
        # Voxel axes run to R, A and S; a picture's columns run to L or P, its rows to P or I.
        return np.flip(np.take(volume, index, self.normal).T, (0, 1))


PLANES = (
    Plane("axial", normal=2, across=0, up=1, sides=("R", "L", "A", "P")),
    Plane("coronal", normal=1, across=0, up=2, sides=("R", "L", "S", "I")),
    Plane("sagittal", normal=0, across=1, up=2, sides=("A", "P", "S", "I")),
)


@styled
def case_mosaic(picture: Picture, class_names: Mapping[int, str], dice: float = math.nan) -> Figure:
    """Three planes (rows) of the image, the reference's outlines, the prediction's with the reference dotted (columns).

    Every slice is the one with most reference in it (prediction, where there is no reference), cropped to the labelled
    voxels and 25 mm around them.

    Args:
        picture: The case.
        class_names: Label value to name, for the legend.
        dice: Mean Dice of the case, printed in the prediction's panel; NaN prints nothing.
    """
    columns = _columns(picture)
    box = field_of_view(picture)
    heights = [_extent_mm(picture, plane.up, box) for plane in PLANES]
    widths = [_extent_mm(picture, plane.across, box) for plane in PLANES]
    width = max(widths)
    figure_width = 4.6
    panel = figure_width / len(columns)
    # Rows share one scale, so that a millimetre is as long in each; very tall fields of view are narrowed instead.
    inches_per_mm = min(panel / width, 2.6 / max(heights))
    figure_height = sum(heights) * inches_per_mm + 0.78
    figure = Figure(figsize=(figure_width, figure_height), facecolor=PLATE)
    grid = figure.add_gridspec(
        3,
        len(columns),
        height_ratios=heights,
        wspace=0.03,
        hspace=0.03,
        left=0.002,
        right=0.998,
        top=1 - 0.25 / figure_height,
        bottom=0.49 / figure_height,
    )
    for row, plane in enumerate(PLANES):
        index = fullest_slice(picture, plane)
        for column, (title, labels) in enumerate(columns):
            axes = figure.add_subplot(grid[row, column])
            draw_slice(axes, picture, plane, index, labels, box)
            if title == "prediction" and picture.reference is not None:
                _outlines(axes, *_shown(picture, plane, index, picture.reference, box), dotted=True)
            if row == 0:
                axes.set_title(title, fontsize=9, loc="center", pad=3, color=PLATE_INK)
            if title == "prediction" and row == 0 and not math.isnan(dice):
                draw_note(axes, 0.97, 0.03, f"Dice {dice:.3f}", "right", "bottom", size=8.5)
            if column == 0:
                draw_note(axes, 0.03, 0.03, plane.name, "left", "bottom", size=7.5)
    class_legend(figure, labels_in(picture), class_names)
    return figure


def field_of_view(picture: Picture) -> tuple[tuple[int, int], ...]:
    """First and last-plus-one voxel to show along I, J and K: the labelled voxels and 25 mm around; all if none."""
    labelled = picture.prediction > 0
    if picture.reference is not None:
        labelled = labelled | (picture.reference > 0)
    shape = picture.image.shape
    if not labelled.any():
        return tuple((0, size) for size in shape)
    box = []
    for axis, size in enumerate(shape):
        found = np.flatnonzero(labelled.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = round(MARGIN_MM / picture.spacing_mm[axis])
        box.append((max(0, int(found[0]) - margin), min(size, int(found[-1]) + 1 + margin)))
    return tuple(box)


def fullest_slice(picture: Picture, plane: Plane) -> int:
    """The slice with most reference voxels; without reference, with most prediction; without both, the middle."""
    others = tuple(axis for axis in range(3) if axis != plane.normal)
    for labels in (picture.reference, picture.prediction):
        if labels is not None and labels.any():
            return int(np.argmax((labels > 0).sum(axis=others)))
    return int(picture.image.shape[plane.normal]) // 2


def _columns(picture: Picture) -> list[tuple[str, NDArray[np.integer[Any]] | None]]:
    columns: list[tuple[str, NDArray[np.integer[Any]] | None]] = [("image", None)]
    if picture.reference is not None:
        columns.append(("reference", picture.reference))
    return [*columns, ("prediction", picture.prediction)]


def _extent_mm(picture: Picture, axis: int, box: Sequence[tuple[int, int]]) -> float:
    return (box[axis][1] - box[axis][0]) * picture.spacing_mm[axis]


def draw_slice(
    axes: Axes,
    picture: Picture,
    plane: Plane,
    index: int,
    labels: NDArray[np.integer[Any]] | None,
    box: Sequence[tuple[int, int]],
) -> None:
    """One slice in millimetres, its outlines, and letters for the directions."""
    image, width, height = _shown(picture, plane, index, picture.image, box)
    axes.imshow(
        image, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), interpolation="bilinear", aspect="equal"
    )
    if labels is not None:
        _outlines(axes, *_shown(picture, plane, index, labels, box))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    left, right, top, _ = plane.sides
    draw_note(axes, 0.025, 0.5, left, "left", "center")
    draw_note(axes, 0.975, 0.5, right, "right", "center")
    draw_note(axes, 0.5, 0.975, top, "center", "top")


def _shown(
    picture: Picture, plane: Plane, index: int, volume: NDArray[np.integer[Any]], box: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.integer[Any]], float, float]:
    """The cropped slice, and its width and height in millimetres."""
    crop = tuple(slice(*(edges if axis != plane.normal else (None, None))) for axis, edges in enumerate(box))
    return (
        plane.cut(volume[crop], index),
        _extent_mm(picture, plane.across, box),
        _extent_mm(picture, plane.up, box),
    )


def _outlines(axes: Axes, labels: NDArray[np.integer[Any]], width: float, height: float, dotted: bool = False) -> None:
    rows, columns = labels.shape
    # One ring of background closes outlines that touch the picture's edge.
    x = (np.arange(-1, columns + 1) + 0.5) * width / columns
    y = (np.arange(-1, rows + 1) + 0.5) * height / rows
    for value in np.unique(labels[labels > 0]):
        mask = np.pad((labels == value).astype(np.float32), 1)
        if dotted:
            axes.contour(x, y, mask, levels=[0.5], colors=["white"], linewidths=0.9, linestyles=[(0, (1, 1.2))])
            continue
        outline = axes.contour(x, y, mask, levels=[0.5], colors=[class_colour(int(value))], linewidths=1.7)
        outline.set_path_effects([withStroke(linewidth=2.9, foreground="black", alpha=0.55)])


def draw_note(axes: Axes, x: float, y: float, text: str, across: str, up: str, size: float = 7.0) -> None:
    """White words with a black rim, legible on any picture; ``x`` and ``y`` are shares of the panel."""
    axes.text(
        x,
        y,
        text,
        transform=axes.transAxes,
        horizontalalignment=across,
        verticalalignment=up,
        fontsize=size,
        fontweight="bold",
        color="white",
        path_effects=[withStroke(linewidth=2.2, foreground="black")],
    )


def labels_in(picture: Picture) -> set[int]:
    """The label values, without background, of prediction and reference."""
    maps = [picture.prediction] if picture.reference is None else [picture.prediction, picture.reference]
    return {int(value) for labels in maps for value in np.unique(labels)} - {0}


def class_legend(
    figure: Figure,
    values: Iterable[int],
    class_names: Mapping[int, str],
    place: Literal["lower center", "lower left"] = "lower center",
) -> None:
    """Colour and name of the label values below the pictures; a value without a name is called by its number."""
    handles = [
        Line2D([], [], color=class_colour(value), linewidth=2.5, label=class_names.get(value, f"{value}"))
        for value in sorted(values)
    ]
    if len(handles) > MOST_NAMES:
        rest = Line2D([], [], linewidth=0, label=f"and {len(handles) - MOST_NAMES + 1} more")
        handles = [*handles[: MOST_NAMES - 1], rest]
    if handles:
        figure.legend(
            handles=handles,
            loc=place,
            ncols=min(4, len(handles)),
            fontsize=8,
            borderpad=0.1,
            labelcolor=PLATE_INK,
        )
