import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvisionllama.data.decathlon import read_task
from medvisionllama.data.mirroring import Mirroring
from medvisionllama.data.nifti import write_label_map, write_volume
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.data.plan import EVEN_STRIDES, IGNORED, IntensityRule, Plan, read_plan, reduction, write_plan
from medvisionllama.data.planning import (
    FOREGROUND_SAMPLES_PER_CASE,
    MOST_TOKENS,
    MOST_WINDOW_VOXELS,
    _strides,
    _window,
    fitted_to_memory,
    make_plan,
)
from medvisionllama.data.task import Case, Task
from medvisionllama.errors import InputError
from medvisionllama.geometry import Shape, Volume
from medvisionllama.label_reading import LabelReading

RNG = np.random.default_rng(0)
CT = "CT"


def written_case(
    folder: Path,
    name: str,
    image: np.ndarray,
    label: np.ndarray | None = None,
    spacing_mm: Sequence[float] = (1, 1, 1),
    order: Sequence[int] = (0, 1, 2),
) -> Case:
    """A case on disk; voxel axis n runs along world axis ``order[n]`` with ``spacing_mm[n]``."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * spacing_mm
    label = np.zeros(image.shape[-3:], np.uint8) if label is None else label
    paths = folder / f"{name}.nii.gz", folder / f"{name}_label.nii.gz"
    write_volume(Volume(image.astype(np.float32), affine), paths[0])
    write_label_map(Volume(label.astype(np.uint8), affine), paths[1])
    return Case(name, *paths)


def task_of(folder: Path, cases: Sequence[Case], modalities: tuple[str, ...] = ("MRI",)) -> Task:
    return Task("Made", folder, modalities, {1: "a", 2: "b"}, tuple(cases))


def planned(folder: Path, cases: Sequence[Case], *modalities: str, **more: Any) -> Plan:
    return make_plan(task_of(folder, cases, modalities or ("MRI",)), cases, **more)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("phantom") / "Phantom"
    return read_task(write_phantom_task(folder, 6, settings=PhantomSettings(spacing_mm=(2.6, 3.4))))


def test_median_spacing_and_size_by_hand(tmp_path: Path) -> None:
    cases = [
        written_case(tmp_path, "one", np.zeros((10, 20, 30)), spacing_mm=(1, 1, 2)),
        written_case(tmp_path, "two", np.zeros((12, 20, 30)), spacing_mm=(2, 1, 4)),
        written_case(tmp_path, "three", np.zeros((10, 22, 16)), spacing_mm=(3, 1, 3)),
    ]
    plan = planned(tmp_path, cases)
    assert plan.spacing_mm == (2.0, 1.0, 3.0)
    # Extents 10x20x60, 24x20x120 and 30x22x48 mm: 5x20x20, 12x20x40 and 15x22x16 voxels of 2x1x3 mm.
    assert plan.median_shape == (12, 20, 20)
    # J is halved first, until its voxels are as long as the others': 2x2x3, 4x4x6, 8x8x12 mm.
    assert plan.stem_strides == ((1, 2, 1), (2, 2, 2), (2, 2, 2))
    assert plan.window == (12, 24, 20)
    assert (plan.training_cases, plan.in_channels, plan.out_channels) == (3, 1, 3)
    assert plan.targets == {"a": (1,), "b": (2,)}


def test_an_even_number_of_cases_gives_the_mean_of_the_middle_two(tmp_path: Path) -> None:
    cases = [written_case(tmp_path, f"case_{mm}", np.zeros((8, 8, 8)), spacing_mm=(mm, 1, 1)) for mm in (1, 2, 4, 9)]
    assert planned(tmp_path, cases).spacing_mm == (3.0, 1.0, 1.0)


def test_axes_are_those_of_the_body_and_not_of_the_file(tmp_path: Path) -> None:
    stored = [
        written_case(tmp_path, "ras", np.zeros((10, 20, 30)), spacing_mm=(1, 2, 3)),
        written_case(tmp_path, "sra", np.zeros((30, 10, 20)), spacing_mm=(3, 1, 2), order=(2, 0, 1)),
    ]
    first, second = (planned(tmp_path, [case]) for case in stored)
    assert first == second
    assert (first.spacing_mm, first.median_shape) == ((1.0, 2.0, 3.0), (10, 20, 30))


def test_only_the_training_part_is_looked_at(phantom: Task, tmp_path: Path) -> None:
    training, validation = phantom.cases[:4], phantom.cases[4:]
    plan = make_plan(phantom, training)
    other = written_case(tmp_path, "other", 1000 * RNG.normal(size=(50, 50, 50)), spacing_mm=(0.2, 0.3, 0.4))
    changed = replace(phantom, cases=(*training, other))
    assert make_plan(changed, training) == plan
    gone = replace(phantom, cases=(*training, replace(validation[0], image=tmp_path / "absent.nii.gz")))
    assert make_plan(gone, training) == plan
    # Negative control: among the training part it counts.
    assert make_plan(changed, [*training[1:], other, other, other]) != plan


@given(st.lists(st.integers(1, 700), min_size=3, max_size=3))
def test_windows_are_multiples_of_8_that_can_be_borne(median: list[int]) -> None:
    window = _window(tuple(median), (8, 8, 8))  # type: ignore[arg-type]
    assert all(size % 8 == 0 and size >= 8 for size in window)
    assert np.prod(window) <= MOST_WINDOW_VOXELS
    rounded = [-(-size // 8) * 8 for size in median]
    if rounded == [8, 8, 8]:
        rounded = [16, 8, 8]  # one token alone could not be normalised
    assert all(w <= r for w, r in zip(window, rounded, strict=True))
    if np.prod(rounded) <= MOST_WINDOW_VOXELS:
        assert list(window) == rounded
    else:  # no larger than it has to be: one more step along the longest axis would be too much
        cut = [axis for axis in range(3) if window[axis] < rounded[axis]]
        assert max(window[axis] for axis in cut) >= max(window) - 8
        assert np.prod(window) * (1 + 8 / min(window[axis] for axis in cut)) > MOST_WINDOW_VOXELS


def test_ct_is_described_by_its_foreground_by_hand(tmp_path: Path) -> None:
    first, second = (RNG.integers(-1000, 1000, (6, 7, 8)).astype(float) for _ in range(2))
    labels = [RNG.integers(0, 3, (6, 7, 8)) for _ in range(2)]
    cases = [written_case(tmp_path, "one", first, labels[0]), written_case(tmp_path, "two", second, labels[1])]
    (rule,) = planned(tmp_path, cases, CT).intensity
    pooled = np.sort(np.concatenate([first[labels[0] > 0], second[labels[1] > 0]]))
    assert rule.kind == "clip-zscore"
    for told, percent in ((rule.low, 0.5), (rule.high, 99.5)):
        at = percent / 100 * (len(pooled) - 1)
        below = int(at)
        expected = pooled[below] + (at - below) * (pooled[below + 1] - pooled[below])
        assert told == pytest.approx(expected)
    assert rule.mean == pytest.approx(pooled.sum() / len(pooled))
    assert rule.sd == pytest.approx(np.sqrt(((pooled - rule.mean) ** 2).mean()))


def test_ct_background_and_label_values_do_not_count(tmp_path: Path) -> None:
    image, label = RNG.integers(-1000, 1000, (6, 7, 8)).astype(float), RNG.integers(0, 3, (6, 7, 8))
    plan = planned(tmp_path, [written_case(tmp_path, "one", image, label)], CT)
    image[label == 0] = 30000
    assert planned(tmp_path, [written_case(tmp_path, "two", image, np.where(label, 2, 0))], CT) == plan
    image[label > 0] += 1
    assert planned(tmp_path, [written_case(tmp_path, "three", image, label)], CT) != plan


def test_a_large_case_outweighs_no_other(tmp_path: Path) -> None:
    side = 28  # more than twice as many voxels as are sampled of a case
    assert side**3 > 2 * FOREGROUND_SAMPLES_PER_CASE
    large = written_case(tmp_path, "large", np.full((side,) * 3, 100.0), np.ones((side,) * 3))
    small = np.zeros((side,) * 3)
    small.ravel()[:FOREGROUND_SAMPLES_PER_CASE] = 1
    other = written_case(tmp_path, "other", np.zeros((side,) * 3), small)
    (rule,) = planned(tmp_path, [large, other], CT).intensity
    assert 30 < rule.mean <= 50  # of all voxels it would be 69


def test_ct_that_is_the_same_everywhere_can_be_scaled(tmp_path: Path) -> None:
    case = written_case(tmp_path, "one", np.full((4, 4, 4), 40.0), np.ones((4, 4, 4)))
    assert planned(tmp_path, [case], CT).intensity == (IntensityRule("clip-zscore", 40.0, 40.0, 40.0, 1.0),)


def test_each_channel_has_its_own_rule(tmp_path: Path) -> None:
    image = RNG.normal(size=(3, 4, 5, 6)) * np.array([1, 10, 100]).reshape(3, 1, 1, 1)
    case = written_case(tmp_path, "one", image, np.ones((4, 5, 6)))
    rules = planned(tmp_path, [case], "MRI", " ct ", "PET").intensity
    assert [rule.kind for rule in rules] == ["body-zscore", "clip-zscore", "body-zscore"]
    assert rules[1].sd == pytest.approx(image[1].std(), rel=1e-6)
    assert {rule.kind for rule in planned(tmp_path, [case], *"abc").intensity} == {"body-zscore"}
    assert {rule.kind for rule in planned(tmp_path, [case], CT, CT, CT, protocol="paper", grid=16).intensity} == {
        "zscore"
    }


def test_the_paper_protocol(phantom: Task) -> None:
    plan = make_plan(phantom, phantom.cases, protocol="paper", grid=64)
    assert (plan.window, plan.spacing_mm, plan.out_channels) == ((64, 64, 64), None, 1)
    assert plan.targets == {"foreground": (1, 2)}
    assert plan.intensity == (IntensityRule("zscore"),)


@pytest.mark.parametrize("grid", [0, -8, 4, 63, 100])
def test_the_papers_grid_is_a_multiple_of_8(phantom: Task, grid: int) -> None:
    with pytest.raises(InputError, match="multiple of 8"):
        make_plan(phantom, phantom.cases, protocol="paper", grid=grid)


def test_progress_sees_every_case_once(phantom: Task) -> None:
    seen: list[Case] = []

    def watched(cases: Any) -> Any:
        for case in cases:
            seen.append(case)
            yield case

    make_plan(phantom, phantom.cases, progress=watched)
    assert seen == list(phantom.cases)


@pytest.mark.parametrize("protocol", ["native", "paper"])
def test_a_plan_comes_back_from_its_file(phantom: Task, tmp_path: Path, protocol: Any) -> None:
    plan = make_plan(phantom, phantom.cases, protocol=protocol, grid=16)
    plan = replace(
        plan,
        classes={1: "Größe", 7: "大", 10: "c"},
        intensity=(IntensityRule("clip-zscore", 0.1, 1 / 3, 2, 3),),
        stem_strides=((1, 2, 1), (2, 2, 2)),
        regions={"whole": (1, 7, 10), "core": (7,)},
        region_values=(1, 7),
        ignored=4,
        mirroring=Mirroring((0, 2), ((1, 10),)),
        batch_size=3,
    )
    write_plan(plan, tmp_path / "plan.json")
    back = read_plan(tmp_path / "plan.json")
    assert back == plan
    assert list(back.classes) == [1, 7, 10]
    assert back.to_dict() == plan.to_dict()
    assert isinstance(back.window, tuple)


def test_a_plan_of_another_version_is_refused(phantom: Task, tmp_path: Path) -> None:
    content = make_plan(phantom, phantom.cases).to_dict()
    for version in (0, 2, None, "1"):
        (tmp_path / "plan.json").write_text(json.dumps(content | {"format": version}))
        with pytest.raises(InputError, match="another version"):
            read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"window": [8, 8]}, "cannot be understood"),
        ({"window": None}, "cannot be understood"),
        ({"spacing_mm": [1.0]}, "cannot be understood"),
        ({"classes": ["a"]}, "cannot be understood"),
        ({"classes": {"one": "a"}}, "cannot be understood"),
        ({"intensity": [{"kind": "zscore", "unknown": 1}]}, "cannot be understood"),
        ({"intensity": [{"kind": "minmax"}]}, "got minmax"),
        ({"protocol": "other"}, "got other"),
        ({"classes": {str(n): str(n) for n in range(1, 300)}}, "too many classes"),
        ({"classes": {str(n): str(n) for n in range(1, 256)}, "ignored": 900}, "got 255, expected 254 at most"),
        ({"regions": {"whole": [1, 99]}, "region_values": [1]}, "not made of its classes"),
        ({"regions": {"whole": [1, 2]}, "region_values": []}, "not made of its classes"),
        ({"mirroring": {"axes": [3], "swaps": []}}, "axes to mirror"),
        ({"mirroring": {"axes": [0]}}, "lacks 'swaps'"),
    ],
)
def test_what_is_no_plan_is_refused_in_words(phantom: Task, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    content = make_plan(phantom, phantom.cases).to_dict()
    (tmp_path / "plan.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=told):
        read_plan(tmp_path / "plan.json")


LATER = {"stem_strides", "regions", "region_values", "ignored", "mirroring", "batch_size"}


def test_a_plan_from_before_regions_and_sides_is_still_read(phantom: Task, tmp_path: Path) -> None:
    plan = make_plan(phantom, phantom.cases)
    older = {key: value for key, value in plan.to_dict().items() if key not in LATER}
    (tmp_path / "plan.json").write_text(json.dumps(older))
    assert read_plan(tmp_path / "plan.json") == plan


def test_a_plan_that_lacks_something_is_refused(phantom: Task, tmp_path: Path) -> None:
    content = make_plan(phantom, phantom.cases).to_dict()
    for key in content.keys() - {"format"} - LATER:
        (tmp_path / "plan.json").write_text(json.dumps({k: v for k, v in content.items() if k != key}))
        with pytest.raises(InputError, match=f"lacks '{key}'"):
            read_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(InputError, match="is not a plan"):
        read_plan(tmp_path / "plan.json")


def test_data_that_cannot_be_planned_is_refused_in_words(phantom: Task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training cases"):
        make_plan(phantom, [])
    with pytest.raises(InputError, match="no class but background"):
        make_plan(replace(phantom, classes={}), phantom.cases)
    with pytest.raises(InputError, match=r"phantom_000.* got 1, expected 2 \(T1, T2\)"):
        make_plan(replace(phantom, modalities=("T1", "T2")), phantom.cases)
    empty = written_case(tmp_path, "empty", np.zeros((4, 4, 4)))
    with pytest.raises(InputError, match="holds foreground"):
        planned(tmp_path, [empty], CT)
    broken = written_case(tmp_path, "broken", np.full((4, 4, 4), np.nan), np.ones((4, 4, 4)))
    with pytest.raises(InputError, match=r"broken.* NaN"):
        planned(tmp_path, [broken], CT)
    first, second = (written_case(tmp_path, n, np.zeros(s)) for n, s in (("one", (4, 4, 4)), ("two", (4, 4, 5))))
    with pytest.raises(InputError, match="different grids"):
        planned(tmp_path, [replace(first, label=second.label)], CT)


def test_channels_in_files_of_their_own_are_counted(tmp_path: Path) -> None:
    first, second = (written_case(tmp_path, n, RNG.normal(size=(4, 5, 6)), np.ones((4, 5, 6))) for n in ("one", "two"))
    both = replace(first, more_channels=(second.image,))
    assert planned(tmp_path, [both], CT, "PET").in_channels == 2
    with pytest.raises(InputError, match="got 2, expected 1"):
        planned(tmp_path, [both], CT)


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 8, 1)])
def test_a_flat_case_can_be_planned(tmp_path: Path, shape: Shape) -> None:
    plan = planned(tmp_path, [written_case(tmp_path, "flat", np.zeros(shape))])
    assert plan.median_shape == shape
    assert plan.window == (16, 8, 8)  # never one token alone


def thin(folder: Path, *millimetres: float, slices: int = 11) -> Plan:
    """Planned from flat cases: 0.5 mm in the plane, and each of the lengths across."""
    shape = (64, 64, slices)
    cases = [
        written_case(folder, f"case_{n}", np.zeros(shape), spacing_mm=(0.5, 0.5, mm))
        for n, mm in enumerate(millimetres)
    ]
    return planned(folder, cases)


def test_a_thin_axis_keeps_the_finest_tenths_spacing(tmp_path: Path) -> None:
    # Percentile 10 of 3, 7, 7.5, 8, 9 lies 0.4 of the way from the first to the second.
    assert thin(tmp_path, 7.5, 3.0, 8.0, 7.0, 9.0).spacing_mm == (0.5, 0.5, pytest.approx(3 + 0.4 * 4))


def test_but_no_finer_than_the_plane(tmp_path: Path) -> None:
    assert thin(tmp_path, 7.5, 0.1, 0.1, 7.5, 7.5).spacing_mm == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("millimetres", "slices"), [((1.4, 1.5, 1.3), 11), ((7.5, 3.0, 8.0), 22)])
def test_an_axis_that_is_not_both_coarse_and_short_keeps_the_median(
    tmp_path: Path, millimetres: tuple[float, ...], slices: int
) -> None:
    assert thin(tmp_path, *millimetres, slices=slices).spacing_mm == (0.5, 0.5, pytest.approx(np.median(millimetres)))


def test_a_thin_axis_is_not_pooled_away(tmp_path: Path) -> None:
    plan = thin(tmp_path, 7.5)
    assert plan.stem_strides == ((2, 2, 1),) * 3
    assert (plan.patch_size, plan.window) == ((8, 8, 1), (64, 64, 11))
    even = planned(tmp_path, [written_case(tmp_path, "even", np.zeros((8, 8, 8)))])
    assert (even.stem_strides, even.patch_size) == (EVEN_STRIDES, (8, 8, 8))


@given(st.lists(st.floats(0.2, 12), min_size=3, max_size=3), st.lists(st.integers(1, 700), min_size=3, max_size=3))
def test_windows_are_whole_patches_and_tokens_are_bounded(spacing: list[float], median: list[int]) -> None:
    patch = reduction(_strides(tuple(spacing)))  # type: ignore[arg-type]
    window = _window(tuple(median), patch)  # type: ignore[arg-type]
    assert all(edge % size == 0 and edge >= size for edge, size in zip(window, patch, strict=True))
    assert np.prod(window) <= min(MOST_WINDOW_VOXELS, MOST_TOKENS * np.prod(patch))
    lengths = np.array(spacing) * patch
    assert lengths.max() / lengths.min() <= max(2, max(spacing) / min(spacing))


@pytest.mark.parametrize(
    ("median", "patch", "expected"),
    [
        ((5, 8, 1), (8, 8, 8), (16, 8, 8)),
        ((5, 8, 1), (8, 8, 1), (8, 8, 2)),  # where it costs least
        ((5, 8, 2), (8, 8, 1), (8, 8, 2)),  # negative control: two tokens are enough
        ((9, 8, 8), (8, 8, 8), (16, 8, 8)),
    ],
)
def test_a_window_is_never_one_token(median: Shape, patch: Shape, expected: Shape) -> None:
    assert _window(median, patch) == expected


def test_nor_does_a_memory_budget_make_one_of_it() -> None:
    small = replace(LARGE, median_shape=(7, 8, 6))
    assert fitted_to_memory(small, 8, per_voxel).window == (16, 8, 8)


def test_sides_and_regions_come_from_the_task(tmp_path: Path) -> None:
    case = written_case(tmp_path, "case", np.zeros((8, 8, 8)))
    task = replace(task_of(tmp_path, [case]), classes={1: "left lung", 4: "heart", 9: "right lung"}, ignored=10)
    plan = make_plan(task, [case])
    assert plan.mirroring == Mirroring(swaps=((1, 9),))
    assert plan.numbered_mirroring == Mirroring(swaps=((1, 3),))
    assert make_plan(task, [case], protocol="paper", grid=8).numbered_mirroring == Mirroring()
    asked = replace(task, mirroring=Mirroring(), regions={"lungs": (1, 9), "all": (1, 4, 9)}, region_values=(1, 4))
    plan = make_plan(asked, [case])
    assert (plan.mirroring, plan.out_channels, plan.softmax) == (Mirroring(), 2, False)
    assert plan.targets == {"lungs": (1, 9), "all": (1, 4, 9)}
    assert plan.reading == LabelReading(((1, 3), (1, 2, 3)), IGNORED)
    paper = make_plan(asked, [case], protocol="paper", grid=8)
    assert (paper.out_channels, paper.reading) == (1, LabelReading((), IGNORED))
    assert paper.targets == {"foreground": (1, 4, 9)}


LARGE = Plan("native", "large", (96, 96, 96), (1, 1, 1), (IntensityRule("zscore"),), {1: "a"}, 50, (200, 150, 100))


def per_voxel(window: Shape, batch_size: int) -> float:
    """A network that needs 1 GB, and 1 GB more for each million voxels of a batch."""
    return 1 + batch_size * float(np.prod(window)) / 1e6


def test_window_and_batch_fill_the_memory_by_hand() -> None:
    # Two of 200x152x104 need 7.3 GB. In 5 GB two of 2 million voxels fit: I shrinks from 200 to 152 and on with J.
    assert fitted_to_memory(LARGE, 8, per_voxel).window == (200, 152, 104)
    plan = fitted_to_memory(LARGE, 5, per_voxel)
    assert np.prod(plan.window) <= 2e6 < np.prod(plan.window) * 1.1
    assert plan.batch_size == 2
    small = replace(LARGE, median_shape=(40, 40, 40), training_cases=20)
    # Of 64,000 voxels each: 5 % of 20 cases is one, and two are the least.
    assert (fitted_to_memory(small, 8, per_voxel).window, fitted_to_memory(small, 8, per_voxel).batch_size) == (
        (40, 40, 40),
        2,
    )
    many = replace(small, training_cases=2000)
    assert fitted_to_memory(many, 8, per_voxel).batch_size == 100
    assert fitted_to_memory(many, 2, per_voxel).batch_size == 15  # 1 GB for 64,000 each


@given(st.floats(1.01, 100))
def test_what_is_planned_fits_and_more_would_not(memory_gb: float) -> None:
    plan = fitted_to_memory(LARGE, memory_gb, per_voxel)
    assert plan.batch_size is not None
    assert per_voxel(plan.window, plan.batch_size) <= memory_gb
    most = 0.05 * 50 * 200 * 150 * 100 / np.prod(plan.window)
    assert plan.batch_size + 1 > most or per_voxel(plan.window, plan.batch_size + 1) > memory_gb - 1e-6
    assert all(edge % 8 == 0 for edge in plan.window)


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"\(8, 8, 16\) does not fit: got about 1 GB for a batch of 2, expected 0.5 GB"
    ):
        fitted_to_memory(LARGE, 0.5, per_voxel)


def test_the_papers_grid_is_kept_and_its_batch_planned() -> None:
    paper = replace(LARGE, protocol="paper", window=(64, 64, 64), spacing_mm=None)
    plan = fitted_to_memory(paper, 2, per_voxel)
    assert (plan.window, plan.batch_size) == ((64, 64, 64), 3)
    with pytest.raises(InputError, match="does not fit"):
        fitted_to_memory(paper, 1.1, per_voxel)
