import os
import pickle
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medvisionllama.data import content
from medvisionllama.data import prepare as module
from medvisionllama.data.content import KnownContent
from medvisionllama.data.nifti import read_label_map, write_label_map
from medvisionllama.data.plan import IGNORED, Plan
from medvisionllama.data.prepare import foreground_places, prepare
from medvisionllama.data.task import Case, Task
from medvisionllama.errors import InputError
from medvisionllama.geometry import Volume

Usage = namedtuple("Usage", "total used free")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.npy"))}


def test_two_processes_write_what_one_writes(
    task: Task, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEWEST_VOXELS_TO_SHARE", 0)
    seen: list[str] = []

    def watched(cases):  # type: ignore[no-untyped-def]
        for case in cases:
            yield case
            seen.append(case.name)

    several = prepare(task.cases, plan, tmp_path / "two", watched, processes=2)
    prepare(task.cases, plan, tmp_path / "one")
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert len(files(tmp_path / "one")) == 3 * len(task.cases)
    assert [case.name for case in several] == seen == [case.name for case in task.cases]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_fault_in_a_process_names_the_case_and_keeps_its_traceback(
    task: Task, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(module, "FEWEST_VOXELS_TO_SHARE", 0)
    label = read_label_map(task.cases[2].label or Path())
    write_label_map(Volume(np.where(label.array == 2, 9, label.array), label.affine), task.cases[2].label or Path())
    with pytest.raises(InputError, match=r"the case phantom_002 cannot be prepared: .*got 9, expected 0, 1, 2") as told:
        prepare(task.cases, plan, tmp_path / "cache", processes=processes)
    assert str(told.value).count("..") == 0
    assert told.value.__cause__ is not None
    cause = f"{told.value.__cause__} {told.traceback}"
    assert ("label_to_model_grid" in cause) == (processes == 2)  # there the text of the other process's traceback
    # The others are kept, and what was wrong is all that is left to do.
    kept = files(tmp_path / "cache")
    write_label_map(label, task.cases[2].label or Path())
    prepare(task.cases, plan, tmp_path / "cache", processes=processes)
    assert kept.items() <= files(tmp_path / "cache").items()


def test_a_fault_that_nobody_foresaw_names_the_case_too(
    task: Task, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Case, "read_pair", lambda case: 1 / 0)
    with pytest.raises(RuntimeError, match=r"phantom_000 failed: ZeroDivisionError"):
        prepare(task.cases, plan, tmp_path)

    def starved(case: Case) -> None:
        raise MemoryError

    monkeypatch.setattr(Case, "read_pair", starved)
    with pytest.raises(InputError, match=r"memory ran out over the case phantom_000"):
        prepare(task.cases, plan, tmp_path)


def test_a_process_that_is_killed_is_told(
    task: Task, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEWEST_VOXELS_TO_SHARE", 0)
    monkeypatch.setattr(module, "_leave_interrupts", os.abort)  # as the kernel ends one when memory runs out
    with pytest.raises(InputError, match=r"was killed: got it was at phantom_000.*--processes"):
        prepare(task.cases, plan, tmp_path, processes=2)


def test_errors_travel_between_processes_unchanged() -> None:
    error = InputError("a fault", got="this", expected="that", mend="Mend it.")
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), other.fault, other.mend) == (str(error), "a fault", "Mend it.")
    assert str(other) == "a fault: got this, expected that. Mend it."


def test_a_disk_that_is_too_small_is_told_before_anything_is_done(
    task: Task, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    prepare(task.cases[:1], plan, cache)
    prepare(task.cases[1:], plan, tmp_path / "all")
    needed = sum(p.stat().st_size - 128 for p in (tmp_path / "all").rglob("*.npy") if "places" not in p.name)
    before = files(cache)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: Usage(10**9, 0, needed - 1))
    monkeypatch.setattr(Case, "read_pair", lambda case: pytest.fail("something was done"))
    with pytest.raises(InputError, match=r"no room in .* for 4 prepared cases: got .* GB free, expected .* --cache"):
        prepare(task.cases, plan, cache)
    assert files(cache) == before
    prepare(task.cases[:1], plan, cache)  # what is there needs no room
    monkeypatch.undo()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: Usage(10**9, 0, needed))
    prepare(task.cases, plan, cache)  # negative control: one byte more is enough


