"""What files hold, by hash, remembered by size and times so that whole data sets need not be read again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from hashlib import file_digest
from os import stat_result
from pathlib import Path

from medvisionllama.errors import InputError
from medvisionllama.run_folder import read_json, write_json

# A file written to while it is hashed, or within the clock's resolution after, might keep its times (git's "racily
# clean"); what is younger than this is hashed again next time.
SETTLED_NS = 2_000_000_000


@dataclass
class KnownContent:
    """Hashes of files that have the size and the times they had when they were hashed.

    Attributes:
        path: Where this is kept. It is a memory only: without it, or if it is damaged, files are hashed again.
        entries: Resolved path to size, time of change, time of status change (ns) and hash.
    """

    path: Path
    entries: dict[str, list[int | str]] = field(default_factory=dict)
    changed: bool = False

    @classmethod
    def read(cls, path: Path) -> KnownContent:
        """What is known so far."""
        try:
            content = read_json(path)
        except InputError:
            return cls(path)
        entries = content.get("files") if isinstance(content, dict) else None
        return cls(path, entries if isinstance(entries, dict) else {})

    def sha256(self, file: Path) -> str:
        """Of the file's bytes.

        Raises:
            InputError: It cannot be read.
        """
        try:
            before, name = file.stat(), str(file.resolve())
            known = self.entries.get(name)
            if isinstance(known, list) and len(known) == 4 and known[:3] == _times(before):
                return str(known[3])
            with file.open("rb") as opened:
                digest = file_digest(opened, "sha256").hexdigest()
            after = file.stat()
        except OSError as error:
            raise InputError(f"cannot read {file}", got=error.strerror or str(error)) from error
        if _times(before) == _times(after) and time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > SETTLED_NS:
            self.entries[name] = [*_times(after), digest]
            self.changed = True
        return digest

    def write(self) -> None:
        """Keep what was learnt; of several processes that do so at once, the last one's is kept."""
        if self.changed:
            write_json(self.path, {"files": self.entries})
            self.changed = False


def _times(status: stat_result) -> list[int | str]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
