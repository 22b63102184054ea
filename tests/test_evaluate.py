"""Scoring label maps and folders of them: values, policy, refusals, files."""

import csv
import json
import math
import re

import numpy as np
import pytest

import medvisionllama as mvl
from medvisionllama.cli import main
from medvisionllama.data.nifti import read_label_map, write_label_map, write_volume
from medvisionllama.data.task import Task
from medvisionllama.errors import InputError
from medvisionllama.evaluate import (
    Target,
    evaluate_folders,
    foreground_of,
    labels_in,
    outcome_of,
    parse_region,
    score,
    score_volume,
    summarise,
    targets_of,
    tolerance_of,
)
from medvisionllama.geometry import Volume
from medvisionllama.metrics.lesions import LESION_METRICS
from medvisionllama.metrics.overlap import Counts, overlap_scores
from medvisionllama.metrics.surface import surface_scores
from medvisionllama.run_folder import METRICS, ScoreRow, read_scores

AFFINE = np.diag([0.8, 1.0, 2.5, 1.0])
ONE, TWO, BOTH = Target("one", (1,)), Target("two", (2,)), Target("both", (1, 2))


def label_map(seed=0, shape=(14, 12, 10), affine=AFFINE):
    """Two boxes of labels 1 and 2 with ragged borders."""
    generator = np.random.default_rng(seed)
    array = np.zeros(shape, np.uint8)
    array[3:8, 2:9, 2:7] = 1
    array[8:11, 3:10, 3:8] = 2
    ragged = generator.random(shape) < 0.1
    array[ragged] = np.roll(array, 1, 0)[ragged]
    return Volume(array, affine)


def cells(rows):
    table = {}
    for row in rows:
        table.setdefault((row.case, row.class_name), {})[row.metric] = row.value
    return table


def same(scores, expected):
    return scores == pytest.approx(expected, nan_ok=True, abs=1e-12)


# --- one volume


def test_every_target_is_scored_as_its_mask_alone():
    prediction, reference = label_map(1), label_map(2)
    found = cells(score_volume(prediction, reference, [ONE, TWO, BOTH], 1.0, "c"))
    for target in (ONE, TWO, BOTH):
        a, b = (np.isin(v.array, target.labels) for v in (prediction, reference))
        surface = surface_scores(a, b, (0.8, 1.0, 2.5), 1.0)
        expected = overlap_scores(Counts.of(a, b)) | {"hd95_mm": surface.hd95_mm, "nsd": surface.nsd}
        assert list(found["c", target.name]) == list(METRICS)
        assert same(found["c", target.name], expected)


def test_missed_false_alarm_absent():
    reference, prediction = label_map(), label_map()
    reference.array[reference.array == 2] = 0
    prediction.array[prediction.array == 1] = 0
    found = cells(score_volume(prediction, reference, [ONE, TWO, Target("three", (3,))], 1.0, "c"))
    diagonal = math.hypot(14 * 0.8, 12 * 1.0, 10 * 2.5)
    for name, outcome in (("one", "missed"), ("two", "false_alarms")):
        scores = found["c", name]
        assert scores["hd95_mm"] == pytest.approx(diagonal)
        assert [scores[m] for m in ("dice", "jaccard", "precision", "recall", "nsd")] == [0] * 5
        assert outcome_of(scores) == outcome
    assert all(math.isnan(value) for value in found["c", "three"].values())
    assert outcome_of(found["c", "three"]) == "absent"


@pytest.mark.parametrize("tolerance_mm", [None, 0.0, 1.0])
def test_the_exact_opposite_is_no_false_alarm(tolerance_mm):
    reference = Volume(np.zeros((6, 6, 6), np.uint8), AFFINE)
    reference.array[2:4, 2:4, 2:4] = 1
    opposite = reference.with_array(1 - reference.array)
    everything = reference.with_array(np.ones((6, 6, 6), np.uint8))
    nothing = reference.with_array(np.zeros((6, 6, 6), np.uint8))
    for prediction, against, outcome in ((opposite, reference, "both"), (everything, nothing, "false_alarms")):
        rows = score_volume(prediction, against, [ONE], tolerance_mm, "c")
        assert {row.outcome for row in rows} == {outcome}
        counts = summarise(rows, tolerance_mm)["classes"]["one"]
        assert counts["false_alarms"] == (outcome == "false_alarms")
        if tolerance_mm is not None:  # their surface is one: the table alone tells
            assert outcome_of(cells(rows)["c", "one"]) == outcome


