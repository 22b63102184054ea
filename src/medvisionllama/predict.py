"""From a volume to its label map, on the input's own grid.

Axes: ``M`` modalities, ``C`` output channels, ``I J K`` voxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from medvisionllama.data.dataset import PreparedCase
from medvisionllama.data.plan import Plan
from medvisionllama.data.preprocess import (
    back_to_input_grid,
    decide,
    likeliest_channel,
    to_input_resolution,
    to_model_grid,
)
from medvisionllama.geometry import Array, Volume
from medvisionllama.sliding_window import sliding_window


@dataclass(frozen=True)
class Member:
    """One trained network of an ensemble, and the plan its inputs are prepared by."""

    model: nn.Module
    plan: Plan


class Segmenter:
    """Segments volumes with one trained network, or with the mean of several networks' probabilities.

    Args:
        members: Networks with the same classes; each prepares the input by its own plan.
        device: Where they lie.
        precision: Number format of the arithmetic.
    """

    def __init__(self, members: Sequence[Member], device: torch.device, precision: torch.dtype = torch.float32) -> None:
        self.members = members
        self.device = device
        self.precision = precision
        for member in members:
            member.model.eval()

    @property
    def plan(self) -> Plan:
        """The first member's, whose classes all share."""
        return self.members[0].plan

    def segment(self, image: Volume, name: str = "the image") -> Volume:
        """The label map of an image, in exactly its grid: same size, same affine.

        Args:
            image: ``(I,J,K)`` or ``(M,I,J,K)``, in any orientation.
            name: What error messages call it.

        Raises:
            InputError: Channels or intensities do not fit.
        """
        return back_to_input_grid(self.probabilities(image, name), image.grid, self.plan)

    def probabilities(self, image: Volume, name: str = "the image") -> Array:
        """``(C,I,J,K)`` at the input's resolution, in RAS order."""
        total: Array = np.zeros(0)
        for member in self.members:
            prepared = torch.from_numpy(to_model_grid(image, member.plan, name))
            on_model_grid = member_probabilities(member, prepared, self.device, self.precision)
            fine = to_input_resolution(on_model_grid, image.grid)
            total = fine if not total.size else total + fine
        return total / len(self.members)

    def label_map_on_model_grid(self, image: Volume, name: str = "the image") -> Array:
        """``(I,J,K)`` on the model's grid: what the paper protocol scores as ``grid=model``. One member only."""
        prepared = torch.from_numpy(to_model_grid(image, self.plan, name))
        return decide(member_probabilities(self.members[0], prepared, self.device, self.precision), self.plan)


@torch.inference_mode()
def member_probabilities(member: Member, image_MIJK: Tensor, device: torch.device, precision: torch.dtype) -> Array:
    """``(C,I,J,K)`` softmax or sigmoid output for an image on the model's grid."""

    def network(windows: Tensor) -> Tensor:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits: Tensor = member.model(windows)
        return logits

    logits = sliding_window(network, image_MIJK.to(device), member.plan.window)
    probability = torch.sigmoid(logits) if member.plan.merged else torch.softmax(logits, 0)
    array: Array = probability.cpu().numpy()
    return array


def dice_on_model_grid(
    model: nn.Module, plan: Plan, cases: Iterable[PreparedCase], device: torch.device, precision: torch.dtype
) -> dict[str, float]:
    """Mean Dice over whole prepared volumes, by class and as their ``mean``: what training is steered by.

    A class that is in neither label nor output of a case counts for nothing there; in just one of them, for 0.
    """
    model.eval()
    by_class: dict[str, list[float]] = {name: [] for name in plan.targets}
    for case in cases:
        image = torch.from_numpy(np.array(case.image))
        probability = member_probabilities(Member(model, plan), image, device, precision)
        found = likeliest_channel(probability, plan)
        for channel, name in enumerate(plan.targets, start=1):
            a, b = found == channel, case.label == channel
            if voxels := int(a.sum()) + int(b.sum()):
                by_class[name].append(2 * int((a & b).sum()) / voxels)
    means = {name: float(np.mean(values)) if values else float("nan") for name, values in by_class.items()}
    known = [value for value in means.values() if not np.isnan(value)]
    return means | {"mean": float(np.mean(known)) if known else float("nan")}
