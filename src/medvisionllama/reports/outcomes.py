"""What became of a structure in one case: segmented, missed, a false alarm, or rightly absent.

The outcome is counted from voxels when a case is scored, and kept in ``summary.json``. A score table alone nearly
always tells it as well: :func:`outcome_of`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

Outcome = Literal["both", "missed", "false_alarms", "absent"]

COUNTED: tuple[Outcome, ...] = ("missed", "false_alarms", "absent")


def outcome_of(scores: Mapping[str, float]) -> Outcome:
    """What one case's eight metrics of one class say of its masks, by the policy of this package.

    ``missed``: the reference has the class, the prediction does not, so nothing is predicted falsely: specificity is
    1, or NaN where the reference leaves no background. ``false_alarms``: the other way round, so every voxel of the
    image is a negative and accuracy equals specificity. Two masks that merely do not touch are ``both`` there.

    One thing cannot be told: a prediction that is exactly what the reference is not has the scores of a false alarm
    that fills the image, unless there is an NSD: theirs is one surface. What was counted goes before this.
    """
    if math.isnan(scores["dice"]):
        return "absent"
    if scores["dice"] > 0 or scores["nsd"] > 0:
        return "both"
    if math.isnan(scores["specificity"]) or scores["specificity"] == 1:
        return "missed"
    return "false_alarms" if scores["accuracy"] == scores["specificity"] else "both"


def tally(outcomes: Iterable[str]) -> dict[str, int]:
    """How often each of :data:`COUNTED` occurs."""
    found = list(outcomes)
    return {name: found.count(name) for name in COUNTED}


def told(counts: Mapping[str, int]) -> str:
    """``1 missed, 0 false alarms, 2 absent``."""
    return ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in COUNTED)