def test_masks_that_do_not_touch_are_neither_missed_nor_false():
    a, b = np.zeros((2, 9, 9, 9), np.uint8)
    a[1, 1, 1] = b[5, 5, 5] = 1
    scores = cells(score_volume(Volume(a, AFFINE), Volume(b, AFFINE), [ONE], 1.0, "c"))["c", "one"]
    assert scores["dice"] == 0
    assert outcome_of(scores) == "both"


def test_everything_missed_where_the_reference_is_full():
    full, none = Volume(np.ones((3, 3, 3), np.uint8), AFFINE), Volume(np.zeros((3, 3, 3), np.uint8), AFFINE)
    assert outcome_of(cells(score_volume(none, full, [ONE], 1.0, "c"))["c", "one"]) == "missed"
    assert outcome_of(cells(score_volume(full, none, [ONE], 1.0, "c"))["c", "one"]) == "false_alarms"


@pytest.mark.parametrize("cast", [np.float32, np.float64, np.int16, np.uint16, np.int64, np.asfortranarray])
def test_how_whole_numbers_are_stored_changes_nothing(cast):
    prediction, reference = label_map(1), label_map(2)
    expected = score_volume(prediction, reference, [ONE, BOTH], 1.0, "c")
    assert score_volume(prediction.with_array(cast(prediction.array)), reference, [ONE, BOTH], 1.0, "c") == expected


def test_large_labels_are_scored_like_small_ones():
    prediction, reference = label_map(1), label_map(2)
    names = np.array([0, 70_000, 257])
    many = [volume.with_array(names[volume.array]) for volume in (prediction, reference)]
    targets = [Target("one", (70_000,)), Target("two", (257,)), Target("both", (257, 70_000))]
    assert score_volume(*many, targets, 1.0, "c") == score_volume(prediction, reference, [ONE, TWO, BOTH], 1.0, "c")


def test_a_label_nobody_has_is_absent_wherever_labels_are_large():
    large = label_map().with_array(label_map().array.astype(np.int64) * 1000)
    rows = score_volume(large, large, [Target("x", (999,)), Target("y", (1000,))], 1.0, "c")
    assert [row.value for row in rows if row.metric == "nsd"] == pytest.approx([math.nan, 1.0], nan_ok=True)


def test_scores_do_not_depend_on_where_voxel_axes_point():
    prediction, reference = label_map(1), label_map(2)
    turned = np.array([[0, 0, -2.5, 40], [-0.8, 0, 0, 7], [0, 1.0, 0, 3], [0, 0, 0, 1]])
    again = [Volume(volume.array, turned) for volume in (prediction, reference)]
    expected = score_volume(prediction, reference, [ONE], 1.0, "c")
    for row, other in zip(score_volume(*again, [ONE], 1.0, "c"), expected, strict=True):
        assert row.value == pytest.approx(other.value)


def test_affines_a_hair_apart_are_one_grid():
    reference, near, far = label_map(), AFFINE.copy(), AFFINE.copy()
    near[0, 3] += 0.9e-3
    far[0, 3] += 0.25
    assert score_volume(label_map(affine=near), reference, [ONE], 1.0, "c")[0].value == 1
    with pytest.raises(InputError, match=r"hip_7.*up to 0\.25 mm apart.*--resample"):
        score_volume(label_map(affine=far), reference, [ONE], 1.0, "hip_7")


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.zeros((14, 12, 9)), "different grids"),
        (np.zeros((1, 14, 12, 10)), "1 channels"),
        (np.full((14, 12, 10), 0.5), "not whole numbers"),
        (np.full((14, 12, 10), np.nan), "not whole numbers"),
        (np.full((14, 12, 10), -1), "negative"),
        (np.zeros((14, 12, 10), complex), "type complex128"),
    ],
)
def test_bad_label_maps_are_refused_by_name(array, fault):
    with pytest.raises(InputError, match=f"case_3.*{fault}"):
        score_volume(Volume(array, AFFINE), label_map(), [ONE], 1.0, "case_3")


