"""Unpack a tar archive from outside as if it were hostile: plain files below one folder, or nothing at all."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from medvisionllama.errors import InputError

MOST_MEMBERS = 100_000  # the largest Decathlon task holds about 1,500
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
_NOT_IN_NAMES = frozenset('\\:*?"<>|') | {chr(code) for code in range(32)}  # what some system reads as more than a name


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack ``archive`` so that its one top folder becomes ``folder``; whole or not at all.

    Plain files and folders are taken. Links, devices, sparse files, names that lead elsewhere or that some system
    would read as more than a name, and files named twice are refused. Hidden files, such as those macOS adds, are
    passed over. Owners, modes and dates of the archive are not.

    Raises:
        InputError: The archive is damaged or refused, ``folder`` exists, or it cannot be written.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already", mend="Choose another folder, or remove it.")
    staging = folder.with_name(f".{folder.name}.unpacking")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            with tarfile.open(archive, "r:") as tar:
                for member, below in _plain_members(archive, tar, folder.name):
                    _write(tar, member, staging / below)
            staging.replace(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{archive} is damaged", got=str(error), mend="Remove it and download again.") from error
    except OSError as error:
        raise InputError(f"cannot unpack {archive} to {folder}", got=error.strerror or str(error)) from error
    return folder


def _plain_members(archive: Path, tar: tarfile.TarFile, top: str) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """Each file to write, and its path below the top folder."""
    seen: set[str] = set()
    for number, member in enumerate(tar):
        path = PurePosixPath(member.name)
        fault = _fault(member, path, top)
        if not fault and member.isfile() and str(path).casefold() in seen:
            fault = "names the same file twice"
        if not fault and number >= MOST_MEMBERS:
            fault = f"holds more than {MOST_MEMBERS} files"
        if fault:
            raise InputError(
                f"{archive} is not unpacked: {member.name!r} {fault}", mend="Obtain the archive from its publisher."
            )
        if member.isfile() and not any(part.startswith(".") for part in path.parts):
            seen.add(str(path).casefold())
            yield member, path.relative_to(top)


def _fault(member: tarfile.TarInfo, path: PurePosixPath, top: str) -> str:
    """Why a member is refused, or nothing."""
    if member.type not in (*_PLAIN, tarfile.DIRTYPE) or member.issparse():
        return "is no plain file or folder"
    if path.is_absolute() or ".." in path.parts or _NOT_IN_NAMES & set(str(path)):
        return "leads out of the folder"
    if path.parts[:1] == (f"._{top}",):  # the companion macOS packs for the folder itself
        return ""
    if path.parts[:1] != (top,) or (len(path.parts) == 1 and not member.isdir()):
        return f"does not lie below {top}"
    return ""


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # a plain file always has content
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    if target.stat().st_size != member.size:
        raise EOFError(f"{member.name} is cut short")
