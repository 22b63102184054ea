"""Cases prepared once and kept on disk, and batches drawn from them.

Axes: ``B`` batch, ``M`` modalities, ``I J K`` voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medvisionllama.data.decathlon import Case
from medvisionllama.data.mirroring import ANY_MIRRORING, Mirroring
from medvisionllama.data.nifti import read_grid
from medvisionllama.data.plan import Plan
from medvisionllama.data.preprocess import label_to_model_grid, to_model_grid
from medvisionllama.errors import InputError
from medvisionllama.geometry import Array, Shape, ras_grid
from medvisionllama.losses import EVERY_VOXEL_ITS_CLASS, LabelReading
from medvisionllama.run_folder import to_json
from medvisionllama.whole_file import whole_file

# Raised whenever the same plan would prepare a case otherwise, so that old files are not taken for new ones.
PREPARED_FORMAT = 2
# Foreground places remembered of each case, enough that a patch drawn around one is as good as any.
REMEMBERED_PLACES = 2048


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the model's grid, memory-mapped: opening it reads nothing.

    Attributes:
        name: The case's.
        image: ``(M,I,J,K)`` float32.
        label: ``(I,J,K)`` uint8 of class numbers (``Plan.number_of``), and ``IGNORED``.
        places: ``(n,4)``: class number and voxel of some foreground voxels, up to an equal share for each class.
        spacing_mm: Of its voxels along I, J, K.
    """

    name: str
    image: Array
    label: Array
    places: Array
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step trains on.

    Attributes:
        image: ``(B,M,I,J,K)`` float32.
        label: ``(B,I,J,K)`` uint8.
        cases: Their names.
        positions: Where each stands in the endless sequence of draws; with the seed it fixes all that happens to it.
        spacing_mm: ``(B,3)`` float32, of the voxels along I, J, K.
    """

    image: Tensor
    label: Tensor
    cases: tuple[str, ...]
    positions: tuple[int, ...]
    spacing_mm: Tensor


def prepare(
    cases: Sequence[Case],
    plan: Plan,
    folder: Path,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
) -> list[PreparedCase]:
    """Bring cases to the model's grid, or find them there already.

    Files are named by a hash of the case's content and the plan's way of preparing: a changed image or plan is never
    mistaken for an old one, and runs with the same plan share them. Each is written whole or not at all, so several
    processes may prepare at once, and an interrupted one goes on where it stopped.

    Raises:
        InputError: A case cannot be read, its label lies on another grid, the folder cannot be written, or a file of
            it is damaged.
    """
    return [_open(case, _prepare_case(case, plan, folder)) for case in progress(cases)]


def refuse_unusable(cases: Iterable[Case]) -> None:
    """Look at the headers of all cases, so that a hopeless one is told before anything is done for the others.

    Raises:
        InputError: A header cannot be read, or image and label map lie on different grids.
    """
    for case in cases:
        assert case.label is not None
        case.refuse_different_grids(read_grid(case.image)[0], read_grid(case.label)[0])


def _prepare_case(case: Case, plan: Plan, folder: Path) -> dict[str, Path]:
    assert case.label is not None
    key = _key(case, plan)
    paths = {kind: folder / key[:2] / f"{key}.{kind}.npy" for kind in ("image", "label", "places")}
    if all(path.exists() for path in paths.values()):
        return paths
    image, label = case.read_pair()
    prepared = {
        "image": to_model_grid(image, plan, str(case.image)),
        "label": label_to_model_grid(label, plan, str(case.label)),
    }
    prepared["places"] = _foreground_places(prepared["label"], plan.reading.ignored)
    for kind, path in paths.items():
        _save(prepared[kind], path)
    return paths


def _key(case: Case, plan: Plan) -> str:
    assert case.label is not None
    how = [PREPARED_FORMAT, plan.spacing_mm or plan.window, plan.merged, list(plan.classes)]
    digest = sha256(to_json([how, [asdict(rule) for rule in plan.intensity]]).encode())
    for path in case.files:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise InputError(f"cannot read {path}", got=error.strerror or str(error)) from error
    return digest.hexdigest()


def _foreground_places(label_IJK: Array, ignored: int | None = None) -> Array:
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


def _open(case: Case, paths: dict[str, Path]) -> PreparedCase:
    try:
        image, label = (np.load(paths[kind], mmap_mode="r", allow_pickle=False) for kind in ("image", "label"))
        places = np.load(paths["places"], allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"the prepared case {case.name} at {paths['image']} is damaged",
            got=str(error),
            mend=f"Delete {paths['image'].parent}; it is made anew.",
        ) from error
    grid = ras_grid(read_grid(case.image)[0]).with_shape(label.shape)
    return PreparedCase(case.name, image, label, places, grid.spacing_mm)


@dataclass(frozen=True)
class BatchSource:
    """An endless sequence of patches in which everything drawn is a function of the seed and the position.

    Each pass over the cases is a permutation of its own, so that every case is seen equally often; a resumed run, or
    one of several processes, draws what one uninterrupted process would have drawn there.

    Attributes:
        cases: To draw from.
        window: Voxels of a patch along I, J, K; smaller cases are padded with zeros on all sides.
        batch_size: ``B``.
        foreground_share: How often a patch is centred on a foreground voxel of a class drawn evenly.
        seed: Of all draws.
        reading: What a loss is told of the labels.
        mirroring: What augmentation is told of sides.

    Raises:
        InputError: The seed is negative.
    """

    cases: Sequence[PreparedCase]
    window: Shape
    batch_size: int
    foreground_share: float
    seed: int
    reading: LabelReading = EVERY_VOXEL_ITS_CLASS
    mirroring: Mirroring = ANY_MIRRORING

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError("the seed of the draws", got=str(self.seed), expected="0 or more")

    @property
    def steps_per_epoch(self) -> int:
        """Steps that show every case once, rounded up."""
        return -(-len(self.cases) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """The patches of step ``step``, counted from 0."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        drawn = [self._patch(position) for position in positions]
        return Batch(
            image=torch.from_numpy(np.stack([image for _, image, _ in drawn])),
            label=torch.from_numpy(np.stack([label for _, _, label in drawn])),
            cases=tuple(case.name for case, _, _ in drawn),
            positions=tuple(positions),
            spacing_mm=torch.tensor([case.spacing_mm for case, _, _ in drawn]),
        )

    def _patch(self, position: int) -> tuple[PreparedCase, Array, Array]:
        epoch, place = divmod(position, len(self.cases))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.cases))
        case = self.cases[order[place]]
        draw = np.random.default_rng([self.seed, 1, position])
        start = self._first_voxel(case, draw)
        image = _cut(case.image, start, self.window)
        return case, image, _cut(case.label, start, self.window)

    def _first_voxel(self, case: PreparedCase, draw: np.random.Generator) -> list[int]:
        """The first voxel of the patch along each axis; negative where the case is smaller than the patch."""
        room = [size - window for size, window in zip(case.label.shape, self.window, strict=True)]
        forced, at = draw.random() < self.foreground_share, draw.random(3)
        class_draw, voxel_draw = draw.random(2)
        # Where the case is smaller, the padding before it is that of sliding_window.
        starts = [int(at[axis] * (r + 1)) if r > 0 else -(-r // 2) for axis, r in enumerate(room)]
        if not forced or not len(case.places):
            return starts
        classes = np.unique(case.places[:, 0])
        places = case.places[case.places[:, 0] == classes[int(class_draw * len(classes))], 1:]
        voxel = places[int(voxel_draw * len(places))]
        middle = [int(v) - w // 2 for v, w in zip(voxel, self.window, strict=True)]
        return [min(max(m, 0), r) if r > 0 else s for m, r, s in zip(middle, room, starts, strict=True)]


def _cut(array: Array, start: Sequence[int], window: Shape) -> Array:
    """``window`` voxels of the last three axes from ``start``, zeros where there are none."""
    lead = array.ndim - 3
    patch = np.zeros((*array.shape[:lead], *window), array.dtype)
    taken, placed = [slice(None)] * lead, [slice(None)] * lead
    for first, length, size in zip(start, window, array.shape[lead:], strict=True):
        taken.append(slice(max(first, 0), min(first + length, size)))
        placed.append(slice(max(-first, 0), max(-first, 0) + taken[-1].stop - taken[-1].start))
    patch[tuple(placed)] = array[tuple(taken)]
    return patch
