"""Surface metrics against distances known by hand, brute force, and MONAI."""

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medvisionllama.metrics import nearest, surface
from medvisionllama.metrics.elements import element_areas_mm2
from medvisionllama.metrics.surface import SurfaceScores, surface_scores

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 1.3, 2.5), (3.0, 0.5, 0.5), (0.78125, 0.78125, 6.5)]
SHAPES = st.tuples(*(st.integers(1, 6),) * 3)
MASKS = SHAPES.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))


def voxel(shape, at):
    mask = np.zeros(shape, dtype=bool)
    mask[at] = True
    return mask


def ball(radius, shape=(24, 24, 24), centre=(12, 12, 12), spacing=(1, 1, 1)):
    offsets = (np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))) * np.reshape(spacing, (3, 1, 1, 1))
    return (offsets**2).sum(axis=0) <= radius**2


# --- known by hand


def test_two_voxels_lie_as_far_apart_as_their_centres():
    a, b = voxel((9, 9, 9), (1, 2, 3)), voxel((9, 9, 9), (5, 5, 3))
    assert surface_scores(a, b, (1.0, 1.0, 1.0), 1.0).hd95_mm == 5
    assert surface_scores(a, b, (2.0, 1.0, 9.0), 1.0).hd95_mm == pytest.approx(math.hypot(8, 3))


def test_slabs_are_as_far_apart_as_their_planes():
    a, b = np.zeros((20, 8, 8), bool), np.zeros((20, 8, 8), bool)
    a[2:4], b[10:12] = True, True
    # The planes that face each other lie 3 mm apart, the others 4 mm from the nearer one.
    assert surface_scores(a, b, (0.5, 1.0, 1.0), 2.9) == SurfaceScores(4.0, 0.0)
    assert surface_scores(a, b, (0.5, 1.0, 1.0), 4.0).nsd == 1.0


def test_the_percentile_forgives_five_in_a_hundred():
    line = np.zeros((1, 1, 101), bool)
    line[0, 0, :] = True
    part = line.copy()
    part[0, 0, 91:] = False
    # The ten voxels past the end lie 1..10 mm from it; of 101 sorted distances the one at position 95 is 5 mm.
    assert surface_scores(line, part, (1.0, 1.0, 1.0), None).hd95_mm == pytest.approx(5)


def test_half_of_the_surface_within_tolerance():
    # Two equal balls; the prediction finds the first and invents one far away: half of each surface is near.
    shape = (20, 20, 90)
    first, second, third = (ball(5, shape, (10, 10, k)) for k in (10, 45, 80))
    assert surface_scores(first | second, first | third, (1.0, 1.0, 1.0), 2.0).nsd == pytest.approx(0.5)


def test_a_surface_exactly_on_the_tolerance_counts():
    a, b = voxel((1, 1, 9), (0, 0, 1)), voxel((1, 1, 9), (0, 0, 4))
    assert surface_scores(a, b, (1.0, 1.0, 0.1), 0.3).nsd == 1.0  # 3 * 0.1 > 0.3 in floating point
    assert surface_scores(a, b, (1.0, 1.0, 0.1), 0.299).nsd < 1.0


def test_equal_masks_agree_perfectly():
    mask = ball(7)
    assert surface_scores(mask, mask, (1.0, 2.0, 0.5), 0.0) == SurfaceScores(0.0, 1.0)


def test_empty_masks():
    none, some = np.zeros((3, 4, 12), bool), voxel((3, 4, 12), (1, 1, 1))
    both = surface_scores(none, none, (1.0, 1.0, 1.0), 1.0)
    assert math.isnan(both.hd95_mm)
    assert math.isnan(both.nsd)
    for pair in ((none, some), (some, none)):
        assert surface_scores(*pair, (1.0, 1.0, 1.0), 1.0) == SurfaceScores(13.0, 0.0)
        assert surface_scores(*pair, (1.0, 1.0, 1.0), 1.0, diagonal_mm=99.0).hd95_mm == 99.0


