"""Which classes are cleaned up, by keeping their largest component alone: chosen on validation, never on test.

A class is cleaned where that raises its mean Dice over the validation cases; each by itself, since what is taken away
becomes background and touches no other class. Overlapping regions are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medvisionllama.data.plan import Plan
from medvisionllama.errors import InputError
from medvisionllama.geometry import Array
from medvisionllama.largest_component import keep_largest
from medvisionllama.run_folder import FORMAT_VERSION, RunFolder, read_json, write_json


@dataclass(frozen=True)
class Trial:
    """What keeping the largest component alone did to one class.

    Attributes:
        label: The class's label value.
        cases: In how many validation cases it is, or was found.
        dice: Its mean Dice as the networks answer.
        dice_cleaned: With its largest component alone.
    """

    label: int
    cases: int
    dice: float
    dice_cleaned: float

    @property
    def helps(self) -> bool:
        """Whether the class is to be cleaned."""
        return self.dice_cleaned > self.dice


def cleanable(plan: Plan) -> dict[str, int]:
    """Names and label values of the classes for which it can be tried."""
    if plan.merged:
        return {"foreground": 1}
    return {} if plan.regions else {name: value for value, name in plan.classes.items()}


class Trials:
    """Tries it on one validation case after another."""

    def __init__(self, plan: Plan) -> None:
        self._labels = cleanable(plan)
        self._dice: dict[str, list[tuple[float, float]]] = {name: [] for name in self._labels}

    def add(self, prediction_IJK: Array, reference_IJK: Array, labelled_IJK: Array | None = None) -> None:
        """Try it on a case.

        Args:
            prediction_IJK: Label map as the networks answer.
            reference_IJK: What is right, on the same grid.
            labelled_IJK: Which voxels are judged; None for all.
        """
        cleaned = keep_largest(prediction_IJK, self._labels.values())
        for name, label in self._labels.items():
            reference = reference_IJK == label
            found = [answer == label for answer in (prediction_IJK, cleaned)]
            if labelled_IJK is not None:
                found = [mask & labelled_IJK for mask in found]
            if found[0].any() or reference.any():
                sums = [int(mask.sum()) + int(reference.sum()) for mask in found]
                both = [2 * int((mask & reference).sum()) for mask in found]
                self._dice[name].append((both[0] / sums[0], both[1] / sums[1] if sums[1] else 0.0))

    def results(self) -> dict[str, Trial]:
        """What came of it, for each class that is in any of the cases."""
        return {
            name: Trial(self._labels[name], len(pairs), *(float(mean) for mean in np.mean(pairs, axis=0)))
            for name, pairs in self._dice.items()
            if pairs
        }


def write_trials(run: RunFolder, trials: Mapping[str, Trial]) -> None:
    """Write ``postprocessing.json`` into the run folder."""
    table = {name: asdict(trial) | {"helps": trial.helps} for name, trial in trials.items()}
    write_json(run.postprocessing, {"format": FORMAT_VERSION, "largest_component": table})


def read_trials(run: RunFolder) -> dict[str, Trial]:
    """Read ``postprocessing.json``; empty where there is none, as in runs of older versions.

    Raises:
        InputError: It is of another version, or not understood.
    """
    if not run.postprocessing.exists():
        return {}
    content = read_json(run.postprocessing)
    try:
        if content["format"] != FORMAT_VERSION:
            raise ValueError(f"format {content['format']}")
        return {name: _trial(entry) for name, entry in content["largest_component"].items()}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{run.postprocessing} cannot be understood",
            got=str(error),
            mend="Write it anew with `medvisionllama predict RUN --part validation`.",
        ) from error


def _trial(entry: Mapping[str, Any]) -> Trial:
    return Trial(int(entry["label"]), int(entry["cases"]), float(entry["dice"]), float(entry["dice_cleaned"]))


def labels_to_clean(runs: Iterable[RunFolder]) -> frozenset[int]:
    """The label values to clean; of several runs the cases of all are taken together.

    Raises:
        InputError: A run's ``postprocessing.json`` cannot be understood.
    """
    gains: dict[int, float] = {}
    for run in runs:
        for trial in read_trials(run).values():
            gains[trial.label] = gains.get(trial.label, 0.0) + trial.cases * (trial.dice_cleaned - trial.dice)
    return frozenset(label for label, gain in gains.items() if gain > 0)
