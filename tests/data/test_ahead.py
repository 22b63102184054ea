"""Batches drawn ahead are the source's own, whatever is asked for, and nothing is left running."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from medvisionllama.data.ahead import BatchesAhead
from medvisionllama.data.dataset import Batch, BatchSource, PreparedCase
from medvisionllama.data.prepare import foreground_places
from medvisionllama.errors import InputError

WINDOW = (6, 5, 4)


def cases(count: int = 5) -> list[PreparedCase]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        label = rng.integers(0, 3, (8, 4, 9), np.uint8)
        image = rng.standard_normal((2, 8, 4, 9), np.float32)
        found.append(PreparedCase(f"case_{number}", image, label, foreground_places(label), (1.0, 2.0, 0.5)))
    return found


def source() -> BatchSource:
    return BatchSource(cases(), WINDOW, batch_size=2, foreground_share=0.4, seed=3)


def same(one: Batch, other: Batch) -> bool:
    alike = all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("image", "label", "spacing_mm"))
    return alike and one.cases == other.cases and one.positions == other.positions


@pytest.mark.parametrize(("asked", "stride"), [(range(6), 1), (range(7, 20, 3), 3), ([4, 4, 0, 9, 10, 2], 1)])
def test_every_batch_is_the_sources_own_in_whatever_order(asked: list[int], stride: int) -> None:
    with BatchesAhead(source(), stride) as ahead:
        assert (ahead.seed, ahead.reading, ahead.mirroring) == (3, source().reading, source().mirroring)
        for step in asked:
            batch = ahead.batch(step)
            assert same(batch, source().batch(step))
            assert not same(batch, source().batch(step + 1))


class Watched:
    """A source that says when it draws, and waits for nothing."""

    seed, reading, mirroring = 0, None, None

    def __init__(self) -> None:
        self.drawn: list[int] = []
        self.came = threading.Event()
        self.awaited = -1

    def batch(self, step: int) -> Batch:
        if step == 13:
            raise InputError("case_7 cannot be read")
        self.drawn.append(step)
        if step == self.awaited:
            self.came.set()
        return source().batch(step)


@pytest.mark.parametrize("stride", [1, 4])
def test_the_next_one_is_drawn_without_being_asked_for_and_none_twice(stride: int) -> None:
    watched = Watched()
    watched.awaited = 3 * stride
    with BatchesAhead(watched, stride) as ahead:  # type: ignore[arg-type]
        for step in range(3):
            ahead.batch(step * stride)
        assert watched.came.wait(60)  # nobody asked for this one
    assert watched.drawn == [0, stride, 2 * stride, 3 * stride]


def test_an_error_comes_out_where_its_batch_is_asked_for_and_not_before() -> None:
    with BatchesAhead(Watched()) as ahead:  # type: ignore[arg-type]
        ahead.batch(12)
        with pytest.raises(InputError, match="case_7"):
            ahead.batch(13)
        ahead.batch(14)


def test_no_thread_is_left_running() -> None:
    before = set(threading.enumerate())
    with BatchesAhead(source()) as ahead:
        ahead.batch(0)
        assert set(threading.enumerate()) != before
    assert set(threading.enumerate()) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_for_a_gpu_batches_are_page_locked() -> None:
    with BatchesAhead(source(), pinned=True) as ahead:
        batch = ahead.batch(0)
    assert batch.image.is_pinned()
    assert same(batch, source().batch(0))
