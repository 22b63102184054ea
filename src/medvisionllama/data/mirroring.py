"""Which axes of a task may be mirrored, and what left and right become when they are.

In RAS order I runs from left to right: mirrored along it, a left kidney is a right one. Where classes name their sides,
either they change places with the mirror or I is not mirrored at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from medvisionllama.errors import InputError

_SIDE = re.compile(r"(?<![^\W_])(left|right|lt|rt|l|r)(?![^\W_])")
_OTHER_SIDE = {"left": "right", "lt": "rt", "l": "r"} | {"right": "left", "rt": "lt", "r": "l"}


@dataclass(frozen=True)
class Mirroring:
    """What mirroring means for a task.

    Attributes:
        axes: Voxel axes (0 I, 1 J, 2 K) that may be mirrored at all.
        swaps: Pairs of classes that change places where I is mirrored.

    Raises:
        InputError: An axis does not exist, or a class is to become two others.
    """

    axes: tuple[int, ...] = (0, 1, 2)
    swaps: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not set(self.axes) <= {0, 1, 2}:
            raise InputError("axes to mirror", got=str(self.axes), expected="of 0, 1 and 2")
        classes = [value for pair in self.swaps for value in pair]
        if len(set(classes)) < len(classes):
            raise InputError("classes that change sides", got=str(self.swaps), expected="each in one pair")


ANY_MIRRORING = Mirroring()  # of all axes, and no class has a side


def mirroring_of(classes: Mapping[int, str]) -> Mirroring:
    """What the classes' names say of sides: ``kidney_left`` and ``kidney_right`` change places, as do ``l`` and ``r``.

    A class that names a side whose counterpart is not there (``left atrium`` alone) would be on the wrong side in a
    mirror, hence no mirroring along I then. Classes that name no side may be mirrored as they are.
    """
    by_words = {_words(name): value for value, name in classes.items()}
    pairs = set()
    for words, value in by_words.items():
        counterpart = _SIDE.sub(lambda found: _OTHER_SIDE[found.group()], words)
        if counterpart == words:
            continue
        if counterpart not in by_words:
            return Mirroring(axes=(1, 2))
        pairs.add((min(value, by_words[counterpart]), max(value, by_words[counterpart])))
    return Mirroring(swaps=tuple(sorted(pairs)))


def _words(name: str) -> str:
    """In small letters, ``kidneyLeft`` taken apart."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
