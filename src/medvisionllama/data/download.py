"""The ten tasks of the Medical Segmentation Decathlon, by name: resumed, checked, safely unpacked.

Addresses and MD5 sums are those that MONAI publishes (``monai.apps.DecathlonDataset``). MD5 guards against damage on
the way, not against an attacker: what is unpacked is therefore distrusted all the same (:mod:`.unpack`).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from ssl import SSLError
from typing import cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from medvisionllama.data.task import DESCRIPTION
from medvisionllama.data.unpack import unpack
from medvisionllama.errors import InputError

Progress = Callable[[int, int], None]

SOURCE = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
MD5 = {
    "Task01_BrainTumour": "240a19d752f0d9e9101544901065d872",
    "Task02_Heart": "06ee59366e1e5124267b774dbd654057",
    "Task03_Liver": "a90ec6c4aa7f6a3d087205e23d4e6397",
    "Task04_Hippocampus": "9d24dba78a72977dbd1d2e110310f31b",
    "Task05_Prostate": "35138f08b1efaef89d7424d2bcc928db",
    "Task06_Lung": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task08_HepaticVessel": "641d79e80ec66453921d997fbf12a29c",
    "Task09_Spleen": "410d4a301da4e5b2f6f86ec3ddba524e",
    "Task10_Colon": "bad7a188931dc2f6acf72b08eb6202d0",
}
_CHUNK = 1 << 20
_TIMEOUT_S = 60
_MEND = "Run the same command again: it goes on where it stopped."


@dataclass(frozen=True)
class Archive:
    """A tar archive somewhere, whose one top folder is ``name``."""

    name: str
    url: str
    md5: str


def task_archive(task: str) -> Archive:
    """The archive of a task named as ``Task04_Hippocampus``, ``Task04``, ``4`` or ``hippocampus``.

    Raises:
        InputError: There is no such task.
    """
    wanted = task.strip().lower()
    for name, md5 in MD5.items():
        number, organ = name.removeprefix("Task").split("_")
        if wanted in {name.lower(), f"task{number}", number, str(int(number)), organ.lower()}:
            return Archive(name, f"{SOURCE}/{name}.tar", md5)
    raise InputError("no such Decathlon task", got=task, expected=", ".join(MD5))


def download_task(task: str, to: Path | str, *, progress: Progress | None = None) -> Path:
    """Bring one of the ten tasks to ``to/NAME`` and return that folder.

    Raises:
        InputError: As :func:`download`; or there is no such task.
    """
    return download(task_archive(task), Path(to), progress=progress)


def download(archive: Archive, to: Path, *, progress: Progress | None = None) -> Path:
    """Fetch, verify and unpack an archive; a folder already unpacked is left as it is.

    Args:
        archive: What and from where.
        to: The folder below which ``archive.name`` appears. What has arrived of an interrupted download waits there.
        progress: Called with bytes at hand and bytes in all.

    Raises:
        InputError: The connection fails (run again to go on), the disk is too small, what arrives is not what was
            published, or it is no task.
    """
    folder = to / archive.name
    if (folder / DESCRIPTION).exists():
        return folder
    part = to / f".{archive.name}.tar.part"
    try:
        to.mkdir(parents=True, exist_ok=True)
        _fetch(archive, part, progress)
        _verify(archive, part)
    except OSError as error:
        raise InputError(f"cannot write {part}", got=error.strerror or str(error)) from error
    unpack(part, folder)
    if not (folder / DESCRIPTION).exists():
        shutil.rmtree(folder)
        raise InputError(f"{archive.url} holds no {DESCRIPTION}, so no task", mend="Name another archive.")
    part.unlink()
    return folder


def _fetch(archive: Archive, part: Path, progress: Progress | None) -> None:
    """Complete ``part``: from its end where the server grants that, else from the beginning."""
    if urlsplit(archive.url).scheme not in ("http", "https"):
        raise InputError(f"{archive.url} is no web address", expected="http or https")
    at_hand = part.stat().st_size if part.exists() else 0
    try:
        with _ask(archive.url, at_hand) as response:
            begin, total = _extent(response, archive, at_hand)
            _refuse_full_disk(part.parent, total, begin)
            with part.open("r+b" if begin else "wb") as file:
                file.seek(begin)
                arrived = _copy(response, file.write, begin, total, progress)
    except HTTPError as error:
        if error.code == 416 and at_hand:  # nothing is missing; whether it is right, the checksum tells
            return
        raise InputError(f"{archive.url} was not given", got=f"{error.code} {error.reason}") from error
    except URLError as error:
        raise InputError(
            f"{archive.url} cannot be reached", got=str(error.reason), mend="Look to the network."
        ) from error
    except (HTTPException, ConnectionError, TimeoutError, SSLError) as error:
        raise InputError(f"the connection to {archive.url} broke", got=repr(error), mend=_MEND) from error
    if arrived < total:
        raise InputError(f"the connection to {archive.url} broke", got=f"{arrived} of {total} bytes", mend=_MEND)


def _ask(url: str, begin: int) -> HTTPResponse:
    # Compressed on the way, bytes would not be those of the file that a range counts.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begin}-"} if begin else {})
    return cast(HTTPResponse, urlopen(Request(url, headers=headers), timeout=_TIMEOUT_S))


def _extent(response: HTTPResponse, archive: Archive, at_hand: int) -> tuple[int, int]:
    """Where what comes begins, and how long the whole is."""
    if response.status == 200:
        return 0, _length(response.headers.get("Content-Length"), archive)
    unit_and_range, _, total = (response.headers.get("Content-Range") or "").partition("/")
    if response.status != 206 or not unit_and_range.startswith(f"bytes {at_hand}-"):
        raise InputError(
            f"{archive.url} answers a request for the rest with something else",
            got=f"status {response.status}, {unit_and_range or 'no range'}",
            mend="Remove what has arrived and begin anew.",
        )
    return at_hand, _length(total, archive)


def _length(text: str | None, archive: Archive) -> int:
    if text is None or not text.isdigit():
        raise InputError(f"{archive.url} does not say how long it is", got=str(text))
    return int(text)


def _refuse_full_disk(folder: Path, total: int, at_hand: int) -> None:
    """The archive and what it unpacks to lie side by side for a while."""
    needed, free = 2 * total - at_hand, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"the disk of {folder} is too small",
            got=f"{free / 1e9:.1f} GB free",
            expected=f"{needed / 1e9:.1f} GB",
            mend="Choose another folder.",
        )


def _copy(
    response: HTTPResponse, write: Callable[[bytes], int], begin: int, total: int, progress: Progress | None
) -> int:
    arrived = begin
    while chunk := response.read(_CHUNK):
        write(chunk)
        arrived += len(chunk)
        if progress:
            progress(arrived, total)
    return arrived


def _verify(archive: Archive, part: Path) -> None:
    """What is not what was published is removed, so that the next attempt begins anew."""
    with part.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != archive.md5:
        part.unlink()
        raise InputError(
            f"{archive.url} is not the file that was published",
            got=f"MD5 {found}",
            expected=archive.md5,
            mend="Run the same command again: it begins anew.",
        )
