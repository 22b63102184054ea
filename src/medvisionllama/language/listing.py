"""What is known of a language block before it is used: the lines of `blocks list` and `blocks show`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvisionllama.language.block import BlockConfig
from medvisionllama.language.building import meta_block
from medvisionllama.language.catalog import CATALOG, CatalogEntry
from medvisionllama.language.source import find_source
from medvisionllama.language.store import ModelStore, default_store


@dataclass(frozen=True)
class BlockSummary:
    """One language model as `blocks list` prints it."""

    name: str
    """The catalog's name, the hub id or the folder."""
    hub_id: str | None
    """Owner and name on the hub, if it is there."""
    revision: str | None
    """The branch or commit that is read; None for a folder."""
    family: str
    """The family's name."""
    width: int
    """Width L of its tokens."""
    layers: int
    """Number of layers."""
    layer_parameters: int
    """Parameters of one layer, without the final norm."""
    layer_bytes: int | None
    """Size of one layer as the hub stores it; None where only the file can say."""
    licence: str | None
    """The licence it is published under; None where it is not known here."""
    gated: bool
    """Whether the licence must be accepted on the hub first."""
    embedded: bool
    """Whether it is installed with the extra `embedded`, so that nothing need be fetched."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


def list_blocks() -> list[BlockSummary]:
    """Every language model of the catalog, in its order."""
    return [_of_entry(entry) for entry in CATALOG.values()]


def show_block(name: str, *, cache: Path | None = None) -> dict[str, Any]:
    """All that is known of one language model, as a JSON-ready object.

    Args:
        name: A name of the catalog, a folder, or a hub id of which a layer was fetched.
        cache: Where fetched layers are kept; None takes the shared place.

    Returns:
        The fields of `BlockSummary`, and `at_hand`: the files of this program's cache that hold its layers,
        or the folder it is read from.

    Raises:
        InputError: No such model, an unknown family, or a hub id of which nothing is here.
    """
    source = find_source(name)
    summary = _of_entry(CATALOG[name]) if name in CATALOG else _of_other(name, cache)
    if source.folder is not None:
        at_hand = [str(source.folder)]
    else:
        assert source.hub_id is not None, "a source is a folder or on the hub"
        store = ModelStore(default_store() if cache is None else cache, source.hub_id)
        at_hand = sorted(str(path) for path in store.folder.glob("*/*.safetensors"))
    return summary.to_dict() | {"at_hand": at_hand}


def _of_entry(entry: CatalogEntry) -> BlockSummary:
    embedded = find_source(entry.name).folder is not None
    return BlockSummary(
        name=entry.name,
        hub_id=entry.hub_id,
        revision=entry.revision,
        family=entry.family,
        width=entry.width,
        layers=entry.n_layers,
        layer_parameters=entry.layer_parameters,
        layer_bytes=entry.layer_bytes,
        licence=entry.licence,
        gated=entry.gated,
        embedded=embedded,
    )


def _of_other(name: str, cache: Path | None) -> BlockSummary:
    """A model outside the catalog, from its config.json."""
    source = find_source(name)
    block = meta_block(BlockConfig(source=name, final_norm=False), cache=cache)
    return BlockSummary(
        name=name,
        hub_id=source.hub_id,
        revision=source.revision,
        family=block.identity.family,
        width=block.width,
        layers=int(block.model_config.num_hidden_layers),
        layer_parameters=sum(parameter.numel() for parameter in block.parameters()),
        layer_bytes=None,
        licence=None,
        gated=False,
        embedded=False,
    )
