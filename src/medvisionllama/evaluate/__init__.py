"""Score label maps against references: eight metrics per case and class, in millimetres, on the reference's grid.

The policy behind every number: both masks empty, NaN, counted as *absent*, left out of means; one empty, Dice, Jaccard,
precision, recall and NSD 0, HD95 the image's diagonal, counted as *missed* or *false alarm*, kept in means. All is told
in docs/reference/metrics.md.
"""

from medvisionllama.evaluate.folders import evaluate_folders, label_maps_in
from medvisionllama.evaluate.pair import labels_in, score, score_lesions, score_volume, where_labelled
from medvisionllama.evaluate.summary import summarise, summarise_lesions
from medvisionllama.evaluate.targets import (
    TOLERANCES_MM,
    Target,
    foreground_of,
    parse_region,
    targets_of,
    tolerance_of,
)
from medvisionllama.reports.outcomes import outcome_of

__all__ = [
    "TOLERANCES_MM",
    "Target",
    "evaluate_folders",
    "foreground_of",
    "label_maps_in",
    "labels_in",
    "outcome_of",
    "parse_region",
    "score",
    "score_lesions",
    "score_volume",
    "summarise",
    "summarise_lesions",
    "targets_of",
    "tolerance_of",
    "where_labelled",
]
