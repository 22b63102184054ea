"""What ``labels`` in a ``dataset.json`` says: classes, overlapping regions, and voxels to be ignored.

Sources: the Decathlon's ``{"1": "liver"}``, and nnU-Net v2's ``{"liver": 1}`` with its regions (a list of values,
``regions_class_order``) and its ``"ignore"`` (documentation/region_based_training.md and ignore_label.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvisionllama.data.mirroring import Mirroring
from medvisionllama.data.task import BACKGROUND, DESCRIPTION
from medvisionllama.errors import InputError

IGNORE = "ignore"
REGION_ORDER = "regions_class_order"
# Ours: pairs of label values that change places where left and right are mirrored, if their names do not say so.
MIRROR_SWAPS = "mirror_swaps"


@dataclass(frozen=True)
class Labels:
    """The meaning of label values; attributes as in :class:`medvisionllama.data.task.Task`."""

    classes: dict[int, str]
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    region_values: tuple[int, ...] = ()
    ignored: int | None = None
    mirroring: Mirroring | None = None


def read_labels(folder: Path, description: Mapping[str, Any]) -> Labels:
    """The labels of a task's description.

    Raises:
        InputError: They are not understood, or contradict one another.
    """
    path = folder / DESCRIPTION
    labels = description.get("labels")
    if not isinstance(labels, dict):
        raise misread(path, '"labels", such as {"0": "background", "1": "liver"}', labels)
    named = dict(labels)
    ignored = whole_number(path, named.pop(IGNORE)) if isinstance(named.get(IGNORE), int) else None
    regions: dict[str, tuple[int, ...]] = {}
    order: tuple[int, ...] = ()
    if any(isinstance(value, list) for value in named.values()):
        regions, order = _regions(path, named, description.get(REGION_ORDER))
        classes = _values_of(regions)
    else:
        classes = _classes(path, named)
    if ignored is not None and (ignored == BACKGROUND or ignored in classes):
        raise misread(path, f'"{IGNORE}" to be a value that no class has', labels)
    return Labels(classes, regions, order, ignored, _mirroring(path, description.get(MIRROR_SWAPS), classes))


def _classes(path: Path, labels: Mapping[str, Any]) -> dict[int, str]:
    by_name = bool(labels) and all(isinstance(value, int) for value in labels.values())
    pairs = [(value, name) if by_name else (name, value) for name, value in labels.items()]
    numbered = ((whole_number(path, value), name) for value, name in pairs)
    foreground = [(value, str(name)) for value, name in numbered if value != BACKGROUND]
    classes = dict(foreground)
    if len(set(classes.values())) < len(foreground) or min(classes, default=1) < 0:
        raise misread(path, "a name and a positive number of its own for every class", labels)
    return dict(sorted(classes.items()))


def _regions(
    path: Path, labels: Mapping[str, Any], order: object
) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    regions = {
        str(name): tuple(whole_number(path, v) for v in (value if isinstance(value, list) else [value]))
        for name, value in labels.items()
        if value not in (BACKGROUND, [BACKGROUND])
    }
    if any(not values or min(values) <= BACKGROUND for values in regions.values()):
        raise misread(path, "regions of positive label values", labels)
    known = {value for values in regions.values() for value in values}
    values = tuple(whole_number(path, value) for value in order) if isinstance(order, list) else ()
    if len(values) != len(regions) or not set(values) <= known:
        expected = f'"{REGION_ORDER}" to name a label value for each of the regions {", ".join(regions)}'
        raise misread(path, expected, order)
    return regions, values


def _values_of(regions: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    """Each value by the name of the region that it alone makes, if there is one."""
    alone = {values[0]: name for name, values in regions.items() if len(set(values)) == 1}
    known = sorted({value for values in regions.values() for value in values})
    return {value: alone.get(value, f"label {value}") for value in known}


def _mirroring(path: Path, swaps: Any, classes: Mapping[int, str]) -> Mirroring | None:
    if swaps is None:
        return None
    pairs: list[Any] = swaps if isinstance(swaps, list) else [swaps]
    if not all(isinstance(pair, list) and len(pair) == 2 and set(pair) <= set(classes) for pair in pairs):
        raise misread(path, f'"{MIRROR_SWAPS}" to be pairs of label values, such as [[1, 2]]', swaps)
    return Mirroring(swaps=tuple((one, other) for one, other in pairs))


def whole_number(path: Path, number: object) -> int:
    """A number that JSON may hold as text.

    Raises:
        InputError: It is none.
    """
    try:
        return int(str(number))
    except ValueError as error:
        raise misread(path, "whole numbers for classes and modalities", number) from error


def misread(path: Path, expected: str, got: object) -> InputError:
    """The fault of a description that holds something else than it should."""
    text = "nothing" if got is None else json.dumps(got, ensure_ascii=False)
    text = text if len(text) <= 80 else text[:77] + "..."
    return InputError(f"{path} is not as the Decathlon has it", got=text, expected=expected, mend=f"Correct {path}.")