def test_without_a_tolerance_there_is_no_nsd():
    scores = surface_scores(ball(5), ball(6), (1.0, 1.0, 1.0), None)
    assert math.isnan(scores.nsd)
    assert scores.hd95_mm > 0


@pytest.mark.parametrize(
    ("prediction", "spacing", "tolerance"),
    [
        (np.zeros((3, 3, 4), bool), (1.0, 1.0, 1.0), 1.0),
        (np.zeros((3, 3), bool), (1.0, 1.0, 1.0), 1.0),
        (np.zeros((3, 3, 3), int), (1.0, 1.0, 1.0), 1.0),
        (np.zeros((3, 3, 3), bool), (1.0, 0.0, 1.0), 1.0),
        (np.zeros((3, 3, 3), bool), (1.0, 1.0, 1.0), -1.0),
        (np.zeros((3, 3, 3), bool), (1.0, 1.0, 1.0), math.nan),
    ],
)
def test_what_makes_no_sense_is_refused(prediction, spacing, tolerance):
    with pytest.raises(ValueError, match="not"):
        surface_scores(prediction, np.zeros((3, 3, 3), bool), spacing, tolerance)


# --- areas


def test_a_plane_has_its_own_area():
    areas = element_areas_mm2((2.0, 3.0, 5.0))
    planes = [sum(1 << (4 * i + 2 * j + k) for i, j, k in np.ndindex(2, 2, 2) if (i, j, k)[axis]) for axis in range(3)]
    assert areas[planes].tolist() == [15, 10, 6]
    assert areas[0] == areas[255] == 0


def test_area_of_a_ball_comes_near_the_formula():
    spacing = (0.7, 1.0, 1.3)
    found = surface._Surfaces.of(ball(20, (60, 44, 34), (29, 21, 16), spacing), ball(3), spacing)
    # Marching cubes over a binary mask overestimates curved surfaces, by about a tenth.
    assert 1.0 < found.prediction.areas_mm2.sum() / (4 * math.pi * 20**2) < 1.15


@pytest.mark.parametrize("spacing", SPACINGS)
def test_areas_know_no_direction_and_no_inside(spacing):
    areas = element_areas_mm2(spacing)
    for code in range(256):
        corners = np.array([code >> bit & 1 for bit in range(8)], bool).reshape(2, 2, 2)
        assert areas[255 - code] == pytest.approx(areas[code])
        for axes in itertools.permutations(range(3)):
            permuted = element_areas_mm2(tuple(spacing[a] for a in axes))
            for flips in itertools.product((slice(None), slice(None, None, -1)), repeat=3):
                turned = corners.transpose(axes)[flips].ravel()
                assert permuted[int(turned @ (1 << np.arange(8)))] == pytest.approx(areas[code])


@pytest.mark.parametrize("spacing", SPACINGS)
def test_areas_are_deepminds_as_monai_has_them(spacing):
    utils = pytest.importorskip("monai.metrics.utils")
    table, kernel = utils.get_code_to_measure_table(spacing)
    weights = kernel.numpy().ravel()
    theirs = [float(table[int(sum(weights[b] for b in range(8) if code >> b & 1))]) for code in range(256)]
    assert element_areas_mm2(spacing) == pytest.approx(theirs, rel=1e-5)


# --- brute force


def brute_force(prediction, reference, spacing, tolerance):
    """Both metrics from their definitions, voxel by voxel and every distance."""
    areas = element_areas_mm2(spacing)
    edges, elements = [], []
    for mask in (prediction, reference):
        padded = np.pad(mask, 1)
        inner = {tuple(v) for v in np.argwhere(padded)}
        steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
        edges.append([v for v in inner if any(tuple(np.add(v, s)) not in inner for s in steps)])
        found = {}
        for corner in np.ndindex(*(n - 1 for n in padded.shape)):
            neighbours = [padded[tuple(np.add(corner, d))] for d in np.ndindex(2, 2, 2)]
            if any(neighbours) and not all(neighbours):
                found[corner] = areas[sum(1 << bit for bit, set_ in enumerate(neighbours) if set_)]
        elements.append(found)

    def nearest(points, others):
        a, b = np.array(list(points)) * spacing, np.array(list(others)) * spacing
        return np.linalg.norm(a[:, None] - b, axis=2).min(axis=1)

    hd95 = max(np.percentile(nearest(a, b), 95) for a, b in (edges, edges[::-1]))
    near = total = 0.0
    for one, other in (elements, elements[::-1]):
        within = nearest(one, other) <= tolerance * (1 + 1e-6)
        weights = np.array(list(one.values()))
        near, total = near + weights[within].sum(), total + weights.sum()
    return hd95, near / total


