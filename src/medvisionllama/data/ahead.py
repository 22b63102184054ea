"""The next batch is read and cut while the network is at work on this one.

A thread does it, not a process: reading a memory map and copying let other threads run, there is nothing to send, and
no worker can die unseen.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self

from medvisionllama.data.dataset import Batch, BatchSource
from medvisionllama.data.mirroring import Mirroring
from medvisionllama.label_reading import LabelReading


class BatchesAhead:
    """A source's batches, the one that is most likely asked for next already under way.

    To be used in a ``with`` statement, whose end waits for what is under way. Every batch is the source's own to the
    bit, in whatever order they are asked for.

    Args:
        source: Draws them.
        stride: How many steps lie between those that are asked for: 1, or the number of processes that share them.
        pinned: Whether batches lie in page-locked memory, from which a GPU fetches them while it computes.
    """

    def __init__(self, source: BatchSource, stride: int = 1, *, pinned: bool = False) -> None:
        self._source, self._stride, self._pinned = source, stride, pinned
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._under_way: tuple[int, Future[Batch]] | None = None

    @property
    def seed(self) -> int:
        """The source's."""
        return self._source.seed

    @property
    def reading(self) -> LabelReading:
        """The source's."""
        return self._source.reading

    @property
    def mirroring(self) -> Mirroring:
        """The source's."""
        return self._source.mirroring

    def batch(self, step: int) -> Batch:
        """The patches of step ``step``, and a start on the next ones; an error in drawing them is raised here."""
        if self._under_way is None or self._under_way[0] != step:
            self._start(step)
        assert self._under_way is not None
        batch = self._under_way[1].result()
        self._start(step + self._stride)
        return batch

    def _start(self, step: int) -> None:
        self._under_way = step, self._thread.submit(self._drawn, step)

    def _drawn(self, step: int) -> Batch:
        batch = self._source.batch(step)
        if not self._pinned:
            return batch
        return replace(batch, image=batch.image.pin_memory(), label=batch.label.pin_memory())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
