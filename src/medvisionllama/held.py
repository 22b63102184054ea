"""One process at a time: locks that the system frees when their holder dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from medvisionllama.errors import InputError


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Whether no other process holds the lock while the block runs.

    Where the file system knows no locks nobody is kept out: a file that only says so would outlive a killed holder.

    Args:
        path: The lock's file; its folder is made, and it stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except (NotImplementedError, OSError):
        yield True
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep a folder to this process while the block runs, by a lock whose file goes with it.

    Raises:
        InputError: Another process is at it.
    """
    path = folder / ".in-use.lock"
    with held(path) as ours:
        if not ours:
            raise InputError(
                f"another process is writing in {folder} (it holds {path.name})",
                mend="Wait for it, stop it, or name another folder.",
            )
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps what is open
                path.unlink()
