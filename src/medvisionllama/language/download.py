"""A file put together from pieces of the hub's files, which a broken attempt can be taken up again from.

    layer-31.part           what has arrived
    layer-31.part.proven    so many of its bytes were on the disk, and hashed to this

Only what was proven is gone on from: after a power cut a file may have its full length and hold zeros.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from medvisionllama.errors import InputError
from medvisionllama.language.hub import Hub, HubFile
from medvisionllama.whole_file import whole_file

Progress = Callable[[str, int, int], None]
"""Told what is being fetched, the bytes that have arrived, and the bytes in all."""

_PROVEN_EVERY_BYTES = 32 << 20
_READ_AT_ONCE_BYTES = 1 << 20


@dataclass(frozen=True)
class Piece:
    """The bytes [start, stop) of one file of the hub."""

    file: HubFile
    start: int
    stop: int


@dataclass(frozen=True)
class Download:
    """A beginning of our own and pieces of the hub's files, to be written one after another."""

    part: Path
    """Where it is written, under a name that says that it is not complete. One process at a time."""
    what: str
    """How to call it in messages."""
    beginning: bytes
    """Follows from what is fetched alone, so that an earlier attempt at something else is known by it."""
    pieces: tuple[Piece, ...]
    """Follow it in this order."""

    @property
    def total(self) -> int:
        """Bytes of the complete file."""
        return len(self.beginning) + sum(piece.stop - piece.start for piece in self.pieces)

    def run(self, hub: Hub, progress: Progress, *, ranges_ignored: bool = False) -> str:
        """Write the file, or what of it is missing.

        Args:
            hub: Where the pieces come from.
            progress: Told about bytes as they arrive.
            ranges_ignored: Accept a server that sends whole files.

        Returns:
            The SHA-256 of all bytes written, by which the file can be compared once more.

        Raises:
            InputError: No room, or the hub refuses; what has arrived is kept.
        """
        done, hashed = self._proven()
        self._require_room(done)
        with self.part.open("r+b" if done else "wb") as file:
            if done:
                file.truncate(done)
                file.seek(done)
            out = _ProvenFile(file, self.part, done, hashed)
            try:
                if done == 0:
                    out.write(self.beginning)

                def write(bytes_: bytes) -> None:
                    out.write(bytes_)
                    progress(self.what, out.done, self.total)

                progress(self.what, out.done, self.total)
                skip = out.done - len(self.beginning)
                for piece in self.pieces:
                    have = min(skip, piece.stop - piece.start)
                    skip -= have
                    hub.copy(piece.file, piece.start + have, piece.stop, write, whole_file=ranges_ignored)
                out.prove()
            except BaseException:
                with suppress(OSError, InputError):  # the first fault is the one to tell
                    out.prove()
                raise
        return str(out.hashed.hexdigest())

    def discard(self) -> None:
        """Remove what is there of it."""
        self.part.unlink(missing_ok=True)
        _record(self.part).unlink(missing_ok=True)

    def _require_room(self, done: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if free < self.total - done:
            raise InputError(
                f"there is no room for {self.what} in {self.part.parent}",
                got=f"{free / 1e6:.1f} MB free",
                expected=f"{(self.total - done) / 1e6:.1f} MB",
                mend="Free some space, or choose another cache folder.",
            )

    def _proven(self) -> tuple[int, Any]:
        """How much of an earlier attempt can be kept, and its running hash: nothing, unless it is what was proven."""
        try:
            record = json.loads(_record(self.part).read_bytes())
            done, expected = int(record["bytes"]), str(record["sha256"])
            with self.part.open("rb") as earlier:
                if not len(self.beginning) <= done <= self.total or earlier.read(len(self.beginning)) != self.beginning:
                    return 0, sha256()
                hashed, left = sha256(self.beginning), done - len(self.beginning)
                while left and (some := earlier.read(min(left, _READ_AT_ONCE_BYTES))):
                    hashed.update(some)
                    left -= len(some)
        except (OSError, ValueError, KeyError, TypeError):
            return 0, sha256()
        return (done, hashed) if left == 0 and hashed.hexdigest() == expected else (0, sha256())


@dataclass
class _ProvenFile:
    """A file that is flushed to the disk now and then, and notes how far and with which hash."""

    file: BinaryIO
    path: Path
    done: int
    hashed: Any
    _noted: int = field(init=False)

    def __post_init__(self) -> None:
        self._noted = self.done

    def write(self, some: bytes) -> None:
        self.file.write(some)
        self.hashed.update(some)
        self.done += len(some)
        if self.done - self._noted >= _PROVEN_EVERY_BYTES:
            self.prove()

    def prove(self) -> None:
        """Bring everything to the disk, and then note it: never the other way round."""
        self.file.flush()
        os.fsync(self.file.fileno())
        with whole_file(_record(self.path)) as note:
            note.write_text(json.dumps({"bytes": self.done, "sha256": self.hashed.hexdigest()}), encoding="ascii")
        self._noted = self.done


def _record(part: Path) -> Path:
    return part.with_name(part.name + ".proven")
