"""A model on the hub, of which one layer at a time is fetched.

    index or header ── which tensors, in which shards, at which offsets
           └ checked against the shapes that config.json asks for, before any weight is sent
    range requests ── the layer's bytes ── one safetensors file in the cache

The file's beginning and the order of its tensors follow from the model and the layer alone, so that a
broken fetch is taken up again from the bytes that are there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from medvisionllama.errors import InputError
from medvisionllama.language.download import Download, Piece, Progress
from medvisionllama.language.families import Family, family_of
from medvisionllama.language.hub import Hub, HubFile
from medvisionllama.language.layout import (
    INDEX_FILE,
    ITEM_BYTES,
    PICKLE_FILE,
    SINGLE_FILE,
    Checkpoint,
    TensorFacts,
    check_layer,
    is_plain_name,
    layer_tensor_names,
)
from medvisionllama.language.pickled import Pickle, converted
from medvisionllama.language.source import Source
from medvisionllama.language.store import ModelStore, is_commit, layer_stem, stored_layer
from medvisionllama.whole_file import whole_file

_HEADER_GUESS_BYTES = 32 << 10  # holds most shards' headers, so that one request does
_HEADER_BYTES_AT_MOST = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class _TensorPlace:
    """Where one tensor lies in one file of the hub."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    stop: int
    """One past the last byte."""


@dataclass(frozen=True)
class HubModel:
    """A model on the hub at one commit."""

    hub: Hub
    store: ModelStore
    commit: str
    numbers: Mapping[str, Any]
    family: Family

    @classmethod
    def open(cls, hub: Hub, store: ModelStore, source: Source) -> HubModel:
        """Resolve the revision, and keep config.json."""
        revision = source.revision or "main"
        known = store.commit_of(revision)
        file = HubFile(store.hub_id, known or revision, "config.json")
        config = hub.small_file(file)
        if config is None:
            raise InputError(f"{store.hub_id} has no config.json", mend="Choose a model of transformers' layout.")
        commit = config.commit or known
        # The commit becomes a folder's name, so the hub's word for it is not taken unseen.
        if commit is None or not is_commit(commit):
            raise InputError(
                f"the hub does not say which commit {revision} of {store.hub_id} is",
                mend="Give a commit as the revision.",
            )
        try:
            numbers = dict(json.loads(config.content))
        except (ValueError, TypeError):
            raise InputError(f"{file} is not a JSON object", mend="Choose another revision.") from None
        family = family_of(numbers, source=store.hub_id)
        store.at(commit).mkdir(parents=True, exist_ok=True)
        with whole_file(store.at(commit) / "config.json") as part:
            part.write_bytes(config.content)
        store.remember(revision, commit)
        return cls(hub, store, commit, numbers, family)

    def layer(self, index: int, ranges_ignored: bool, progress: Progress) -> Checkpoint:
        """One layer, fetched by exactly one of all processes that ask for it."""
        with WeakFileLock(self.store.at(self.commit) / f"{layer_stem(index)}.lock"):
            if (checkpoint := stored_layer(self.store, self.commit, index)) is not None:
                return checkpoint
            files = self._files()
            if files is None:
                return self._convert(progress)
            return self._fetch_layer(index, files, ranges_ignored, progress)

    def _file(self, name: str) -> HubFile:
        return HubFile(self.store.hub_id, self.commit, name)

    def _files(self) -> Mapping[str, str] | None:
        """Tensor name -> shard from the index; empty for a single file; None where there is only a pickle."""
        if (index := self.hub.small_file(self._file(INDEX_FILE))) is None:
            return {} if self.hub.facts(self._file(SINGLE_FILE)) is not None else None
        try:
            weight_map = json.loads(index.content)["weight_map"]
            if all(is_plain_name(name) for name in weight_map.values()):
                return dict(weight_map)
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise InputError(f"{self._file(INDEX_FILE)} has no weight_map of plain file names", mend="Report it there.")

    def _fetch_layer(
        self, index: int, weight_map: Mapping[str, str], ranges_ignored: bool, progress: Progress
    ) -> Checkpoint:
        places = self._places(index, weight_map, ranges_ignored)
        header = _one_layer_header(places, {"hub_id": self.store.hub_id, "commit": self.commit, "layer": str(index)})
        path = self.store.weights(self.commit, layer_stem(index))
        pieces = tuple(Piece(self._file(file), start, stop) for file, start, stop in _runs(places))
        download = Download(path.with_suffix(".part"), f"layer {index} of {self.store.hub_id}", header, pieces)
        arrived = download.run(self.hub, progress, ranges_ignored=ranges_ignored)
        record = {
            "hub_id": self.store.hub_id,
            "commit": self.commit,
            "layer": index,
            "files": sorted({place.file for place in places}),
            "bytes": download.total,
        }
        try:
            return self.store.admit(download.part, path, record, arrived)
        finally:
            download.discard()

    def _places(self, index: int, weight_map: Mapping[str, str], ranges_ignored: bool) -> list[_TensorPlace]:
        """Where the layer's tensors lie, checked against the shape the model's config.json asks for."""
        if weight_map:
            wanted = self._names(index, weight_map)
            shards = sorted({weight_map[theirs] for theirs in wanted.values()})
        else:
            wanted, shards = {}, [SINGLE_FILE]
        found = {place.name: place for shard in shards for place in self._read_header(shard, ranges_ignored)}
        wanted = wanted or self._names(index, found)
        if missing := sorted(set(wanted.values()) - set(found)):
            raise InputError(
                f"{self.store.hub_id} lacks the tensor {missing[0]}, which its index lists",
                mend="Choose another revision.",
            )
        places = {ours: found[theirs] for ours, theirs in wanted.items()}
        facts = {ours: TensorFacts(place.dtype, place.shape) for ours, place in places.items()}
        check_layer(facts, self.family, self.numbers, index, source=self.store.hub_id)
        return sorted(places.values(), key=lambda place: (place.file, place.start))

    def _names(self, index: int, available: Iterable[str]) -> dict[str, str]:
        return layer_tensor_names(self.family, index, final_norm=True, available=available, source=self.store.hub_id)

    def _read_header(self, shard: str, ranges_ignored: bool) -> list[_TensorPlace]:
        """The tensors of one safetensors file on the hub, from its first bytes."""
        file = self._file(shard)
        facts = self.hub.facts(file)
        if facts is None:
            raise InputError(f"the hub lacks {file}, which its index lists", mend="Choose another revision.")
        head = bytearray()
        guess = _HEADER_GUESS_BYTES if facts.size < 0 else min(_HEADER_GUESS_BYTES, facts.size)
        self.hub.copy(file, 0, guess, head.extend, whole_file=ranges_ignored)
        length = 8 + int.from_bytes(head[:8], "little")
        if not 8 < length <= (facts.size if facts.size > 0 else _HEADER_BYTES_AT_MOST):
            raise _no_safetensors(file)
        if length > len(head):
            self.hub.copy(file, len(head), length, head.extend, whole_file=ranges_ignored)
        return list(_parse_header(file, bytes(head[8:length]), length, facts.size))

    def _convert(self, progress: Progress) -> Checkpoint:
        """All layers of a model that only ships a pickle, which has to be fetched whole."""
        return converted(self.store, self.commit, self.family, lambda: self._pickle(progress))

    def _pickle(self, progress: Progress) -> Pickle:
        """The pickle's file, fetched and compared with the hub's sha256."""
        file = self._file(PICKLE_FILE)
        facts = self.hub.facts(file)
        if facts is None or facts.size < 0:
            raise InputError(
                f"{self.store.hub_id} ships weights in no form that is read here",
                expected=f"{SINGLE_FILE}, shards with {INDEX_FILE}, or {PICKLE_FILE}",
                mend="Choose another model or revision.",
            )
        part = self.store.at(self.commit) / f"{PICKLE_FILE}.part"
        download = Download(part, str(file), b"", (Piece(file, 0, facts.size),))
        arrived = download.run(self.hub, progress, ranges_ignored=True)
        if facts.sha256 not in (None, arrived):
            download.discard()
            raise InputError(
                f"{file} arrived damaged", got=f"sha256 {arrived}", expected=facts.sha256 or "", mend="Try again."
            )
        return Pickle(part, download.discard)


