"""Which axes of a task may be mirrored, and what left and right become when they are.

In RAS order I runs from left to right: mirrored along it, a left kidney is a right one. Where classes name their sides,
either they change places with the mirror or I is not mirrored at all.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from medvisionllama.errors import InputError

_SIDE = re.compile(r"(?<![^\W_])(left|right|lt|rt|lh|rh|l|r)(?![^\W_])")
_OTHER_SIDE = {"left": "right", "lt": "rt", "lh": "rh", "l": "r"} | {"right": "left", "rt": "lt", "rh": "lh", "r": "l"}
# What must follow a first letter that is to be a side. LV and RV are ventricles that no mirror makes of one another, L1
# and R1 a vertebra and a rib.
_PART = re.compile(r"[^\W\d_]{2}")
# Within a word a side is what has a counterpart: ``xleft1`` and ``xright1``. At a word's beginning or end, as in
# ``leftlung`` and ``kidneyleft``, it is one without, but for the words ``cleft``, ``bright`` and ``upright``.
_WITHIN = re.compile(r"left|right")
_AT_AN_END = re.compile(
    r"(?<![^\W_])(left|right)"
    r"|(left|right)(?![^\W_])(?<!(?<![^\W_])cleft)(?<!(?<![^\W_])bright)(?<!(?<![^\W_])upright)"
)
# The heart's chambers are called by sides, but a mirror makes no left ventricle of a right one (LV, and LVC for its
# cavity); the brain's lateral ventricles it does.
_CHAMBER = re.compile(r"ventric|atri(um|al)|auric|(?<![^\W_])[lr]v")
_OF_THE_BRAIN = re.compile(r"lateral[\W_]*ventric|brain|horn")


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

    def __str__(self) -> str:
        """Such as ``mirrored along I, J, K; 1 pair changes sides``."""
        along = (
            "mirrored along " + ", ".join("IJK"[axis] for axis in sorted(self.axes)) if self.axes else "not mirrored"
        )
        pairs = "1 pair changes" if len(self.swaps) == 1 else f"{len(self.swaps) or 'no'} pairs change"
        return f"{along}; {pairs} sides" if 0 in self.axes else along

    def __post_init__(self) -> None:
        if not set(self.axes) <= {0, 1, 2}:
            raise InputError("axes to mirror", got=str(self.axes), expected="of 0, 1 and 2")
        classes = [value for pair in self.swaps for value in pair]
        if len(set(classes)) < len(classes):
            raise InputError("classes that change sides", got=str(self.swaps), expected="each in one pair")


ANY_MIRRORING = Mirroring()  # of all axes, and no class has a side


def mirroring_of(
    classes: Mapping[int, str], regions: Mapping[str, Collection[int]] = MappingProxyType({})
) -> Mirroring:
    """What names say of sides: ``kidney_left`` and ``kidney_right`` change places.

    A side is a word (left, right, lt, rt, lh, rh, l, r), left or right within one (``leftlung`` and ``rightlung``), or
    the first letter where another name differs in it alone (``lkid`` and ``rkid``). What such a letter says is in doubt
    in ``LV`` and ``RV``, in ``kidney`` beside ``lkidney``, in ``RML`` beside ``LUL`` and ``RUL``, and where names
    differ in an l and an r elsewhere (``Eye_AL`` and ``Eye_AR``): I is not mirrored then. Nor is it where ``left`` and
    ``right`` name chambers of the heart.

    A class that names a side whose counterpart is not there (``left atrium`` alone) would be on the wrong side in a
    mirror, hence no mirroring along I then. Classes that name no side may be mirrored as they are.

    Args:
        classes: Label value to name.
        regions: Name to label values of overlapping targets, if there are any. Where one names a side, the classes that
            change places must make its counterpart of it, or I is not mirrored: what a class called ``label 3`` becomes
            cannot be told.
    """
    by_words = {_words(name): value for value, name in classes.items()}
    pairs = set()
    for words, value in by_words.items():
        image = _in_a_mirror(words, by_words)
        if image is None:
            return Mirroring(axes=(1, 2))
        if image != words:
            pairs.add((min(value, by_words[image]), max(value, by_words[image])))
    mirroring = Mirroring(swaps=tuple(sorted(pairs)))
    return mirroring if _agrees(mirroring, regions) else Mirroring(axes=(1, 2))


def _agrees(mirroring: Mirroring, regions: Mapping[str, Collection[int]]) -> bool:
    """Whether every region that names a side becomes its counterpart."""
    swap = dict(mirroring.swaps) | {other: one for one, other in mirroring.swaps}
    by_words = {_words(name): set(values) for name, values in regions.items()}
    images = {words: _in_a_mirror(words, by_words) for words in by_words}
    return all(
        image is not None and (image == words or {swap.get(v, v) for v in by_words[words]} == by_words[image])
        for words, image in images.items()
    )


def _in_a_mirror(words: str, known: Collection[str]) -> str | None:
    """The name's counterpart; itself where it names no side; None where there is no counterpart among the known."""
    image = _SIDE.sub(_other, words)
    if image == words and (_WITHIN.sub(_other, words) in known or _AT_AN_END.search(words)):
        image = _WITHIN.sub(_other, words)
    of_the_heart = _CHAMBER.search(words) and not _OF_THE_BRAIN.search(words)
    if image != words:
        return image if image in known and not of_the_heart else None
    first, part = words[:1], words[1:]
    if of_the_heart and first in ("l", "r"):
        return None
    begins_with_a_side = first in ("l", "r") and _PART.match(part)
    alike = [name for name in known if _differs_in_a_side_letter(name, words)]
    if alike:
        return alike[0] if begins_with_a_side and alike == [_OTHER_SIDE[first] + part] else None
    if not begins_with_a_side:
        return words
    # The letter is a side where its like is one, or where the rest is a name of its own: then a counterpart is missing.
    as_long = {name for name in known if len(name) == len(words)}
    its_like = any(name[:1] == "l" and "r" + name[1:] in as_long for name in as_long)
    return None if its_like or part in known else words


def _other(found: re.Match[str]) -> str:
    return _OTHER_SIDE[found.group()]


def _differs_in_a_side_letter(one: str, other: str) -> bool:
    """Whether an l in place of one r, or the other way round, is all that tells the names apart."""
    if len(one) != len(other):
        return False
    odd = [{a, b} for a, b in zip(one, other, strict=True) if a != b]
    return odd == [{"l", "r"}]


def _words(name: str) -> str:
    """In small letters, ``kidneyLeft`` taken apart."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
