"""What the numbers of a label map mean to a loss: a value that the plan makes and the loss takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LabelReading:
    """What the numbers of a label map mean to a loss.

    Attributes:
        regions: For each sigmoid target the class numbers it is made of, which may be in several (nnU-Net's regions);
            empty where channel ``c`` is class ``c + 1`` alone.
        ignored: The number of voxels nobody has labelled; they neither cost nor teach anything. None for no such.
    """

    regions: tuple[tuple[int, ...], ...] = ()
    ignored: int | None = None


EVERY_VOXEL_ITS_CLASS = LabelReading()
