import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference
from plain_way import plain_logits
from torch import Tensor, nn
from torch.nn.functional import pad

from medvisionllama.errors import InputError
from medvisionllama.sliding_window import Sweep, gaussian_weight, mirrored, sliding_window, window_starts

WINDOW = (8, 6, 10)
GENERATOR = torch.Generator().manual_seed(0)
# Below, at and above the window along each axis, odd and even.
SIZES = list(itertools.product((3, 8, 17), (5, 6, 13), (1, 10, 21)))


def image(size: tuple[int, ...], channels: int = 2) -> Tensor:
    return torch.randn((channels, *size), generator=GENERATOR)


def identity(windows: Tensor) -> Tensor:
    return windows


@given(st.integers(1, 200), st.integers(1, 64))
def test_windows_cover_all_and_overlap_by_half(size: int, window: int) -> None:
    starts = window_starts(size, window)
    if size <= window:
        assert starts == [0]
        return
    assert starts[0] == 0
    assert starts[-1] == size - window
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert steps.max() <= max(1, window // 2)
    assert steps.max() - steps.min() <= 1  # evenly spread: no pair of windows on top of each other at the end


@given(st.integers(1, 200), st.integers(1, 64), st.sampled_from([0.0, 0.25, 0.75]))
def test_any_overlap_covers_all(size: int, window: int, overlap: float) -> None:
    starts = window_starts(size, window, overlap)
    seen = {voxel for start in starts for voxel in range(start, start + window)}
    assert set(range(size)) <= seen


@pytest.mark.parametrize("window", [(9, 7, 11), (15, 15, 15), (1, 3, 5)])
def test_weights_agree_with_monai(window: tuple[int, int, int]) -> None:
    # Odd windows: MONAI, unlike nnU-Net, does not scale the largest weight of an even one to 1 before it sets a floor.
    torch.testing.assert_close(gaussian_weight(window), compute_importance_map(window, mode="gaussian"))


@pytest.mark.parametrize("window", [WINDOW, (7, 9, 5)])
def test_weights_trust_the_middle_from_all_sides_alike(window: tuple[int, int, int]) -> None:
    weight = gaussian_weight(window)
    assert weight.shape == window
    assert float(weight.max()) == 1
    assert float(weight.min()) > 0
    for axis in range(3):
        torch.testing.assert_close(weight, weight.flip(axis))
        assert (weight.movedim(axis, 0).diff(dim=0)[: (window[axis] - 1) // 2] >= 0).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_network_that_changes_nothing_gives_the_image_back(size: tuple[int, int, int]) -> None:
    whole = image(size)
    torch.testing.assert_close(sliding_window(identity, whole, WINDOW), whole, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(3, 5, 1), (8, 6, 10)])
def test_a_single_window_is_given_back_as_it_is(size: tuple[int, int, int]) -> None:
    whole = image(size)
    # One window: nothing is blended, so that nothing but w*x/w rounds.
    torch.testing.assert_close(sliding_window(identity, whole, WINDOW), whole, rtol=2e-7, atol=0)


@pytest.mark.parametrize("size", [(8, 6, 10), (16, 9, 20), (20, 12, 25), (4, 5, 7)])
def test_blending_agrees_with_monai_where_its_windows_are_the_same(size: tuple[int, int, int]) -> None:
    # MONAI pushes a last window that sticks out back inside; these sizes leave none.
    network = nn.Conv3d(2, 3, 3, padding=1)  # zeros at the window's rim: what a window sees matters
    whole = image(size)
    with torch.no_grad():
        ours = sliding_window(network, whole, WINDOW)
        theirs = sliding_window_inference(
            whole[None], WINDOW, 4, network, overlap=0.5, roi_weight_map=gaussian_weight(WINDOW)
        )
    assert ours.shape == (3, *size)
    torch.testing.assert_close(ours, theirs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_how_many_windows_at_once_changes_nothing(batch_size: int) -> None:
    network = nn.Conv3d(2, 3, 3, padding=1)
    whole = image((17, 13, 21))
    with torch.no_grad():
        one = sliding_window(network, whole, WINDOW, batch_size=batch_size)
        torch.testing.assert_close(one, sliding_window(network, whole, WINDOW))


def test_the_network_sees_whole_windows_few_at_a_time() -> None:
    seen = []

    def network(windows: Tensor) -> Tensor:
        seen.append(tuple(windows.shape))
        return windows[:, :1]

    sliding_window(network, image((17, 3, 21)), WINDOW, batch_size=4)
    assert all(shape[1:] == (2, *WINDOW) and shape[0] <= 4 for shape in seen)
    assert sum(shape[0] for shape in seen) == 4 * 1 * 4


def test_padding_is_central_and_zero() -> None:
    seen = []

    def network(windows: Tensor) -> Tensor:
        seen.append(windows)
        return windows

    whole = image((3, 6, 9))
    sliding_window(network, whole, WINDOW)
    torch.testing.assert_close(seen[0][0], pad(whole, (0, 1, 0, 0, 2, 3)))  # 5 missing: 2 before, 3 after; 1: after


def test_a_move_by_whole_strides_moves_the_answer() -> None:
    network = nn.Conv3d(1, 1, 3, padding=1)
    wide = image((32, 6, 10), 1)
    stride = WINDOW[0] // 2
    with torch.no_grad():
        first = sliding_window(network, wide[:, :-stride], WINDOW)
        moved = sliding_window(network, wide[:, stride:], WINDOW)
    inner = slice(WINDOW[0], -WINDOW[0])  # where as many windows overlap in both
    torch.testing.assert_close(first[:, stride:][:, inner], moved[:, :-stride][:, inner], rtol=1e-5, atol=1e-6)


def test_mirrored_images_give_mirrored_answers() -> None:
    whole = image((16, 9, 20))
    for axis in (1, 2, 3):
        mirrored = sliding_window(identity, whole.flip(axis), WINDOW).flip(axis)
        torch.testing.assert_close(mirrored, sliding_window(identity, whole, WINDOW), rtol=2e-6, atol=1e-6)


def test_windows_are_blended_by_trust() -> None:
    """Two windows that disagree: in the overlap the answer is their weighted mean, by hand."""
    answers = iter([0.0, 1.0])

    def network(windows: Tensor) -> Tensor:
        return torch.stack([torch.full_like(window, next(answers)) for window in windows])

    blended = sliding_window(network, image((12, 6, 10), 1), WINDOW)[0, :, 3, 5]
    weight = gaussian_weight(WINDOW)[:, 3, 5]
    expected = weight[:4] / (weight[:4] + weight[4:])
    torch.testing.assert_close(blended, torch.cat([torch.zeros(4), expected, torch.ones(4)]))


def test_half_precision_windows_are_blended_in_full() -> None:
    whole = image((17, 13, 21))
    blended = sliding_window(lambda windows: windows.bfloat16(), whole, WINDOW)
    assert blended.dtype == torch.float32
    torch.testing.assert_close(blended, whole.bfloat16().float(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("size", SIZES[::4])
def test_a_swept_band_gives_what_all_at_once_gives(size: tuple[int, int, int], axis: int) -> None:
    network, whole = nn.Conv3d(2, 3, 3, padding=1), image(size)
    with torch.no_grad():
        expected = plain_logits(network, whole, WINDOW)
        sweep = Sweep(network, whole, WINDOW, axis)
        given = []
        while sweep.finished < size[axis]:
            begin = sweep.finished
            sweep.advance(begin)
            place = [slice(None)] * 3
            place[axis] = slice(begin, sweep.finished)
            given.append(sweep.logits(tuple(place)))  # type: ignore[arg-type]
    torch.testing.assert_close(torch.cat(given, 1 + axis), expected, rtol=1e-5, atol=1e-6)


def test_a_band_is_all_that_is_held() -> None:
    """However long the image: a window's thickness and one plane more."""
    for length in (20, 200):
        sweep = Sweep(identity, image((9, 7, length)), WINDOW, 2)
        while sweep.finished < length:
            sweep.advance(sweep.finished)
            assert sweep._total is not None
            assert sweep._total.shape == (2, 9, 7, WINDOW[2] + 1)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="No space left"):
        Sweep(identity, image((9, 7, 20)), WINDOW, 2, most_bytes=10, scratch=tmp_path).advance(0)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_mirrored_windows_give_the_mean_of_their_probabilities(axes: tuple[int, ...], sigmoid: bool) -> None:
    network, windows = nn.Conv3d(2, 3, 3, padding=1), image((4, 5, 6))[None] * 9

    def probability(logits: Tensor) -> Tensor:
        return logits.sigmoid() if sigmoid else logits.softmax(1)

    chosen = [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]
    with torch.no_grad():
        parts = [probability(network(windows.flip([a + 2 for a in c]))).flip([a + 2 for a in c]) for c in chosen]
        answer = probability(mirrored(network, axes, sigmoid=sigmoid)(windows))
        torch.testing.assert_close(answer, torch.stack(parts).mean(0), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(answer, probability(network(windows)), atol=1e-2), "negative control: it does matter"


def test_sides_change_places_in_a_mirror() -> None:
    """A network that calls the left half 1 and the right half 2 agrees with its own mirror image only then."""

    def network(windows: Tensor) -> Tensor:
        logits = torch.full((len(windows), 3, *windows.shape[2:]), -9.0)
        half = windows.shape[2] // 2
        logits[:, 1, :half], logits[:, 2, half:] = 9.0, 9.0
        return logits

    windows = image((4, 5, 6))[None]
    alike = mirrored(network, (0, 1), sides=[0, 2, 1], sigmoid=False)(windows)
    torch.testing.assert_close(alike.softmax(1), network(windows).softmax(1))
    confused = mirrored(network, (0,), sigmoid=False)(windows).softmax(1)
    assert (confused[:, 1:] - 0.5).abs().max() < 0.01
    assert mirrored(network, (), sigmoid=False) is network
