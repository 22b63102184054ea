"""Bend and colour a whole batch at once, on the device that trains, from generators that are passed in.

What is there and in which order is nnU-Net's (Isensee et al., Nat. Methods 18:203, 2021, supplement 4); the figures are
values, nnU-Net's own in the recipe ``nnunet``.

Axes: ``B`` batch, ``M`` modalities, ``I J K`` voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample

from medvisionllama.data.affine_lookup import fits, looked_up_affinely
from medvisionllama.data.mirroring import ANY_MIRRORING, Mirroring
from medvisionllama.errors import InputError
from medvisionllama.geometry import resize


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
        blur_probability: Of a Gaussian blur whose SD is drawn within ``blur_range``.
        blur_range: Smallest and largest SD, in voxels.
        low_resolution_probability: Of one zoom within ``low_resolution_range``: shrunk by nearest voxel and stretched
            again linearly (nnU-Net stretches by cubic splines).
        low_resolution_range: Smallest and largest share of the voxels kept along each axis.
        inverted_gamma_probability: Of another exponent within ``gamma_range``, on the image turned dark to bright.
        gamma_keeps_moments: Whether either gamma gives the channel its mean and SD back, as nnU-Net's does.

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
    blur_probability: float = 0.0
    blur_range: tuple[float, float] = (0.5, 1.0)
    low_resolution_probability: float = 0.0
    low_resolution_range: tuple[float, float] = (0.5, 1.0)
    inverted_gamma_probability: float = 0.0
    gamma_keeps_moments: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_probability") and not 0 <= value <= 1:
                raise InputError(f"augmentation's {field.name}", got=str(value), expected="0 to 1")
            if field.name.endswith("_range") and not 0 < value[0] <= value[1]:
                raise InputError(f"augmentation's {field.name}", got=str(value), expected="above 0, smallest first")
        if not set(self.mirror_axes) <= {0, 1, 2}:
            raise InputError("augmentation's mirror_axes", got=str(self.mirror_axes), expected="of 0, 1 and 2")
        if self.low_resolution_range[1] > 1:
            raise InputError(
                "augmentation's low_resolution_range", got=str(self.low_resolution_range), expected="1 at most"
            )


# Uniform numbers drawn for each case, whether used or not, so that one setting never shifts another's draws.
DRAWS = 17
# The same for what came later, from a generator of its own, so that recorded trainings can still be repeated.
LATER_DRAWS = 6


def augment(
    image_BMIJK: Tensor,
    label_BIJK: Tensor,
    config: AugmentConfig,
    generators: Sequence[Generator],
    spacing_mm_B3: Tensor | None = None,
    mirroring: Mirroring = ANY_MIRRORING,
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
        mirroring: Which of ``config.mirror_axes`` the task allows, and which classes are one another's mirror image.
    """
    draws = iter(torch.stack([torch.rand(DRAWS, generator=g) for g in generators]).unbind(1))
    later = iter(torch.stack([torch.rand(LATER_DRAWS, generator=_branch(g)) for g in generators]).unbind(1))
    spacing = torch.ones(len(generators), 3) if spacing_mm_B3 is None else spacing_mm_B3
    # From here on everything writes into these copies: most cases of a batch are left alone by most of what follows.
    image, label = image_BMIJK.clone(), label_BIJK.clone()
    _bend(image, label, config, draws, spacing, mirroring)
    _colour(image, config, draws, later, generators)
    return image, label


def _branch(generator: Generator) -> Generator:
    """Another generator, a function of this one's state, which it leaves as it is."""
    branch = Generator().set_state(generator.get_state())
    return Generator().manual_seed(int(torch.randint(2**62, (), generator=branch)))


