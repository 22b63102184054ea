"""The plan: what every case is turned into before a network sees it, and how its output is read.

Made from the training part alone. Axes: ``M`` modalities, ``C`` output channels, ``I J K`` voxels (RAS order).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from medvisionllama.data.mirroring import Mirroring
from medvisionllama.errors import InputError
from medvisionllama.geometry import Shape
from medvisionllama.label_reading import LabelReading
from medvisionllama.run_folder import FORMAT_VERSION, read_json, write_json

Protocol = Literal["native", "paper"]
IntensityKind = Literal["zscore", "body-zscore", "clip-zscore"]

Strides = tuple[Shape, ...]
EVEN_STRIDES: Strides = ((2, 2, 2), (2, 2, 2), (2, 2, 2))
# What uint8 holds beside background: prepared label maps are stored so, and the last number is for ignored voxels.
MOST_CLASSES = 255
IGNORED = 255


@dataclass(frozen=True)
class IntensityRule:
    """How one channel's intensities are normalised.

    Attributes:
        kind: ``zscore``: each case by its own mean and SD over all voxels (paper protocol). ``body-zscore``: the same
            over the voxels that differ from a constant background, which becomes 0. ``clip-zscore`` (CT): clipped
            to ``low..high``, then by the training set's foreground ``mean`` and ``sd``.
        low: Foreground percentile 0.5 of the training part, in Hounsfield units.
        high: Foreground percentile 99.5.
        mean: Foreground mean.
        sd: Foreground standard deviation.

    Raises:
        InputError: There is no such kind.
    """

    kind: IntensityKind
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    sd: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(IntensityKind):
            raise InputError(
                "a rule for intensities", got=str(self.kind), expected=" or ".join(get_args(IntensityKind))
            )


@dataclass(frozen=True)
class Plan:
    """What every case is turned into, and how logits are read.

    Attributes:
        protocol: ``native`` (SPEC 5: the image's own geometry, one channel per class) or ``paper`` (every volume
            stretched to one grid, all classes merged to one sigmoid target).
        task: The task's name.
        window: Voxels along I, J, K the network is given: a sliding window, or the one grid of the paper protocol.
        spacing_mm: What cases are resampled to; None in the paper protocol.
        intensity: One rule a channel.
        classes: Label value to name, background left out, in the order of the output channels.
        training_cases: How many cases the plan was made from.
        median_shape: Their median size in voxels at ``spacing_mm`` (native) or as stored (paper).
        stem_strides: How a network's stem should go down, so that a thin axis is not pooled away; their product is
            what a token stands for.
        regions: Name to label values of overlapping sigmoid targets, in the order of the output channels; empty where
            the classes themselves are what is told apart.
        region_values: The label value written for each region, a later region's over an earlier one's.
        ignored: The label value of voxels nobody has labelled: not trained on, not scored.
        mirroring: Which axes may be mirrored, and which label values change places then.
        batch_size: Planned for a given memory (:func:`fitted_to_memory`); None to go by the recipe.

    Raises:
        InputError: There is no such protocol, there are more classes than a prepared label map can hold, or regions
            are made of other values than the classes'.
    """

    protocol: Protocol
    task: str
    window: Shape
    spacing_mm: tuple[float, float, float] | None
    intensity: tuple[IntensityRule, ...]
    classes: Mapping[int, str]
    training_cases: int
    median_shape: Shape
    stem_strides: Strides = EVEN_STRIDES
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    region_values: tuple[int, ...] = ()
    ignored: int | None = None
    mirroring: Mirroring = field(default_factory=Mirroring)
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            raise InputError("a plan's protocol", got=str(self.protocol), expected=" or ".join(get_args(Protocol)))
        most = MOST_CLASSES if self.ignored is None else IGNORED - 1
        if not self.merged and len(self.classes) > most:
            raise InputError(
                f"{self.task} has too many classes",
                got=str(len(self.classes)),
                expected=f"{most} at most",
                mend="Merge classes, or leave some out of dataset.json and the label maps.",
            )
        values = {value for region in self.regions.values() for value in region} | set(self.region_values)
        if not values <= set(self.classes) or len(self.region_values) != len(self.regions):
            raise InputError(
                f"{self.task} has regions that are not made of its classes",
                got=f"{dict(self.regions)}, written as {self.region_values}",
                expected=f"of {', '.join(map(str, self.classes))}, one value to write for each",
            )

    @property
    def in_channels(self) -> int:
        """``M``."""
        return len(self.intensity)

    @property
    def merged(self) -> bool:
        """Whether all classes are one ``foreground``."""
        return self.protocol == "paper"

    @property
    def softmax(self) -> bool:
        """Whether the output channels are classes that exclude one another, background first; else sigmoid targets."""
        return not (self.merged or self.regions)

    @property
    def out_channels(self) -> int:
        """``C``: classes with background (softmax), or one for each sigmoid target: regions, or the merged classes."""
        if self.merged:
            return 1
        return len(self.regions) or len(self.classes) + 1

    @property
    def targets(self) -> dict[str, tuple[int, ...]]:
        """What is scored, by name and label values: each region or class, or all classes as ``foreground``."""
        if self.merged:
            return {"foreground": tuple(self.classes)}
        return dict(self.regions) or {name: (value,) for value, name in self.classes.items()}

    @property
    def numbered_targets(self) -> dict[str, tuple[int, ...]]:
        """:attr:`targets` by the numbers that prepared label maps hold (:meth:`number_of`)."""
        return {name: tuple(sorted({self.number_of(v) for v in values})) for name, values in self.targets.items()}

    def number_of(self, value: int) -> int:
        """What a class's label value is in prepared label maps: 1, 2, ... in order, or 1 where classes are merged."""
        return 1 if self.merged else 1 + list(self.classes).index(value)

    @property
    def meaning(self) -> tuple[object, ...]:
        """What an output says: networks whose plans agree here can be averaged."""
        return (dict(self.classes), self.merged, dict(self.regions), self.region_values)

    @property
    def written_numbers(self) -> tuple[int, ...]:
        """The class number that each sigmoid target writes where it is above one half; none for a softmax."""
        if self.merged:
            return (1,)
        return tuple(self.number_of(value) for value in self.region_values)

    @property
    def reading(self) -> LabelReading:
        """What a loss is told of prepared label maps."""
        regions = tuple(self.numbered_targets.values()) if self.regions and not self.merged else ()
        return LabelReading(regions, None if self.ignored is None else IGNORED)

    @property
    def numbered_mirroring(self) -> Mirroring:
        """:attr:`mirroring` by the numbers that prepared label maps hold; merged classes have no sides."""
        if self.merged:
            return Mirroring()
        swaps = tuple((self.number_of(one), self.number_of(other)) for one, other in self.mirroring.swaps)
        return Mirroring(self.mirroring.axes, swaps)

    @property
    def patch_size(self) -> Shape:
        """Voxels that a token should stand for."""
        return reduction(self.stem_strides)

    def to_dict(self) -> dict[str, Any]:
        """The form of ``plan.json``."""
        content = asdict(self)
        content["classes"] = {str(value): name for value, name in self.classes.items()}
        return {"format": FORMAT_VERSION} | content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = "the plan") -> Plan:
        """Undo :meth:`to_dict`.

        Raises:
            InputError: It is of another version, or not a plan.
        """
        if content.get("format") != FORMAT_VERSION:
            raise InputError(
                f"{where} is of another version",
                got=f"format {content.get('format')}",
                expected=f"format {FORMAT_VERSION}",
                mend="Train again, or use the version of medvisionllama that wrote it.",
            )
        try:
            spacing = content["spacing_mm"]
            return cls(
                protocol=content["protocol"],
                task=content["task"],
                window=as_shape(content["window"]),
                spacing_mm=None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
                intensity=tuple(IntensityRule(**rule) for rule in content["intensity"]),
                classes={int(value): name for value, name in content["classes"].items()},
                training_cases=content["training_cases"],
                median_shape=as_shape(content["median_shape"]),
                **_later(content),
            )
        except InputError:
            raise
        except KeyError as error:
            raise InputError(f"{where} lacks {error}", mend="Plan or train again.") from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{where} cannot be understood", got=str(error), mend="Plan or train again.") from error


