"""The feed benchmark measures what it says: both sides make the same batches, and no worker waits for a pass to end."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from medvisionllama.config import load_recipe
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.errors import InputError
from medvisionllama.experiments.benchmarks import feed as module

pytest.importorskip("monai")
WINDOW = (16, 16, 8)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CT_SHAPE", (20, 24, 16))
    monkeypatch.setattr(module, "CT_WINDOW", WINDOW)
    monkeypatch.setattr(module, "foreground_places", lambda label: module.np.ones((3, 4), module.np.int32))


@pytest.mark.parametrize("recipe", ["native", "nnunet"])
def test_both_make_batches_of_one_kind_and_neither_comes_to_an_end(small: None, recipe: str) -> None:
    cases = module._generated_ct()[:3]  # fewer than a batch holds
    for case in cases:
        case.label[4:8, 4:8, 4:8] = 1
    ours = list(islice(module._ours(cases, WINDOW, load_recipe(recipe)), 5))
    theirs: list[Any] = list(islice(module._monai(module._monai_dataset(cases, WINDOW, load_recipe(recipe)), 0), 5))
    for (image, label), other in zip(ours, theirs, strict=True):
        assert image.shape == other["image"].shape == (module.BATCH, 1, *WINDOW)
        assert label.shape == other["label"][:, 0].shape
        assert image.dtype == other["image"].dtype == torch.float32
        assert bool(torch.isfinite(image).all() & torch.isfinite(other["image"]).all())
    # Negative control: augmentation is at work on both sides.
    for images in ([image for image, _ in ours], [batch["image"] for batch in theirs]):
        assert len({float(image.double().sum()) for image in images}) == 5


@pytest.mark.parametrize("recipe", ["native", "nnunet"])
def test_what_monai_does_is_as_likely_and_as_strong_as_ours(recipe: str) -> None:
    a = load_recipe(recipe).augment
    found = [
        (type(t).__name__, t.prob) for t in module._monai_transforms(WINDOW, load_recipe(recipe)).transforms
        if getattr(t, "prob", 0)
    ]  # fmt: skip
    ours = {
        "RandAffined": a.rotate_probability,
        "RandZoomd": a.scale_probability,
        "RandGaussianNoised": a.noise_probability,
        "RandGaussianSmoothd": a.blur_probability,
        "RandScaleIntensityd": a.brightness_probability,
        "RandScaleIntensityFixedMeand": a.contrast_probability,
        "RandSimulateLowResolutiond": a.low_resolution_probability,
    }
    gammas = [("RandAdjustContrastd", p) for p in (a.inverted_gamma_probability, a.gamma_probability)]
    expected = [*ours.items(), *gammas, *[("RandFlipd", 0.5)] * len(a.mirror_axes)]
    assert sorted(found) == sorted((name, p) for name, p in expected if p)
    adjusters = [
        t.adjuster for t in module._monai_transforms(WINDOW, load_recipe(recipe)).transforms if hasattr(t, "adjuster")
    ]
    assert {(t.gamma, t.retain_stats) for t in adjusters} == {(tuple(a.gamma_range), a.gamma_keeps_moments)}
    assert [t.invert_image for t in adjusters] == ([True, False] if a.inverted_gamma_probability else [False])


def test_so_many_batches_are_made_and_no_more(small: None) -> None:
    cases = module._generated_ct()[:3]
    for case in cases:
        case.label[4:8, 4:8, 4:8] = 1
    dataset = module._monai_dataset(cases, WINDOW, load_recipe("native"))
    assert len(list(module._monai(dataset, 0, 3))) == 3


def test_its_ratios_are_those_of_its_rounds(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write_phantom_task(tmp_path / module.TASK, cases=6, settings=PhantomSettings(spacing_mm=(2.6, 3.4)))
    monkeypatch.setattr(module, "WORKERS", (0,))
    monkeypatch.setattr(module, "SECONDS_OF_MEASURING", {module.TASK: 0.03, "generated_ct": 0.03})
    monkeypatch.setattr(module, "BATCHES_OF_PROCESSOR_TIME", {module.TASK: 2, "generated_ct": 2})
    found = module.benchmark_feed(tmp_path)
    for kind in (module.TASK, f"{module.TASK}_nnunet", "generated_ct"):
        result = found[kind]
        assert result["monai_best"] == "monai_0_workers"
        for name, rounds in result["rounds"].items():
            assert len(rounds) == module.ROUNDS
            assert result["batches_per_second"][name] == sorted(rounds)[1] > 0
        ours, best = (result["batches_per_second"][name] for name in ("ours", "monai_0_workers"))
        assert result["ratio_to_monai_best"] == pytest.approx(ours / best)
    assert found["augment"]["native"] != found["augment"]["nnunet"]


def test_without_task04_it_is_refused(tmp_path: Path) -> None:
    for data in (None, tmp_path):
        with pytest.raises(InputError, match="needs Task04"):
            module.benchmark_feed(data)
