"""Figures show the numbers they were given, in the places they belong."""

from pathlib import Path

import numpy as np
import pytest
from run_maker import make_run

from medvisionllama.reports.figures import CURVES, MOST_POINTS, bland_altman, curve_chart, score_boxes
from medvisionllama.reports.mosaic import PLANES, case_mosaic, field_of_view, fullest_slice
from medvisionllama.reports.run_contents import Picture, RunContents, read_run, read_runs
from medvisionllama.reports.volumes import limits_of_agreement, structure_volumes
from medvisionllama.run_folder import VolumeRow

LOSS, VALIDATION_LOSS, DICE = CURVES


def picture(reference: bool = True, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 3.0)) -> Picture:
    """A 40 x 60 x 20 volume whose labelled box is 4 x 6 x 2 voxels from (10, 20, 8); class 2 is its upper slice."""
    labels = np.zeros((40, 60, 20), np.uint8)
    labels[10:14, 20:26, 8] = 1
    labels[10:14, 20:25, 9] = 2
    image = np.full(labels.shape, 100, np.uint8)
    return Picture("a", image, labels, labels if reference else None, np.diag([*spacing_mm, 1.0]))


def with_log(run: RunContents, entries: list[dict[str, float]]) -> RunContents:
    return RunContents(run.path, run.label, run.summary, run.environment, {"": entries}, run.parts)


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: plane.name)
def test_planes_are_seen_as_radiologists_see_them(plane) -> None:
    """One bright voxel at the patient's right, front and top lies top left in each plane (sagittal: front left)."""
    volume = np.zeros((4, 5, 6))
    volume[3, 4, 5] = 1
    seen = plane.cut(volume, {0: 3, 1: 4, 2: 5}[plane.normal])
    assert seen[0, 0] == 1
    assert seen.sum() == 1
    assert seen.shape == (volume.shape[plane.up], volume.shape[plane.across])


def test_the_fullest_slice_is_shown() -> None:
    assert [fullest_slice(picture(), plane) for plane in PLANES] == [8, 20, 10]


def test_without_any_label_the_middle_slice_is_shown() -> None:
    empty = Picture("a", np.zeros((10, 20, 30), np.uint8), np.zeros((10, 20, 30), np.uint8), None, np.eye(4))
    assert [fullest_slice(empty, plane) for plane in PLANES] == [15, 10, 5]
    assert field_of_view(empty) == ((0, 10), (0, 20), (0, 30))


def test_the_field_of_view_is_25_mm_around_the_labels() -> None:
    fine = picture(spacing_mm=(5.0, 2.5, 25.0))
    assert field_of_view(fine) == ((5, 19), (10, 36), (7, 11))
    assert field_of_view(picture()) == ((0, 39), (0, 51), (0, 18))


def test_a_millimetre_is_as_long_in_every_panel_and_direction() -> None:
    figure = case_mosaic(picture(), {1: "a", 2: "b"}, 0.5)
    figure.draw_without_rendering()
    scales = []
    for axes in figure.axes:
        box = axes.get_window_extent()
        width, height = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
        assert box.width / width == pytest.approx(box.height / height, rel=0.01)
        scales.append(box.width / width)
    assert len(scales) == 9
    assert max(scales) == pytest.approx(min(scales), rel=0.05)


def test_panels_name_directions_dice_and_classes() -> None:
    figure = case_mosaic(picture(), {1: "Anterior", 2: "Posterior"}, 0.5)
    words = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"R", "L", "A", "P", "S", "axial", "coronal", "sagittal", "Dice 0.500"} <= words
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Anterior", "Posterior"]


def test_a_long_legend_is_cut_and_says_so() -> None:
    labels = np.zeros((40, 60, 20), np.uint8)
    labels[10:30, 20, 8] = range(1, 21)
    figure = case_mosaic(Picture("a", labels, labels, None, np.eye(4)), {})
    assert figure.legends[0].get_texts()[-1].get_text() == "and 13 more"


def test_without_reference_there_are_two_columns_and_no_dice() -> None:
    figure = case_mosaic(picture(reference=False), {})
    assert len(figure.axes) == 6
    assert not [t for axes in figure.axes for t in axes.texts if "Dice" in t.get_text()]


