"""Files that are written whole or not at all. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from medvisionllama.errors import InputError

FREE_OR_ELSEWHERE = "Choose a folder you may write to, with room."


@contextmanager
def whole_file(path: Path, mend: str = FREE_OR_ELSEWHERE, *, lasting: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to; what is there when the block ends takes the place of ``path`` at once.

    Any fault within the block leaves the old file as it was and no litter. The name is drawn at random, since two
    machines that share a folder may well give their processes one number.

    Args:
        path: The file to write; its folder is made.
        mend: What the user can do where the folder cannot be written.
        lasting: Wait until it is on the disk before the old file goes, so that a power cut leaves one of the two.

    Raises:
        InputError: The folder cannot be written, or has no room.
    """
    part = path.with_name(f".{uuid4().hex[:12]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            if lasting:
                _onto_disk(part, os.O_RDWR)
            part.replace(path)
            if lasting:
                with suppress(OSError):  # not every system opens folders
                    _onto_disk(path.parent, os.O_RDONLY)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}", got=error.strerror or str(error), mend=mend) from error


def _onto_disk(path: Path, how: int) -> None:
    opened = os.open(path, how)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def clear_litter(folder: Path) -> None:
    """Remove from a folder and those below what killed processes had half written; nobody else may be writing there."""
    for part in folder.rglob(".????????????.part"):
        part.unlink(missing_ok=True)


def refuse_unwritable(folder: Path) -> None:
    """Find out before anything is computed whether its result can be kept in ``folder``, which is made.

    Raises:
        InputError: The folder cannot be written, or has no room.
    """
    trial = folder / ".writable"
    with whole_file(trial) as part:
        part.touch()
    trial.unlink(missing_ok=True)
