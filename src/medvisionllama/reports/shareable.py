"""What a page may tell of the machine it was made on: names, never the folders that lead to them.

A page is sent around, and where data and runs lie on a disk is nobody's business: it names users, hospitals, projects.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

# From a root, a home or a drive, up to the last separator. Addresses (https://) have a colon before theirs.
_FOLDERS = re.compile(r"(?<![\w.:/\\-])(?:~[\w-]*|[A-Za-z]:)?[/\\]+(?:[^\s/\\'\",;:()]+[/\\]+)*(?=[^\s/\\])")


def shareable_command(command: str) -> str:
    """The command with names in place of private paths, still to be copied: only ``DATA`` is to be filled in.

    A path is private where it starts at a root, a home or a drive, or climbs by ``..``. Of the run, ``runs/NAME`` is
    left; of the data set, ``DATA/NAME``; of anything else, the name.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that never closes
        return shareable(command)
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        option, _, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
        if value and _is_private(value):
            option_named = option or (before if before.startswith("--") and "=" not in before else "")
            folder = {"--run": "runs/", "": "DATA/"}.get(option_named, "")
            value = folder + _name(value)
        shown.append(f"{option}={value}" if option else value)
    return shlex.join(shown)


def shareable(text: str, runs: Sequence[Path] = ()) -> str:
    """The text without the folders of its paths; of the ``runs``, and what lies in them, the run's name stays."""
    for run in sorted(runs, key=lambda path: -len(str(path))):
        if _is_private(str(run)):
            text = text.replace(str(run), _name(str(run)))
    return _FOLDERS.sub("", text)


def _is_private(path: str) -> bool:
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    return posix.is_absolute() or windows.is_absolute() or path.startswith("~") or ".." in windows.parts


def _name(path: str) -> str:
    return PureWindowsPath(path).name or "folder"  # it splits at both kinds of slashes
