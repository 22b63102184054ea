"""One layer of a language model, brought here with little more than its own bytes.

A safetensors file begins with a list of its tensors and their offsets. That list is read first, then the
layer's tensors alone, by HTTP range requests, across as many shards as they lie in: 436 MB of Llama-3.1-8B
instead of 16 GB. What is at hand already is used from there: a folder, the embedded model, this program's
own cache, the hub library's cache.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvisionllama.errors import InputError
from medvisionllama.language.families import Family, family_of
from medvisionllama.language.layout import (
    INDEX_FILE,
    PICKLE_FILE,
    SINGLE_FILE,
    Checkpoint,
    check_layer,
    digest,
    read_json,
    resolve_layers,
)
from medvisionllama.language.source import Source, find_source
from medvisionllama.language.store import ModelStore, default_store, disk_faults_told, stored_layer

if TYPE_CHECKING:
    from medvisionllama.language.download import Progress
    from medvisionllama.language.hub import Hub


_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchResult:
    """One layer that is now at hand."""

    name: str
    """What was asked for: a name, a hub id or a folder."""
    layer: int
    """The layer, counted from 0."""
    bytes_needed: int
    """Bytes of the layer's tensors, with the final norm where the family has one, as they are stored."""
    bytes_fetched: int
    """Bytes of answers received for it, headers of files included; 0 where it was at hand."""
    sha256: str
    """Of the tensors as stored: see `layout.digest`."""
    path: str
    """The file, or the folder of files, that holds it."""
    revision: str | None
    """The commit, where it is known."""


@dataclass(frozen=True)
class Located:
    """A language model's wanted layers, all at hand."""

    numbers: Mapping[str, Any]
    """The model's config.json."""
    revision: str | None
    """The commit on the hub, or what else is known of the origin."""
    layers: Mapping[int, Checkpoint]
    """For each layer, counted from 0, the checkpoint that holds it."""
    bytes_fetched: Mapping[int, int]
    """For each layer, the bytes received for it just now."""


def fetch_block(
    name: str,
    layers: Iterable[int] = (-1,),
    *,
    cache: Path | None = None,
    revision: str | None = None,
    whole_file: bool = False,
    offline: bool = False,
    token: str | None = None,
    progress: Progress | None = None,
    hub: Hub | None = None,
) -> tuple[FetchResult, ...]:
    """Bring layers of a language model to this machine, unless they are here.

    Args:
        name: A name of the catalog, a hub id, or a folder.
        layers: The layers; negative numbers count from the end. One asked for twice is brought once.
        cache: Where to keep them; None takes the place shared by all runs of this user.
        revision: The hub's branch, tag or commit; None takes the catalog's. A branch stays at the commit it
            was first fetched at.
        whole_file: Accept a server that sends whole files only, at the price of receiving them.
        offline: Never touch the network.
        token: Access token; None takes the one the hub library finds.
        progress: Told about bytes as they arrive.
        hub: Another hub than the usual one.

    Returns:
        One result for each different layer, in the order first asked for.

    Raises:
        InputError: No such model, revision or layer; a refusal by the hub, no network, no disk space; files
            that do not fit the model's shape.
    """
    source = find_source(name, revision)
    if hub is None and not offline and source.folder is None:
        from medvisionllama.language.hub import Hub

        hub = Hub(token=token)
    located = locate(
        source, tuple(layers), cache=cache, hub=None if offline else hub, whole_file=whole_file, progress=progress
    )
    family = family_of(located.numbers, source=name)
    results = []
    for index, checkpoint in located.layers.items():
        names = checkpoint.layer_names(family, index, final_norm=True)
        check_layer(checkpoint.facts(names), family, located.numbers, index, source=checkpoint.name)
        tensors = checkpoint.read(names)
        files = {checkpoint.files[theirs] for theirs in names.values()}
        results.append(
            FetchResult(
                name=name,
                layer=index,
                bytes_needed=sum(value.nbytes for value in tensors.values()),
                bytes_fetched=located.bytes_fetched.get(index, 0),
                sha256=digest(tensors),
                path=str(files.pop() if len(files) == 1 else files.pop().parent),
                revision=located.revision,
            )
        )
    return tuple(results)


def locate(
    source: Source,
    layers: tuple[int, ...],
    *,
    cache: Path | None,
    hub: Hub | None,
    whole_file: bool = False,
    progress: Progress | None = None,
) -> Located:
    """Find layers on this machine, or fetch them.

    Args:
        source: The model.
        layers: The layers; negative numbers count from the end.
        cache: Where fetched layers are kept; None takes the shared place.
        hub: Where to fetch from; None stays off the network.
        whole_file: Accept a server that sends whole files only.
        progress: Told about bytes as they arrive.

    Raises:
        InputError: As `fetch_block`.
    """
    if source.folder is not None:
        source.verify_file()
        numbers = read_json(source.folder / "config.json")
        return _in_folder(source.folder, numbers, source, layers, source.revision)
    assert source.hub_id is not None, "a source is a folder or on the hub"
    assert source.revision is not None, "a source on the hub has a revision"
    store = ModelStore(default_store() if cache is None else cache, source.hub_id)
    with disk_faults_told(store.root):
        return (
            _in_store(store, source, layers)
            or _in_hub_library_cache(store, source, layers, may_fetch=hub is not None)
            or _from_hub(store, source, layers, hub, whole_file, progress or _silent)
        )