def _runs(places: list[_TensorPlace]) -> list[tuple[str, int, int]]:
    """Neighbouring tensors joined: (file, first byte, one past the last) for each request to make."""
    runs: list[tuple[str, int, int]] = []
    for place in places:
        if runs and runs[-1][0] == place.file and runs[-1][2] == place.start:
            runs[-1] = (place.file, runs[-1][1], place.stop)
        else:
            runs.append((place.file, place.start, place.stop))
    return runs


def _one_layer_header(places: list[_TensorPlace], origin: dict[str, str]) -> bytes:
    """The beginning of a safetensors file that holds these tensors one after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **origin}}
    offset = 0
    for place in places:
        size = place.stop - place.start
        header[place.name] = {
            "dtype": place.dtype,
            "shape": place.shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    return len(text).to_bytes(8, "little") + text


def _parse_header(file: HubFile, text: bytes, data_start: int, size: int) -> Iterable[_TensorPlace]:
    """The tensors a safetensors header lists, each checked to be what its offsets say."""
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            dtype, shape = str(entry["dtype"]), tuple(int(edge) for edge in entry["shape"])
            begin, end = (int(offset) for offset in entry["data_offsets"])
            if dtype in ITEM_BYTES and end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
                raise _no_safetensors(file)
            if begin < 0 or end < begin or (size > 0 and data_start + end > size):
                raise _no_safetensors(file)
            yield _TensorPlace(name, file.name, dtype, shape, data_start + begin, data_start + end)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _no_safetensors(file) from None


def _no_safetensors(file: HubFile) -> InputError:
    return InputError(f"{file} does not begin as a safetensors file does", mend="Choose another revision.")
