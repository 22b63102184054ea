"""From a volume to its label map, on the input's own grid, in bounded memory.

Axes: ``M`` modalities, ``C`` output channels, ``I J K`` voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvisionllama.data.dataset import PreparedCase
from medvisionllama.data.plan import Plan
from medvisionllama.data.preprocess import to_model_grid
from medvisionllama.data.way_back import (
    FineSweep,
    NoNumberError,
    Tile,
    back_to_input_grid,
    choices_on,
    decide,
    label_values,
    probabilities_on,
)
from medvisionllama.errors import InputError
from medvisionllama.geometry import Array, Shape, Volume, ras_grid
from medvisionllama.largest_component import keep_largest
from medvisionllama.losses import LossName, LossOfPieces
from medvisionllama.sliding_window import Network, Sweep, mirrored

Keep = Callable[[Tile, Array], None]

MEMORY_GB = 4.0
MOST_WINDOWS_AT_ONCE = 4
_LOOK_OR_TRAIN = "Look at the image; if it is like the others, the weights are damaged: train again."


@dataclass(frozen=True)
class Member:
    """One trained network of an ensemble, and the plan its inputs are prepared by.

    Attributes:
        model: The network.
        plan: How its inputs are prepared and its outputs read.
        mirror: Voxel axes (0 I, 1 J, 2 K) along which every window is shown mirrored too, in all their combinations,
            where the plan allows it.
        precision: Number format of its arithmetic.
    """

    model: nn.Module
    plan: Plan
    mirror: tuple[int, ...] = ()
    precision: torch.dtype = torch.float32


@dataclass(frozen=True)
class Room:
    """How much memory passing results may take, and where those lie that need more.

    Attributes:
        memory_gb: For blended logits and the networks' answers of all members together; the image, its prepared form
            and what the networks need inside come on top.
        scratch: Folder of the nameless files that hold what does not fit; None for the system's own.
    """

    memory_gb: float = MEMORY_GB
    scratch: Path | None = None


@dataclass(frozen=True)
class Segmenter:
    """Segments volumes with one trained network, or with the mean of several networks' probabilities.

    Attributes:
        members: Networks with the same classes; each prepares the input by its own plan.
        device: Where they lie.
        room: The memory passing results may take.
        clean: Label values of which the largest connected component alone is kept.
    """

    members: Sequence[Member]
    device: torch.device
    room: Room = field(default_factory=Room)
    clean: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for member in self.members:
            member.model.eval()

    @property
    def plan(self) -> Plan:
        """The first member's, whose classes all share."""
        return self.members[0].plan

    def segment(self, image: Volume, name: str = "the image", keep: Keep | None = None) -> Volume:
        """The label map of an image, in exactly its grid: same size, same affine.

        It is decided on the fine grid, so that edges follow the model and not its voxels.

        Args:
            image: ``(I,J,K)`` or ``(M,I,J,K)``, in any orientation.
            name: What error messages call it.
            keep: Told the probabilities too, tile by tile: a place of the image's grid in RAS order, and the
                ``(C,...)`` float32 there. All classes are looked at everywhere then, which takes longer.

        Raises:
            InputError: Channels or intensities do not fit, the network answers NaN, or there is no room for what must
                pass by the disk.
        """
        fine = self._fine(image, name, ras_grid(image.grid).shape)
        with _numbers_for(name, _LOOK_OR_TRAIN):
            if keep is None:
                labels = label_values(choices_on(fine, self.plan.out_channels), self.plan)
            else:
                values = label_values(np.zeros(1, dtype=np.uint8), self.plan)
                labels = np.zeros(ras_grid(image.grid).shape, dtype=values.dtype)
                for tile, probability in probabilities_on(fine, self.plan.out_channels):
                    labels[tile] = decide(probability, self.plan)
                    keep(tile, probability)
        return back_to_input_grid(keep_largest(labels, self.clean), image.grid)

    def label_map_on_model_grid(self, image: Volume, name: str = "the image") -> Array:
        """``(I,J,K)`` on the model's grid: the paper protocol, where members share it, scores it too."""
        with _numbers_for(name, _LOOK_OR_TRAIN):
            chosen = choices_on(self._fine(image, name, None), self.plan.out_channels)
        return keep_largest(label_values(chosen, self.plan), self.clean)

    def _fine(self, image: Volume, name: str, shape: Shape | None) -> list[FineSweep]:
        prepared = [torch.from_numpy(to_model_grid(image, member.plan, name)) for member in self.members]
        return fine_sweeps(self.members, prepared, shape, self.device, self.room)


@contextmanager
def _numbers_for(name: str, mend: str) -> Iterator[None]:
    """Tell for which image a network does not answer with numbers."""
    try:
        yield
    except NoNumberError:
        raise InputError(f"the network does not answer with numbers (NaN) for {name}", mend=mend) from None