def _bend(
    image: Tensor,
    label: Tensor,
    config: AugmentConfig,
    draws: Iterator[Tensor],
    spacing_B3: Tensor,
    mirroring: Mirroring,
) -> None:
    """Turn, zoom and mirror those cases that are drawn for it, in place."""
    rotated = next(draws) < config.rotate_probability
    angles = torch.stack([(2 * next(draws) - 1) * math.radians(config.rotate_degrees) for _ in range(3)], dim=1)
    angles = torch.where(rotated[:, None], angles, torch.zeros(()))
    zoom = _per_case(config.scale_probability, config.scale_range, 1.0, draws)
    bent = rotated | (zoom != 1)
    if bool(bent.any()):
        # Interpolating costs, hence only those cases that change.
        which = bent.nonzero()[:, 0]
        extent_mm = torch.tensor(image.shape[2:]) * spacing_B3[which]
        theta = _lookup_matrices(angles[which], zoom[which], extent_mm)
        _look_up(image, label, theta, which)
    mirrored = [(next(draws) < 0.5) & (axis in config.mirror_axes) & (axis in mirroring.axes) for axis in range(3)]
    for case, by_axis in enumerate(torch.stack(mirrored, dim=1).tolist()):
        axes = [axis for axis in range(3) if by_axis[axis]]
        if axes:
            image[case] = image[case].flip([axis + 1 for axis in axes])
            turned = label[case].flip(axes)
            label[case] = _swapped(turned, mirroring) if 0 in axes else turned


def _look_up(image: Tensor, label: Tensor, theta_B34: Tensor, which_B: Tensor) -> None:
    """Those cases of the batch that ``which_B`` numbers, each through its affine map, in place."""
    if image.device.type == "cpu" and fits(image.shape[2:]):
        for case, theta in zip(which_B.tolist(), theta_B34, strict=True):
            image[case], label[case] = looked_up_affinely(image[case], label[case], theta)
        return
    cases = which_B.to(image.device)
    grid = affine_grid(theta_B34.to(image.device), [len(cases), 1, *image.shape[2:]], align_corners=False)
    nearest = grid_sample(label[cases, None].float(), grid, mode="nearest", align_corners=False)[:, 0]
    image.index_copy_(0, cases, grid_sample(image[cases], grid, mode="bilinear", align_corners=False))
    label.index_copy_(0, cases, nearest.to(label.dtype))


def _swapped(label: Tensor, mirroring: Mirroring) -> Tensor:
    """The label map in which left has become right."""
    swapped = label
    for one, other in mirroring.swaps:
        swapped = torch.where(label == one, other, torch.where(label == other, one, swapped))
    return swapped.to(label.dtype)


def _lookup_matrices(angles_B3: Tensor, zoom_B: Tensor, extent_mm_B3: Tensor) -> Tensor:
    """``(B,3,4)``: for each place of the new image, where to look in the old one, as ``affine_grid`` wants it.

    ``affine_grid`` runs its axes K, J, I and scales each to -1..1, so that a rotation in space is no rotation there
    unless the image is a cube: it is conjugated by the image's extent.
    """
    cos, sin = torch.cos(angles_B3), torch.sin(angles_B3)
    rotation = torch.eye(3).expand(len(angles_B3), 3, 3)
    for axis in range(3):
        one_axis = torch.eye(3).repeat(len(angles_B3), 1, 1)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        one_axis[:, a, a] = one_axis[:, b, b] = cos[:, axis]
        one_axis[:, a, b], one_axis[:, b, a] = -sin[:, axis], sin[:, axis]
        rotation = rotation @ one_axis
    in_mm = rotation / zoom_B[:, None, None]
    normalised = in_mm * extent_mm_B3[:, None, :] / extent_mm_B3[:, :, None]
    return torch.cat([normalised.flip(1, 2), torch.zeros(len(angles_B3), 3, 1)], dim=2)


