"""How a plan is made: from the fingerprint of the training part, and from a memory budget.

Axes: ``M`` modalities, ``I J K`` voxels (RAS order).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medvisionllama.data.nifti import read_grid
from medvisionllama.data.plan import EVEN_STRIDES, IntensityRule, Plan, Protocol, Strides, as_shape, reduction
from medvisionllama.data.task import Case, Task
from medvisionllama.errors import InputError
from medvisionllama.geometry import Grid, Shape, ras_grid

# A token stands for 8 voxels an axis, so windows are multiples of 8.
PATCH_MULTIPLE = 8
# nnU-Net's: an axis is thin where its voxels are more than 3 times as long as the others', and its size less than a
# third of theirs; it is then given its finest tenth's spacing, since the median would throw slices away.
THIN = 3
THIN_AXIS_PERCENTILE = 10
# nnU-Net's: an axis is not halved while its voxels are twice as long as the shortest axis's, or longer.
MOST_UNEVEN_TO_HALVE = 2
# nnU-Net's: fewer make a gradient too noisy, and a batch of a large share of all voxels is seen too often.
FEWEST_PATCHES = 2
FEWEST_TOKENS = 2  # of one alone there is nothing to attend to, nor to normalise
MOST_OF_TRAINING_PART = 0.05
# As many as the papers' 128^3 at patch 8; only windows whose thin axis is spared could exceed it.
MOST_TOKENS = 4096
# Largest window of the native protocol: what a step of four cases on a CPU can bear.
MOST_WINDOW_VOXELS = 96**3
PERCENTILES = (0.5, 99.5)
FOREGROUND_SAMPLES_PER_CASE = 10_000


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
            foreground.append(_foreground_sample(case, task.ignored))
    spacing, shapes = None, np.array([g.shape for g in grids])
    if protocol == "native":
        middle = np.median([g.spacing_mm for g in grids], axis=0)
        middle = _thin_axis_spared(np.array([g.spacing_mm for g in grids]), middle, np.median(shapes, axis=0))
        spacing = (float(middle[0]), float(middle[1]), float(middle[2]))
        shapes = np.array([g.with_spacing(spacing).shape for g in grids])
    median = as_shape(np.round(np.median(shapes, axis=0)))
    strides = EVEN_STRIDES if spacing is None else _strides(spacing)
    return Plan(
        protocol=protocol,
        task=task.name,
        window=(grid, grid, grid) if protocol == "paper" else _window(median, reduction(strides)),
        spacing_mm=spacing,
        intensity=_intensity_rules(task, protocol, foreground),
        classes=dict(task.classes),
        training_cases=len(cases),
        median_shape=median,
        stem_strides=strides,
        regions=dict(task.regions),
        region_values=task.region_values,
        ignored=task.ignored,
        mirroring=task.sides,
    )


def fitted_to_memory(plan: Plan, memory_gb: float, needed_gb: Callable[[Shape, int], float]) -> Plan:
    """The plan with the largest window, and then the largest batch, that a training in ``memory_gb`` can bear.

    As nnU-Net plans (Isensee et al. 2021): from the whole median case, with batches of 2, the longest axis is shortened
    until it fits; what is left goes to the batch, which never holds more than 5 % of the training part's voxels. The
    paper protocol's grid is given, so only its batch is planned, from 1 on.

    Args:
        plan: What was planned without regard to memory.
        memory_gb: Gigabytes (1e9 bytes) of the device.
        needed_gb: Window and batch to gigabytes, for the network to be trained.

    Raises:
        InputError: Not even the smallest window fits.
    """
    window, smallest = plan.window, 1 if plan.merged else FEWEST_PATCHES
    if not plan.merged:
        window = _enough(whole_patches(plan.median_shape, plan.patch_size), plan.patch_size)
    while (needed := needed_gb(window, smallest)) > memory_gb:
        if plan.merged or math.prod(window) <= FEWEST_TOKENS * math.prod(plan.patch_size):
            raise InputError(
                f"a window of {window} does not fit",
                got=f"about {needed:.3g} GB for a batch of {smallest}",
                expected=f"{memory_gb:g} GB",
                mend="Choose a smaller network, or more memory by --memory-gb.",
            )
        window = shrunk(window, plan.patch_size)
    all_voxels = plan.training_cases * math.prod(plan.median_shape)
    most = max(smallest, int(MOST_OF_TRAINING_PART * all_voxels / math.prod(window)))
    each = needed_gb(window, smallest + 1) - needed
    batch_size = min(most, smallest + int((memory_gb - needed) / each) if each > 0 else most)
    return replace(plan, window=window, batch_size=batch_size)


def _thin_axis_spared(
    spacings_mm: NDArray[np.float64], median_mm: NDArray[np.float64], median_shape: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The spacing to resample to: the median, but where one axis is thin its finest tenth's (nnU-Net's rule).

    Never finer than the coarser of the other two axes.
    """
    thin = int(median_mm.argmax())
    others = [axis for axis in range(3) if axis != thin]
    coarsest = median_mm[others].max()
    if not (median_mm[thin] > THIN * coarsest and median_shape[thin] * THIN < median_shape[others].min()):
        return median_mm
    spared = median_mm.copy()
    spared[thin] = max(coarsest, np.percentile(spacings_mm[:, thin], THIN_AXIS_PERCENTILE))
    return spared


