"""What a case's prediction is judged by: the reference as a plan reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medvisionllama.data.nifti import read_label_map
from medvisionllama.data.plan import Plan
from medvisionllama.data.task import Case
from medvisionllama.geometry import Array, Volume


@dataclass(frozen=True, eq=False)
class Reference:
    """A label map, and where it says anything.

    Attributes:
        volume: As stored, or with all classes merged to 1 where the plan merges them; 0 where it is ignored.
        labelled: ``(I,J,K)`` bool: which voxels somebody has labelled; None where that is all of them.
    """

    volume: Volume
    labelled: Array | None

    def judged(self, prediction: Volume) -> Volume:
        """The prediction on the reference's grid, 0 where nothing is to be judged."""
        if self.labelled is None:
            return prediction
        return prediction.with_array(np.where(self.labelled, prediction.array, 0).astype(prediction.array.dtype))


def read_reference(case: Case, plan: Plan) -> Reference:
    """The reference of a case that has a label map.

    Raises:
        InputError: The label map cannot be read.
    """
    assert case.label is not None
    stored = read_label_map(case.label)
    labelled: Array | None = None if plan.ignored is None else stored.array != plan.ignored
    array = stored.array if labelled is None else np.where(labelled, stored.array, 0)
    return Reference(stored.with_array((array > 0).astype(np.uint8) if plan.merged else array), labelled)
