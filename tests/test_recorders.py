"""Curves go to TensorBoard and Weights & Biases besides the log, if asked."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medvisionllama.errors import InputError
from medvisionllama.listener import Silent
from medvisionllama.recorders import Recording, numbers_of, open_recorder

ENTRIES: list[dict[str, Any]] = [
    {"step": 10, "seconds": 2.0, "loss": 1.5, "block_norms": {"entering": 3.0, "leaving": 4.0}},
    {"step": 20, "seconds": 4.0, "loss": 1.25, "validation_dice": 0.5, "validation_loss": float("nan")},
    {"step": 30, "seconds": 6.0, "loss": 1.0, "validation_dice_by_class": {"a": 0.25}, "stopped_early": True},
]


def test_numbers_are_named_by_their_place_and_others_left_out() -> None:
    assert numbers_of(ENTRIES[0]) == {
        "seconds": 2.0, "loss": 1.5, "block_norms/entering": 3.0, "block_norms/leaving": 4.0,
    }  # fmt: skip
    assert numbers_of(ENTRIES[1]) == {"seconds": 4.0, "loss": 1.25, "validation_dice": 0.5}
    assert numbers_of(ENTRIES[2]) == {"seconds": 6.0, "loss": 1.0, "validation_dice_by_class/a": 0.25}
    assert numbers_of({"step": 1, "loss": None}) == {}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recording = Recording(Silent(), [open_recorder("tensorboard", tmp_path)])
    assert not list(tmp_path.iterdir())
    for entry in ENTRIES:
        recording.training(entry, 30)
    # Before it is closed: a killed run has its curves.
    assert curves(tmp_path)["loss"] == [(10, 1.5), (20, 1.25), (30, 1.0)]
    recording.close()
    assert curves(tmp_path)["validation_dice"] == [(20, 0.5)]
    assert curves(tmp_path)["block_norms/leaving"] == [(10, 4.0)]


def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    killed = open_recorder("tensorboard", tmp_path)
    for entry in ENTRIES:
        killed.record(entry)
    killed.close()
    resumed = open_recorder("tensorboard", tmp_path)
    for entry in ENTRIES[1:]:
        resumed.record(entry)
    resumed.close()
    assert curves(tmp_path)["loss"] == [(10, 1.5), (20, 1.25), (30, 1.0)]


class StandIn(SimpleNamespace):
    """What Weights & Biases is asked for."""

    def __init__(self) -> None:
        super().__init__(begun=[], logged=[], finished=0)

    def init(self, **settings: Any) -> "StandIn":
        self.begun.append(settings)
        return self

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802 (the package calls it so)
        return settings

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.finished += 1


def test_weights_and_biases_stays_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    for _ in range(2):  # a run and its resumption
        recorder = open_recorder("wandb", tmp_path / "run")
        recorder.close()
        recorder = open_recorder("wandb", tmp_path / "run")
        for entry in ENTRIES[:2]:
            recorder.record(entry)
        recorder.close()
    assert stand_in.finished == len(stand_in.begun) == 2
    assert all(settings["mode"] == "offline" for settings in stand_in.begun)
    assert {settings["dir"] for settings in stand_in.begun} == {str(tmp_path / "run")}
    assert len({settings["id"] for settings in stand_in.begun}) == 1
    assert stand_in.logged[:2] == [(10, numbers_of(ENTRIES[0])), (20, numbers_of(ENTRIES[1]))]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_told(name: Any, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"--log {name} needs.*pip install 'medvisionllama\[{name}\]'"):
        open_recorder(name, tmp_path)


def test_the_listener_hears_as_before() -> None:
    heard: list[Any] = []

    class Hearing(Silent):
        def training(self, entry: dict[str, Any], steps: int) -> None:
            heard.append((entry["step"], steps))

        def note(self, text: str) -> None:
            heard.append(text)

    recording = Recording(Hearing(), [])
    recording.training(ENTRIES[0], 30)
    recording.note("word")
    assert heard == [(10, 30), "word"]
    assert list(recording.track([1, 2], "things")) == [1, 2]