def test_score_takes_volumes_and_paths(tmp_path):
    prediction, reference = label_map(1), label_map(2)
    write_label_map(prediction, tmp_path / "p" / "hip.nii.gz")
    write_label_map(reference, tmp_path / "hip.nii.gz")
    rows = score(tmp_path / "p" / "hip.nii.gz", str(tmp_path / "hip.nii.gz"), tolerance_mm=1.0)
    assert {row.class_name for row in rows} == {"1", "2"}
    assert {row.case for row in rows} == {"hip"}
    assert [r.value for r in rows] == pytest.approx([r.value for r in score(prediction, reference, tolerance_mm=1.0)])
    assert all(math.isnan(r.value) for r in score(prediction, reference) if r.metric == "nsd")


def test_labels_in_order_without_background():
    assert labels_in(label_map()) == [1, 2]
    assert labels_in(Volume(np.zeros((2, 2, 2)), AFFINE)) == []


def test_errors_about_labels_name_the_file(tmp_path):
    write_label_map(label_map(), tmp_path / "good.nii.gz")
    write_label_map(Volume(label_map().array.astype(np.int8) - 1, AFFINE), tmp_path / "hip_2.nii.gz")
    for pair in (("hip_2.nii.gz", "good.nii.gz"), ("good.nii.gz", "hip_2.nii.gz")):
        with pytest.raises(InputError, match=r"hip_2\.nii\.gz has negative labels"):
            score(*[tmp_path / name for name in pair])


def test_an_array_without_its_place_is_refused():
    with pytest.raises(InputError, match=r"the prediction does not say.*got ndarray.*Volume"):
        score(label_map().array, label_map())
    with pytest.raises(InputError, match="the reference does not say"):
        score(label_map(), label_map().array)


def test_what_a_user_needs_to_score_is_offered():
    assert mvl.Target is Target
    assert mvl.score is score
    assert "Target" in mvl.__all__


def test_another_shape_tells_how_far_away_it_lies():
    far = AFFINE.copy()
    far[:3, 3] = (0, 30, 40 - 2.5)  # one voxel longer on either side along K
    prediction = Volume(np.zeros((14, 12, 12), np.uint8), far)
    with pytest.raises(InputError, match="centre 50 mm away"):
        score_volume(prediction, label_map(), [ONE], 1.0, "c")


# --- targets


def test_regions_are_read_by_number_and_name():
    assert parse_region("whole=1, 2,4") == Target("whole", (1, 2, 4))
    assert parse_region("core=necrosis,4", {1: "necrosis", 2: "edema"}) == Target("core", (1, 4))
    classes = {1: "tumour, necrotic", 2: "tumour", 3: "necrotic, old", 4: "a=b"}
    assert parse_region("x=tumour, necrotic,2", classes) == Target("x", (1, 2))
    assert parse_region("x= tumour,necrotic, old ,a=b", classes) == Target("x", (2, 3, 4))
    for text in ("whole", "whole=", "whole=edema", "=1"):
        with pytest.raises(InputError):
            parse_region(text, {1: "necrosis"})
    with pytest.raises(InputError, match="Background"):
        parse_region("whole=0,1")


def test_targets_and_tolerance_of_a_task(tmp_path):
    def named(name, folder):
        return Task(name, tmp_path / folder, ("MRI",), {1: "Anterior", 2: "Posterior"}, ())

    assert targets_of(named("x", "x")) == (Target("Anterior", (1,)), Target("Posterior", (2,)))
    assert foreground_of(named("x", "x")) == Target("foreground", (1, 2))
    assert tolerance_of(named("x", "Task03_Liver")) == 7
    assert tolerance_of(named("Hippocampus", "anywhere")) == 1
    assert tolerance_of(named("Liver lobes", "anywhere")) is None


