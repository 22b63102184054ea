"""Cases brought to the model's grid once, by several processes, and kept on disk.

No torch here: a process that prepares starts in a fraction of a second. Axes: ``M`` modalities, ``I J K`` voxels.
"""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from medvisionllama.data.content import KnownContent
from medvisionllama.data.nifti import read_grid
from medvisionllama.data.plan import Plan
from medvisionllama.data.preprocess import label_to_model_grid, model_shape, to_model_grid
from medvisionllama.data.task import Case
from medvisionllama.errors import InputError
from medvisionllama.geometry import Array, ras_grid
from medvisionllama.mapped import StoredArray
from medvisionllama.run_folder import to_json
from medvisionllama.whole_file import whole_file

# Raised whenever the same plan would prepare a case otherwise, so that old files are not taken for new ones.
PREPARED_FORMAT = 3
# Foreground places remembered of each case, enough that a patch drawn around one is as good as any.
REMEMBERED_PLACES = 2048
# Bytes a process needs for each voxel and channel of a case, at the stored or at the model's size, whichever is
# larger: the stored numbers, float32, float64 while mean and SD are taken, and both ends of resampling.
BYTES_PER_VOXEL = 32
# Below this many voxels in all, processes take longer to start than one takes to do the work.
FEWEST_VOXELS_TO_SHARE = 100_000_000
KINDS = ("image", "label", "places")
GB = 1e9


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the model's grid, in memory or in files that are open only while they are looked at.

    Attributes:
        name: The case's.
        image: ``(M,I,J,K)`` float32.
        label: ``(I,J,K)`` uint8 of class numbers (``Plan.number_of``), and ``IGNORED``.
        places: ``(n,4)``: class number and voxel of some foreground voxels, up to an equal share for each class.
        spacing_mm: Of its voxels along I, J, K.
    """

    name: str
    image: Array | StoredArray
    label: Array | StoredArray
    places: Array
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


Progress = Callable[[Iterable[Case]], Iterable[Case]]


def prepare(
    cases: Sequence[Case], plan: Plan, folder: Path, progress: Progress = iter, processes: int = 1
) -> list[PreparedCase]:
    """Bring cases to the model's grid, or find them there already.

    Files are named by a hash of the case's content and the plan's way of preparing: a changed image or plan is never
    mistaken for an old one, and runs with the same plan share them. Each is written whole or not at all, so several
    processes may prepare at once, and an interrupted one goes on where it stopped.

    Args:
        cases: Labelled ones.
        plan: How to prepare them.
        folder: Where the files lie.
        progress: Wraps the cases as they are prepared.
        processes: How many at a time, at most; fewer where memory is short or there is little to do. What they write
            does not depend on it. (They are spawned: a script that asks for more than one needs the usual
            ``if __name__ == "__main__"``.)

    Raises:
        InputError: A case cannot be read, its label lies on another grid, there is no room for all of them on the disk
            or for one in memory, the folder cannot be written, or a file of it is damaged.
    """
    jobs = _jobs(cases, plan, folder)
    waiting = {job.case.name: job for job in jobs if not job.done}
    needs = [_Need.of(job.case, plan) for job in waiting.values()]
    _refuse_full_disk(needs, folder)
    processes = _affordable(needs, processes)
    with ExitStack() as stack:
        futures = stack.enter_context(_Pool(processes)).submit(list(waiting.values())) if processes > 1 else {}
        for case in progress(cases):
            if case.name in futures:
                _wait_for(case, futures)
            elif case.name in waiting:
                _do(waiting[case.name])
    return [_open(job) for job in jobs]


def content_sha256(cases: Sequence[Case], folder: Path) -> str:
    """A hash of the names and files of cases, whatever their order and wherever they lie.

    Args:
        cases: Any.
        folder: That of the prepared files, where files' hashes are remembered.

    Raises:
        InputError: A file cannot be read.
    """
    known = KnownContent.read(folder / "content.json")
    content = sorted([case.name, *(known.sha256(path) for path in case.files)] for case in cases)
    known.write()
    return sha256(to_json(content).encode()).hexdigest()


def refuse_unusable(cases: Iterable[Case]) -> None:
    """Look at the headers of all cases, so that a hopeless one is told before anything is done for the others.

    Raises:
        InputError: A header cannot be read, or image and label map lie on different grids.
    """
    for case in cases:
        assert case.label is not None
        case.refuse_different_grids(read_grid(case.image)[0], read_grid(case.label)[0])


@dataclass(frozen=True)
class _Job:
    """One case to prepare, with everything a process needs."""

    case: Case
    plan: Plan
    folder: Path
    key: str

    @property
    def paths(self) -> dict[str, Path]:
        return {kind: self.folder / self.key[:2] / f"{self.key}.{kind}.npy" for kind in KINDS}

    @property
    def done(self) -> bool:
        return all(path.exists() for path in self.paths.values())


def _jobs(cases: Sequence[Case], plan: Plan, folder: Path) -> list[_Job]:
    known = KnownContent.read(folder / "content.json")
    how = [PREPARED_FORMAT, plan.spacing_mm or plan.window, plan.merged, list(plan.classes), plan.ignored]
    prefix = to_json([how, [asdict(rule) for rule in plan.intensity]])
    jobs = []
    for case in cases:
        content = [known.sha256(path) for path in case.files]
        jobs.append(_Job(case, plan, folder, sha256(to_json([prefix, content]).encode()).hexdigest()))
    known.write()
    return jobs


def _do(job: _Job) -> None:
    """Prepare one case.

    Raises:
        InputError: It cannot be read or written; the case is named.
        RuntimeError: Anything else went wrong; the case is named.
    """
    name = job.case.name
    try:
        image, label = job.case.read_pair()
        prepared = {
            "image": to_model_grid(image, job.plan, str(job.case.image)),
            "label": label_to_model_grid(label, job.plan, str(job.case.label)),
        }
        prepared["places"] = foreground_places(prepared["label"], job.plan.reading.ignored)
        for kind, path in job.paths.items():
            _save(prepared[kind], path)
    except InputError as error:
        raise InputError(f"the case {name} cannot be prepared: {error.fault_in_full}", mend=error.mend) from error
    except MemoryError as error:
        raise InputError(f"memory ran out over the case {name}", mend="Use fewer processes by --processes.") from error
    except Exception as error:
        raise RuntimeError(f"preparing the case {name} failed: {error!r}") from error


def foreground_places(label_IJK: Array, ignored: int | None = None) -> Array:
    """``(n,4)`` int32: class number and voxel, of every class an equal share of ``REMEMBERED_PLACES`` at most."""
    classes = [int(value) for value in np.unique(label_IJK) if value not in (0, ignored)]
    # Drawn: every n-th voxel of a straight-edged structure might all lie in one plane.
    draw = np.random.default_rng(0)
    places = []
    for value in classes:
        voxels = np.argwhere(label_IJK == value)
        kept = draw.permutation(len(voxels))[: max(1, REMEMBERED_PLACES // len(classes))]
        places.append(np.column_stack([np.full(len(kept), value), voxels[kept]]))
    return np.concatenate(places).astype(np.int32) if places else np.zeros((0, 4), np.int32)


def _save(array: Array, path: Path) -> None:
    with whole_file(path, mend="Name a folder with room by --cache.") as part, part.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _open(job: _Job) -> PreparedCase:
    paths = job.paths
    try:
        image, label = StoredArray.at(paths["image"]), StoredArray.at(paths["label"])
        places = np.load(paths["places"], allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise InputError(
            f"the prepared case {job.case.name} at {paths['image']} is damaged",
            got=str(error),
            mend=f"Delete {paths['image'].parent}; it is made anew.",
        ) from error
    except OSError as error:
        raise InputError(
            f"the prepared case {job.case.name} cannot be read", got=str(error), mend="Name another folder by --cache."
        ) from error
    i, j, k = label.shape
    grid = ras_grid(read_grid(job.case.image)[0]).with_shape((i, j, k))
    return PreparedCase(job.case.name, image, label, places, grid.spacing_mm)


@dataclass(frozen=True)
class _Need:
    """What a case needs, from its header."""

    voxels: int
    disk_bytes: int
    memory_bytes: int

    @classmethod
    def of(cls, case: Case, plan: Plan) -> _Need:
        grid, _ = read_grid(case.image)
        stored, prepared = math.prod(grid.shape), math.prod(model_shape(grid, plan))
        channels, larger = plan.in_channels, max(stored, prepared)
        return cls(larger * channels, prepared * (4 * channels + 1), larger * channels * BYTES_PER_VOXEL)


def _refuse_full_disk(needs: Sequence[_Need], folder: Path) -> None:
    needed = sum(need.disk_bytes for need in needs)
    there = next(above for above in (folder, *folder.absolute().parents) if above.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"there is no room in {folder} for {len(needs)} prepared cases",
            got=f"{free / GB:.3g} GB free",
            expected=f"{needed / GB:.3g} GB",
            mend="Make room, or name another folder by --cache.",
        )


def _affordable(needs: Sequence[_Need], processes: int) -> int:
    """How many processes there is work and memory for; 1 for this one alone."""
    if not needs:
        return 1
    largest, available = max(need.memory_bytes for need in needs), available_memory()
    if available is not None and largest > available:
        raise InputError(
            "there is not enough memory to prepare the largest case",
            got=f"{available / GB:.3g} GB available",
            expected=f"about {largest / GB:.3g} GB",
            mend="End other programs, or use a machine with more memory.",
        )
    if sum(need.voxels for need in needs) < FEWEST_VOXELS_TO_SHARE:
        return 1
    in_memory = processes if available is None else max(1, available // max(1, largest))
    return min(processes, len(needs), in_memory)


# Of control groups in version 2, which name no controller, and in version 1: where they lie, limit and usage, and what
# in their memory.stat counts files that were read and can be dropped, which the usage holds.
_MEMORY_FILES = {
    "": ("", "memory.max", "memory.current", "inactive_file "),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
}


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be used without swapping, as Linux tells them; None elsewhere.

    A container or a job may be given less than the machine has: its control group counts, of either version.

    Args:
        root: Where ``proc`` and ``sys`` lie.
    """
    lines = _text(root / "proc/meminfo").splitlines()
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        for controller in _MEMORY_FILES.keys() & set(controllers.split(",")):
            mount, limit, usage, droppable = _MEMORY_FILES[controller]
            folder = root / "sys/fs/cgroup" / mount / group.lstrip("/")
            for level in (folder, *folder.parents):  # a group has no more than the one it is in
                most, used = _text(level / limit).strip(), _text(level / usage).strip()
                if most.isdigit() and used.isdigit():
                    files = [line for line in _text(level / "memory.stat").splitlines() if line.startswith(droppable)]
                    found.append(max(0, int(most) - int(used) + sum(int(line.split()[1]) for line in files)))
    return min(found, default=None)


def _text(path: Path) -> str:
    """What a file of the kernel says; nothing where it is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


class _Pool:
    """Processes that prepare; what has not begun when the block ends is given up."""

    def __init__(self, processes: int) -> None:
        self._pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_leave_interrupts)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *fault: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, jobs: Sequence[_Job]) -> dict[str, Future[None]]:
        """Start on the jobs; by the case's name, when each is done."""
        return {job.case.name: self._pool.submit(_do, job) for job in jobs}


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wait_for(case: Case, futures: dict[str, Future[None]]) -> None:
    try:
        futures[case.name].result()
    except BrokenProcessPool as error:
        left = [name for name, future in futures.items() if not future.done() or future.exception() is not None]
        raise InputError(
            "a process that prepares cases was killed",
            got=f"it was at {case.name} or one of {len(left)} others not done",
            mend="Memory ran out, most often: use fewer by --processes. What is prepared already is kept.",
        ) from error
