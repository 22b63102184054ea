"""From a stored volume to the model's grid; ``way_back`` leads back.

Axes: ``M`` modalities, ``I J K`` voxels.
"""

from __future__ import annotations

import numpy as np

from medvisionllama.data.plan import IGNORED, IntensityRule, Plan
from medvisionllama.errors import InputError
from medvisionllama.geometry import Array, Grid, Shape, Volume, ras_grid, resize, to_ras

# A constant must fill this much of an image to count as background around a body.
BACKGROUND_SHARE = 0.1


def to_model_grid(image: Volume, plan: Plan, name: str = "the image") -> Array:
    """RAS order, the plan's spacing or grid, normalised intensities: ``(M,I,J,K)`` float32.

    Raises:
        InputError: The image has another number of channels than the plan, or NaN or infinite intensities.
    """
    channels = image.array if image.array.ndim == 4 else image.array[None]
    if len(channels) != plan.in_channels:
        raise InputError(
            f"{name} has another number of channels than the data it was planned for",
            got=str(len(channels)),
            expected=str(plan.in_channels),
            mend="Give all modalities of the task as one 4-D file, channels last.",
        )
    if not np.isfinite(channels).all():
        raise InputError(f"{name} holds NaN or infinite intensities", mend="Replace them before segmenting.")
    ras = to_ras(Volume(channels, image.affine))
    normalised = np.stack([normalise(channel, rule) for channel, rule in zip(ras.array, plan.intensity, strict=True)])
    return np.ascontiguousarray(resize(normalised, model_shape(image.grid, plan), order=1), dtype=np.float32)


def label_to_model_grid(label: Volume, plan: Plan, name: str = "the label map") -> Array:
    """The same way for a label map, by nearest voxel: ``(I,J,K)`` uint8, classes numbered by ``Plan.number_of``.

    0 is background, ``IGNORED`` what nobody has labelled.

    Raises:
        InputError: It holds a value that is not among the plan's classes.
    """
    ras = to_ras(label)
    values = [*plan.classes, *([] if plan.ignored is None else [plan.ignored])]
    unknown = sorted(set(np.unique(ras.array).tolist()) - {0, *values})
    if unknown:
        raise InputError(
            f"{name} holds label values that dataset.json does not name",
            got=", ".join(str(value) for value in unknown[:8]),
            expected=", ".join(str(value) for value in (0, *values)),
            mend="Name them in dataset.json or correct the label map.",
        )
    number_of = np.zeros(max(values) + 1, dtype=np.uint8)
    number_of[list(plan.classes)] = [plan.number_of(value) for value in plan.classes]
    if plan.ignored is not None:
        number_of[plan.ignored] = IGNORED
    return resize(number_of[ras.array], model_shape(label.grid, plan), order=0)


def model_shape(grid: Grid, plan: Plan) -> Shape:
    """Size in RAS order of what the model is given of an image on ``grid``."""
    if plan.spacing_mm is None:
        return plan.window
    return ras_grid(grid).with_spacing(plan.spacing_mm).shape


def normalise(channel_IJK: Array, rule: IntensityRule) -> Array:
    """Bring one channel's intensities to about mean 0 and SD 1, as ``rule`` says; a flat channel becomes 0."""
    channel = channel_IJK.astype(np.float32)
    if rule.kind == "clip-zscore":
        clipped: Array = (np.clip(channel, rule.low, rule.high) - np.float32(rule.mean)) / np.float32(rule.sd)
        return clipped
    body = body_mask(channel) if rule.kind == "body-zscore" else np.ones(channel.shape, dtype=bool)
    inside = channel[body].astype(np.float64)
    sd = inside.std()
    if sd == 0:
        return np.zeros_like(channel)
    return np.where(body, (channel - inside.mean()) / sd, 0).astype(np.float32)


def body_mask(channel_IJK: Array) -> Array:
    """Voxels that differ from the constant around the body; all of them where there is no such constant.

    The constant need not be 0 (skull-stripped and normalised images have negative ones): it is the value most of the
    eight corners share, if it fills at least a tenth of the image. Where a single other value is left (a mask given as
    a channel), all voxels count: by itself that value would be flat, and nothing of the image would remain.
    """
    corners = channel_IJK[np.ix_(*[(0, -1)] * 3)].ravel()
    values, counts = np.unique(corners, return_counts=True)
    outside: Array = channel_IJK == values[counts.argmax()]
    inside = channel_IJK[~outside]
    if outside.mean() < BACKGROUND_SHARE or not inside.size or inside.min() == inside.max():
        return np.ones(channel_IJK.shape, dtype=bool)
    return ~outside
