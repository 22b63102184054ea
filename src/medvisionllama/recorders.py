"""Where a training's log goes besides ``log.jsonl``, which is always written: TensorBoard, or Weights & Biases offline.

Both packages are extras, imported when asked for.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from medvisionllama.errors import InputError
from medvisionllama.listener import Listener

T = TypeVar("T")
RecorderName = Literal["tensorboard", "wandb"]


class Recorder(Protocol):
    """Keeps the numbers of a training's log entries."""

    def record(self, entry: Mapping[str, Any]) -> None:
        """One log entry; see :mod:`medvisionllama.run_folder`."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


def open_recorder(name: RecorderName, folder: Path) -> Recorder:
    """The recorder called ``name``, for the run in ``folder``; nothing is written before the first entry.

    Raises:
        InputError: Its package is not installed.
    """
    if name == "tensorboard":
        return TensorBoard(folder, _package("torch.utils.tensorboard", "tensorboard"))
    return WeightsAndBiases(folder, _package("wandb", "wandb"))


class TensorBoard:
    """Curves in ``RUN/tensorboard``, shown by ``tensorboard --logdir RUN``."""

    def __init__(self, folder: Path, package: Any) -> None:
        self._folder, self._package = folder, package
        self._writer: Any = None

    def record(self, entry: Mapping[str, Any]) -> None:
        """Written at once, so that a killed run has its curves."""
        if self._writer is None:
            # What an earlier sitting wrote from this step on is written again and must not be shown twice.
            path = str(self._folder / "tensorboard")
            self._writer = self._package.SummaryWriter(path, purge_step=entry["step"])
        for tag, value in numbers_of(entry).items():
            self._writer.add_scalar(tag, value, entry["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases kept in ``RUN/wandb``; nothing is sent before the user says ``wandb sync`` there."""

    def __init__(self, folder: Path, package: Any) -> None:
        self._folder, self._package = folder, package
        self._run: Any = None

    def record(self, entry: Mapping[str, Any]) -> None:
        """Kept by the package, on this machine."""
        if self._run is None:
            self._run = self._package.init(
                mode="offline",
                dir=str(self._folder),
                project="medvisionllama",
                name=self._folder.name,
                # A resumed run goes on under its name: both sittings are synchronised into one.
                id=sha256(str(self._folder.resolve()).encode()).hexdigest()[:16],
                settings=self._package.Settings(console="off", silent=True),
            )
        self._run.log(numbers_of(entry), step=entry["step"])

    def close(self) -> None:
        """Close the run."""
        if self._run is not None:
            self._run.finish()


class Recording:
    """A listener that tells another everything, and recorders every log entry.

    Args:
        listener: Told everything.
        recorders: Told of the training; :meth:`close` closes both.
    """

    def __init__(self, listener: Listener, recorders: Sequence[Recorder]) -> None:
        self._listener, self._recorders = listener, recorders

    def track(self, items: Sequence[T], what: str) -> Iterable[T]:
        """The same items, counted as they are taken."""
        return self._listener.track(items, what)

    def training(self, entry: dict[str, Any], steps: int) -> None:
        """One log entry."""
        self._listener.training(entry, steps)
        for recorder in self._recorders:
            recorder.record(entry)

    def counted(self, what: str) -> Callable[[int, int], None]:
        """A function to be told how many items are done."""
        return self._listener.counted(what)

    def bytes(self, what: str, arrived: int, total: int) -> None:
        """How much of a download has arrived."""
        self._listener.bytes(what, arrived, total)

    def note(self, text: str) -> None:
        """One line worth telling."""
        self._listener.note(text)

    def close(self) -> None:
        """Close the listener and the recorders, however the training ended."""
        try:
            self._listener.close()
        finally:
            for recorder in self._recorders:
                recorder.close()


def numbers_of(entry: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a log entry but its step, nested ones as ``validation_dice_by_class/NAME``."""
    numbers: dict[str, float] = {}
    for key, value in entry.items():
        if isinstance(value, Mapping):
            numbers |= numbers_of(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step" and math.isfinite(value):
            numbers[f"{prefix}{key}"] = float(value)
    return numbers


def _package(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"--log {extra} needs a package that is not installed",
            got=str(error),
            mend=f"pip install 'medvisionllama[{extra}]', or leave out --log: log.jsonl is always written.",
        ) from error