# --- summaries


def rows_of(name, **values):
    by_metric = dict.fromkeys(METRICS, 0.5) | {"specificity": 0.9, "accuracy": 0.8}
    return lambda case: [ScoreRow(case, name, m, v) for m, v in (by_metric | values).items()]


def test_summary_counts_outcomes_and_leaves_absent_out():
    nothing = dict.fromkeys(METRICS, math.nan)
    missed = {"dice": 0.0, "nsd": 0.0, "specificity": 1.0, "hd95_mm": 100.0}
    rows = [
        *rows_of("one", dice=0.8, hd95_mm=2.0)("a"),
        *rows_of("one", **missed)("b"),
        *rows_of("one", **nothing)("c"),
        *rows_of("two", dice=0.0, nsd=0.0, specificity=0.7, accuracy=0.7)("a"),
    ]
    summary = summarise(rows, 2.0, "model")
    one = summary["classes"]["one"]
    assert (one["missed"], one["false_alarms"], one["absent"]) == (1, 0, 1)
    assert summary["classes"]["two"]["false_alarms"] == 1
    assert one["dice"]["mean"] == pytest.approx(0.4)
    assert one["dice"]["sd"] == pytest.approx(np.std([0.8, 0.0], ddof=1))
    assert one["dice"]["n"] == 2
    assert one["hd95_mm"]["mean"] == 51
    assert (summary["tolerance_mm"], summary["grid"], summary["cases"]) == (2.0, "model", 3)
    assert summary["outcomes"]["one"] == {"missed": ["b"], "false_alarms": [], "absent": ["c"]}
    assert [summary["overall"][name] for name in ("missed", "false_alarms", "absent")] == [1, 1, 1]
    # Case a: mean of 0.8 and 0; case b: 0; case c has nothing to say.
    assert summary["overall"]["dice"]["mean"] == pytest.approx(0.2)
    assert summary["overall"]["dice"]["n"] == 2


def test_nothing_but_absent_is_no_perfect_score():
    summary = summarise(rows_of("one", **dict.fromkeys(METRICS, math.nan))("a"), 1.0)
    dice = summary["classes"]["one"]["dice"]
    assert dice["n"] == 0
    assert math.isnan(dice["mean"])


# --- folders


@pytest.fixture
def folders(tmp_path):
    """Three cases, scored predictions beside references, as a Decathlon task has them."""
    references, predictions = tmp_path / "Task99" / "labelsTr", tmp_path / "predictions"
    for n in range(3):
        write_label_map(label_map(n), references / f"case_{n}.nii.gz")
        write_label_map(label_map(n + 10), predictions / f"case_{n}.nii.gz")
    description = {"name": "hippocampus", "modality": {"0": "MRI"}, "training": []}
    description["labels"] = {"0": "background", "1": "Anterior", "2": "Posterior"}
    (references.parent / "dataset.json").write_text(json.dumps(description))
    return predictions, references, tmp_path / "out"


def test_a_folder_is_scored_case_by_case(folders):
    predictions, references, out = folders
    summary = evaluate_folders(*folders, regions=["whole=1,2"])
    rows = read_scores(out / "scores.csv")
    assert len(rows) == 3 * 3 * 8
    targets = [Target("Anterior", (1,)), Target("Posterior", (2,)), Target("whole", (1, 2))]
    for n in range(3):
        name = f"case_{n}.nii.gz"
        one = score(predictions / name, references / name, tolerance_mm=1.0, targets=targets)
        found = [row for row in rows if row.case == f"case_{n}"]
        assert [(r.class_name, r.metric) for r in found] == [(r.class_name, r.metric) for r in one]
        assert [r.value for r in found] == pytest.approx([r.value for r in one], rel=1e-8)
    written = json.loads((out / "summary.json").read_text())
    assert written["tolerance_mm"] == 1.0  # the Decathlon's, from the name in dataset.json
    assert written["grid"] == "native"
    assert set(written["classes"]) == {"Anterior", "Posterior", "whole"}
    assert set(written["classes"]["whole"]) == {*METRICS, "missed", "false_alarms", "absent"}
    assert set(written["classes"]["whole"]["dice"]) == {"mean", "sd", "low", "high", "n"}
    assert written["regions"] == ["whole"]
    assert written["notes"] == summary["notes"] == []
    # Regions overlap classes, so they are no part of the overall mean.
    means = [written["classes"][name]["dice"]["mean"] for name in ("Anterior", "Posterior")]
    assert written["overall"]["dice"]["mean"] == pytest.approx(np.mean(means))