def test_memory_limits_the_processes_and_too_little_is_told(
    task: Task, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = [module._Need.of(case, plan) for case in task.cases]
    largest = max(need.memory_bytes for need in needs)
    monkeypatch.setattr(module, "FEWEST_VOXELS_TO_SHARE", 0)
    for available, expected in ((largest, 1), (3 * largest, 3), (100 * largest, 5), (None, 5)):
        monkeypatch.setattr(module, "available_memory", lambda available=available: available)
        assert module._affordable(needs, 8) == expected
    monkeypatch.setattr(module, "available_memory", lambda: largest - 1)
    with pytest.raises(InputError, match=r"not enough memory to prepare the largest case"):
        prepare(task.cases, plan, tmp_path)
    assert module.available_memory() == largest - 1


@pytest.fixture
def say(tmp_path: Path) -> Callable[[str, str], None]:
    """Write a file of a kernel whose root is ``tmp_path``."""

    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def test_a_control_group_gives_less_than_the_machine_has(tmp_path: Path, say: Callable[[str, str], None]) -> None:
    assert module.available_memory(tmp_path) is None
    say("proc/meminfo", "MemTotal: 90 kB\nMemAvailable:    50 kB\n")
    say("proc/self/cgroup", "4:memory:/old\n0::/job/step\n")
    assert module.available_memory(tmp_path) == 50 * 1024
    say("sys/fs/cgroup/job/step/memory.max", "max\n")
    say("sys/fs/cgroup/job/step/memory.current", "1024\n")
    assert module.available_memory(tmp_path) == 50 * 1024, "no limit"
    say("sys/fs/cgroup/job/memory.max", "40960\n")
    say("sys/fs/cgroup/job/memory.current", "30720\n")
    assert module.available_memory(tmp_path) == 10 * 1024, "the group it is in"
    say("sys/fs/cgroup/job/memory.stat", "anon 5\ninactive_file 2048\nworkingset_inactive_file 9\n")
    assert module.available_memory(tmp_path) == 12 * 1024, "what was read from files can be dropped"
    say("sys/fs/cgroup/job/step/memory.max", "2048\n")
    assert module.available_memory(tmp_path) == 1024
    say("proc/meminfo", "MemAvailable: 0 kB\n")
    assert module.available_memory(tmp_path) == 0, "the smaller counts"


def test_a_control_group_of_version_1_does_too(tmp_path: Path, say: Callable[[str, str], None]) -> None:
    say("proc/meminfo", "MemAvailable:    50 kB\n")
    say("proc/self/cgroup", "11:cpu,cpuacct:/job\n4:hugetlb,memory:/job/step\n1:name=systemd:/a:b\n")
    say("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    say("sys/fs/cgroup/memory/memory.usage_in_bytes", "123\n")
    say("sys/fs/cgroup/cpu,cpuacct/job/memory.limit_in_bytes", "1\n")
    assert module.available_memory(tmp_path) == 50 * 1024, "no limit"
    say("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "40960\n")
    say("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "30720\n")
    assert module.available_memory(tmp_path) == 10 * 1024, "the group it is in"
    say("sys/fs/cgroup/memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 4096\n")
    assert module.available_memory(tmp_path) == 14 * 1024, "what was read from files can be dropped"
    say("sys/fs/cgroup/memory/job/step/memory.limit_in_bytes", "2048\n")
    say("sys/fs/cgroup/memory/job/step/memory.usage_in_bytes", "1024\n")
    assert module.available_memory(tmp_path) == 1024


def test_little_work_is_not_shared(task: Task, plan: Plan) -> None:
    assert module._affordable([module._Need.of(case, plan) for case in task.cases], 8) == 1


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"first")
    hashed: list[int] = []
    digest = content.file_digest
    monkeypatch.setattr(content, "file_digest", lambda *given: (hashed.append(1), digest(*given))[1])
    monkeypatch.setattr(content, "SETTLED_NS", -(10**12))

    def told() -> str:
        known = KnownContent.read(tmp_path / "content.json")
        answer = known.sha256(file)
        known.write()
        return answer

    first = told()
    assert (told(), len(hashed)) == (first, 1)
    file.write_bytes(b"other")  # of the same size
    assert told() != first
    assert len(hashed) == 2
    (tmp_path / "content.json").write_text("not JSON")
    assert told() != first
    (tmp_path / "content.json").write_text('{"files": {"' + str(file) + '": 3}}')
    assert told() != first
    assert len(hashed) == 4


def test_changed_content_is_seen_though_size_and_modification_time_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"first")
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    monkeypatch.setattr(content, "SETTLED_NS", -(10**12))
    known = KnownContent(tmp_path / "content.json")
    first = known.sha256(file)
    time.sleep(0.02)  # a tick of the file system's clock
    file.write_bytes(b"other")
    os.utime(file, ns=times)
    assert file.stat().st_mtime_ns == times[1]
    assert known.sha256(file) != first


def test_what_was_written_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"first")
    known = KnownContent(tmp_path / "content.json")
    known.sha256(file)
    assert known.entries == {}  # its times might stay the same if it were written again at once


def test_what_nobody_labelled_is_prepared_as_such_and_never_sought(task: Task, plan: Plan, tmp_path: Path) -> None:
    label = read_label_map(task.cases[0].label or Path())
    array = label.array.copy()
    array[:4] = 3
    write_label_map(Volume(array, label.affine), task.cases[0].label or Path())
    ignoring = replace(plan, ignored=3)
    (case,) = prepare(task.cases[:1], ignoring, tmp_path)
    assert set(np.unique(case.label)) == {0, 1, 2, IGNORED}
    assert set(case.places[:, 0]) == {1, 2}
    assert IGNORED in foreground_places(np.array(case.label))[:, 0]  # negative control
