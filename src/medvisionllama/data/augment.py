"""Bend and colour a whole batch at once, on the device that trains, from generators that are passed in.

Axes: ``B`` batch, ``M`` modalities, ``I J K`` voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample

from medvisionllama.errors import InputError


@dataclass(frozen=True)
class AugmentConfig:
    """How much and how often; probabilities are per case. All zero: nothing happens.

    Attributes:
        rotate_probability: Of a rotation about each axis by at most ``rotate_degrees``.
        rotate_degrees: Largest angle.
        scale_probability: Of one zoom factor for all axes within ``scale_range``.
        scale_range: Smallest and largest zoom; above 1 magnifies.
        mirror_axes: Voxel axes (0 I, 1 J, 2 K) mirrored with probability one half each. Leave out 0 where left and
            right are different classes.
        noise_probability: Of Gaussian noise whose SD is drawn up to ``noise_sd``.
        noise_sd: In units of the normalised image.
        brightness_probability: Of one factor within ``brightness_range``.
        brightness_range: Smallest and largest factor.
        contrast_probability: Of one stretch about the mean within ``contrast_range``.
        contrast_range: Smallest and largest stretch.
        gamma_probability: Of one exponent within ``gamma_range`` on the image scaled to 0..1.
        gamma_range: Smallest and largest exponent.

    Raises:
        InputError: A probability is not one, an axis does not exist, or a range is empty or not above 0.
    """

    rotate_probability: float = 0.0
    rotate_degrees: float = 30.0
    scale_probability: float = 0.0
    scale_range: tuple[float, float] = (0.7, 1.4)
    mirror_axes: tuple[int, ...] = ()
    noise_probability: float = 0.0
    noise_sd: float = 0.1
    brightness_probability: float = 0.0
    brightness_range: tuple[float, float] = (0.75, 1.25)
    contrast_probability: float = 0.0
    contrast_range: tuple[float, float] = (0.75, 1.25)
    gamma_probability: float = 0.0
    gamma_range: tuple[float, float] = (0.7, 1.5)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_probability") and not 0 <= value <= 1:
                raise InputError(f"augmentation's {field.name}", got=str(value), expected="0 to 1")
            if field.name.endswith("_range") and not 0 < value[0] <= value[1]:
                raise InputError(f"augmentation's {field.name}", got=str(value), expected="above 0, smallest first")
        if not set(self.mirror_axes) <= {0, 1, 2}:
            raise InputError("augmentation's mirror_axes", got=str(self.mirror_axes), expected="of 0, 1 and 2")


# Uniform numbers drawn for each case, whether used or not, so that one setting never shifts another's draws.
DRAWS = 17


def augment(
    image_BMIJK: Tensor,
    label_BIJK: Tensor,
    config: AugmentConfig,
    generators: Sequence[Generator],
    spacing_mm_B3: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A bent and coloured copy of a batch; image and label go through one geometry.

    Args:
        image_BMIJK: Normalised intensities.
        label_BIJK: Whole numbers; interpolated by nearest voxel, so no value is invented.
        config: How much and how often.
        generators: One a case, on the CPU: what happens to a case then depends neither on its neighbours in the
            batch, nor on how many processes share the batch, nor on the device.
        spacing_mm_B3: Of each case's voxels along I, J, K, on the CPU, so that what turns keeps its shape in
            millimetres however flat the voxels are; None for cubes.
    """
    draws = iter(torch.stack([torch.rand(DRAWS, generator=g) for g in generators]).unbind(1))
    spacing = torch.ones(len(generators), 3) if spacing_mm_B3 is None else spacing_mm_B3
    image, label = _bend(image_BMIJK, label_BIJK, config, draws, spacing)
    return _colour(image, config, draws, generators), label


