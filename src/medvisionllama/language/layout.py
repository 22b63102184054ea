"""A checkpoint folder in Hugging Face layout: which file holds which tensor, and one layer's tensors.

Such a folder has a config.json and either one model.safetensors or several shards with an index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from medvisionllama.errors import InputError
from medvisionllama.language.attention import register
from medvisionllama.language.families import Family, config_faults_told

_T = TypeVar("_T")

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_FILE = "pytorch_model.bin"
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a number in the formats that are read here, by safetensors' names of them."""


@dataclass(frozen=True)
class TensorFacts:
    """What a checkpoint says of a tensor before it is read."""

    dtype: str
    """As safetensors calls it."""
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """The object a JSON file holds.

    Raises:
        InputError: The file is missing, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing", mend="Give a folder in Hugging Face layout.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as fault:
        raise InputError(f"{path} is not JSON: {fault}", mend="Restore the file.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no object", got=type(content).__name__, mend="Restore the file.")
    return content


def resolve_layers(layers: Iterable[int], n_layers: int, *, source: str) -> tuple[int, ...]:
    """Layer numbers counted from 0, with negative ones counted from the end.

    Raises:
        InputError: A number lies outside the model.
    """
    resolved = []
    for layer in layers:
        if not -n_layers <= layer < n_layers:
            raise InputError(
                f"the language model {source} has no layer {layer}",
                got=f"layer {layer}",
                expected=f"0 to {n_layers - 1}, or -{n_layers} to -1 counted from the end",
                mend="Choose a layer in that range.",
            )
        resolved.append(layer % n_layers)
    return tuple(resolved)


def layer_tensor_names(
    family: Family, index: int, *, final_norm: bool, available: Iterable[str], source: str
) -> dict[str, str]:
    """Which of a checkpoint's tensors make up layer `index`.

    Args:
        family: The checkpoint's family.
        index: The layer, counted from 0.
        final_norm: Whether the model's final norm is wanted too (ignored where the family has none).
        available: Every tensor name of the checkpoint.
        source: How to call the checkpoint in messages.

    Returns:
        Our name -> the checkpoint's name. Ours are `layer.` plus the name inside the `transformers` layer,
        and `norm.weight` (`norm.bias`). Old names are translated (`gamma`, `beta`) and stored rotary
        frequencies, which are no weights, left out.

    Raises:
        InputError: The checkpoint has no tensor of that layer, or no final norm where one is wanted.
    """
    available = tuple(available)
    chosen = _under_first_prefix(available, [p.format(i=index) for p in family.layer_prefixes], "layer.")
    if not chosen:
        raise InputError(
            f"{source} holds no tensor of layer {index}",
            expected="names that begin with " + " or ".join(p.format(i=index) for p in family.layer_prefixes),
            mend="Give a complete checkpoint of this model.",
        )
    if final_norm and family.has_final_norm:
        norm = _under_first_prefix(available, family.norm_prefixes, "norm.")
        if not norm:
            raise InputError(
                f"{source} holds no final norm",
                expected="names that begin with " + " or ".join(family.norm_prefixes),
                mend="Give a complete checkpoint, or set final_norm to false.",
            )
        chosen |= norm
    return chosen


def _under_first_prefix(available: tuple[str, ...], prefixes: Iterable[str], ours: str) -> dict[str, str]:
    """The names under the first prefix that any tensor has, renamed to begin with `ours`."""
    for prefix in prefixes:
        names = [name for name in available if name.startswith(prefix)]
        if names:
            return {ours + _modern(name.removeprefix(prefix)): name for name in names if _is_weight(name)}
    return {}


def _is_weight(name: str) -> bool:
    return not name.endswith(("rotary_emb.inv_freq", ".masked_bias"))


def _modern(name: str) -> str:
    """Norms of old BERT files say gamma and beta."""
    stem, _, last = name.rpartition(".")
    renamed = {"gamma": "weight", "beta": "bias"}.get(last, last)
    return f"{stem}.{renamed}" if stem else renamed


def check_shapes(tensors: Mapping[str, tuple[int, ...]], model: nn.Module, *, source: str) -> None:
    """Compare a checkpoint's shapes with the ones the layer needs.

    Args:
        tensors: Name inside `model` -> shape found.
        model: The layer (and norm) to be filled; the meta device will do.
        source: How to call the checkpoint in messages.

    Raises:
        InputError: A tensor is missing, one is too many, or one has another shape.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if missing := sorted(set(wanted) - set(tensors)):
        raise InputError(
            f"{source} lacks {len(missing)} tensors of the layer", expected=", ".join(missing[:4]), mend=_MEND
        )
    if surplus := sorted(set(tensors) - set(wanted)):
        raise InputError(
            f"{source} has {len(surplus)} tensors the layer does not know", got=", ".join(surplus[:4]), mend=_MEND
        )
    for name, shape in wanted.items():
        if tensors[name] != shape:
            raise InputError(
                f"{source} has a misshapen tensor {name}", got=f"shape {tensors[name]}", expected=f"{shape}", mend=_MEND
            )