def test_several_processes_write_the_same(folders):
    evaluate_folders(*folders)
    alone = (folders[2] / "scores.csv").read_bytes()
    seen = []
    evaluate_folders(*folders, processes=2, progress=lambda *told: seen.append(told))
    assert (folders[2] / "scores.csv").read_bytes() == alone
    assert seen == [(1, 3, "case_0"), (2, 3, "case_1"), (3, 3, "case_2")]


def test_a_missing_prediction_is_named_or_scored_as_missed(folders):
    predictions, _, out = folders
    (predictions / "case_1.nii.gz").unlink()
    with pytest.raises(InputError, match=r"lacks 1 case: case_1\. .*--allow-missing"):
        evaluate_folders(*folders)
    assert not out.exists()
    summary = evaluate_folders(*folders, allow_missing=True)
    assert summary["classes"]["Anterior"]["missed"] == summary["classes"]["Posterior"]["missed"] == 1
    assert summary["classes"]["Anterior"]["dice"]["n"] == 3
    assert "case_1" in summary["notes"][0]


def test_an_empty_folder_of_predictions_may_be_scored_as_all_missed(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    summary = evaluate_folders(tmp_path / "empty", *folders[1:], allow_missing=True)
    assert (summary["overall"]["missed"], summary["overall"]["dice"]["mean"]) == (6, 0)
    with pytest.raises(InputError, match="no folder"):
        evaluate_folders(tmp_path / "nowhere", *folders[1:], allow_missing=True)


def test_only_the_cases_asked_for(folders):
    predictions, *_ = folders
    (predictions / "case_1.nii.gz").unlink()
    summary = evaluate_folders(*folders, cases=["case_0", "case_2"])
    assert summary["cases"] == 2
    assert summary["notes"] == []
    with pytest.raises(InputError, match="case_9"):
        evaluate_folders(*folders, cases=["case_0", "case_9"])


def test_predictions_without_a_reference_are_told(folders):
    _predictions, references, _ = folders
    (references / "case_2.nii.gz").unlink()
    assert "case_2" in evaluate_folders(*folders)["notes"][0]


def test_another_grid_is_refused_unless_resampling_is_asked_for(folders):
    predictions, references, _ = folders
    reference = read_label_map(references / "case_0.nii.gz")
    # The same content on a grid twice as fine comes back exactly.
    fine = Volume(
        reference.array.repeat(2, 0).repeat(2, 1).repeat(2, 2), reference.grid.with_shape((28, 24, 20)).affine
    )
    write_label_map(fine, predictions / "case_0.nii.gz")
    with pytest.raises(InputError, match=r"case_0.*28x24x20 voxels.*14x12x10 voxels"):
        evaluate_folders(*folders)
    summary = evaluate_folders(*folders, resample=True)
    assert "case_0" in summary["notes"][0]
    dice = {row.case: row.value for row in read_scores(folders[2] / "scores.csv") if row.metric == "dice"}
    assert dice["case_0"] == 1


def test_resampling_does_not_turn_a_wrong_affine_into_a_missed_structure(folders):
    predictions, references, _ = folders
    reference = read_label_map(references / "case_0.nii.gz")
    grid = reference.grid
    away = grid.affine.copy()
    away[0, 3] += 500
    write_label_map(Volume(reference.array, away), predictions / "case_0.nii.gz")
    with pytest.raises(InputError, match=r"case_0.*wholly outside.*centres 500 mm apart"):
        evaluate_folders(*folders, resample=True)
    # Turned by 45 degrees and beside it: their boxes along the world's axes meet, the images do not.
    turned = np.eye(4)
    turned[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    turned[:3, 3] = (20, -5, 0)
    write_label_map(Volume(np.ones((14, 12, 10), np.uint8), turned), predictions / "case_0.nii.gz")
    with pytest.raises(InputError, match="wholly outside"):
        evaluate_folders(*folders, resample=True)
    # The images meet, the labels lie outside all the same.
    long = np.zeros((60, 12, 10), np.uint8)
    long[40:50] = 1
    write_label_map(Volume(long, AFFINE), predictions / "case_0.nii.gz")
    (_, note) = evaluate_folders(*folders, resample=True)["notes"]
    assert re.search(r"no label reached.*case_0 \(30\.4 mm", note)


def test_labels_of_a_region_that_nobody_holds_are_told(folders):
    assert evaluate_folders(*folders, regions=["whole=1,2,9"])["notes"] == [
        "Labels of the region whole that no label map holds: 9."
    ]


def test_without_a_dataset_classes_are_numbers_and_nsd_needs_a_tolerance(folders):
    predictions, references, _out = folders
    (references.parent / "dataset.json").unlink()
    for folder in (predictions, references):  # one case has no label 2, another a label 10
        array = read_label_map(folder / "case_0.nii.gz").array
        write_label_map(Volume(np.where(array == 2, 10, array), AFFINE), folder / "case_0.nii.gz")
    summary = evaluate_folders(*folders)
    assert list(summary["classes"]) == ["1", "2", "10"]
    assert [summary["classes"][name]["absent"] for name in ("1", "2", "10")] == [0, 1, 2]
    assert summary["tolerance_mm"] is None
    assert summary["classes"]["1"]["nsd"]["n"] == 0
    assert summary["notes"] == ["NSD needs a tolerance: pass --tolerance-mm."]
    assert evaluate_folders(*folders, tolerance_mm=2.0)["classes"]["1"]["nsd"]["n"] == 3


def test_the_dataset_may_lie_elsewhere(folders, tmp_path):
    _predictions, references, _out = folders
    description = (references.parent / "dataset.json").rename(tmp_path / "dataset.json")
    assert "Anterior" in evaluate_folders(*folders, dataset=description)["classes"]
    assert "Anterior" in evaluate_folders(*folders, dataset=tmp_path)["classes"]


def test_labels_of_no_class_are_told(folders):
    predictions, *_ = folders
    array = read_label_map(predictions / "case_1.nii.gz").array
    array[0, 0, 0] = 7
    write_label_map(Volume(array, AFFINE), predictions / "case_1.nii.gz")
    assert evaluate_folders(*folders)["notes"] == ["Labels that belong to no class, not scored: case_1 7."]


def test_float_label_maps_are_taken_and_probabilities_refused(folders):
    predictions, *_ = folders
    expected = evaluate_folders(*folders)
    labels = read_label_map(predictions / "case_0.nii.gz")
    write_volume(labels.with_array(labels.array.astype(np.float32)), predictions / "case_0.nii.gz")
    assert evaluate_folders(*folders) == expected
    write_volume(labels.with_array(labels.array.astype(np.float32) * 0.3), predictions / "case_0.nii.gz")
    with pytest.raises(InputError, match=r"case_0\.nii\.gz.*0\.3"):
        evaluate_folders(*folders)


def test_folders_without_label_maps_are_refused(folders, tmp_path):
    predictions, references, out = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no label map"):
        evaluate_folders(tmp_path / "empty", references, out)
    with pytest.raises(InputError, match="no folder"):
        evaluate_folders(tmp_path / "nowhere", references, out)
    write_label_map(label_map(), predictions / "case_0.nii")
    with pytest.raises(InputError, match="case_0 twice"):
        evaluate_folders(*folders)


def test_scores_are_a_plain_table(folders):
    evaluate_folders(*folders)
    with (folders[2] / "scores.csv").open() as file:
        assert next(csv.reader(file)) == ["case", "class", "metric", "value"]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"tolerance_mm": -1.0}, "no length"),
        ({"tolerance_mm": math.nan}, "no length"),
        ({"regions": ["Anterior=1,2"]}, "Anterior is to be scored twice"),
        ({"lesion_min_iou": 0.0}, "intersection over union"),
    ],
)
def test_settings_that_mean_nothing_are_refused(folders, settings, fault):
    with pytest.raises(InputError, match=fault):
        evaluate_folders(*folders, **settings)