def read_plan(path: Path) -> Plan:
    """Read ``plan.json``.

    Raises:
        InputError: It is missing, of another version, or not a plan.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a plan", mend="Make it with `medvisionllama plan`.")
    return Plan.from_dict(content, str(path))


def write_plan(plan: Plan, path: Path) -> None:
    """Write ``plan.json``."""
    write_json(path, plan.to_dict())


def reduction(strides: Strides) -> Shape:
    """By how much strides make an image smaller, axis by axis."""
    return as_shape(np.prod(strides, axis=0))


def _later(content: Mapping[str, Any]) -> dict[str, Any]:
    """What plans written before regions and sides were known do not hold: they have Plan's defaults."""
    found: dict[str, Any] = {}
    if "stem_strides" in content:
        found["stem_strides"] = tuple(as_shape(stage) for stage in content["stem_strides"])
    if "regions" in content:
        found["regions"] = {name: tuple(int(v) for v in values) for name, values in content["regions"].items()}
        found["region_values"] = tuple(int(value) for value in content["region_values"])
    if content.get("ignored") is not None:
        found["ignored"] = int(content["ignored"])
    if content.get("batch_size") is not None:
        found["batch_size"] = int(content["batch_size"])
    if "mirroring" in content:
        axes, swaps = content["mirroring"]["axes"], content["mirroring"]["swaps"]
        pairs = tuple((int(one), int(other)) for one, other in swaps)
        found["mirroring"] = Mirroring(tuple(int(axis) for axis in axes), pairs)
    return found


def as_shape(sizes: Iterable[Any]) -> Shape:
    """Three whole numbers, along I, J, K."""
    i, j, k = (int(size) for size in sizes)
    return (i, j, k)
