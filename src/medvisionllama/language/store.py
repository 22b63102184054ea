"""The cache of fetched layers, shared by every process of a user.

    STORE/<owner>--<name>/refs/<revision>          the commit a branch or tag stood for when it was fetched
    STORE/<owner>--<name>/<commit>/config.json     the model's shape
    STORE/<owner>--<name>/<commit>/layer-31.safetensors   one layer (and the final norm), as the hub stores it
    STORE/<owner>--<name>/<commit>/layer-31.json   where it came from, and its sha256
    STORE/<owner>--<name>/<commit>/converted.safetensors  all layers of a model that came as pytorch_model.bin

A file under its final name is complete: it is written under another one, flushed, and renamed. Its record
is written before it, so weights without a record do not exist. Nothing complete is ever removed: what is damaged
counts as absent, and is replaced by whoever fetches it again, under a lock.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from typing import Any

from medvisionllama.errors import InputError
from medvisionllama.language.layout import Checkpoint, digest, read_json
from medvisionllama.whole_file import whole_file

_LOG = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DISK = "Try again; if it happens twice, mistrust the disk."


def default_store() -> Path:
    """Where the hub library keeps what other libraries derive from the hub (below HF_HOME)."""
    from huggingface_hub import constants

    # Not `cached_assets_path`, which makes the folder: a cache on a disk that is read-only may well be read.
    return Path(constants.HF_ASSETS_CACHE).expanduser() / "medvisionllama" / "blocks" / "layers"


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit hash, which always means the same files."""
    return _COMMIT.fullmatch(revision) is not None


@contextmanager
def disk_faults_told(folder: Path) -> Iterator[None]:
    """Turn what an operating system says of a full or unwritable disk into something a user can mend.

    Raises:
        InputError: In place of an OSError.
    """
    try:
        yield
    except OSError as fault:
        raise InputError(
            f"the cache {folder} cannot be read or written: {fault.strerror or fault}",
            mend="Free some space or choose another cache folder; what is complete there stays sound.",
        ) from None


class ModelStore:
    """One model's part of the cache."""

    def __init__(self, root: Path, hub_id: str) -> None:
        self.root = root
        self.hub_id = hub_id
        self.folder = root / hub_id.replace("/", "--")

    def commit_of(self, revision: str) -> str | None:
        """The commit a revision stands for, as far as is known here."""
        if is_commit(revision):
            return revision
        try:
            commit = self._ref(revision).read_bytes().strip().decode("ascii")
        except (OSError, UnicodeDecodeError):
            return None
        return commit if is_commit(commit) else None

    def remember(self, revision: str, commit: str) -> None:
        """Note which commit a branch or tag stands for."""
        if not is_commit(revision):
            with whole_file(self._ref(revision)) as part:
                part.write_text(commit, encoding="ascii")

    def _ref(self, revision: str) -> Path:
        return self.folder / "refs" / revision.replace("/", "--")

    def at(self, commit: str) -> Path:
        """The folder of one commit."""
        return self.folder / commit

    def numbers(self, commit: str) -> dict[str, Any] | None:
        """The model's config.json, if it is here and can be read: a damaged one is fetched anew."""
        try:
            return read_json(self.at(commit) / "config.json")
        except (InputError, OSError):
            return None

    def weights(self, commit: str, stem: str) -> Path:
        """Where the weights called `stem` (`layer-31`, `converted`) are, or will be."""
        return self.at(commit) / f"{stem}.safetensors"

    def checkpoint(self, commit: str, stem: str) -> Checkpoint | None:
        """Weights that are here and sound, or None: damaged ones count as absent, so that they are fetched again."""
        path = self.weights(commit, stem)
        if not path.is_file():
            return None
        try:
            checkpoint = Checkpoint.of_file(path)
            found = digest(checkpoint.read({name: name for name in checkpoint.files}))
            recorded = read_json(path.with_suffix(".json")).get("sha256")
        except InputError as fault:
            _LOG.warning("%s The cache's copy is not used.", fault)
            return None
        if found != recorded:
            _LOG.warning("%s does not match its recorded sha256 and is not used.", path)
            return None
        return checkpoint

    def admit(self, part: Path, path: Path, record: Mapping[str, Any], arrived: str | None = None) -> Checkpoint:
        """Give complete weights their final name, with a record of their origin. The caller holds their lock.

        Args:
            part: The complete file under its provisional name, in the same folder.
            path: Its final name.
            record: What to note besides the sha256, which is computed here.
            arrived: The SHA-256 of what was written, where the file is to be compared with it.

        Raises:
            InputError: The file cannot be read back, or not as it was written.
        """
        if arrived is not None:
            with part.open("rb") as stream:
                found = file_digest(stream, "sha256").hexdigest()
            if found != arrived:
                raise InputError(f"{part} is not what was written", got=f"sha256 {found}", expected=arrived, mend=_DISK)
        checkpoint = Checkpoint.of_file(part)
        found = digest(checkpoint.read({name: name for name in checkpoint.files}))
        with whole_file(path.with_suffix(".json")) as note:
            note.write_text(json.dumps({**record, "sha256": found}, indent=1), encoding="utf-8")
        part.replace(path)
        return Checkpoint.of_file(path)


def layer_stem(index: int) -> str:
    """What the weights of a layer are called in the cache."""
    return f"layer-{index:02d}"


def stored_layer(store: ModelStore, commit: str, index: int) -> Checkpoint | None:
    """A sound checkpoint in the cache that holds a layer, or None."""
    return store.checkpoint(commit, layer_stem(index)) or store.checkpoint(commit, "converted")