# --- lesions


def test_lesions_are_counted_where_asked_for(folders):
    predictions, references, out = folders
    for folder, places in ((references, [(1, 1, 1), (8, 8, 6)]), (predictions, [(1, 1, 1), (11, 1, 1)])):
        array = np.zeros((14, 12, 10), np.uint8)
        for i, j, k in places:
            array[i : i + 2, j : j + 2, k : k + 2] = 1
        write_label_map(Volume(array, AFFINE), folder / "case_1.nii.gz")
    summary = evaluate_folders(*folders, cases=["case_1"], lesion_min_iou=0.5, regions=["both=1,2"])
    for name in ("Anterior", "both"):
        lesions = summary["lesions"]["classes"][name]
        assert [lesions[f"total_{m}"] for m in ("lesions", "found", "false_positive_lesions")] == [2, 1, 1]
        assert lesions["lesion_sensitivity"]["mean"] == 0.5
        assert lesions["volume_ml"]["mean"] == pytest.approx(16 * 2 / 1000)
        assert lesions["volume_difference_ml"]["mean"] == 0
    absent = summary["lesions"]["classes"]["Posterior"]
    assert (absent["total_lesions"], absent["lesion_sensitivity"]["n"]) == (0, 0)
    rows = read_scores(out / "lesions.csv")
    assert len(rows) == 3 * len(LESION_METRICS)
    assert evaluate_folders(*folders).get("lesions") is None


