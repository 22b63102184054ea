"""Where and how a run computes: device, caches, what was moved. No part of a run's definition."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from medvisionllama.errors import InputError
from medvisionllama.processes import ALONE, Processes


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes; no part of its definition.

    Attributes:
        device: What trains and segments.
        cache: Where prepared cases lie.
        block_cache: Where fetched blocks lie; None for where `blocks fetch` puts them.
        offline: Never ask a hub.
        checkpoint_seconds: At least this long between a training's checkpoints.
        block_source: Where a run's language block lies now, if its folder was moved; its hash is compared all the same.
        dataset: Where a run's data set lies now, if its folder was moved.
        processes: Those that train together, this one among them.
        workers: Processes that prepare cases, at most; more than one are spawned, for which a script needs its
            ``if __name__ == "__main__"``.
    """

    device: torch.device
    cache: Path
    block_cache: Path | None = None
    offline: bool = False
    checkpoint_seconds: float = 30.0
    block_source: str | None = None
    dataset: str | None = None
    processes: Processes = ALONE
    workers: int = 1


def default_cache() -> Path:
    """Where prepared cases lie unless said otherwise."""
    return Path.home() / ".cache" / "medvisionllama"


def device_named(name: str) -> torch.device:
    """The device of a name, whether this machine has it or not.

    Raises:
        InputError: No machine has a device of that name.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.index or 0) < 0:  # torch counts as far as it has room for, and goes on below 0
        raise InputError(f"no device is called {name!r}", expected="cpu, cuda, cuda:1 ...")
    return device


def choose_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one.

    Raises:
        InputError: There is no such device.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"no device {name!r} here", got=str(error).splitlines()[0], mend="Use --device cpu, or leave it out."
        ) from error
    return device