def _colour(
    image: Tensor,
    config: AugmentConfig,
    draws: Iterator[Tensor],
    later: Iterator[Tensor],
    generators: Sequence[Generator],
) -> None:
    """In place, each part only those cases that it is drawn for; the draws themselves stay on the CPU."""
    noise_sd = _per_case(config.noise_probability, (0.0, config.noise_sd), 0.0, draws)
    brightness = _per_case(config.brightness_probability, config.brightness_range, 1.0, draws)
    contrast = _per_case(config.contrast_probability, config.contrast_range, 1.0, draws)
    gamma = _per_case(config.gamma_probability, config.gamma_range, 1.0, draws)
    blur_sd = _per_case(config.blur_probability, config.blur_range, 0.0, later)
    kept = _per_case(config.low_resolution_probability, config.low_resolution_range, 1.0, later)
    inverted_gamma = _per_case(config.inverted_gamma_probability, config.gamma_range, 1.0, later)

    def noisy(part: Tensor, sd: float, case: int) -> Tensor:
        return part + sd * torch.randn(part.shape, generator=generators[case]).to(part.device)

    def stretched(part: Tensor, factor: float, case: int) -> Tensor:
        mean = part.mean(_VOXELS, keepdim=True)
        return (part - mean) * factor + mean

    def blurred(part: Tensor, sd: float, case: int) -> Tensor:
        return _along_axes(part, [_blurring(size, sd) for size in part.shape[1:]])

    def coarse(part: Tensor, share: float, case: int) -> Tensor:
        return _along_axes(part, [_coarsening(size, share) for size in part.shape[1:]])

    def curved(part: Tensor, exponent: float, case: int) -> Tensor:
        return _curved(part, exponent, config.gamma_keeps_moments)

    _where_drawn(image, noise_sd, 0.0, noisy)
    _where_drawn(image, blur_sd, 0.0, blurred)
    _where_drawn(image, brightness, 1.0, lambda part, factor, case: part * factor)
    _where_drawn(image, contrast, 1.0, stretched)
    _where_drawn(image, kept, 1.0, coarse)
    _where_drawn(image, inverted_gamma, 1.0, lambda part, exponent, case: -curved(-part, exponent, case))
    _where_drawn(image, gamma, 1.0, curved)


_VOXELS = (1, 2, 3)


def _where_drawn(
    image: Tensor, values_B: Tensor, otherwise: float, change: Callable[[Tensor, float, int], Tensor]
) -> None:
    """Change those cases of the image whose value is not ``otherwise``, in place.

    One after another: few of a batch are drawn, and what happens to one is then the same to the bit in any company.
    """
    for case, value in enumerate(values_B.tolist()):
        if value != otherwise:
            image[case] = change(image[case], value, case)


def _curved(image_MIJK: Tensor, exponent: float, keep_moments: bool) -> Tensor:
    low, high = image_MIJK.amin(_VOXELS, keepdim=True), image_MIJK.amax(_VOXELS, keepdim=True)
    extent = (high - low).clamp_min(1e-6)
    # A power by way of its logarithm, which is 0 for 0 too, takes a quarter of the time.
    share = ((image_MIJK - low) / extent).log_().mul_(exponent).exp_()
    curved = share.mul_(extent).add_(low)
    if not keep_moments:
        return curved
    mean, sd = _moments(image_MIJK)
    new_mean, new_sd = _moments(curved)
    return (curved - new_mean) / new_sd.clamp_min(1e-6) * sd + mean


def _moments(image_MIJK: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and SD of each modality; a tenth of the library's time for both in one pass."""
    mean = image_MIJK.mean(_VOXELS, keepdim=True)
    return mean, (image_MIJK - mean).square_().mean(_VOXELS, keepdim=True).sqrt_()


def _along_axes(image_MIJK: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Each voxel axis multiplied by a matrix ``(size,size)`` of its own."""
    of_i, of_j, of_k = (matrix.to(image_MIJK.device) for matrix in matrices)
    slabs = (of_i @ image_MIJK.flatten(2)).view(image_MIJK.shape)
    return of_j @ slabs @ of_k.T


def _blurring(size: int, sd: float) -> Tensor:
    """``(size,size)``: the Gaussian around each voxel, to four SDs; faces are held beyond the image."""
    radius = round(4 * sd)
    steps = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (steps / sd) ** 2)
    columns = (torch.arange(size)[:, None] + steps).clamp(0, size - 1)
    return torch.zeros(size, size).scatter_add_(1, columns, (weights / weights.sum()).expand(size, -1))


def _coarsening(size: int, share: float) -> Tensor:
    """``(size,size)``: shrunk by nearest voxel to ``share`` of the size and stretched linearly again."""
    few = max(1, round(size * share))
    shrunk = resize(np.eye(size, dtype=np.float32)[None, None], (1, few, size), order=0)
    return torch.from_numpy(resize(shrunk, (1, size, size), order=1)[0, 0])


def _per_case(probability: float, extent: tuple[float, float], otherwise: float, draws: Iterator[Tensor]) -> Tensor:
    """For each case a number within ``extent`` with ``probability``, else ``otherwise``."""
    happens, share = next(draws) < probability, next(draws)
    low, high = extent
    return torch.where(happens, low + (high - low) * share, otherwise)
