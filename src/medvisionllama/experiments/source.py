"""Which state of the program computes: the commit of the checkout it runs from, or of the archive made from one."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from pathlib import Path

import medvisionllama

ARCHIVED = ".git_archival.txt"  # git writes the commit into it when it makes an archive


@lru_cache
def state_of_source(package: Path | None = None) -> str:
    """The commit, with ``+changes`` where files of the package differ from it; else the package's version."""
    folder = package or Path(medvisionllama.__file__).parent
    for above in folder.parents[:2]:
        archived = above / ARCHIVED
        if archived.is_file() and not (text := archived.read_text(encoding="utf-8").strip()).startswith("$"):
            return text
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--", ".")
    if commit is None or changes is None:
        return f"medvisionllama {medvisionllama.__version__}"
    return commit + ("+changes" if changes else "")


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
