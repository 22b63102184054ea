"""The two nouns of a data set, in whatever layout it lies: a Task and its Cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medvisionllama.data.mirroring import Mirroring, mirroring_of
from medvisionllama.data.nifti import read_label_map, read_volume
from medvisionllama.errors import InputError
from medvisionllama.geometry import AFFINE_TOLERANCE_MM, Grid, Volume

DESCRIPTION = "dataset.json"
BACKGROUND = 0


@dataclass(frozen=True)
class Case:
    """One image and its label map; a case of the task's own test part has no label.

    Attributes:
        name: What the case is called everywhere.
        image: The file that holds all channels, or the first of them.
        label: The file that holds its label map.
        more_channels: The files of the other channels, where each has one of its own (nnU-Net).
    """

    name: str
    image: Path
    label: Path | None
    more_channels: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file the case is made of."""
        return (self.image, *self.more_channels, *([self.label] if self.label else []))

    def read_image(self) -> Volume:
        """The image, ``(I,J,K)`` or ``(M,I,J,K)`` float32, channels of several files stacked.

        Raises:
            InputError: A file cannot be read, or the files of the channels do not lie on one grid.
        """
        first = read_volume(self.image)
        if not self.more_channels:
            return first
        channels = [first.array]
        for path in self.more_channels:
            other = read_volume(path)
            if not other.grid.same_as(first.grid) or other.array.shape != first.array.shape:
                raise InputError(
                    f"{path} does not lie on the grid of {self.image}",
                    got=f"{other.array.shape}, {other.grid.distance_mm(first.grid):.3g} mm apart",
                    expected=f"{first.array.shape}",
                    mend="Resample all channels of a case onto one grid.",
                )
            channels.append(other.array)
        return first.with_array(np.stack(channels) if first.array.ndim == 3 else np.concatenate(channels))

    def read_label(self) -> Volume:
        """The label map ``(I,J,K)``, in the smallest integer type.

        Raises:
            InputError: There is none, or it cannot be read.
        """
        if self.label is None:
            raise InputError(f"the case {self.name} has no label", mend="Add one, or leave the case out.")
        return read_label_map(self.label)

    def read_pair(self) -> tuple[Volume, Volume]:
        """Image and label map on the image's grid.

        Affines that differ by rounding become one: else axes near 45 degrees, or a size halfway between two, could be
        taken one way for the image and the other way for its label map.

        Raises:
            InputError: As :meth:`read_image` and :meth:`read_label`; or they lie on different grids.
        """
        image, label = self.read_image(), self.read_label()
        self.refuse_different_grids(image.grid, label.grid)
        return image, Volume(label.array, image.affine)

    def refuse_different_grids(self, image: Grid, label: Grid) -> None:
        """Make sure that a label map lies where its image lies.

        Raises:
            InputError: Shapes differ, or voxels lie apart.
        """
        if not image.same_as(label):
            shift = image.distance_mm(label)
            told = f"shapes {image.shape} and {label.shape}" if np.isinf(shift) else f"{shift:.3g} mm apart"
            raise InputError(
                f"{self.image} and {self.label} lie on different grids",
                got=told,
                expected=f"the same shape, and affines within {AFFINE_TOLERANCE_MM} mm",
                mend="Resample the label map onto its image, or leave the case out of dataset.json.",
            )


@dataclass(frozen=True)
class Task:
    """A data set and what its numbers mean.

    Attributes:
        name: As dataset.json has it, else the folder's name.
        folder: Where it lies.
        modalities: The name of each channel, in order.
        classes: Label value to name, in order, without background (0).
        cases: The training part.
        unlabelled: The task's own test part, published without labels.
        regions: Name to label values of targets that may overlap (nnU-Net's regions), in the order of the output's
            channels; empty where the classes themselves are the targets.
        region_values: The label value written for each region, a later region's over an earlier one's.
        ignored: The label value of voxels that nobody has labelled, which is no class; None for no such.
        mirroring: Which classes change places in a mirror, where the description says so; None to go by their names.
    """

    name: str
    folder: Path
    modalities: tuple[str, ...]
    classes: Mapping[int, str]
    cases: tuple[Case, ...]
    unlabelled: tuple[Case, ...] = ()
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    region_values: tuple[int, ...] = ()
    ignored: int | None = None
    mirroring: Mirroring | None = None

    @property
    def sides(self) -> Mirroring:
        """What mirroring means: as the description says, else by the names of classes and regions."""
        return self.mirroring or mirroring_of(self.classes, self.regions)

    @property
    def channels(self) -> int:
        """The number of input modalities, M."""
        return len(self.modalities)

    @property
    def ct_channels(self) -> tuple[bool, ...]:
        """For each channel, whether it is CT, whose numbers are Hounsfield units."""
        return tuple(modality.strip().upper() == "CT" for modality in self.modalities)

    @property
    def is_ct(self) -> bool:
        """Whether every channel is CT."""
        return all(self.ct_channels)

    def named(self, names: Iterable[str]) -> list[Case]:
        """The cases of these names, in their order.

        Raises:
            InputError: One of them is not there.
        """
        return [self.case(name) for name in names]

    def case(self, name: str) -> Case:
        """The case of that name, labelled or not.

        Raises:
            InputError: There is none.
        """
        for case in (*self.cases, *self.unlabelled):
            if case.name == name:
                return case
        raise InputError(f"{self.folder} has no case {name}")
