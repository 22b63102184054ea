"""Tensors on disk as safetensors, written whole or not at all, with readable notes beside them. No pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from medvisionllama.errors import InputError
from medvisionllama.whole_file import whole_file

NOTES = "notes"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write tensors and JSON notes into one safetensors file; a reader sees the old file or the new one.

    Raises:
        InputError: The folder cannot be written, or has no room.
    """
    content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {NOTES: json.dumps(notes)})
    with whole_file(path, lasting=True) as part:
        part.write_bytes(content)  # safetensors' own writing would leave the file to its owner alone


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote, on the CPU.

    Raises:
        InputError: The file is missing, damaged, or holds no notes of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(NOTES)
            # Copies: what is mapped from the file would keep it from being replaced on Windows.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        notes = json.loads(text) if text is not None else None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"cannot read {path}", got=str(error), mend="The file is missing or damaged: train again."
        ) from error
    if not isinstance(notes, dict):
        raise InputError(f"{path} holds no notes of ours", mend="Name a file that `medvisionllama train` wrote.")
    return tensors, notes


def model_tensors(model: nn.Module, left_out: Iterable[str] = ()) -> dict[str, Tensor]:
    """Everything in a model's ``state_dict`` but the names left out (a frozen block's)."""
    unwanted = set(left_out)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in unwanted}


def put_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor], left_out: Iterable[str] = ()) -> None:
    """Put back what :func:`model_tensors` took.

    Raises:
        InputError: A tensor is missing, unknown, or of another shape.
    """
    wanted = model_tensors(model, left_out)
    faults = [f"{name} is missing" for name in wanted.keys() - tensors.keys()]
    faults += [f"{name} is not of this model" for name in tensors.keys() - wanted.keys()]
    faults += [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise InputError("weights do not fit the model", got="; ".join(sorted(faults)[:4]) + more)
    model.load_state_dict(tensors, strict=False)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments, named ``optimizer.PARAMETER.MOMENT``; rates and such come from the recipe instead."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{moment}": torch.as_tensor(value)
        for index, moments in state.items()
        for moment, value in moments.items()
        if value is not None
    }


def put_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` took."""
    content = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        _, index, moment = name.split(".")
        state.setdefault(int(index), {})[moment] = value
    content["state"] = state
    optimizer.load_state_dict(content)