def _bend(
    image: Tensor, label: Tensor, config: AugmentConfig, draws: Iterator[Tensor], spacing_B3: Tensor
) -> tuple[Tensor, Tensor]:
    rotated = next(draws) < config.rotate_probability
    angles = torch.stack([(2 * next(draws) - 1) * math.radians(config.rotate_degrees) for _ in range(3)], dim=1)
    angles = torch.where(rotated[:, None], angles, torch.zeros(()))
    zoom = _per_case(config.scale_probability, config.scale_range, 1.0, draws)
    bent = rotated | (zoom != 1)
    if bool(bent.any()):
        # Interpolating costs, hence only those cases that change.
        which = bent.nonzero()[:, 0]
        extent_mm = torch.tensor(image.shape[2:]) * spacing_B3[which]
        theta = _lookup_matrices(angles[which], zoom[which], extent_mm).to(image.device)
        which = which.to(image.device)
        grid = affine_grid(theta, [len(which), 1, *image.shape[2:]], align_corners=False)
        image = image.index_copy(0, which, grid_sample(image[which], grid, align_corners=False))
        nearest = grid_sample(label[which, None].float(), grid, mode="nearest", align_corners=False)
        label = label.index_copy(0, which, nearest[:, 0].to(label.dtype))
    for axis in range(3):
        mirrored = ((next(draws) < 0.5) & (axis in config.mirror_axes)).to(image.device)
        if bool(mirrored.any()):
            image = torch.where(mirrored[:, None, None, None, None], image.flip(axis + 2), image)
            label = torch.where(mirrored[:, None, None, None], label.flip(axis + 1), label)
    return image, label


def _lookup_matrices(angles_B3: Tensor, zoom_B: Tensor, extent_mm_B3: Tensor) -> Tensor:
    """``(B,3,4)``: for each place of the new image, where to look in the old one, as ``affine_grid`` wants it.

    ``affine_grid`` runs its axes K, J, I and scales each to -1..1, so that a rotation in space is no rotation there
    unless the image is a cube: it is conjugated by the image's extent.
    """
    rotation = torch.eye(3).expand(len(angles_B3), 3, 3)
    for axis in range(3):
        cos, sin = torch.cos(angles_B3[:, axis]), torch.sin(angles_B3[:, axis])
        one_axis = torch.eye(3).repeat(len(angles_B3), 1, 1)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        one_axis[:, a, a], one_axis[:, a, b], one_axis[:, b, a], one_axis[:, b, b] = cos, -sin, sin, cos
        rotation = rotation @ one_axis
    in_mm = rotation / zoom_B[:, None, None]
    normalised = in_mm * extent_mm_B3[:, None, :] / extent_mm_B3[:, :, None]
    return torch.cat([normalised.flip(1, 2), torch.zeros(len(angles_B3), 3, 1)], dim=2)


def _colour(image: Tensor, config: AugmentConfig, draws: Iterator[Tensor], generators: Sequence[Generator]) -> Tensor:
    def drawn(probability: float, extent: tuple[float, float], otherwise: float) -> Tensor:
        return _per_case(probability, extent, otherwise, draws).to(image.device)[:, None, None, None, None]

    noise_sd = drawn(config.noise_probability, (0.0, config.noise_sd), 0.0)
    if bool((noise_sd != 0).any()):
        noise = torch.stack([torch.randn(image.shape[1:], generator=g) for g in generators])
        image = image + noise_sd * noise.to(image.device)
    image = image * drawn(config.brightness_probability, config.brightness_range, 1.0)
    contrast = drawn(config.contrast_probability, config.contrast_range, 1.0)
    if bool((contrast != 1).any()):
        mean = image.mean((2, 3, 4), keepdim=True)
        image = torch.where(contrast == 1, image, (image - mean) * contrast + mean)
    gamma = drawn(config.gamma_probability, config.gamma_range, 1.0)
    if bool((gamma != 1).any()):
        low, high = image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)
        extent = (high - low).clamp_min(1e-6)
        image = torch.where(gamma == 1, image, ((image - low) / extent) ** gamma * extent + low)
    return image


def _per_case(probability: float, extent: tuple[float, float], otherwise: float, draws: Iterator[Tensor]) -> Tensor:
    """For each case a number within ``extent`` with ``probability``, else ``otherwise``."""
    happens = next(draws) < probability
    low, high = extent
    return torch.where(happens, low + (high - low) * next(draws), torch.tensor(otherwise))
