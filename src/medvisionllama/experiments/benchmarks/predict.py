"""What segmenting costs beside the network: seconds and memory from a CT's file to its label map's.

The network is a stub whose own seconds are measured and taken away: a fixed linear map of the voxel's intensity, which
tells the classes of a generated CT by their grey values. What is left is preparing, blending windows, the way back to
the CT's own grid, and choosing a class for each of its voxels. MONAI's SlidingWindowInferer and Invertd do the same
beside it with fewer classes and slices, since they hold all probabilities of all voxels. Background counts as a class.
Every measurement is a process of its own.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medvisionllama.data.nifti import read_label_map, read_volume, write_label_map, write_volume
from medvisionllama.data.plan import IntensityRule, Plan
from medvisionllama.errors import InputError
from medvisionllama.experiments.benchmarks.own_process import apart, peak_gb
from medvisionllama.geometry import Shape, Volume
from medvisionllama.predict import Member, Room, Segmenter

SHAPE: Shape = (512, 512, 700)
SPACING_MM = (0.8, 0.8, 1.0)
PLANNED_MM = 1.5
WINDOW: Shape = (96, 96, 96)
HU_APART = 10.0
NOISE_HU = 1.0
SURENESS = 8.0
LIMIT_GB = 8.0
# What MONAI may take: other work on the machine must not be swept away.
RIVALS_LIMIT_GB = 12.0


@dataclass(frozen=True)
class Job:
    """What one process is to segment."""

    image: Path
    out: Path
    classes: int
    memory_gb: float
    limit_gb: float
    threads: int


@dataclass(frozen=True)
class Cost:
    """What it took.

    Attributes:
        wall_s: From the image's file to the label map's, by the clock.
        processor_s: The same, of all threads.
        network_wall_s: Of it, inside the stub.
        network_processor_s: Likewise.
        file_wall_s: Of it, reading and writing.
        overhead_wall_s: What is left without the stub.
        overhead_processor_s: Likewise.
        peak_gb: Largest resident memory of the process, libraries among it.
        start_gb: What libraries alone took.
        agreement: Share of voxels that got the class their grey value was made from.
        windows: How many windows the stub was shown.
    """

    wall_s: float
    processor_s: float
    network_wall_s: float
    network_processor_s: float
    file_wall_s: float
    overhead_wall_s: float
    overhead_processor_s: float
    peak_gb: float
    start_gb: float
    agreement: float
    windows: int


class Stub(nn.Module):
    """``(B,1,I,J,K)`` to ``(B,C,I,J,K)``: how near an intensity, in units of the classes' distance, is to each class.

    ``-(x - c)^2`` without ``x^2``, which is common to all classes: linear in x.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.wall_s, self.processor_s, self.windows = 0.0, 0.0, 0

    def forward(self, windows_B1IJK: Tensor) -> Tensor:
        """The logits; its own seconds are added up."""
        wall, processor = perf_counter(), process_time()
        logits = windows_B1IJK.new_empty((len(windows_B1IJK), self.classes, *windows_B1IJK.shape[2:]))
        for number in range(self.classes):
            torch.add(
                logits.new_tensor(-SURENESS * number**2),
                windows_B1IJK[:, 0],
                alpha=2 * SURENESS * number,
                out=logits[:, number],
            )
        self.wall_s += perf_counter() - wall
        self.processor_s += process_time() - processor
        self.windows += len(windows_B1IJK)
        return logits


@dataclass(frozen=True)
class Trial:
    """One CT that is segmented."""

    shape: Shape
    classes: int
    rival: bool


