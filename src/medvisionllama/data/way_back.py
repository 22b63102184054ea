"""From blended logits on the model's grid back to the input's own grid, slab by slab and tile by tile.

Probabilities of all classes on the input's grid would fill a machine's memory (105 classes of a whole-body CT: 77 GB),
so they exist for one tile at a time. Axes: ``C`` output channels, ``I J K`` voxels in RAS order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medvisionllama.data.plan import Plan
from medvisionllama.geometry import Array, Grid, Shape, Volume, onto_axes_of, ras_grid, resize
from medvisionllama.sliding_window import Sweep

Tile = tuple[slice, slice, slice]

# Voxels times channels of a tile on the input's grid: few enough to stay near a core, many enough that calls cost
# little and tiles overlap little. A GPU's calls cost more.
TILE_VALUES, GPU_TILE_VALUES = 1 << 22, 1 << 25
SMALLEST_TILE_EDGE = 16
# Probabilities are rounded: a class is left out of a tile only where it falls short of winning by more than this share.
ROUNDING = 1e-3


def to_input_resolution(probability_CIJK: Array, grid: Grid) -> Array:
    """Probabilities stretched linearly from the model's grid to the input's size at once, still in RAS order."""
    return resize(probability_CIJK, ras_grid(grid).shape, order=1)


def decide(probability_CIJK: Array, plan: Plan) -> Array:
    """Label values ``(I,J,K)`` from probabilities: those of the likeliest class.

    Sigmoid targets count where they are above one half; a later one is written over an earlier one. In the paper
    protocol the merged foreground is 1.
    """
    if plan.softmax:
        return label_values(probability_CIJK.argmax(axis=0), plan)
    chosen = np.zeros(probability_CIJK.shape[1:], dtype=np.uint8)
    for number, probability in zip(plan.written_numbers, probability_CIJK, strict=True):
        chosen[probability > 0.5] = number
    return label_values(chosen, plan)


def label_values(numbers_IJK: Array, plan: Plan) -> Array:
    """Label values from class numbers (``Plan.number_of``): the task's own, or 1 for the merged foreground."""
    values = np.array([0, 1] if plan.merged else [0, *plan.classes])
    label_map: Array = values.astype(np.min_scalar_type(values.max()))[numbers_IJK]
    return label_map


def back_to_input_grid(in_ras_order: Array, grid: Grid) -> Volume:
    """Voxels at the input's resolution in RAS order, put on the input's own axes: same size, same affine."""
    return Volume(onto_axes_of(Volume(in_ras_order, ras_grid(grid).affine), grid).array, grid.affine)


class NoNumberError(ArithmeticError):
    """A network answers NaN; who knows for which image, tells."""


@dataclass(frozen=True, eq=False)
class _Taps:
    """Which two voxels of the model's grid each voxel of the other grid lies between, along one axis."""

    below: Array
    above: Array
    share: Array  # of the one above

    @classmethod
    def between(cls, size: int, new: int) -> _Taps:
        """As :func:`medvisionllama.geometry.resize` looks voxels up, edges held."""
        if size == new:
            same = np.arange(size)
            return cls(same, same, np.zeros(size))
        centres = np.clip((np.arange(new) + 0.5) * size / new - 0.5, 0, size - 1)
        below = np.minimum(np.floor(centres).astype(np.intp), max(size - 2, 0))
        return cls(below, np.minimum(below + 1, size - 1), centres - below)


class FineSweep:
    """A member's :class:`Sweep`, looked at on a finer (or coarser) grid that fills the same box.

    Args:
        sweep: Over the model's grid.
        shape: Size of the other grid.
        numbers: The class number that each sigmoid target writes (``Plan.written_numbers``); none where the channels
            are classes that exclude one another (softmax).
    """

    def __init__(self, sweep: Sweep, shape: Shape, numbers: Sequence[int] = ()) -> None:
        self.sweep, self.shape, self.numbers = sweep, shape, numbers
        self._taps = [_Taps.between(old, new) for old, new in zip(sweep.shape, shape, strict=True)]

    @property
    def ready(self) -> int:
        """Planes ``[0, ready)`` of the other grid along the swept axis can be looked up."""
        return int(np.searchsorted(self._taps[self.sweep.axis].above, self.sweep.finished))

    def advance(self, done: int) -> None:
        """Sweep on; planes of the other grid before ``done`` will not be asked for again."""
        self.sweep.advance(int(self._taps[self.sweep.axis].below[done]))

    def coarse(self, tile: Tile) -> Tensor:
        """``(C,...)`` probabilities at the voxels of the model's grid that a tile of the other grid lies between."""
        i, j, k = (
            slice(int(taps.below[part][0]), int(taps.above[part][-1]) + 1)
            for taps, part in zip(self._taps, tile, strict=True)
        )
        logits = self.sweep.logits((i, j, k))
        return logits.sigmoid_() if self.numbers else logits.softmax(0)

    def stretch(self, coarse: Tensor, tile: Tile) -> Tensor:
        """What :meth:`coarse` gave, or some of its channels, stretched linearly onto a tile of the other grid."""
        # Shortest first: the axis that grows most comes last.
        growth = [self.shape[axis] / self.sweep.shape[axis] for axis in range(3)]
        for axis in sorted(range(3), key=lambda a: growth[a]):
            if growth[axis] != 1:
                coarse = self._stretch_axis(coarse, axis, tile[axis])
        return coarse

    def _stretch_axis(self, coarse: Tensor, axis: int, part: slice) -> Tensor:
        taps = self._taps[axis]
        first = taps.below[part][0]
        below, above = (
            torch.as_tensor(index[part] - first, device=coarse.device) for index in (taps.below, taps.above)
        )
        share = torch.as_tensor(taps.share[part], dtype=coarse.dtype, device=coarse.device)
        share = share.view([-1 if a == axis else 1 for a in range(3)])
        return torch.lerp(coarse.index_select(1 + axis, below), coarse.index_select(1 + axis, above), share)


