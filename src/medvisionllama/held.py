"""One process at a time: locks that the system frees when their holder dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from medvisionllama.errors import InputError


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Whether this process alone holds the lock while the block runs.

    Args:
        path: The lock's file; its folder is made, and it stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep a folder to this process while the block runs; the lock's file goes with it.

    Where the file system knows no locks nothing is kept.

    Raises:
        InputError: Another process is at it.
    """
    path = folder / ".in-use.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"another process is writing in {folder}", mend="Wait for it, stop it, or name another folder."
        ) from error
    except (NotImplementedError, OSError):
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps what is open, and removes it with the release
            path.unlink()
        lock.release()
