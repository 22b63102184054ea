"""One process at a time: locks that the system frees when their holder dies."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from medvisionllama.errors import InputError

# What a file system answers that knows no locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Whether this process alone holds the lock while the block runs.

    Where the file system knows no locks, the file itself says so; then a killed holder's must be deleted by hand.

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
    """Keep a folder to this process while the block runs, by a lock whose file goes with it.

    Where the file system knows no locks nobody is kept out: a training that was killed on one machine must be able to
    go on on another.

    Raises:
        InputError: Another process is at it, or the folder cannot be written.
    """
    path = folder / ".in-use.lock"
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"another process is writing in {folder} (it holds {path.name})",
            mend="Wait for it, stop it, or name another folder.",
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise InputError(f"cannot write {path}", got=error.strerror or str(error)) from error
    except NotImplementedError:
        pass
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps what is open
            path.unlink()
        lock.release()
