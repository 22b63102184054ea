"""What the command line shows while it works: progress bars on a terminal, plain lines elsewhere. All on stderr."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
# Where there is no terminal, at most one line in this many seconds.
PLAIN_SECONDS = 10.0


class Teller:
    """Shows how far things are; what :class:`medvisionllama.listener.Listener` asks for.

    Args:
        title: Put before a training's lines, where several follow one another.
        console: Where to write; None for stderr.
    """

    def __init__(self, title: str = "", console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told_at = 0.0
        self._dice: float | None = None
        self._began: tuple[int, float] | None = None

    def track(self, items: Sequence[T], what: str) -> Iterable[T]:
        """The items, counted as they are taken."""
        if not self.console.is_terminal:
            return self._plainly(items, what)
        return self._on_terminal(items, what)

    def training(self, entry: dict[str, Any], steps: int) -> None:
        """Show the loss, the last validation's Dice and the time left."""
        self._dice = entry.get("validation_dice", self._dice)
        told = f"loss {entry['loss']:.3f}"
        if self._dice is not None:
            told += f", validation Dice {self._dice:.4f}"
        last = entry["step"] == steps or bool(entry.get("stopped_early"))
        if self.console.is_terminal:
            self._draw(entry["step"], steps, told)
            if last:
                self._stop()
        elif last or "validation_dice" in entry or time.monotonic() - self._told_at > PLAIN_SECONDS:
            self._told_at = time.monotonic()
            left = self._time_left(entry["step"], steps, entry["seconds"])
            self._print(f"{self._named('Training')} step {entry['step']}/{steps}, {told}, {left}")

    def note(self, text: str) -> None:
        """One line worth telling."""
        self._print(f"{self.title}: {text}" if self.title else text)

    def counted(self, what: str) -> Callable[[int, int], None]:
        """A function to be told how many items are done, of how many."""

        def tell(done: int, total: int) -> None:
            last = done >= total
            if self.console.is_terminal:
                self._draw(done, total, "", what)
                if last:
                    self._stop()
            elif time.monotonic() - self._told_at > PLAIN_SECONDS:
                self._told_at = time.monotonic()
                self._print(f"{self._named(what)} {done}/{total}")

        return tell

    def bytes(self, what: str, arrived: int, total: int) -> None:
        """Show how many of a download's bytes are here."""
        last = arrived >= total
        if not self.console.is_terminal:
            if last or time.monotonic() - self._told_at > PLAIN_SECONDS:
                self._told_at = time.monotonic()
                self._print(f"Fetching {what}: {arrived / 1e6:.1f} of {total / 1e6:.1f} MB")
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console)
            self._start(self._bar)
            self._task = self._bar.add_task(f"Fetching {what}", total=total)
        assert self._task is not None
        self._bar.update(self._task, completed=arrived)
        if last:
            self._stop()

    def close(self) -> None:
        """Take a live bar away and give the terminal its cursor back; what comes later is shown as before."""
        self._stop()

    def _named(self, what: str) -> str:
        return f"{what} {self.title}".strip()

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _plainly(self, items: Sequence[T], what: str) -> Iterable[T]:
        for done, item in enumerate(items):
            if done and time.monotonic() - self._told_at > PLAIN_SECONDS:
                self._told_at = time.monotonic()
                self._print(f"{self._named(what)} {done}/{len(items)}")
            yield item
        self._print(f"{self._named(what)} {len(items)}/{len(items)}")

    def _on_terminal(self, items: Sequence[T], what: str) -> Iterable[T]:
        with self._new_bar() as bar:
            task = bar.add_task(self._named(what), total=len(items), told="")
            for item in items:
                yield item
                bar.advance(task)

    def _new_bar(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self.console)

    def _draw(self, step: int, steps: int, told: str, what: str = "Training") -> None:
        if self._bar is None:
            self._bar = self._new_bar()
            self._start(self._bar)
            self._task = self._bar.add_task(self._named(what), total=steps, told="")
        assert self._task is not None
        self._bar.update(self._task, completed=step, told=told)

    def _start(self, bar: Progress) -> None:
        # A live bar hides the cursor. Whoever is interrupted before close() gets it back at the end all the same.
        atexit.register(bar.stop)
        bar.start()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            atexit.unregister(self._bar.stop)
        self._bar, self._task, self._dice, self._began = None, None, None, None

    def _time_left(self, step: int, steps: int, seconds: float) -> str:
        # A resumed run's first entry carries an earlier sitting's seconds, so pace is measured from there on.
        if self._began is None or self._began[0] > step:
            self._began = (step, seconds)
        first_step, first_seconds = self._began
        if step == steps:
            self._began = None
            return f"{seconds:.0f} s in all"
        if step == first_step:
            return "time left not known yet"
        left = (seconds - first_seconds) / (step - first_step) * (steps - step)
        return f"about {left:.0f} s left" if left < 120 else f"about {left / 60:.0f} min left"