def fine_sweeps(
    members: Sequence[Member],
    prepared_MIJK: Sequence[Tensor],
    shape: Shape | None,
    device: torch.device,
    room: Room,
) -> list[FineSweep]:
    """Sweeps of all members over one image, to be looked at on a grid of ``shape`` (None: the first's own)."""
    bands = [_bands(member, image) for member, image in zip(members, prepared_MIJK, strict=True)]
    axis = min(range(3), key=lambda a: sum(band[a] for band in bands))
    most_bytes = int(room.memory_gb * 1e9 / len(members))
    sweeps = []
    for member, image in zip(members, prepared_MIJK, strict=True):
        answer = 4 * member.plan.out_channels * math.prod(member.plan.window)
        copies = _answers_at_once(member)
        batch_size = max(1, min(MOST_WINDOWS_AT_ONCE, most_bytes // max(8, 2 * copies) // answer))
        sweep = Sweep(
            _network(member, device),
            image.to(device),
            member.plan.window,
            axis,
            batch_size=batch_size,
            most_bytes=most_bytes - copies * batch_size * answer,
            scratch=room.scratch,
        )
        sweeps.append(FineSweep(sweep, shape or sweep.shape, member.plan.written_numbers))
    return sweeps


def _answers_at_once(member: Member) -> int:
    """How many float32 answers to a batch stand at once where it is mirrored, however often.

    Logits, log-probabilities, their mean so far and the next; sigmoids have the complement's beside each.
    """
    if not member.mirror:
        return 1
    return 4 if member.plan.softmax else 8


def _bands(member: Member, image_MIJK: Tensor) -> list[int]:
    """Values in a band of planes one window thick, for each axis it might be swept along."""
    sizes = [max(s, w) for s, w in zip(image_MIJK.shape[1:], member.plan.window, strict=True)]
    voxels = math.prod(sizes)
    return [voxels // size * min(size, w + 1) for size, w in zip(sizes, member.plan.window, strict=True)]


def _network(member: Member, device: torch.device) -> Network:
    def network(windows: Tensor) -> Tensor:
        with torch.autocast(device.type, member.precision, enabled=member.precision != torch.float32):
            logits: Tensor = member.model(windows)
        return logits

    axes, sides = mirroring_allowed(member.plan)
    shown = [axis for axis in axes if axis in member.mirror]
    return mirrored(network, shown, sides=sides, sigmoid=not member.plan.softmax)


def mirroring_allowed(plan: Plan) -> tuple[tuple[int, ...], list[int]]:
    """Along which axes a window may be mirrored, and which channel each channel becomes in a mirror along I.

    Regions whose mirror images are no regions forbid mirroring along I.
    """
    swap = dict(plan.mirroring.swaps) | {other: one for one, other in plan.mirroring.swaps}
    if plan.merged:
        return plan.mirroring.axes, [0]
    targets = [{value} for value in (0, *plan.classes)] if plan.softmax else [set(v) for v in plan.regions.values()]
    images = [{swap.get(value, value) for value in target} for target in targets]
    if any(image not in targets for image in images):
        return tuple(axis for axis in plan.mirroring.axes if axis != 0), list(range(len(targets)))
    return plan.mirroring.axes, [targets.index(image) for image in images]


@dataclass(frozen=True)
class Look:
    """What whole volumes say of a network while it trains.

    Attributes:
        dice: Mean over volumes, by class or region, and their mean as ``mean``. What is in neither label nor output of
            a volume counts for nothing there; what is in just one of them, for 0.
        loss: Of whole volumes, as training has it of patches; mean over volumes.
    """

    dice: dict[str, float]
    loss: float


def look_at_volumes(
    model: nn.Module,
    plan: Plan,
    cases: Sequence[PreparedCase],
    loss: LossName,
    device: torch.device,
    precision: torch.dtype,
    room: Room | None = None,
) -> Look:
    """Segment whole prepared volumes on the model's grid: what training is steered by."""
    model.eval()
    by_class: dict[str, list[float]] = {name: [] for name in plan.targets}
    losses = []
    member = Member(model, plan, precision=precision)
    for case in cases:
        image, label = torch.from_numpy(np.array(case.image)), np.asarray(case.label)
        sweeps = fine_sweeps([member], [image], None, device, room or Room())
        of_case = LossOfPieces(loss, plan.reading)
        with _numbers_for(f"the case {case.name}", "Lower --recipe.learning_rate, or set --recipe.precision float32."):
            found = choices_on(sweeps, plan.out_channels, partial(_add_piece, of_case, sweeps[0].sweep, label))
        losses.append(of_case.value())
        pairs = _pairs(found, label, plan.reading.ignored)
        for name, numbers in plan.numbered_targets.items():
            if voxels := int(pairs[list(numbers)].sum()) + int(pairs[:, list(numbers)].sum()):
                by_class[name].append(2 * int(pairs[np.ix_(numbers, numbers)].sum()) / voxels)
    means = {name: float(np.mean(values)) if values else float("nan") for name, values in by_class.items()}
    known = [value for value in means.values() if not np.isnan(value)]
    means["mean"] = float(np.mean(known)) if known else float("nan")
    return Look(means, float(np.mean(losses)) if losses else float("nan"))


def _pairs(found_IJK: Array, label_IJK: Array, ignored: int | None) -> NDArray[np.int64]:
    """``(256,256)``: at how many voxels one number was found where the label map holds another; none where ignored.

    Plane by plane, so that what is counted in stays small.
    """
    numbers = 256  # of uint8
    counts = np.zeros(numbers**2, dtype=np.int64)
    for found, label in zip(found_IJK, label_IJK, strict=True):
        counts += np.bincount((found.astype(np.intp) * numbers + label).ravel(), minlength=numbers**2)
    pairs = counts.reshape(numbers, numbers)
    if ignored is not None:
        pairs[:, ignored] = 0
    return pairs


def _add_piece(loss: LossOfPieces, sweep: Sweep, label: Array, tile: Tile) -> None:
    logits = sweep.logits(tile)
    loss.add(logits, torch.from_numpy(np.array(label[tile])).to(logits.device))