@settings(max_examples=60, deadline=None)
@given(masks=MASKS, spacing=st.sampled_from(SPACINGS), tolerance=st.sampled_from([0.0, 1.0, 1.4, 3.0]))
def test_agrees_with_brute_force(masks, spacing, tolerance):
    scores = surface_scores(*masks, spacing, tolerance)
    if all(mask.any() for mask in masks):
        assert (scores.hd95_mm, scores.nsd) == pytest.approx(brute_force(*masks, spacing, tolerance), abs=1e-9)
    else:
        one = any(mask.any() for mask in masks)
        assert (scores.nsd == 0) if one else math.isnan(scores.nsd)


def test_brute_force_notices_a_wrong_area(monkeypatch):
    # A negative control: counting elements instead of weighing them is what the comparison must catch.
    a, b = ball(5), ball(5, centre=(12, 13, 14))
    monkeypatch.setattr(surface, "element_areas_mm2", lambda spacing_mm: np.ones(256))
    counted = surface_scores(a, b, (1.0, 1.0, 1.0), 1.0).nsd
    assert abs(counted - brute_force(a, b, (1.0, 1.0, 1.0), 1.0)[1]) > 0.005


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("gap", [0, 3, 14, 40])
def test_rings_and_tree_give_the_same_distances(monkeypatch, spacing, gap):
    a = np.zeros((40, 36, 70), bool)
    b = a.copy()
    a[2:20, 3:18, 2:14] = ball(9, (18, 15, 12), (9, 7, 6))
    b[12:30, 9:24, 2 + gap : 14 + gap] = ball(8, (18, 15, 12), (9, 7, 6))
    b[39, 35, 69] = True
    found = []
    for tree_costs in ((0, 0), (10**9, 10**9)):
        monkeypatch.setattr(nearest, "TREE_COSTS", tree_costs)
        pair = surface._Surfaces.of(a, b, spacing)
        for one, other in itertools.permutations((pair.prediction, pair.reference)):
            found.append(pair.distances_mm(one.elements, other.elements))
    assert found[0] == pytest.approx(found[2], abs=1e-9)
    assert found[1] == pytest.approx(found[3], abs=1e-9)


