"""The plan: what every case is turned into before a network sees it, and how its output is read.

Made from the training part alone. Axes: ``M`` modalities, ``C`` output channels, ``I J K`` voxels (RAS order).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medvisionllama.data.decathlon import Case, Task
from medvisionllama.data.nifti import read_grid
from medvisionllama.errors import InputError
from medvisionllama.geometry import Grid, Shape, ras_grid
from medvisionllama.run_folder import FORMAT_VERSION, read_json, write_json

Protocol = Literal["native", "paper"]
IntensityKind = Literal["zscore", "body-zscore", "clip-zscore"]

# A token stands for 8 voxels an axis, so windows are multiples of 8.
PATCH_MULTIPLE = 8
# Largest window of the native protocol: what a step of four cases on a CPU can bear.
MOST_WINDOW_VOXELS = 96**3
PERCENTILES = (0.5, 99.5)
FOREGROUND_SAMPLES_PER_CASE = 10_000
# What uint8 holds beside background: prepared label maps are stored so.
MOST_CLASSES = 255


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

    Raises:
        InputError: There is no such protocol, or there are more classes than a prepared label map can hold.
    """

    protocol: Protocol
    task: str
    window: Shape
    spacing_mm: tuple[float, float, float] | None
    intensity: tuple[IntensityRule, ...]
    classes: Mapping[int, str]
    training_cases: int
    median_shape: Shape

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            raise InputError("a plan's protocol", got=str(self.protocol), expected=" or ".join(get_args(Protocol)))
        if not self.merged and len(self.classes) > MOST_CLASSES:
            raise InputError(
                f"{self.task} has too many classes",
                got=str(len(self.classes)),
                expected=f"{MOST_CLASSES} at most",
                mend="Merge classes, or leave some out of dataset.json and the label maps.",
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
    def out_channels(self) -> int:
        """``C``: classes with background (softmax), or 1 (sigmoid) where the classes are merged."""
        return 1 if self.merged else len(self.classes) + 1

    @property
    def targets(self) -> dict[str, tuple[int, ...]]:
        """What is scored: each class by its name and label value, or all of them as ``foreground``."""
        if self.merged:
            return {"foreground": tuple(self.classes)}
        return {name: (value,) for value, name in self.classes.items()}

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
                window=_shape(content["window"]),
                spacing_mm=None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
                intensity=tuple(IntensityRule(**rule) for rule in content["intensity"]),
                classes={int(value): name for value, name in content["classes"].items()},
                training_cases=content["training_cases"],
                median_shape=_shape(content["median_shape"]),
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


def make_plan(
    task: Task,
    cases: Sequence[Case],
    *,
    protocol: Protocol = "native",
    grid: int = 128,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
) -> Plan:
    """Plan a task from the fingerprint of its training part.

    Args:
        task: What the data set says of itself.
        cases: The training part; no other case is looked at.
        protocol: Which of SPEC 5's protocols.
        grid: Edge of the paper protocol's cubic grid.
        progress: Wraps the cases as they are read.

    Raises:
        InputError: There are no cases, no classes or too many, a file cannot be read or does not fit its data set's
            description, or the grid is not a multiple of 8.
    """
    if not cases:
        raise InputError(f"{task.folder} has no training cases", mend="List labelled cases under `training`.")
    if not task.classes:
        raise InputError(f"{task.folder} names no class but background", mend="Name the classes in dataset.json.")
    if protocol == "paper" and (grid < PATCH_MULTIPLE or grid % PATCH_MULTIPLE):
        raise InputError("the paper protocol's grid", got=str(grid), expected=f"a multiple of {PATCH_MULTIPLE}")
    grids, foreground = [], []
    for case in progress(cases):
        grids.append(_planned_grid(task, case))
        if protocol == "native" and any(task.ct_channels):
            foreground.append(_foreground_sample(case))
    spacing, shapes = None, np.array([g.shape for g in grids])
    if protocol == "native":
        middle = np.median([g.spacing_mm for g in grids], axis=0)
        spacing = (float(middle[0]), float(middle[1]), float(middle[2]))
        shapes = np.array([g.with_spacing(spacing).shape for g in grids])
    median = _shape(np.round(np.median(shapes, axis=0)))
    return Plan(
        protocol=protocol,
        task=task.name,
        window=(grid, grid, grid) if protocol == "paper" else _window(median),
        spacing_mm=spacing,
        intensity=_intensity_rules(task, protocol, foreground),
        classes=dict(task.classes),
        training_cases=len(cases),
        median_shape=median,
    )


def _planned_grid(task: Task, case: Case) -> Grid:
    """The case's grid in RAS order, from headers alone."""
    headers = [read_grid(path) for path in (case.image, *case.more_channels)]
    channels = sum(number for _, number in headers)
    if channels != task.channels:
        raise InputError(
            f"{case.image} has another number of channels than its data set names",
            got=str(channels),
            expected=f"{task.channels} ({', '.join(task.modalities)})",
            mend="Correct the modalities in dataset.json, or leave the case out.",
        )
    return ras_grid(headers[0][0])


def _window(median: Shape) -> Shape:
    """The median size rounded up to multiples of 8, then shrunk along its longest axis until it can be borne."""
    window = [-(-size // PATCH_MULTIPLE) * PATCH_MULTIPLE for size in median]
    while window[0] * window[1] * window[2] > MOST_WINDOW_VOXELS:
        window[window.index(max(window))] -= PATCH_MULTIPLE
    return _shape(window)


def _intensity_rules(
    task: Task, protocol: Protocol, foreground_Mn: Sequence[NDArray[np.float32]]
) -> tuple[IntensityRule, ...]:
    """One rule a channel; ``foreground_Mn`` holds each case's sample where there is CT."""
    if protocol == "paper":
        return tuple(IntensityRule("zscore") for _ in task.modalities)
    if not foreground_Mn:
        return tuple(IntensityRule("body-zscore") for _ in task.modalities)
    pooled = np.concatenate(foreground_Mn, axis=1).astype(np.float64)
    if not pooled.size:
        raise InputError(
            f"no label map of {task.folder}'s training part holds foreground",
            mend="CT is normalised by its foreground: label some.",
        )
    rules = []
    for is_ct, values in zip(task.ct_channels, pooled, strict=True):
        if not is_ct:
            rules.append(IntensityRule("body-zscore"))
            continue
        low, high = (float(v) for v in np.percentile(values, PERCENTILES))
        sd = float(values.std())
        rules.append(IntensityRule("clip-zscore", low, high, float(values.mean()), sd if sd > 0 else 1.0))
    return tuple(rules)


def _foreground_sample(case: Case) -> NDArray[np.float32]:
    """``(M,n)`` intensities at foreground voxels, evenly thinned to a bounded number so that no case outweighs."""
    image, label = case.read_pair()
    inside = np.flatnonzero(label.array)
    inside = inside[:: max(1, -(-len(inside) // FOREGROUND_SAMPLES_PER_CASE))]
    sample: NDArray[np.float32] = image.array.reshape(-1, label.array.size)[:, inside]
    if not np.isfinite(sample).all():
        raise InputError(f"{case.image} holds NaN or infinite intensities", mend="Replace them before training.")
    return sample


def _shape(sizes: Iterable[Any]) -> Shape:
    i, j, k = (int(size) for size in sizes)
    return (i, j, k)