def test_boxes_have_the_medians_of_the_scores(run: Path) -> None:
    contents = read_run(run)
    figure = score_boxes([contents], "validation", "dice")
    axes = figure.axes[0]
    medians = sorted(
        line.get_xdata()[0] for line in axes.lines if line.get_linewidth() == 1.8 and len(line.get_xdata()) == 2
    )
    expected = sorted(
        np.median(list(contents.parts[0].values("dice", name).values())) for name in ("Anterior", "Posterior")
    )
    assert medians == pytest.approx(expected)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Anterior", "Posterior"]


def test_every_run_has_its_curve(rivals: list[Path]) -> None:
    runs = read_runs(rivals)
    axes = curve_chart(runs, LOSS).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["medvisionllama-u", "vit-u"]
    for line, run in zip(axes.lines, runs, strict=True):
        assert line.get_ydata()[-1] == pytest.approx(run.logs[""][-1]["loss"])
    assert len({line.get_color() for line in axes.lines}) == 2
    assert len({str(line.get_linestyle()) for line in axes.lines}) == 2


def test_long_curves_are_thinned_without_moving_their_mean(run: Path) -> None:
    values = np.random.default_rng(0).random(12_000)
    entries = [{"step": step, "loss": value} for step, value in enumerate(values)]
    line = curve_chart([with_log(read_run(run), entries)], LOSS).axes[0].lines[0]
    assert len(line.get_ydata()) == MOST_POINTS
    assert np.mean(line.get_ydata()) == pytest.approx(values.mean())


def test_entries_without_a_number_are_skipped(run: Path) -> None:
    entries = [{"step": 1, "validation_dice": 0.5}, {"step": 2}, {"step": 3, "validation_dice": None}]
    line = curve_chart([with_log(read_run(run), entries)], DICE).axes[0].lines[0]
    assert list(line.get_ydata()) == [0.5]


def test_limits_of_agreement_are_bias_and_196_sd() -> None:
    volumes = [VolumeRow("a", "x", 10, 11), VolumeRow("b", "x", 20, 23), VolumeRow("c", "x", 30, 32)]
    assert limits_of_agreement(volumes) == pytest.approx((2.0, 2.0 - 1.96, 2.0 + 1.96))
    assert np.isnan(limits_of_agreement([])).all()


def test_volumes_are_counted_in_millilitres(run: Path) -> None:
    contents = read_run(run)
    volumes = structure_volumes(contents, contents.parts[0])
    with np.load(run / "validation" / "pictures" / "case_003.npz") as arrays:
        expected = (arrays["reference"] == 2).sum() * 2.0 / 1000
    found = {(v.case, v.class_name): v.reference_ml for v in volumes}
    assert len(found) == 24
    assert found["case_003", "Posterior"] == pytest.approx(expected)


def test_a_table_of_volumes_is_preferred_to_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=3)
    table = "case,class,reference_ml,prediction_ml\ncase_000,Anterior,1.5,1.25\n"
    (run / "validation" / "volumes.csv").write_text(table)
    contents = read_run(run)
    assert structure_volumes(contents, contents.parts[0]) == [VolumeRow("case_000", "Anterior", 1.5, 1.25)]


def test_bland_altman_draws_difference_over_mean() -> None:
    volumes = [VolumeRow("a", "x", 10, 12), VolumeRow("b", "x", 20, 23)]
    axes = bland_altman([("one", volumes)], "x").axes[0]
    assert list(axes.lines[0].get_xdata()) == [11, 21.5]
    assert list(axes.lines[0].get_ydata()) == [2, 3]


def test_bland_altman_gives_every_run_a_panel_on_one_scale() -> None:
    small = [VolumeRow("a", "x", 10, 12), VolumeRow("b", "x", 20, 23)]
    large = [VolumeRow("a", "x", 10, 40), VolumeRow("b", "x", 20, 60)]
    figure = bland_altman([("one", small), ("none", []), ("two", large), ("three", small)], "x")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title("left") for axes in panels] == ["one", "two", "three"], "and none without volumes"
    assert len({axes.get_ylim() for axes in panels}) == 1
    assert list(panels[1].lines[0].get_ydata()) == [30, 40]
    assert [text.get_text() for text in panels[1].texts] == ["+35.0", "+21.1", "+48.9"], "bias and its limits"
    assert bland_altman([("none", [])], "x").axes, "nothing to draw is an empty chart, not a fault"
