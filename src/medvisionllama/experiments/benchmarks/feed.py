"""How fast batches come without a network: ours against MONAI's cached pipeline with the same augmentation.

Both draw patches of the same prepared cases, forced to foreground as often, and bend and colour them with the same
probabilities and ranges: the recipe ``native``'s, and on Task04 also nnU-Net's. MONAI's ``CacheDataset`` holds the
arrays in memory, which its users do for speed, and its loader may have any of several numbers of workers; ours has one
thread that reads ahead, as in training. The rounds alternate, so that a machine that slows down slows both.
"""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler

from medvisionllama.config import load_recipe
from medvisionllama.data.ahead import BatchesAhead
from medvisionllama.data.augment import AugmentConfig, augment
from medvisionllama.data.dataset import BatchSource, PreparedCase, prepare
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.planning import make_plan
from medvisionllama.data.prepare import foreground_places
from medvisionllama.errors import InputError
from medvisionllama.experiments.benchmarks.task04 import TASK, task04_in
from medvisionllama.geometry import Shape
from medvisionllama.recipe import Recipe
from medvisionllama.train import case_generator

WORKERS = (0, 1, 2, 4)
ROUNDS = 3
BATCH = 4
ENDLESS = 10**8  # batches
# A chest CT at 1.5 mm, and how many of it: few enough for a small machine's memory.
CT_SHAPE: Shape = (220, 220, 180)
CT_CASES = 4
CT_WINDOW: Shape = (128, 128, 128)
# Enough that a worker's start, which counts too where there are workers, is little of it.
BATCHES_OF_PROCESSOR_TIME = {TASK: 150, "generated_ct": 12}
SECONDS_OF_MEASURING = {TASK: 8.0, "generated_ct": 12.0}


def benchmark_feed(data: Path | None) -> dict[str, Any]:
    """Batches per second of both, on Task04 by two recipes, and on 128^3 patches of a generated CT.

    Raises:
        InputError: No data folder is named, Task04 is not in it, or MONAI is not installed.
    """
    folder_of_task = task04_in(data, "feed")
    recipes = {name: load_recipe(name) for name in ("native", "nnunet")}
    task = read_task(folder_of_task)
    plan = make_plan(task, task.cases)
    with TemporaryDirectory() as folder:
        cases = prepare(task.cases, plan, Path(folder))
        hippocampus = {name: _compared(cases, plan.window, recipe, TASK) for name, recipe in recipes.items()}
    return {
        "monai": version("monai"),
        "augment": {name: asdict(recipe.augment) for name, recipe in recipes.items()},
        "batch_size": BATCH,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        TASK: hippocampus["native"],
        f"{TASK}_nnunet": hippocampus["nnunet"],
        "generated_ct": _compared(_generated_ct(), CT_WINDOW, recipes["native"], "generated_ct"),
    }


def _generated_ct() -> list[PreparedCase]:
    """Cases as prepared ones lie in memory: noise with a ball of each of two classes; content does not change speed."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(CT_CASES):
        image = rng.standard_normal((1, *CT_SHAPE), dtype=np.float32)
        label = np.zeros(CT_SHAPE, np.uint8)
        label[60:110, 70:130, 50:100], label[120:150, 90:130, 80:120] = 1, 2
        cases.append(PreparedCase(f"ct_{number}", image, label, foreground_places(label), (1.5, 1.5, 1.5)))
    return cases


def _compared(cases: list[PreparedCase], window: Shape, recipe: Recipe, kind: str) -> dict[str, Any]:
    """Median batches per second of ours and of MONAI's at each number of workers, and the ratio to its best."""
    makers: dict[str, Callable[[int], Iterator[object]]] = {"ours": lambda _: _ours(cases, window, recipe)}
    cached = _monai_dataset(cases, window, recipe)
    for workers in WORKERS:
        makers[f"monai_{workers}_workers"] = partial(_monai, cached, workers)
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(ROUNDS):
        for name, make in makers.items():
            feed = make(ENDLESS)  # one at a time: workers that fill their queues would take the others' cores
            workers = int(name.split("_")[1]) if name != "ours" else 0
            rates[name].append(_rate(feed, SECONDS_OF_MEASURING[kind] / ROUNDS, ready=2 * workers))
            del feed
            gc.collect()  # ends the workers
    busy = {name: _processor_ms(make, BATCHES_OF_PROCESSOR_TIME[kind]) for name, make in makers.items()}
    medians = {name: statistics.median(found) for name, found in rates.items()}
    best = max((name for name in medians if name != "ours"), key=lambda name: medians[name])
    return {
        "cases": len(cases),
        "window": list(window),
        "batches_per_second": medians,
        "rounds": rates,
        "processor_ms_per_batch": busy,
        "processor_ratio_to_monai_best": min(busy[name] for name in busy if name != "ours") / busy["ours"],
        "monai_best": best,
        "ratio_to_monai_best": medians["ours"] / medians[best],
    }