def check_layer(
    tensors: Mapping[str, TensorFacts], family: Family, numbers: Mapping[str, Any], index: int, *, source: str
) -> None:
    """Compare one layer and the final norm, as a checkpoint describes them, with what config.json asks for.

    Args:
        tensors: Our name (see `layer_tensor_names`) -> what the checkpoint says of it.
        family: The checkpoint's family.
        numbers: Its config.json.
        index: The layer, counted from 0.
        source: How to call the checkpoint in messages.

    Raises:
        InputError: As `check_shapes`, the numbers are stored in a format that is not read here, or config.json fits no
            layer.
    """
    if odd := sorted(name for name, facts in tensors.items() if facts.dtype not in ITEM_BYTES):
        raise InputError(
            f"{source} stores {odd[0]} in a number format that is not read here",
            got=tensors[odd[0]].dtype,
            expected="one of " + ", ".join(ITEM_BYTES),
            mend="Choose a checkpoint that is not quantised.",
        )
    register()
    with config_faults_told(source), torch.device("meta"):
        config = family.model_config(numbers)
        wanted = nn.ModuleDict({"layer": family.build_layer(config, index)})
        if (norm := family.build_final_norm(config)) is not None:
            wanted["norm"] = norm
    check_shapes({name: facts.shape for name, facts in tensors.items()}, wanted, source=source)


_MEND = "Give a checkpoint whose config.json and weights belong together."


class Checkpoint:
    """Safetensors files seen as one mapping from tensor name to file: a folder's, or a single one."""

    def __init__(self, files: Mapping[str, Path], name: str) -> None:
        self.files = files
        """Tensor name -> the file that holds it."""
        self.name = name
        """How to call the checkpoint in messages."""

    @classmethod
    def of_folder(cls, folder: Path) -> Checkpoint:
        """The checkpoint of a folder in Hugging Face layout.

        Raises:
            InputError: The folder has no safetensors weights, or a damaged index.
        """
        return cls(_files_by_tensor(folder), str(folder))

    @classmethod
    def of_file(cls, path: Path) -> Checkpoint:
        """One safetensors file.

        Raises:
            InputError: The file is damaged.
        """
        return cls(_tensors_in(path), str(path))

    def layer_names(self, family: Family, index: int, *, final_norm: bool) -> dict[str, str]:
        """Our name -> the checkpoint's for the tensors of one layer; see `layer_tensor_names`."""
        return layer_tensor_names(family, index, final_norm=final_norm, available=self.files, source=self.name)

    def read(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Read tensors and nothing else.

        Args:
            names: Our name -> the checkpoint's name.

        Returns:
            Our name -> the tensor on the CPU, in its stored dtype, backed by the mapped file.

        Raises:
            InputError: A file is missing, is damaged, or lacks a tensor that the index promises.
        """
        return self._of_each(names, lambda handle, name: handle.get_tensor(name))

    def facts(self, names: Mapping[str, str]) -> dict[str, TensorFacts]:
        """What the files say of tensors, without reading these; arguments and errors as those of `read`."""

        def look(handle: Any, name: str) -> TensorFacts:
            found = handle.get_slice(name)
            return TensorFacts(found.get_dtype(), tuple(found.get_shape()))

        return self._of_each(names, look)

    def _of_each(self, names: Mapping[str, str], take: Callable[[Any, str], _T]) -> dict[str, _T]:
        taken = {}
        with ExitStack() as open_files:
            handles: dict[Path, Any] = {}
            for ours, theirs in names.items():
                path = self.files[theirs]
                try:
                    if path not in handles:
                        handles[path] = open_files.enter_context(safe_open(path, framework="pt"))
                    taken[ours] = take(handles[path], theirs)
                except (OSError, SafetensorError) as fault:
                    raise _damaged(path, fault) from None
        return taken


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors in the order of their names: name, dtype, shape and bytes of each.

    It depends on the values alone, not on the file or the shards they came in.
    """
    found = sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _files_by_tensor(folder: Path) -> dict[str, Path]:
    if (folder / INDEX_FILE).is_file():
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not all(is_plain_name(name) for name in weight_map.values()):
            raise InputError(f"{folder / INDEX_FILE} has no weight_map of plain file names", mend="Restore the file.")
        return {tensor: folder / name for tensor, name in weight_map.items()}
    path = folder / SINGLE_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} holds no weights",
            expected=f"{SINGLE_FILE}, or shards with {INDEX_FILE}",
            mend="Give a folder in Hugging Face layout with safetensors weights.",
        )
    return _tensors_in(path)


def _tensors_in(path: Path) -> dict[str, Path]:
    """Every tensor name of one safetensors file -> that file.

    Raises:
        InputError: The file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            return dict.fromkeys(handle.keys(), path)
    except (OSError, SafetensorError) as fault:
        raise _damaged(path, fault) from None


def is_plain_name(name: object) -> bool:
    """Whether an index names a file beside itself (and not one elsewhere on the disk)."""
    return isinstance(name, str) and name == Path(name).name and not name.startswith(".")


def _damaged(path: Path, fault: Exception) -> InputError:
    return InputError(f"{path} cannot be read as safetensors: {fault}", mend="Restore or fetch the file again.")