def _strides(spacing_mm: tuple[float, float, float]) -> Strides:
    """Three halvings, each sparing the axes along which voxels are already as long as two of the shortest."""
    lengths, strides = np.array(spacing_mm), []
    for _ in EVEN_STRIDES:
        halved = lengths < MOST_UNEVEN_TO_HALVE * lengths.min()
        strides.append(as_shape(np.where(halved, 2, 1)))
        lengths = lengths * strides[-1]
    return tuple(strides)


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


def _window(median: Shape, patch: Shape) -> Shape:
    """The median size rounded up to whole patches, then shrunk along its longest axis until it can be borne."""
    window = whole_patches(median, patch)
    while math.prod(window) > min(MOST_WINDOW_VOXELS, MOST_TOKENS * math.prod(patch)):
        window = shrunk(window, patch)
    return _enough(window, patch)


def _enough(window: Shape, patch: Shape) -> Shape:
    """A second patch for images of one patch alone: a batch of single tokens could not be normalised."""
    if math.prod(window) >= FEWEST_TOKENS * math.prod(patch):
        return window
    finest = patch.index(min(patch))  # images are padded, here by as little as can be
    return as_shape(edge * FEWEST_TOKENS if axis == finest else edge for axis, edge in enumerate(window))


def whole_patches(size: Shape, patch: Shape) -> Shape:
    """The next larger size of whole patches."""
    return as_shape(-(-edge // p) * p for edge, p in zip(size, patch, strict=True))


def shrunk(window: Shape, patch: Shape) -> Shape:
    """One patch less along the longest axis that has two or more."""
    longest = max((edge, -axis) for axis, edge in enumerate(window) if edge > patch[axis])
    return as_shape(edge - patch[axis] if axis == -longest[1] else edge for axis, edge in enumerate(window))


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


def _foreground_sample(case: Case, ignored: int | None) -> NDArray[np.float32]:
    """``(M,n)`` intensities at foreground voxels, evenly thinned to a bounded number so that no case outweighs."""
    image, label = case.read_pair()
    inside = np.flatnonzero((label.array != 0) & (label.array != (0 if ignored is None else ignored)))
    inside = inside[:: max(1, -(-len(inside) // FOREGROUND_SAMPLES_PER_CASE))]
    sample: NDArray[np.float32] = image.array.reshape(-1, label.array.size)[:, inside]
    if not np.isfinite(sample).all():
        raise InputError(f"{case.image} holds NaN or infinite intensities", mend="Replace them before training.")
    return sample
