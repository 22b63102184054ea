"""Checkpoints that come as a pickle: read as tensors and nothing else, and kept as safetensors.

This is the one place where a pickle is opened. `weights_only=True` refuses whatever is not a tensor or a
plain container, so that nothing in the file is ever run.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from medvisionllama.errors import InputError
from medvisionllama.language.families import Family
from medvisionllama.language.layout import PICKLE_FILE, Checkpoint
from medvisionllama.language.store import ModelStore

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pickle:
    """A pickled checkpoint that is at hand."""

    path: Path
    discard: Callable[[], None]
    """Called once it is read or refused; removes a copy that was fetched for this alone."""


def converted(store: ModelStore, commit: str, family: Family, find_pickle: Callable[[], Pickle]) -> Checkpoint:
    """The layers of a pickled checkpoint as safetensors, converted by one of all processes, once.

    Args:
        store: Where they are kept.
        commit: The commit they belong to.
        family: Their family.
        find_pickle: Brings the pickle; not called where the conversion was done before.

    Raises:
        InputError: The pickle is damaged or holds anything but tensors, or there is no room.
    """
    path = store.weights(commit, "converted")
    with WeakFileLock(path.with_suffix(".lock")):
        if (checkpoint := store.checkpoint(commit, "converted")) is not None:
            return checkpoint
        pickled = find_pickle()
        try:
            tensors = _layers_of_pickle(pickled.path, family)
            _LOG.warning(
                "%s ships no safetensors: its %s was read as tensors only and converted once.",
                store.hub_id,
                PICKLE_FILE,
            )
            return _written(tensors, store, commit, path)
        finally:
            pickled.discard()


def _written(tensors: dict[str, Tensor], store: ModelStore, commit: str, path: Path) -> Checkpoint:
    origin = {"hub_id": store.hub_id, "commit": commit, "converted_from": PICKLE_FILE}
    part = path.with_suffix(".part")
    try:
        save_file(tensors, part, origin)
        return store.admit(part, path, origin)
    except SafetensorError as fault:
        raise InputError(
            f"{path} cannot be written: {fault}", mend="Free some space or choose another cache folder."
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _layers_of_pickle(path: Path, family: Family) -> dict[str, Tensor]:
    """The tensors of a pickled checkpoint that belong to layers or to the final norm.

    Raises:
        InputError: The file is damaged, or holds anything but tensors (which is never run).
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as fault:
        first_line = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise InputError(
            f"{path} cannot be read as tensors only: {first_line}",
            mend="Choose a model with safetensors weights; nothing in the file was run.",
        ) from None
    beginnings = tuple(prefix.partition("{i}")[0] for prefix in family.layer_prefixes) + family.norm_prefixes
    if not isinstance(state, dict):
        raise InputError(f"{path} holds no tensors by name", mend="Choose another model.")
    return {
        name: value.clone().contiguous()
        for name, value in state.items()
        if isinstance(value, Tensor) and isinstance(name, str) and name.startswith(beginnings)
    }
