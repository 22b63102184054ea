"""What is scored: classes, regions, and the tolerance that goes with a task."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from medvisionllama.data.task import Task
from medvisionllama.errors import InputError

# The Decathlon's own NSD tolerances, as remembered: a setting, recorded with every result.
TOLERANCES_MM: Mapping[str, float] = {
    "Task01_BrainTumour": 5.0,
    "Task02_Heart": 4.0,
    "Task03_Liver": 7.0,
    "Task04_Hippocampus": 1.0,
    "Task05_Prostate": 4.0,
    "Task06_Lung": 2.0,
    "Task07_Pancreas": 5.0,
    "Task08_HepaticVessel": 3.0,
    "Task09_Spleen": 3.0,
    "Task10_Colon": 4.0,
}


@dataclass(frozen=True)
class Target:
    """What is scored under one name: a class is one label, a region the union of several."""

    name: str
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.name or not self.labels or min(self.labels) < 1:
            raise InputError(
                f"a target has a name and labels from 1 on, not {self.name!r} with {self.labels}",
                mend="Background (0) is no target.",
            )


def check_settings(targets: Sequence[Target], tolerance_mm: float | None) -> None:
    """Refuse what would make scores mean nothing.

    Raises:
        InputError: Two targets share a name, or the tolerance is no length.
    """
    twice = [name for name, count in Counter(target.name for target in targets).items() if count > 1]
    if twice:
        raise InputError(f"{', '.join(twice)} is to be scored twice", mend="Give every region a name of its own.")
    if tolerance_mm is not None and not 0 <= tolerance_mm < math.inf:
        raise InputError("the NSD tolerance is no length", got=f"{tolerance_mm} mm", expected="0 mm or more")


def targets_of(task: Task) -> tuple[Target, ...]:
    """One target per region of the task, or per class where it has none, under its name."""
    regions = tuple(Target(name, tuple(sorted(set(labels)))) for name, labels in task.regions.items())
    return regions or tuple(Target(name, (label,)) for label, name in task.classes.items())


def foreground_of(task: Task) -> Target:
    """The papers' single target: all classes merged."""
    return Target("foreground", tuple(task.classes))


def tolerance_of(task: Task) -> float | None:
    """The Decathlon's NSD tolerance for its own ten tasks, known by their folder's or their own name; else None."""
    known = {full.lower(): mm for full, mm in TOLERANCES_MM.items()}
    known |= {full.split("_")[1].lower(): mm for full, mm in TOLERANCES_MM.items()}
    names = (task.folder.resolve().name.lower(), task.name.lower())
    return next((known[name] for name in names if name in known), None)


def parse_region(text: str, classes: Mapping[int, str] | None = None) -> Target:
    """A region from ``NAME=LABEL,LABEL...``, labels by number or by class name, which may hold commas.

    Raises:
        InputError: There is no ``=``, or a label is neither a number nor a class.
    """
    name, equals, members = text.partition("=")
    numbers = {known: label for label, known in (classes or {}).items()}
    try:
        labels = tuple(numbers[m] if m in numbers else int(m) for m in _members(members, numbers))
    except ValueError as error:
        known = f"; the classes are {', '.join(numbers)}" if numbers else ""
        raise InputError(
            f"{text!r} is no region", expected=f"NAME=LABEL,LABEL such as whole_tumour=1,2,3,4{known}"
        ) from error
    if not equals:
        raise InputError(f"{text!r} is no region", expected="NAME=LABEL,LABEL")
    return Target(name.strip(), labels)


def _members(text: str, names: Collection[str]) -> Iterator[str]:
    """What stands between commas, except that the longest run of it that is one of ``names`` is taken whole."""
    parts = text.split(",")
    while parts:
        runs = (",".join(parts[:length]).strip() for length in range(len(parts), 0, -1))
        length, member = next(
            ((len(parts) - skipped, run) for skipped, run in enumerate(runs) if run in names), (1, parts[0].strip())
        )
        yield member
        del parts[:length]