def _processor_ms(make: Callable[[int], Iterator[object]], batches: int) -> float:
    """What a batch costs all processors together, workers among them: other programs' load does not change it much.

    So many are made and no more, from the first on: workers' time counts once they have ended, with all they made.
    """
    begun = _processor_seconds()
    feed = make(batches)
    for _ in range(batches):
        next(feed)
    del feed
    gc.collect()  # ends the workers
    return 1000 * (_processor_seconds() - begun) / batches


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _rate(feed: Iterator[object], seconds: float, ready: int) -> float:
    """Batches per second over at least ``seconds``.

    What workers have made before lies ready at first and is not counted.

    Args:
        feed: Of batches, endless.
        seconds: To measure.
        ready: How many batches may lie ready: a loader holds two a worker.
    """
    for _ in range(ready + 1):
        next(feed)
    begun, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < seconds or count < 2:
        next(feed)
        count += 1
    return count / passed


def _ours(cases: list[PreparedCase], window: Shape, recipe: Recipe) -> Iterator[object]:
    """What a training step does before the network."""
    with BatchesAhead(BatchSource(cases, window, BATCH, recipe.foreground_share, seed=0)) as batches:
        for step in itertools.count():
            batch = batches.batch(step)
            generators = [case_generator(0, position) for position in batch.positions]
            yield augment(batch.image, batch.label, recipe.augment, generators, batch.spacing_mm, batches.mirroring)


def _monai_dataset(cases: list[PreparedCase], window: Shape, recipe: Recipe) -> Any:
    """The same through MONAI's transforms, cached."""
    try:
        from monai.data import CacheDataset  # type: ignore[attr-defined]
    except ImportError as error:
        raise InputError("MONAI is not installed", mend="pip install medvisionllama[peers]") from error
    items = [{"image": np.array(case.image), "label": np.array(case.label)[None]} for case in cases]
    return CacheDataset(items, _monai_transforms(window, recipe), progress=False)


def _monai(dataset: Any, workers: int, batches: int = ENDLESS) -> Iterator[object]:
    """So many of its batches, from its own loader."""
    from monai.data import DataLoader  # type: ignore[attr-defined]

    # One long pass: at the end of a pass over few cases workers would stand still, and over four never run side by
    # side.
    draws = RandomSampler(dataset, replacement=True, num_samples=batches * BATCH)
    yield from DataLoader(dataset, num_workers=workers, batch_size=BATCH, sampler=draws)


def _monai_transforms(window: Shape, recipe: Recipe) -> Any:
    from monai import transforms as mt

    a, share = recipe.augment, recipe.foreground_share
    keys, both = ["image", "label"], ("bilinear", "nearest")
    turn = float(np.deg2rad(a.rotate_degrees))
    return mt.Compose(  # type: ignore[attr-defined]
        [
            mt.EnsureTyped(keys, track_meta=False),  # type: ignore[attr-defined]
            mt.SpatialPadd(keys, window),  # type: ignore[attr-defined]
            mt.FgBgToIndicesd("label"),  # type: ignore[attr-defined]
            # What stands above is cached.
            mt.RandCropByPosNegLabeld(  # type: ignore[attr-defined]
                keys,
                "label",
                window,
                pos=share,
                neg=1 - share,
                fg_indices_key="label_fg_indices",
                bg_indices_key="label_bg_indices",
            ),
            mt.SelectItemsd(keys),  # type: ignore[attr-defined]
            # Rotation and zoom each have a chance of their own with us; two transforms are what MONAI's users write.
            mt.RandAffined(  # type: ignore[attr-defined]
                keys, prob=a.rotate_probability, rotate_range=(turn,) * 3, mode=both, padding_mode="zeros"
            ),
            mt.RandZoomd(  # type: ignore[attr-defined]
                keys,
                prob=a.scale_probability,
                min_zoom=a.scale_range[0],
                max_zoom=a.scale_range[1],
                mode=("trilinear", "nearest"),
            ),
            *(mt.RandFlipd(keys, 0.5, axis) for axis in a.mirror_axes),  # type: ignore[attr-defined]
            mt.RandGaussianNoised("image", prob=a.noise_probability, std=a.noise_sd),  # type: ignore[attr-defined]
            *([] if not a.blur_probability else [_monai_blur(a)]),
            mt.RandScaleIntensityd("image", prob=a.brightness_probability, factors=0.25),  # type: ignore[attr-defined]
            mt.RandScaleIntensityFixedMeand(  # type: ignore[attr-defined]
                "image", prob=a.contrast_probability, factors=0.25
            ),
            *([] if not a.low_resolution_probability else [_monai_low_resolution(a)]),
            *([] if not a.inverted_gamma_probability else [_monai_gamma(a, inverted=True)]),
            _monai_gamma(a, inverted=False),
        ]
    )


def _monai_blur(a: AugmentConfig) -> Any:
    from monai import transforms as mt

    r = a.blur_range
    return mt.RandGaussianSmoothd("image", r, r, r, prob=a.blur_probability)  # type: ignore[attr-defined]


def _monai_low_resolution(a: AugmentConfig) -> Any:
    from monai import transforms as mt

    return mt.RandSimulateLowResolutiond(  # type: ignore[attr-defined]
        "image", prob=a.low_resolution_probability, zoom_range=a.low_resolution_range
    )


def _monai_gamma(a: AugmentConfig, *, inverted: bool) -> Any:
    from monai import transforms as mt

    return mt.RandAdjustContrastd(  # type: ignore[attr-defined]
        "image",
        prob=a.inverted_gamma_probability if inverted else a.gamma_probability,
        gamma=a.gamma_range,
        invert_image=inverted,
        retain_stats=a.gamma_keeps_moments,
    )