# MONAI holds about 120 bytes for every voxel at 8 classes, 22 GB for the whole CT: a quarter is enough for the ratio.
TRIALS = {
    "105 classes": Trial(SHAPE, 105, rival=False),
    "8 classes": Trial(SHAPE, 8, rival=False),
    "8 classes, a quarter of the slices": Trial((SHAPE[0], SHAPE[1], SHAPE[2] // 4), 8, rival=True),
}


def benchmark_predict(only: Sequence[str] = (), *, memory_gb: float = 4.0, threads: int = 1) -> dict[str, Any]:
    """Segment generated CTs: with many classes, with few, and beside MONAI.

    Args:
        only: Names of :data:`TRIALS`; all of them where empty.
        memory_gb: As ``predict --memory-gb``.
        threads: Of torch, for all alike.

    Returns:
        A JSON-ready object.

    Raises:
        InputError: There is no such trial.
    """
    if unknown := set(only) - set(TRIALS):
        raise InputError(f"the benchmark predict has no trial {min(unknown)!r}", expected=", ".join(TRIALS))
    trials = {}
    for name, trial in TRIALS.items():
        if not only or name in only:
            trials[name] = _tried(trial, memory_gb, threads)
    return {
        "spacing_mm": list(SPACING_MM),
        "planned_mm": PLANNED_MM,
        "window": list(WINDOW),
        "threads": threads,
        "memory_gb": memory_gb,
        "limit_gb": LIMIT_GB,
        "trials": trials,
    }


def _tried(trial: Trial, memory_gb: float, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        image, labels = Path(folder) / "image.nii", Path(folder) / "labels.nii"
        apart(generate, (trial.shape, trial.classes, image, labels))
        result: dict[str, Any] = {"shape": list(trial.shape), "classes": trial.classes, "load": os.getloadavg()[0]}
        job = Job(image, Path(folder) / "ours.nii.gz", trial.classes, memory_gb, LIMIT_GB, threads)
        ours = apart(segment_with_ours, (job, labels))
        result["ours"] = asdict(ours)
        if trial.rival and find_spec("monai"):
            job = Job(image, Path(folder) / "monai.nii.gz", trial.classes, memory_gb, RIVALS_LIMIT_GB, threads)
            theirs = apart(segment_with_monai, (job, labels))
            result["monai"] = asdict(theirs)
            result["overhead_ratio"] = theirs.overhead_processor_s / ours.overhead_processor_s
            result["peak_ratio"] = theirs.peak_gb / ours.peak_gb
        return result


def generate(shape: Shape, classes: int, image: Path, labels: Path) -> None:
    """Write a CT of balls on a lattice, one class each, and the label map it was made from."""
    edge = int(np.ceil((classes - 1) ** (1 / 3)))
    cells = [n // edge for n in shape]
    truth = np.zeros(shape, dtype=np.uint8)
    axes = [np.square((np.arange(n) - (n - 1) / 2) / (n / 2)) for n in cells]
    ball = axes[0][:, None, None] + axes[1][:, None] + axes[2] <= 0.8
    for number, cell in enumerate(list(np.ndindex(edge, edge, edge))[: classes - 1], start=1):
        truth[tuple(slice(c * n, (c + 1) * n) for c, n in zip(cell, cells, strict=True))][ball] = number
    generator = np.random.default_rng(0)
    values = np.empty(shape, dtype=np.int16)
    for i in range(shape[0]):
        noise = generator.normal(0, NOISE_HU, shape[1:]).astype(np.float32)
        values[i] = np.rint(truth[i] * HU_APART + noise)
    affine = np.diag([*SPACING_MM, 1.0])
    write_volume(Volume(values, affine), image)
    write_label_map(Volume(truth, affine), labels)


def segment_with_ours(job: Job, labels: Path) -> Cost:
    """From file to file by the package."""
    plan = Plan(
        protocol="native",
        task="generated",
        window=WINDOW,
        spacing_mm=(PLANNED_MM,) * 3,
        intensity=(IntensityRule("clip-zscore", -1000, 3000, 0, HU_APART),),
        classes={number: str(number) for number in range(1, job.classes)},
        training_cases=1,
        median_shape=WINDOW,
    )
    stub = Stub(job.classes)
    segmenter = Segmenter([Member(stub, plan)], torch.device("cpu"), room=Room(job.memory_gb))

    def whole() -> float:
        started = perf_counter()
        image = read_volume(job.image)
        read = perf_counter()
        label_map = segmenter.segment(image)
        segmented = perf_counter()
        write_label_map(label_map, job.out)
        return read - started + perf_counter() - segmented

    return _measured(whole, stub, job, labels)


def segment_with_monai(job: Job, labels: Path) -> Cost:
    """The same from file to file as MONAI's documentation has it: invert the probabilities, then choose."""
    from monai.inferers.inferer import SlidingWindowInferer
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.dictionary import ScaleIntensityRanged
    from monai.transforms.io.dictionary import LoadImaged, SaveImaged
    from monai.transforms.post.dictionary import Activationsd, AsDiscreted, Invertd
    from monai.transforms.spatial.dictionary import Orientationd, Spacingd

    stub = Stub(job.classes)
    before = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(PLANNED_MM,) * 3, mode="bilinear"),
            ScaleIntensityRanged(
                "image", a_min=-1000, a_max=3000, b_min=-1000 / HU_APART, b_max=3000 / HU_APART, clip=True
            ),
        ]
    )
    after = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", transform=before, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
        ]
    )
    save = SaveImaged(
        "pred", output_dir=str(job.out.parent / "monai"), output_postfix="", separate_folder=False, print_log=False
    )
    inferer = SlidingWindowInferer(WINDOW, sw_batch_size=4, overlap=0.5, mode="gaussian")

    @torch.inference_mode()
    def whole() -> float:
        data = before({"image": str(job.image)})
        data["pred"] = inferer(data["image"][None], stub)[0]
        data = after(data)
        segmented = perf_counter()
        save(data)
        written = next((job.out.parent / "monai").iterdir())
        written.rename(job.out if written.name.endswith(".gz") else job.out.with_suffix(""))
        return perf_counter() - segmented

    return _measured(whole, stub, job, labels)


def _measured(whole: Callable[[], float], stub: Stub, job: Job, labels: Path) -> Cost:
    torch.set_num_threads(job.threads)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (int(job.limit_gb * 1e9),) * 2)
    start_gb = peak_gb()
    wall, processor = perf_counter(), process_time()
    file_wall = whole()
    wall, processor, peak = perf_counter() - wall, process_time() - processor, peak_gb()
    gc.collect()
    out = job.out if job.out.exists() else job.out.with_suffix("")
    return Cost(
        wall_s=wall,
        processor_s=processor,
        network_wall_s=stub.wall_s,
        network_processor_s=stub.processor_s,
        file_wall_s=file_wall,
        overhead_wall_s=wall - stub.wall_s,
        overhead_processor_s=processor - stub.processor_s,
        peak_gb=peak,
        start_gb=start_gb,
        agreement=_agreement(read_label_map(out).array, read_label_map(labels).array),
        windows=stub.windows,
    )


def _agreement(found: NDArray[Any], truth: NDArray[Any]) -> float:
    return float(np.mean([np.mean(a == b) for a, b in zip(found, truth, strict=True)]))
