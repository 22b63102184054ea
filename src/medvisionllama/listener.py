"""Who is told how far things are. The command line shows it; a program may pass its own, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Listener(Protocol):
    """Who is told how far things are: a terminal, a plain log, or nobody."""

    def track(self, items: Sequence[T], what: str) -> Iterable[T]:
        """The same items, counted as they are taken."""
        ...

    def training(self, entry: dict[str, Any], steps: int) -> None:
        """One log entry of a training of ``steps`` steps."""
        ...

    def counted(self, what: str) -> Callable[[int, int], None]:
        """A function to be told how many items are done, of how many."""
        ...

    def bytes(self, what: str, arrived: int, total: int) -> None:
        """How much of a download has arrived."""
        ...

    def note(self, text: str) -> None:
        """One line worth telling."""
        ...

    def close(self) -> None:
        """Nothing more will come, perhaps in the middle of something; another run may follow."""
        ...


class Silent:
    """A listener that tells nobody."""

    def track(self, items: Sequence[T], what: str) -> Iterable[T]:
        """The same items."""
        return items

    def training(self, entry: dict[str, Any], steps: int) -> None:
        """Nothing."""

    def counted(self, what: str) -> Callable[[int, int], None]:
        """A function that does nothing."""
        return lambda done, total: None

    def bytes(self, what: str, arrived: int, total: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
