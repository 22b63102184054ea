"""What training is steered by: Dice and loss of whole prepared volumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medvisionllama.data.dataset import PreparedCase
from medvisionllama.data.plan import IntensityRule, Plan
from medvisionllama.losses import segmentation_loss
from medvisionllama.predict import _pairs, look_at_volumes
from medvisionllama.sliding_window import sliding_window

CPU = torch.device("cpu")
WINDOW = (8, 16, 8)
PLAN = Plan("native", "T", WINDOW, (1.0, 1.0, 1.0), (IntensityRule("zscore"),), {1: "a", 2: "b", 5: "c"}, 2, WINDOW)


class Blurred(nn.Module):
    """A stub without weights: each class where the intensity is near its number."""

    def forward(self, image_BMIJK: Tensor) -> Tensor:
        near = [-((image_BMIJK[:, 0] - number) ** 2) for number in range(4)]
        return torch.stack(near, 1) * 3


def case(seed: int, size: tuple[int, int, int]) -> PreparedCase:
    draw = np.random.default_rng(seed)
    label = draw.integers(0, 3, size).astype(np.uint8)  # class 3, called c, is nowhere
    image = (label + 0.4 * draw.standard_normal(size)).astype(np.float32)[None]
    return PreparedCase(f"case_{seed}", image, label, np.zeros((0, 4), np.int32))


@pytest.fixture(scope="module")
def cases() -> list[PreparedCase]:
    return [case(0, (20, 17, 30)), case(1, (5, 16, 9))]


def test_loss_and_dice_are_those_of_all_logits_at_once(cases: list[PreparedCase]) -> None:
    losses, dice = [], {"a": [], "b": [], "c": []}
    for one in cases:
        logits = sliding_window(Blurred(), torch.from_numpy(one.image), WINDOW)
        losses.append(float(segmentation_loss(logits[None], torch.from_numpy(one.label)[None], "dice_ce")))
        found = logits.argmax(0).numpy()
        for number, name in enumerate(dice, start=1):
            a, b = found == number, one.label == number
            if a.any() or b.any():
                dice[name].append(2 * (a & b).sum() / (a.sum() + b.sum()))
    look = look_at_volumes(Blurred(), PLAN, cases, "dice_ce", CPU, torch.float32)
    assert look.loss == pytest.approx(np.mean(losses), rel=1e-6)
    expected = {name: np.mean(values) for name, values in dice.items()}
    assert look.dice == pytest.approx(expected | {"mean": np.mean(list(expected.values()))})
    assert 0 < expected["a"] < 1


def test_what_is_nowhere_counts_for_nothing() -> None:
    label = np.zeros(WINDOW, np.uint8)
    label[:4] = 1
    one = PreparedCase("only_a", label.astype(np.float32)[None], label, np.zeros((0, 4), np.int32))
    look = look_at_volumes(Blurred(), PLAN, [one], "ce", CPU, torch.float32)
    assert look.dice["a"] == look.dice["mean"] == 1
    assert np.isnan(look.dice["b"])
    # Softmax over -3 (distance)^2: background and a are one apart from one another, b and c up to three.
    at_background, at_a = np.exp(-3.0 * np.array([0, 1, 4, 9])), np.exp(-3.0 * np.array([1, 0, 1, 4]))
    expected = np.mean([-np.log(at_background[0] / at_background.sum()), -np.log(at_a[1] / at_a.sum())])
    assert look.loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ignored", [None, 255])
def test_counting_pairs_once_gives_what_masks_of_every_target_give(ignored: int | None) -> None:
    draw = np.random.default_rng(0)
    found, label = draw.choice([0, 1, 2, 7, 254, 255], (2, 9, 5, 7)).astype(np.uint8)
    pairs = _pairs(found, label, ignored)
    counts = np.ones(label.shape, bool) if ignored is None else label != ignored
    for numbers in [(1,), (2, 7), (1, 2, 254), (3,), (1, 255)][: None if ignored is None else -1]:
        a, b = np.isin(found, numbers) & counts, np.isin(label, numbers)
        assert pairs[list(numbers)].sum() == a.sum()
        assert pairs[:, list(numbers)].sum() == b.sum()
        assert pairs[np.ix_(numbers, numbers)].sum() == (a & b).sum()


class Always(nn.Module):
    """A stub that sees one class of ``channels`` everywhere."""

    def __init__(self, chosen: int, channels: int) -> None:
        super().__init__()
        self.chosen, self.channels = chosen, channels

    def forward(self, image_BMIJK: Tensor) -> Tensor:
        logits = torch.zeros((len(image_BMIJK), self.channels, *image_BMIJK.shape[2:]))
        logits[:, self.chosen] = 1
        return logits


def test_the_last_of_255_classes_is_no_ignored_voxel() -> None:
    every = replace(PLAN, window=(4, 4, 4), classes={value: f"c{value}" for value in range(1, 256)})
    label = np.full(every.window, 255, np.uint8)
    label[:2] = 1
    one = PreparedCase("one", label.astype(np.float32)[None], label, np.zeros((0, 4), np.int32))
    found = look_at_volumes(Always(255, 256), every, [one], "ce", CPU, torch.float32).dice
    assert found["c255"] == pytest.approx(2 / 3)  # half of what is found is there, all of what is there is found
    assert found["c1"] == 0
    # Negative control: where 255 does stand for ignored voxels, the same label map says nothing of those found there.
    ignoring = replace(PLAN, window=(4, 4, 4), ignored=9)
    found = look_at_volumes(Always(1, 4), ignoring, [one], "ce", CPU, torch.float32).dice
    assert found["a"] == 1


def test_without_cases_there_is_nothing_to_say() -> None:
    look = look_at_volumes(Blurred(), PLAN, [], "dice_ce", CPU, torch.float32)
    assert np.isnan(look.loss)
    assert np.isnan(look.dice["mean"])
