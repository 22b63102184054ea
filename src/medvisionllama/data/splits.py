"""Which cases train, which validate and which are kept for the test: by patient, seeded, saved.

A part of the patients is the test; the rest is divided into folds, each of which validates once while the others
train. Smaller training parts (few-shot) are nested: the 10 % are among the 30 %.

Every order is that of a hash of the seed and the patient's name, so that it depends on neither the order in which
cases are listed nor a library's version.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from medvisionllama.errors import InputError
from medvisionllama.run_folder import read_json, write_json


@dataclass(frozen=True)
class Splits:
    """Test cases and folds; no patient is in two parts.

    Attributes:
        seed: What the patients' order was drawn from.
        test: Cases never trained on nor chosen by. Empty where there are fewer than three patients.
        folds: The validation cases of each fold.
        patients: Case to patient.

    Raises:
        InputError: A patient is in two parts, a case is named twice, or has no patient.
    """

    seed: int
    test: tuple[str, ...]
    folds: tuple[tuple[str, ...], ...]
    patients: Mapping[str, str]

    def __post_init__(self) -> None:
        part_of: dict[str, int] = {}
        for part, cases in enumerate((self.test, *self.folds)):
            if len({*cases}) < len(cases):
                twice = next(case for case in cases if cases.count(case) > 1)
                raise InputError(f"the splits name the case {twice} twice", mend="Make them anew.")
            for case in cases:
                if case not in self.patients:
                    raise InputError(f"the splits name no patient for the case {case}")
                patient = self.patients[case]
                if part_of.setdefault(patient, part) != part:
                    raise InputError(f"the splits have the patient {patient} in two parts", mend="Make them anew.")

    def validation(self, fold: int) -> tuple[str, ...]:
        """The cases that judge the fold."""
        self._refuse_unknown(fold)
        return self.folds[fold]

    def training(self, fold: int, fraction: float = 1.0) -> tuple[str, ...]:
        """The cases that the fold trains on, or those of the first ``fraction`` of its patients, rounded up.

        A smaller fraction's cases are always among a larger one's.
        """
        self._refuse_unknown(fold)
        if not 0 < fraction <= 1:
            raise InputError("a fraction of the training part", got=f"{fraction:g}", expected="0 < fraction <= 1")
        cases = [case for other, part in enumerate(self.folds) if other != fold for case in part]
        patients = _seeded_order({self.patients[case] for case in cases}, self.seed, "few-shot")
        kept = set(patients[: math.ceil(len(patients) * fraction - 1e-9)])
        return tuple(sorted(case for case in cases if self.patients[case] in kept))

    def verify(self, case_names: Iterable[str], where: str = "the splits") -> None:
        """Make sure that the splits are those of exactly these cases.

        Raises:
            InputError: Naming the cases that are too many or missing.
        """
        ours, theirs = {*self.test, *(c for fold in self.folds for c in fold)}, set(case_names)
        faults = [
            f"{which}: {', '.join(sorted(cases)[:5])}{' and more' if len(cases) > 5 else ''}"
            for which, cases in (("not in the data set", ours - theirs), ("not in the splits", theirs - ours))
            if cases
        ]
        if faults:
            raise InputError(f"{where} and the data set differ", got="; ".join(faults), mend="Make the splits anew.")

    def to_dict(self) -> dict[str, Any]:
        """What the file holds; patients are listed where they are not the case itself."""
        return {
            "seed": self.seed,
            "test": list(self.test),
            "folds": [list(fold) for fold in self.folds],
            "patients": {case: patient for case, patient in self.patients.items() if case != patient},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = "the splits") -> Splits:
        """Undo :meth:`to_dict`.

        Raises:
            InputError: Something is missing or of another form.
        """
        try:
            test = tuple(str(case) for case in content["test"])
            folds = tuple(tuple(str(case) for case in fold) for fold in content["folds"])
            named = {str(case): str(patient) for case, patient in content.get("patients", {}).items()}
            seed = int(content["seed"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{where} cannot be understood",
                got=f"{type(error).__name__}: {error}",
                expected="seed, test, folds and patients",
                mend="Make the splits anew.",
            ) from error
        cases = [*test, *(case for fold in folds for case in fold)]
        return cls(seed, test, folds, {case: named.get(case, case) for case in cases})

    @classmethod
    def from_nnunet(cls, content: Sequence[Any], test: Sequence[str] = (), where: str = "the splits") -> Splits:
        """Folds from nnU-Net's ``splits_final.json``, which knows no test part and no patients.

        Every case is a patient of its own; a fold trains on what the other folds validate.

        Raises:
            InputError: Something is of another form, a case is validated twice, or a fold trains on other cases.
        """
        try:
            folds = tuple(tuple(sorted(str(case) for case in fold["val"])) for fold in content)
            trained = [{str(case) for case in fold["train"]} for fold in content]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{where} cannot be understood",
                got=f"{type(error).__name__}: {error}",
                expected="a list with train and val for each fold, as nnU-Net has it",
                mend="Make the splits anew.",
            ) from error
        cases = [*test, *(case for fold in folds for case in fold)]
        if len(set(cases)) < len(cases):
            raise InputError(f"{where} validate a case twice, which no folds do", mend="Make them anew.")
        for number, cases_trained in enumerate(trained):
            others = {case for other, fold in enumerate(folds) if other != number for case in fold}
            if odd := sorted(cases_trained ^ others):
                raise InputError(
                    f"fold {number} of {where} does not train on what the other folds validate",
                    got=f"a difference in {', '.join(odd[:5])}{' and more' if len(odd) > 5 else ''}",
                    mend="Give all folds in one file; a share of the cases is asked for with --fraction.",
                )
        return cls(0, tuple(test), folds, {case: case for case in cases})

    def _refuse_unknown(self, fold: int) -> None:
        if not 0 <= fold < len(self.folds):
            raise InputError("no such fold", got=str(fold), expected=f"0 to {len(self.folds) - 1}")


def make_splits(
    case_names: Iterable[str],
    seed: int = 0,
    folds: int = 5,
    test_fraction: float = 0.1,
    patient_of: Callable[[str], str] | str | None = None,
) -> Splits:
    """Draw test part and folds.

    Args:
        case_names: All labelled cases, in whatever order.
        seed: Another seed draws other parts.
        folds: How many; fewer where there are fewer patients left than that.
        test_fraction: Of the patients: rounded, but at least one where there are three or more, unless it is 0.
        patient_of: Case name to patient, or a regular expression whose first group (or whole match) is the patient.
            Without it every case is a patient of its own.

    Raises:
        InputError: Training or validation would be empty, a name is listed twice, or the pattern does not match.
    """
    names = sorted(case_names)
    repeated = sorted({a for a, b in pairwise(names) if a == b})
    if repeated:
        raise InputError("cases to split must have names of their own", got=", ".join(repeated[:5]))
    if not 0 <= test_fraction < 1 or folds < 2:
        raise InputError(
            "splits that cannot be drawn",
            got=f"test fraction {test_fraction:g}, {folds} folds",
            expected="0 <= test fraction < 1 and two folds or more",
        )
    patients = {name: _patient(name, patient_of) for name in names}
    order = _seeded_order(set(patients.values()), seed, "split")
    if len(order) < 2:
        raise InputError(
            "training and validation need a patient each",
            got=f"{len(names)} cases of {len(order)} patients",
            mend="Add labelled cases of other patients, or give --splits whose first fold is empty: nothing is scored.",
        )
    tests = _test_size(len(order), test_fraction)
    rest = order[tests:]
    parts = [order[:tests], *(rest[fold :: min(folds, len(rest))] for fold in range(min(folds, len(rest))))]
    test, *validation = (tuple(name for name in names if patients[name] in set(part)) for part in parts)
    return Splits(seed, test, tuple(validation), patients)


def write_splits(splits: Splits, path: Path | str) -> None:
    """Write ``splits.json``.

    Raises:
        InputError: The path cannot be written.
    """
    write_json(Path(path), splits.to_dict())


def read_splits(path: Path | str) -> Splits:
    """Read ``splits.json``, or nnU-Net's ``splits_final.json``; :meth:`Splits.verify` then compares it with a task.

    Raises:
        InputError: The file is missing, is not JSON, or holds no splits.
    """
    content = read_json(Path(path))
    if isinstance(content, list) and content:
        return Splits.from_nnunet(content, where=str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no splits", expected="an object with seed, test, folds and patients")
    return Splits.from_dict(content, where=str(path))


def _test_size(patients: int, fraction: float) -> int:
    if fraction == 0 or patients < 3:
        return 0
    return min(max(1, round(patients * fraction)), patients - 2)


def _seeded_order(names: Iterable[str], seed: int, purpose: str) -> Sequence[str]:
    return sorted(names, key=lambda name: (sha256(f"{purpose}/{seed}/{name}".encode()).digest(), name))


def _patient(name: str, patient_of: Callable[[str], str] | str | None) -> str:
    if patient_of is None:
        return name
    if callable(patient_of):
        return patient_of(name)
    try:
        found = re.search(patient_of, name)
    except re.error as error:
        raise InputError(f"{patient_of} is no regular expression", got=str(error)) from error
    patient: str | None = (found.group(1) if found.re.groups else found.group()) if found else None
    if not patient:
        raise InputError(f"the pattern {patient_of} finds no patient in the case name {name}")
    return patient