def test_lesions_do_not_depend_on_how_classes_are_named(folders):
    predictions, references, out = folders
    for folder in (predictions, references):  # label 2 is nowhere in case_0, and without a dataset unknown there
        array = read_label_map(folder / "case_0.nii.gz").array
        write_label_map(Volume(np.where(array == 2, 0, array), AFFINE), folder / "case_0.nii.gz")
    evaluate_folders(*folders, lesion_min_iou=0.1)
    named = [row.value for row in read_scores(out / "lesions.csv")]
    (references.parent / "dataset.json").unlink()
    evaluate_folders(*folders, lesion_min_iou=0.1)
    assert [row.value for row in read_scores(out / "lesions.csv")] == pytest.approx(named, nan_ok=True)


def test_the_command_prints_all_that_matters(folders, capsys):
    predictions, references, out = folders
    array = read_label_map(predictions / "case_0.nii.gz").array
    write_label_map(Volume(np.where(array == 2, 0, array), AFFINE), predictions / "case_0.nii.gz")
    assert main(["evaluate", *map(str, (predictions, references)), "--out", str(out), "--lesions", "0.2"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["Anterior", "Posterior", "overall"]
    assert lines[2].startswith(f"overall: dice {summary['overall']['dice']['mean']:.4f}, nsd ")
    assert lines[2].endswith("(n = 3; 1 missed, 0 false alarms, 0 absent)")
    assert lines[3] == "NSD at 1 mm"
    assert lines[4].endswith("union of 0.2 on")
    lesions = summary["lesions"]["classes"]["Posterior"]
    assert lines[6].startswith(f"Posterior: {lesions['total_found']} of {lesions['total_lesions']} found, ")


def test_the_command_prints_no_score_where_there_is_none(folders, capsys):
    predictions, references, out = folders
    for folder in (predictions, references):
        for path in folder.iterdir():
            write_label_map(Volume(np.minimum(read_label_map(path).array, 1), AFFINE), path)
    assert main(["evaluate", *map(str, (predictions, references)), "--out", str(out)]) == 0
    assert "Posterior: no score (n = 0; 0 missed, 0 false alarms, 3 absent)" in capsys.readouterr().out.splitlines()
