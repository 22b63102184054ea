import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medvisionllama.data import prepare as prepare_module
from medvisionllama.data.dataset import BatchSource, PreparedCase, prepare, refuse_unusable
from medvisionllama.data.nifti import read_label_map, read_volume, write_label_map, write_volume
from medvisionllama.data.plan import Plan
from medvisionllama.data.prepare import REMEMBERED_PLACES, foreground_places
from medvisionllama.data.preprocess import label_to_model_grid, to_model_grid
from medvisionllama.data.task import Case, Task
from medvisionllama.errors import InputError
from medvisionllama.geometry import Shape, Volume, ras_grid
from medvisionllama.mapped import StoredArray
from medvisionllama.sliding_window import sliding_window


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.npy"))}


def drawn_case(name: str, shape: Shape, foreground: int = 30, seed: int = 0) -> PreparedCase:
    """A case whose image holds each voxel's own place, so that a patch tells where it was cut."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    label.ravel()[rng.permutation(label.size)[:foreground]] = rng.integers(1, 3, min(foreground, label.size))
    image = np.stack([*np.indices(shape), np.ones(shape)]).astype(np.float32)
    return PreparedCase(name, image, label, foreground_places(label))


def source(
    cases: list[PreparedCase], window: Shape = (8, 6, 10), batch_size: int = 2, share: float = 1 / 3, seed: int = 0
) -> BatchSource:
    return BatchSource(cases, window, batch_size, share, seed)


def test_prepared_cases_are_what_preprocessing_makes(task: Task, plan: Plan, cache: Path) -> None:
    for case, prepared in zip(task.cases, prepare(task.cases, plan, cache), strict=True):
        image, label = case.read_pair()
        np.testing.assert_array_equal(prepared.image, to_model_grid(image, plan))
        np.testing.assert_array_equal(prepared.label, label_to_model_grid(label, plan))
        assert prepared.name == case.name
        assert isinstance(prepared.image, StoredArray)
        assert prepared.spacing_mm == pytest.approx(ras_grid(image.grid).with_shape(prepared.label.shape).spacing_mm)
        assert prepared.spacing_mm == pytest.approx(plan.spacing_mm, rel=0.1)


def test_places_are_foreground_voxels_of_every_class(task: Task, plan: Plan, cache: Path) -> None:
    for case in prepare(task.cases, plan, cache):
        assert len(case.places) <= REMEMBERED_PLACES
        assert set(case.places[:, 0]) == {1, 2}
        np.testing.assert_array_equal(case.label[tuple(case.places[:, 1:].T)], case.places[:, 0])
        assert len({tuple(place) for place in case.places}) == len(case.places)


def test_places_of_a_straight_edged_structure_lie_all_over_it() -> None:
    label = np.zeros((32, 64, 8), np.uint8)
    label[8:, 8:, :] = 1
    places = foreground_places(label)
    assert len(places) == REMEMBERED_PLACES
    for axis, size in ((1, 24), (2, 56), (3, 8)):
        counts = np.unique(places[:, axis], return_counts=True)[1]
        assert len(counts) == size
        assert counts.max() < 3 * counts.mean()


def test_few_places_are_all_kept_and_none_is_no_fault() -> None:
    label = np.zeros((3, 3, 3), np.uint8)
    assert foreground_places(label).shape == (0, 4)
    label[0, 1, 2] = 1
    label[2] = 2
    places = foreground_places(label).tolist()
    assert sorted(places) == sorted([[1, 0, 1, 2]] + [[2, 2, j, k] for j in range(3) for k in range(3)])


def test_what_is_prepared_is_found_again(task: Task, plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(task.cases, plan, cache)
    before = files(cache)
    assert len(before) == 3 * len(task.cases)
    monkeypatch.setattr(Case, "read_pair", lambda case: pytest.fail("read again"))
    prepare(task.cases, plan, cache)
    prepare(task.cases, replace(plan, task="renamed", classes={1: "x", 2: "y"}, training_cases=99), cache)
    assert files(cache) == before


@pytest.mark.parametrize(
    "change",
    [
        {"spacing_mm": (1.5, 2.0, 2.0)},
        {"classes": {2: "b", 1: "a"}},
        {"protocol": "paper", "spacing_mm": None},
        {"window": (16, 16, 24), "protocol": "paper", "spacing_mm": None},
    ],
)
def test_another_plan_is_never_given_the_old_files(task: Task, plan: Plan, cache: Path, change: dict) -> None:  # type: ignore[type-arg]
    prepare(task.cases[:1], plan, cache)
    other = replace(plan, **change)
    (prepared,) = prepare(task.cases[:1], other, cache)
    assert len(files(cache)) == 6
    np.testing.assert_array_equal(prepared.label, label_to_model_grid(task.cases[0].read_label(), other))


@pytest.mark.parametrize("which", ["image", "label"])
def test_changed_content_is_never_given_the_old_files(task: Task, plan: Plan, cache: Path, which: str) -> None:
    case = task.cases[0]
    prepare([case], plan, cache)
    if which == "image":
        image = read_volume(case.image)
        image.array[3, 3, 3] += 1
        write_volume(image, case.image)
    else:
        label = read_label_map(case.label)
        label.array[3, 3, 3] = 2
        write_label_map(label, case.label)
    (prepared,) = prepare([case], plan, cache)
    assert len(files(cache)) == 6
    np.testing.assert_array_equal(prepared.image, to_model_grid(case.read_image(), plan))
    np.testing.assert_array_equal(prepared.label, label_to_model_grid(case.read_label(), plan))


@pytest.mark.parametrize("saved", range(3))
def test_an_interrupted_preparation_leaves_nothing_torn_and_goes_on(
    task: Task, plan: Plan, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int
) -> None:
    calls = iter(range(99))
    save = np.save

    def interrupted(file: object, array: np.ndarray, **more: bool) -> None:
        if next(calls) == 3 + saved:  # in the second case, at its first, second or third file
            file.write(b"half")  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        save(file, array, **more)  # type: ignore[call-overload]

    with monkeypatch.context() as patched:
        patched.setattr(prepare_module.np, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(task.cases, plan, cache)
    left = files(cache)
    assert len(left) == 3 + saved
    assert not list(cache.rglob("*.part"))
    assert all(content.startswith(b"\x93NUMPY") for content in left.values())
    prepare(task.cases, plan, cache)
    prepare(task.cases, plan, tmp_path / "uninterrupted")
    assert files(cache) == files(tmp_path / "uninterrupted")


def test_a_full_disk_is_told(task: Task, plan: Plan, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, array: np.ndarray, **more: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_module.np, "save", full)
    with pytest.raises(InputError, match=r"No space left.*--cache"):
        prepare(task.cases, plan, cache)
    assert files(cache) == {}


def test_prepared_cases_keep_no_file_open(task: Task, plan: Plan, cache: Path) -> None:
    """Each map holds a file, and a data set has more cases than a process may open files."""
    resource = pytest.importorskip("resource")
    prepared = prepare(task.cases[:2], plan, cache)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len([*Path("/dev/fd").iterdir()])
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 8, hard))
        many = [case for _ in range(20) for case in prepare(task.cases[:2], plan, cache)]
        BatchSource([*prepared, *many], (8, 8, 8), 30, 0.0, 0).batch(0)
        with pytest.raises(InputError, match="Too many open files"):  # the limit does bite
            [np.asarray(case.image) for case in many]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_prepared_file_that_goes_while_it_is_used_is_told(task: Task, plan: Plan, cache: Path) -> None:
    (case,) = prepare(task.cases[:1], plan, cache)
    for path in cache.rglob("*.npy"):
        path.unlink()
    with pytest.raises(InputError, match=r"is gone or was changed.*Start again"):
        BatchSource([case], (8, 8, 8), 1, 0.0, 0).batch(0)
    assert BatchSource(prepare(task.cases[:1], plan, cache), (8, 8, 8), 1, 0.0, 0).batch(0).cases == ("phantom_000",)


def test_a_stored_array_is_what_numpy_reads(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", array)
    stored = StoredArray.at(tmp_path / "a.npy")
    np.testing.assert_array_equal(stored, array)
    np.testing.assert_array_equal(stored[1, :, 2:], array[1, :, 2:])
    assert not np.asarray(stored).flags.writeable
    assert np.array(stored).flags.writeable
    assert np.asarray(stored, np.float64).dtype == np.float64
    np.save(tmp_path / "f.npy", np.asfortranarray(array))
    with pytest.raises(ValueError, match="C's order"):
        StoredArray.at(tmp_path / "f.npy")


def test_a_damaged_prepared_file_is_told(task: Task, plan: Plan, cache: Path) -> None:
    prepare(task.cases[:1], plan, cache)
    for path in cache.rglob("*.npy"):
        content = path.read_bytes()
        for spoilt in (b"", content[: len(content) // 2], b"\0" * 200):
            path.write_bytes(spoilt)
            with pytest.raises(InputError, match=r"phantom_000 .*damaged.*Delete"):
                prepare(task.cases[:1], plan, cache)
        path.write_bytes(content)
    prepare(task.cases[:1], plan, cache)


def test_two_processes_may_prepare_at_once(task: Task, plan: Plan, cache: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from medvisionllama.data.dataset import BatchSource, prepare\n"
        "from medvisionllama.data.decathlon import read_task\n"
        "from medvisionllama.data.planning import make_plan\n"
        "task = read_task(sys.argv[1]); plan = make_plan(task, task.cases)\n"
        "batch = BatchSource(prepare(task.cases, plan, Path(sys.argv[2])), (8, 8, 8), 4, 0.5, 7).batch(3)\n"
        "print(batch.cases, float(batch.image.double().sum()), int(batch.label.sum()))\n"
    )
    command = [sys.executable, "-c", code, str(task.folder), str(cache)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    batch = BatchSource(prepare(task.cases, plan, tmp_path / "alone"), (8, 8, 8), 4, 0.5, 7).batch(3)
    expected = f"{batch.cases} {float(batch.image.double().sum())} {int(batch.label.sum())}\n"
    assert told == [expected, expected]  # and any process draws what any other draws
    assert files(cache) == files(tmp_path / "alone")


def moved(task: Task, shift_mm: float) -> Case:
    """The first case, its label map moved away."""
    case = task.cases[0]
    label = read_label_map(case.label)
    affine = label.affine.copy()
    affine[2, 3] += shift_mm
    write_label_map(Volume(label.array, affine), case.label)
    return case


def test_a_label_map_on_another_grid_is_refused_and_by_how_much_is_told(task: Task, plan: Plan, cache: Path) -> None:
    case = moved(task, 2.5)
    for refused in (lambda: prepare([case], plan, cache), lambda: refuse_unusable([case])):
        with pytest.raises(InputError, match=r"phantom_000.* different grids: got 2\.5 mm apart"):
            refused()
    label = read_label_map(case.label)
    write_label_map(Volume(label.array[1:], label.affine), case.label)
    for refused in (lambda: prepare([case], plan, cache), lambda: refuse_unusable([case])):
        with pytest.raises(InputError, match="different grids: got shapes"):
            refused()
    assert files(cache) == {}
    refuse_unusable(task.cases[1:])


def test_a_shift_by_rounding_is_no_fault_and_moves_nothing(task: Task, plan: Plan, cache: Path) -> None:
    expected = np.array(prepare(task.cases[:1], plan, cache)[0].label)
    case = moved(task, 2e-4)
    refuse_unusable([case])
    np.testing.assert_array_equal(prepare([case], plan, cache)[0].label, expected)


def test_rounding_in_an_affine_never_turns_a_label_map_against_its_image(plan: Plan, tmp_path: Path) -> None:
    """Axes at 45 degrees: which one is `right` hangs on the last digit, and must be settled once for both."""
    arrays = np.zeros((9, 13, 8)), np.zeros((9, 13, 8), np.uint8)
    for array in arrays:
        array[1:3, 2:11, 2:4] = 1
    affines = []
    for jitter in (-1e-5, 1e-5):
        angle = np.pi / 4 + jitter
        affine = np.eye(4)
        affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        affines.append(affine)
    paths = tmp_path / "turned.nii.gz", tmp_path / "turned_label.nii.gz"
    write_volume(Volume(arrays[0].astype(np.float32), affines[0]), paths[0])
    write_label_map(Volume(arrays[1], affines[1]), paths[1])
    case = Case("turned", *paths)
    stored = read_volume(paths[0]).grid, read_label_map(paths[1]).grid
    assert stored[0].same_as(stored[1])
    assert ras_grid(stored[0]).shape != ras_grid(stored[1]).shape  # negative control: alone they would part
    (prepared,) = prepare([case], replace(plan, spacing_mm=(1.0, 1.0, 1.0)), tmp_path / "cache")
    assert prepared.image.shape[1:] == prepared.label.shape
    np.testing.assert_array_equal(prepared.image[0] > 0, np.asarray(prepared.label) == 1)


def test_missing_files_are_told(task: Task, plan: Plan, cache: Path) -> None:
    task.cases[0].label.unlink()  # type: ignore[union-attr]
    with pytest.raises(InputError, match="phantom_000"):
        prepare(task.cases, plan, cache)


CASES = [drawn_case(f"case_{n}", (12 + n, 9, 14), seed=n) for n in range(5)]


def test_the_same_seed_and_position_give_the_same_patch() -> None:
    one, other = source(CASES, batch_size=2), source(CASES, batch_size=5)
    by_position: dict[int, torch.Tensor] = {}
    for step in range(10):
        batch = one.batch(step)
        assert batch.positions == (2 * step, 2 * step + 1)
        by_position |= dict(zip(batch.positions, batch.image, strict=True))
    for step in (3, 0, 2, 1):  # in any order, in batches of any size
        batch = other.batch(step)
        for position, image in zip(batch.positions, batch.image, strict=True):
            assert torch.equal(image, by_position[position])
    assert not torch.equal(source(CASES, seed=1).batch(0).image, one.batch(0).image)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=25)
def test_every_case_is_seen_once_an_epoch(count: int, batch_size: int, seed: int) -> None:
    cases = [drawn_case(f"case_{n}", (4, 4, 4)) for n in range(count)]
    batches = source(cases, (4, 4, 4), batch_size, seed=seed)
    names = [name for step in range(4 * count) for name in batches.batch(step).cases]
    for epoch in range(len(names) // count):
        assert sorted(names[epoch * count : (epoch + 1) * count]) == [case.name for case in cases]


def test_epochs_differ_in_their_order_and_seeds_too() -> None:
    cases = [drawn_case(f"case_{n}", (2, 2, 2)) for n in range(9)]
    orders = {
        tuple(source(cases, (2, 2, 2), 9, seed=seed).batch(epoch).cases) for seed in range(4) for epoch in range(4)
    }
    assert len(orders) == 16


def test_a_patch_is_a_piece_of_its_case() -> None:
    for step in range(20):
        batch = source(CASES).batch(step)
        assert batch.image.dtype == torch.float32
        assert batch.label.dtype == torch.uint8
        assert batch.image.shape == (2, 4, 8, 6, 10)
        assert batch.label.shape == (2, 8, 6, 10)
        for name, image, label in zip(batch.cases, batch.image.numpy(), batch.label.numpy(), strict=True):
            case = next(c for c in CASES if c.name == name)
            i, j, k = image[:3].reshape(3, -1).astype(int)
            np.testing.assert_array_equal(label.ravel(), case.label[i, j, k])
            np.testing.assert_array_equal(image[:3, 0, 0, 0], image[:3].min((1, 2, 3)))


def test_patches_begin_anywhere_alike() -> None:
    case = drawn_case("case", (12, 6, 11))
    starts = [source([case], batch_size=1, share=0.0).batch(n).image[0, :3, 0, 0, 0] for n in range(1000)]
    counts = Counter(tuple(int(x) for x in start) for start in starts)
    assert set(counts) == {(i, 0, k) for i in range(5) for k in range(2)}
    assert min(counts.values()) > 60 < max(counts.values()) < 145


@pytest.mark.parametrize("shape", [(5, 3, 7), (8, 6, 10), (7, 20, 3), (1, 1, 1)])
def test_smaller_cases_are_padded_as_in_prediction(shape: Shape) -> None:
    case = drawn_case("case", shape, foreground=2)
    batch = source([case], batch_size=1, share=0.5).batch(0)
    seen: list[torch.Tensor] = []

    def network(windows: torch.Tensor) -> torch.Tensor:
        seen.extend(windows)
        return windows

    sliding_window(network, torch.from_numpy(np.array(case.image)), (8, 6, 10))
    if shape[1] <= 6:
        assert torch.equal(batch.image[0], seen[0])
    inside = batch.image[0, 3] == 1
    for axis, (size, window) in enumerate(zip(shape, (8, 6, 10), strict=True)):
        taken = torch.nonzero(inside.movedim(axis, 0).flatten(1).any(1))[:, 0]
        before, after = int(taken[0]), window - 1 - int(taken[-1])
        assert before + after == max(0, window - size)
        assert after - before in (0, 1)
    assert not batch.label[0][~inside].any()
    assert not batch.image[0][:, ~inside].any()


def test_forced_patches_hold_foreground_and_a_third_are_forced() -> None:
    case = drawn_case("case", (40, 40, 40), foreground=2, seed=3)
    window = (4, 4, 4)

    def share(forced: float) -> float:
        batches = source([case], window, 600, forced)
        return float(batches.batch(0).label.flatten(1).any(1).float().mean())

    assert share(1.0) == 1.0
    assert share(0.0) < 0.02
    assert share(1 / 3) == pytest.approx(1 / 3, abs=0.06)


def test_rare_classes_are_shown_as_often_as_common_ones() -> None:
    label = np.zeros((30, 30, 30), np.uint8)
    label[:15] = 1
    label[29, 29, 29] = 2
    image = np.zeros((1, 30, 30, 30), np.float32)
    case = PreparedCase("case", image, label, foreground_places(label))
    batch = source([case], (4, 4, 4), 400, 1.0).batch(0)
    rare = (batch.label == 2).flatten(1).any(1).float().mean()
    assert float(rare) == pytest.approx(0.5, abs=0.08)


def test_a_forced_patch_is_centred_where_there_is_room() -> None:
    label = np.zeros((21, 21, 21), np.uint8)
    label[10, 11, 12] = 1
    image = np.indices(label.shape).astype(np.float32)
    batch = source([PreparedCase("case", image, label, foreground_places(label))], (8, 8, 8), 1, 1.0).batch(0)
    assert batch.image[0, :, 4, 4, 4].tolist() == [10, 11, 12]


def test_a_case_without_foreground_is_drawn_from_all_the_same() -> None:
    batch = source([drawn_case("case", (12, 9, 14), foreground=0)], share=1.0).batch(0)
    assert not batch.label.any()


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="got -1, expected 0 or more"):
        source(CASES, seed=-1)


def test_a_batch_tells_the_spacing_of_each_case() -> None:
    cases = [replace(case, spacing_mm=(1.0, 2.0, float(n))) for n, case in enumerate(CASES, start=1)]
    batch = source(cases, batch_size=5).batch(0)
    assert batch.spacing_mm.tolist() == [[1.0, 2.0, int(name[-1]) + 1.0] for name in batch.cases]


def test_a_patch_may_be_changed_without_changing_its_case(task: Task, plan: Plan, cache: Path) -> None:
    prepared = prepare(task.cases, plan, cache)
    batches = source(prepared, (8, 8, 8), 4)
    kept = batches.batch(0).image.clone()
    batches.batch(0).image.fill_(7)
    assert torch.equal(batches.batch(0).image, kept)