def test_a_search_that_ends_early_keeps_what_it_found():
    pair = surface._Surfaces.of(ball(6), ball(6, centre=(12, 12, 16)), (1.0, 1.0, 1.0))
    points, others = pair.prediction.elements, pair.reference.elements
    whole = pair.distances_mm(points, others)
    near = pair.distances_mm(points, others, limit_mm=2.0)
    assert np.array_equal(near[whole <= 2], whole[whole <= 2])
    assert (near[whole > 2] > 2).all()
    some = pair.distances_mm(points, others, enough=len(points) // 2)
    assert np.sort(some)[: len(points) // 2] == pytest.approx(np.sort(whole)[: len(points) // 2])


def test_stray_voxels_are_boxed_apart(monkeypatch):
    mask = np.zeros((60, 50, 70), bool)
    mask[30:40, 20:30, 20:30] = True
    mask[0, 0, 0] = mask[59, 49, 69] = mask[0, 49, 3] = True
    monkeypatch.setattr(surface, "SPARSE_VOXELS", 1)
    boxes = list(surface._pieces(mask))
    assert len(boxes) == 4
    assert sum(mask[box].sum() for box in boxes) == mask.sum()
    assert max(mask[box].size for box in boxes) == 1000
    other = np.roll(mask, 2, 1)
    cut = surface_scores(mask, other, (1.0, 1.0, 2.0), 1.0)
    monkeypatch.setattr(surface, "SPARSE_VOXELS", 10**9)
    assert surface_scores(mask, other, (1.0, 1.0, 2.0), 1.0) == cut


# --- properties


@settings(max_examples=40, deadline=None)
@given(masks=MASKS, spacing=st.sampled_from(SPACINGS), data=st.data())
def test_invariances(masks, spacing, data):
    a, b = masks
    scores = surface_scores(a, b, spacing, 1.0, diagonal_mm=50.0)
    expected = pytest.approx((scores.hd95_mm, scores.nsd), nan_ok=True)

    def again(a, b, spacing=spacing):
        found = surface_scores(a, b, spacing, 1.0, diagonal_mm=50.0)
        return (found.hd95_mm, found.nsd)

    assert again(b, a) == expected
    axis = data.draw(st.integers(0, 2))
    assert again(np.flip(a, axis), np.flip(b, axis)) == expected
    pad = data.draw(st.tuples(*(st.tuples(st.integers(0, 3), st.integers(0, 3)),) * 3))
    assert again(np.pad(a, pad), np.pad(b, pad)) == expected
    axes = data.draw(st.permutations(range(3)))
    assert again(a.transpose(axes), b.transpose(axes), tuple(spacing[x] for x in axes)) == expected


# --- MONAI


def monai_scores(a, b, spacing, tolerance):
    pytest.importorskip("monai")
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    one, other = (torch.from_numpy(m.copy())[None, None] for m in (a, b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hd95 = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=spacing)
        nsd = compute_surface_dice(
            one, other, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
        )
    return float(hd95), float(nsd)


@settings(max_examples=25, deadline=None)
@given(masks=MASKS, spacing=st.sampled_from(SPACINGS), tolerance=st.sampled_from([0.5, 1.1, 3.3]))
def test_agrees_with_monai_on_small_masks(masks, spacing, tolerance):
    if all(mask.any() for mask in masks):
        scores = surface_scores(*masks, spacing, tolerance)
        assert (scores.hd95_mm, scores.nsd) == pytest.approx(monai_scores(*masks, spacing, tolerance), abs=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_agrees_with_monai_on_bodies(spacing):
    a, b = ball(9) & ~ball(4), ball(8, centre=(10, 13, 15)) | voxel((24, 24, 24), (0, 23, 0))
    scores = surface_scores(a, b, spacing, 2.0)
    assert (scores.hd95_mm, scores.nsd) == pytest.approx(monai_scores(a, b, spacing, 2.0), rel=1e-5)


@pytest.mark.real_data
def test_agrees_with_monai_on_a_tumour(real_data):
    from medvisionllama.data.nifti import read_label_map

    labels = read_label_map(real_data / "BraTS2013_2ch" / "labelsTr" / "brats_2013_pat0002_1.nii.gz")
    tumour = labels.array > 0
    shifted = np.roll(tumour, (4, 3, 2), (0, 1, 2))
    scores = surface_scores(shifted, tumour, labels.spacing_mm, 2.0)
    assert (scores.hd95_mm, scores.nsd) == pytest.approx(
        monai_scores(shifted, tumour, labels.spacing_mm, 2.0), rel=1e-5
    )


# --- DeepMind's own package, where somebody has installed it


@pytest.mark.parametrize("spacing", SPACINGS)
def test_agrees_with_deepminds_surface_distance(spacing):
    theirs = pytest.importorskip("surface_distance")
    a, b = ball(9) & ~ball(4), ball(8, centre=(10, 13, 15)) | voxel((24, 24, 24), (0, 23, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distances = theirs.compute_surface_distances(b, a, spacing)
    for tolerance in (0.5, 1.0, 2.3):
        nsd = theirs.compute_surface_dice_at_tolerance(distances, tolerance)
        assert surface_scores(a, b, spacing, tolerance).nsd == pytest.approx(nsd, abs=1e-12)
