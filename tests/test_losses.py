import math

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor

from medvisionllama.label_reading import LabelReading
from medvisionllama.losses import LossName, LossOfPieces, segmentation_loss, soft_dice_loss

SIZE = (5, 4, 3)
NAMES: list[LossName] = ["dice_ce", "ce", "dice_bce", "bce"]


def drawn(name: LossName, batch: int = 4, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and a label for ``classes`` foreground classes."""
    generator = torch.Generator().manual_seed(seed)
    channels = classes + 1 if name in ("dice_ce", "ce") else classes
    logits = torch.randn((batch, channels, *SIZE), generator=generator)
    return logits, torch.randint(classes + 1, (batch, *SIZE), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("classes", [1, 3])
def test_dice_and_cross_entropy_agree_with_monai(classes: int) -> None:
    logits, label = drawn("dice_ce", classes=classes)
    settings = {"include_background": False, "to_onehot_y": True, "softmax": True, "smooth_nr": 1e-5, "smooth_dr": 1e-5}
    both = DiceCELoss(**settings)(logits, label[:, None].long())
    dice = DiceLoss(**settings)(logits, label[:, None].long())
    torch.testing.assert_close(segmentation_loss(logits, label, "dice_ce"), both)
    torch.testing.assert_close(segmentation_loss(logits, label, "ce"), both - dice)


def test_dice_and_binary_cross_entropy_agree_with_monai() -> None:
    logits, label = drawn("dice_bce", classes=1)
    both = DiceCELoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5)(logits, label[:, None].float())
    dice = DiceLoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5)(logits, label[:, None].float())
    torch.testing.assert_close(segmentation_loss(logits, label, "dice_bce"), both)
    torch.testing.assert_close(segmentation_loss(logits, label, "bce"), both - dice)


def test_dice_by_hand() -> None:
    probability = torch.tensor([0.5, 1.0, 0.25, 0.0]).reshape(1, 1, 1, 2, 2)
    target = torch.tensor([1, 1, 0, 0]).reshape(1, 1, 1, 2, 2)
    # 2 (.5 + 1) / (1.75 + 2)
    assert float(soft_dice_loss(probability, target)) == pytest.approx(1 - 3 / 3.75, abs=1e-5)
    assert float(soft_dice_loss(probability, target == 1)) == pytest.approx(1 - 3 / 3.75, abs=1e-5)


def test_entropies_by_hand() -> None:
    label = torch.tensor([0, 1]).reshape(1, 1, 1, 2)
    softmax = torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5]])).T.reshape(1, 2, 1, 1, 2)
    expected = -(math.log(0.75) + math.log(0.5)) / 2
    assert float(segmentation_loss(softmax, label, "ce")) == pytest.approx(expected)
    sigmoid = torch.logit(torch.tensor([0.2, 0.9])).reshape(1, 1, 1, 1, 2)
    expected = -(math.log(0.8) + math.log(0.9)) / 2
    assert float(segmentation_loss(sigmoid, label, "bce")) == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_answer_costs_nothing_and_its_opposite_much(name: LossName) -> None:
    label = drawn(name)[1].long()
    classes = torch.arange(4 if name in ("dice_ce", "ce") else 3) + (0 if name in ("dice_ce", "ce") else 1)
    right = torch.where(label[:, None] == classes[:, None, None, None], 30.0, -30.0)
    assert float(segmentation_loss(right, label, name)) == pytest.approx(0, abs=1e-5)
    assert float(segmentation_loss(-right, label, name)) > 1.5


@pytest.mark.parametrize("name", NAMES)
def test_every_logit_has_a_gradient_that_leads_downhill(name: LossName) -> None:
    # The papers' published Dice loss thresholds first and has none: negative control below.
    logits, label = drawn(name)
    logits.requires_grad_()
    loss = segmentation_loss(logits, label, name)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient != 0).all()
    assert segmentation_loss(logits - 10 * gradient, label, name) < loss


def test_dice_alone_has_a_gradient_and_a_thresholded_one_has_none() -> None:
    logits, label = drawn("dice_bce", classes=1)
    logits.requires_grad_()
    target = label[:, None] == 1
    (gradient,) = torch.autograd.grad(soft_dice_loss(torch.sigmoid(logits), target), logits)
    assert (gradient != 0).all()
    assert not soft_dice_loss((torch.sigmoid(logits) > 0.5).float(), target).requires_grad


def test_the_gradient_is_that_of_the_numbers() -> None:
    logits, label = drawn("dice_ce", batch=2, classes=2)
    target = label[:, None] == torch.tensor([1, 2])[:, None, None, None]

    def dice(x: Tensor) -> Tensor:
        return soft_dice_loss(torch.softmax(x, 1)[:, 1:], target)

    assert torch.autograd.gradcheck(dice, logits.double().requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_costs_the_mean_of_its_halves(name: LossName) -> None:
    logits, label = drawn(name)
    label[0] = 0  # also where the halves hold very different amounts of foreground
    halves = [segmentation_loss(logits[half], label[half], name) for half in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(segmentation_loss(logits, label, name), torch.stack(halves).mean())


def test_dice_over_the_whole_batch_would_not_be_the_mean_of_halves() -> None:
    logits, label = drawn("dice_bce", classes=1)
    label[0] = 0
    pooled = DiceLoss(sigmoid=True, batch=True)
    halves = [pooled(logits[half], label[half, None] == 1) for half in (slice(0, 2), slice(2, 4))]
    assert abs(pooled(logits, label[:, None] == 1) - torch.stack(halves).mean()) > 1e-4


def test_a_class_absent_from_label_and_answer_costs_nothing() -> None:
    nothing = torch.zeros((2, 1, *SIZE))
    assert float(soft_dice_loss(nothing, nothing)) == 0
    assert float(soft_dice_loss(nothing + 1, nothing)) == pytest.approx(1)
    assert float(soft_dice_loss(nothing, nothing + 1)) == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_labels_without_foreground_or_background_stay_finite(name: LossName) -> None:
    logits, label = drawn(name)
    for value in (0, 3):
        sharp = (100 * logits).requires_grad_()
        loss = segmentation_loss(sharp, torch.full_like(label, value), name)
        (gradient,) = torch.autograd.grad(loss, sharp)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_are_summed_in_full(name: LossName) -> None:
    logits, label = drawn(name)
    loss = segmentation_loss(logits.bfloat16(), label, name)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, segmentation_loss(logits.bfloat16().float(), label, name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_labels_of_any_integer_type_cost_the_same(name: LossName, dtype: torch.dtype) -> None:
    logits, label = drawn(name)
    torch.testing.assert_close(segmentation_loss(logits, label.to(dtype), name), segmentation_loss(logits, label, name))


def test_order_of_voxels_and_of_classes_does_not_matter() -> None:
    logits, label = drawn("dice_ce")
    loss = segmentation_loss(logits, label, "dice_ce")
    torch.testing.assert_close(segmentation_loss(logits.flip(2, 4), label.flip(1, 3), "dice_ce"), loss)
    renamed = torch.tensor([0, 3, 1, 2])[label.long()]
    torch.testing.assert_close(segmentation_loss(logits[:, [0, 2, 3, 1]], renamed, "dice_ce"), loss)


REGIONS = LabelReading(regions=((1, 2, 3), (2, 3), (3,)))
IGNORING = LabelReading(ignored=255)


def partly_ignored(name: LossName, reading: LabelReading = IGNORING) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, a label with ignored voxels, and where they are."""
    logits, label = drawn(name)
    ignored = torch.rand(label.shape, generator=torch.Generator().manual_seed(9)) < 0.4
    return logits, torch.where(ignored, 255, label), ignored


@pytest.mark.parametrize("reading", [IGNORING, LabelReading(REGIONS.regions, 255)])
@pytest.mark.parametrize("name", NAMES)
def test_ignored_voxels_have_no_gradient_and_the_others_have(name: LossName, reading: LabelReading) -> None:
    if reading.regions and name in ("dice_ce", "ce"):
        pytest.skip("regions are sigmoid targets")
    logits, label, ignored = partly_ignored(name)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(segmentation_loss(logits, label, name, reading), logits)
    assert (gradient.movedim(1, -1)[ignored] == 0).all()
    assert (gradient.movedim(1, -1)[~ignored] != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_an_ignored_voxel_holds_does_not_matter(name: LossName) -> None:
    logits, label, ignored = partly_ignored(name)
    other = torch.where(ignored[:, None], 7 * torch.randn(logits.shape), logits)
    torch.testing.assert_close(
        segmentation_loss(logits, label, name, IGNORING), segmentation_loss(other, label, name, IGNORING)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_case_cut_to_its_labelled_half_costs_the_same(name: LossName) -> None:
    logits, label = drawn(name)
    half = label.clone()
    half[:, 3:] = 255
    torch.testing.assert_close(
        segmentation_loss(logits, half, name, IGNORING), segmentation_loss(logits[:, :, :3], label[:, :3], name)
    )


@pytest.mark.parametrize("name", NAMES)
def test_with_nothing_to_ignore_the_loss_is_the_plain_one(name: LossName) -> None:
    logits, label = drawn(name)
    torch.testing.assert_close(segmentation_loss(logits, label, name, IGNORING), segmentation_loss(logits, label, name))


@pytest.mark.parametrize("name", NAMES)
def test_a_case_that_nobody_labelled_costs_nothing(name: LossName) -> None:
    logits, label = drawn(name)
    label[:] = 255
    logits.requires_grad_()
    loss = segmentation_loss(logits, label, name, IGNORING)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_with_ignored_voxels_too_a_batch_costs_the_mean_of_its_halves(name: LossName) -> None:
    logits, label, _ = partly_ignored(name)
    label[0, 1:] = 255
    halves = [segmentation_loss(logits[half], label[half], name, IGNORING) for half in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(segmentation_loss(logits, label, name, IGNORING), torch.stack(halves).mean())


@pytest.mark.parametrize("name", ["dice_bce", "bce"])
def test_regions_overlap(name: LossName) -> None:
    logits, label = drawn(name)
    whole, core, enhancing = (label >= 1), (label >= 2), (label == 3)
    one_by_one = [
        segmentation_loss(logits[:, channel : channel + 1], mask.to(torch.uint8), name)
        for channel, mask in enumerate((whole, core, enhancing))
    ]
    loss = segmentation_loss(logits, label, name, REGIONS)
    torch.testing.assert_close(loss, torch.stack(one_by_one).mean())
    assert abs(loss - segmentation_loss(logits, label, name)) > 1e-3  # negative control: as classes they differ


def test_regions_with_a_softmax_are_refused() -> None:
    logits, label = drawn("dice_ce")
    with pytest.raises(ValueError, match="regions overlap"):
        segmentation_loss(logits, label, "dice_ce", REGIONS)


@pytest.mark.parametrize("reading", [LabelReading(), REGIONS, IGNORING])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_pieces_is_that_of_the_whole(name: LossName, reading: LabelReading) -> None:
    logits, label = partly_ignored(name)[:2] if reading is IGNORING else drawn(name)
    if reading is REGIONS and name in ("dice_ce", "ce"):
        return
    pieces = LossOfPieces(name, reading)
    for i, j in ((slice(0, 2), slice(0, 4)), (slice(2, 5), slice(0, 1)), (slice(2, 5), slice(1, 4))):
        pieces.add(logits[0, :, i, j], label[0, i, j])
    whole = segmentation_loss(logits[:1], label[:1], name, reading)
    assert pieces.value() == pytest.approx(float(whole), rel=1e-6)
    pieces.add(logits[1], label[1])  # negative control: more voxels, another loss
    assert pieces.value() != pytest.approx(float(whole), rel=1e-3)