def model_numbers(source: Source, *, cache: Path | None = None) -> Mapping[str, Any] | None:
    """A model's config.json as far as it is known without the network, or None."""
    if source.numbers is not None:
        return source.numbers
    assert source.hub_id is not None, "a source without numbers is on the hub"
    store = ModelStore(default_store() if cache is None else cache, source.hub_id)
    if (commit := store.commit_of(source.revision or "main")) and (numbers := store.numbers(commit)):
        return numbers
    return _numbers_in_library(source)


def _in_library(source: Source, name: str) -> Path | None:
    """A file of the model in the hub library's cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    assert source.hub_id is not None, "only what is on the hub is looked for"
    try:
        path = try_to_load_from_cache(source.hub_id, name, revision=source.revision)
    except (OSError, ValueError):  # a damaged ref there names no commit
        return None
    return Path(path) if isinstance(path, str) else None


def _numbers_in_library(source: Source) -> dict[str, Any] | None:
    """The config.json in the hub library's cache, if it is there and can be read."""
    config = _in_library(source, "config.json")
    try:
        return None if config is None else read_json(config)
    except InputError:
        return None


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def _in_folder(
    folder: Path, numbers: Mapping[str, Any], source: Source, layers: tuple[int, ...], revision: str | None
) -> Located:
    indices = _indices(numbers, layers, source)
    checkpoint = Checkpoint.of_folder(folder)
    return Located(numbers, revision, dict.fromkeys(indices, checkpoint), {})


def _indices(numbers: Mapping[str, Any], layers: tuple[int, ...], source: Source) -> tuple[int, ...]:
    """The layers counted from 0, once the model is known to be of a family known here."""
    family_of(numbers, source=source.given)
    n_layers = numbers.get("num_hidden_layers")
    if not isinstance(n_layers, int):
        raise InputError(
            f"config.json of {source.given} does not say how many layers there are",
            got=f"num_hidden_layers {n_layers!r}",
            mend="Restore the file.",
        )
    return resolve_layers(layers, n_layers, source=source.given)


def _in_store(store: ModelStore, source: Source, layers: tuple[int, ...]) -> Located | None:
    """The layers from this program's own cache, if all of them are there."""
    commit = store.commit_of(source.revision or "")
    numbers = store.numbers(commit) if commit else None
    if commit is None or numbers is None:
        return None
    found = {}
    for index in _indices(numbers, layers, source):
        checkpoint = stored_layer(store, commit, index)
        if checkpoint is None:
            return None
        found[index] = checkpoint
    return Located(numbers, commit, found, {})


def _in_hub_library_cache(
    store: ModelStore, source: Source, layers: tuple[int, ...], *, may_fetch: bool
) -> Located | None:
    """The layers from the hub library's cache, if their files are there; damaged ones only hinder who cannot fetch."""
    numbers = _numbers_in_library(source)
    config = _in_library(source, "config.json")
    if numbers is None or config is None:
        return None
    indices = _indices(numbers, layers, source)
    try:
        checkpoint = _in_snapshot(config.parent, store, family_of(numbers, source=source.given), numbers, indices)
    except InputError as fault:
        if not may_fetch:
            raise
        _LOG.warning("%s The hub library's copy is not used.", fault)
        return None
    if checkpoint is None:
        return None
    return Located(numbers, config.parent.name, dict.fromkeys(indices, checkpoint), {})


def _in_snapshot(
    snapshot: Path, store: ModelStore, family: Family, numbers: Mapping[str, Any], indices: tuple[int, ...]
) -> Checkpoint | None:
    from medvisionllama.language.pickled import Pickle, converted

    if (snapshot / INDEX_FILE).is_file() or (snapshot / SINGLE_FILE).is_file():
        checkpoint = Checkpoint.of_folder(snapshot)
        for index in indices:
            names = checkpoint.layer_names(family, index, final_norm=True)
            if not all(checkpoint.files[theirs].is_file() for theirs in names.values()):
                return None
            check_layer(checkpoint.facts(names), family, numbers, index, source=checkpoint.name)
        return checkpoint
    if (snapshot / PICKLE_FILE).is_file():
        store.at(snapshot.name).mkdir(parents=True, exist_ok=True)
        left_alone = Pickle(snapshot / PICKLE_FILE, lambda: None)
        return converted(store, snapshot.name, family, lambda: left_alone)
    return None


def _from_hub(
    store: ModelStore,
    source: Source,
    layers: tuple[int, ...],
    hub: Hub | None,
    whole_file: bool,
    progress: Progress,
) -> Located:
    if hub is None:
        raise InputError(
            f"{source.given} is not on this machine, and the network may not be used",
            mend=f"Run `medvisionllama blocks fetch {source.given}` once without --offline.",
        )
    from medvisionllama.language.hub_model import HubModel

    start = hub.bytes_received
    model = HubModel.open(hub, store, source)
    indices = _indices(model.numbers, layers, source)
    found, received = {}, {}
    for index in indices:
        before = hub.bytes_received
        found[index] = model.layer(index, whole_file, progress)
        received[index] = hub.bytes_received - before
    # What was read to know the model counts towards its first layer.
    received[indices[0]] += hub.bytes_received - start - sum(received.values())
    return Located(model.numbers, model.commit, found, received)