def choices_on(members: Sequence[FineSweep], channels: int, look: Callable[[Tile], None] = lambda tile: None) -> Array:
    """``(I,J,K)`` uint8: the class numbers that the mean of the members' probabilities chooses, tile by tile.

    To rounding what :func:`decide` says of all probabilities at once.

    Args:
        members: Sweeps along one axis, looked at on one grid.
        channels: ``C``.
        look: Told each tile while the sweeps can be looked up there.

    Raises:
        NoNumberError: A network answers NaN.
    """
    chosen = np.zeros(members[0].shape, dtype=np.uint8)
    for tile in tiles(members, channels):
        look(tile)
        chosen[tile] = _choice(members, [m.coarse(tile) for m in members], tile)
    return chosen


def probabilities_on(members: Sequence[FineSweep], channels: int) -> Iterator[tuple[Tile, Array]]:
    """The mean of the members' probabilities, tile by tile: the tile and what belongs there, ``(C,...)`` float32.

    Raises:
        NoNumberError: A network answers NaN.
    """
    for tile in tiles(members, channels):
        mean = _mean([m.stretch(m.coarse(tile), tile) for m in members])
        _refuse_nan(mean)
        yield tile, mean.cpu().numpy()


def tiles(members: Sequence[FineSweep], channels: int) -> Iterator[Tile]:
    """Places that fill the grid; the members' sweeps are advanced so that each can be looked up when it is given."""
    shape, axis = members[0].shape, members[0].sweep.axis
    edge = SMALLEST_TILE_EDGE
    most = TILE_VALUES if members[0].sweep.device.type == "cpu" else GPU_TILE_VALUES
    while (edge + 8) ** 3 * channels <= most:
        edge += 8
    done = 0
    while done < shape[axis]:
        min(members, key=lambda member: member.ready).advance(done)
        ready = min(member.ready for member in members)
        parts = [_parts(0, size, edge) for size in shape]
        parts[axis] = _parts(done, ready, edge)
        yield from itertools.product(*parts)
        done = ready


def _parts(begin: int, end: int, edge: int) -> list[slice]:
    """Slices of about equal length, none longer than ``edge``."""
    count = -(-(end - begin) // edge)
    cuts = [begin + (end - begin) * n // count for n in range(count + 1)] if count else []
    return [slice(a, b) for a, b in itertools.pairwise(cuts)]


def _choice(members: Sequence[FineSweep], coarse: Sequence[Tensor], tile: Tile) -> Array:
    """What is chosen in one tile. Only channels that could be, anywhere in it, are stretched."""
    # Between voxels no channel is above its largest or below its smallest neighbour.
    ends = [torch.aminmax(c.flatten(1), dim=1) for c in coarse]
    low, high = _mean([end.min for end in ends]), _mean([end.max for end in ends])
    _refuse_nan(high)
    if numbers := members[0].numbers:
        chosen = torch.zeros([part.stop - part.start for part in tile], dtype=torch.uint8, device=high.device)
        for channel in (high > 0.5).nonzero()[:, 0].tolist():  # in order: later ones over earlier ones
            fine = _mean([m.stretch(c[[channel]], tile) for m, c in zip(members, coarse, strict=True)])
            chosen[fine[0] > 0.5] = numbers[channel]
        return chosen.cpu().numpy()
    # Probabilities add up to 1: the winner has at least the mean of them, and at least the largest that is sure.
    needed = max(1 / len(low), float(low.max())) * (1 - ROUNDING)
    able = (high >= needed).nonzero()[:, 0]
    if len(able) == 1:
        return able.to(torch.uint8).cpu().numpy()
    fine = _mean([m.stretch(c[able], tile) for m, c in zip(members, coarse, strict=True)])
    best, chosen = fine[0], torch.zeros(fine.shape[1:], dtype=torch.uint8, device=fine.device)
    for number in range(1, len(fine)):  # faster than argmax; a tie goes to the first
        chosen.masked_fill_(fine[number] > best, number)
        best = torch.maximum(best, fine[number])
    return able.to(torch.uint8)[chosen.long()].cpu().numpy()


def _refuse_nan(probability: Tensor) -> None:
    if probability.isnan().any():
        raise NoNumberError


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).mean(0)
