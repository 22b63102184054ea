"""A run that is killed by SIGKILL, wherever it is, and resumed ends bit-identical to one that was not."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import forking
import pytest
import torch
from safetensors.torch import load_file

from medvisionllama.checkpoint import load_tensors
from medvisionllama.config import make_experiment
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.machine import Machine
from medvisionllama.models.medvisionllama import MedVisionLlama
from medvisionllama.run import train_run
from medvisionllama.run_folder import RunFolder

STEPS = 48
SMALL = (
    "--model.depth", "1", "--recipe.validations", "6", "--recipe.precision", "float32", "--recipe.batch_size", "2",
    "--recipe.ema_decay", "0.9", "--recipe.deep_supervision", "true",
    "--model.stem_widths", "[8, 8]", "--model.width", "16", "--model.heads", "2",
)  # fmt: skip


def work(task: Path, folder: Path, kind: str, at: int) -> None:
    """Go on with the run, or begin it; of some kinds of death a process dies by its own hand."""
    torch.set_num_threads(1)
    if kind == "half-written":
        _die_in_the_middle_of_writing(at)
    if kind == "validating":
        _die_while_validating(at)
    machine = Machine(torch.device("cpu"), folder.parent / "cache", offline=True, checkpoint_seconds=0.0)
    what = make_experiment(task, model="vit-u", steps=STEPS, overrides=SMALL)
    train_run(what, folder, machine, resume=True)


def _kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in_the_middle_of_writing(at: int) -> None:
    """Half of the ``at``-th tensor file is on the disk when the process dies."""
    whole, written = Path.write_bytes, 0

    def half(path: Path, content: bytes) -> int:
        nonlocal written
        written += 1
        if written == at:
            whole(path, content[: len(content) // 2])
            _kill_myself()
        return whole(path, content)

    Path.write_bytes = half  # type: ignore[method-assign]


def _die_while_validating(at: int) -> None:
    """The process dies before the ``at``-th look of the network at windows of a validation volume."""
    forward, looks = MedVisionLlama.forward, 0

    def dying(self: MedVisionLlama, *arguments: Any) -> Any:
        nonlocal looks
        looks += not self.training
        if looks == at:
            _kill_myself()
        return forward(self, *arguments)

    MedVisionLlama.forward = dying  # type: ignore[method-assign]


def steps_done(folder: Path) -> int:
    state = folder / "checkpoint.json"
    return json.loads(state.read_text())["step"] if state.exists() else 0


def kill(task: Path, folder: Path, kind: str, at: int, delay: float) -> int:
    """Start or resume, and see the process killed; returns how far its checkpoint is."""
    process = forking.start(work, task, folder, kind, at)
    if kind == "anywhere":
        while steps_done(folder) < at and process.is_alive():
            time.sleep(0.001)
        time.sleep(delay)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"it was not killed: {kind} at {at}"
    # Its notes, not the file beside it: death between the two leaves that one a step behind.
    checkpoint = RunFolder(folder).checkpoint
    return int(load_tensors(checkpoint)[1]["step"]) if checkpoint.exists() else 0


def finish(task: Path, folder: Path) -> float:
    """Let it come to its end; returns the seconds that took."""
    started = time.monotonic()
    process = forking.start(work, task, folder, "", 0)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


def left_by(folder: Path) -> tuple[set[str], dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Names of all files, weights, and the log without times."""
    log = [{key: entry[key] for key in entry if key != "seconds"} for entry in RunFolder(folder).read_log()]
    return {p.name for p in folder.rglob("*")}, load_file(folder / "model.safetensors"), log


def refuse_difference(one: Path, other: Path) -> None:
    names, weights, log = left_by(one)
    other_names, other_weights, other_log = left_by(other)
    assert other_names == names
    assert other_log == log
    assert other_weights.keys() == weights.keys()
    differing = [name for name in weights if not torch.equal(weights[name], other_weights[name])]
    assert not differing


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "task"
    return write_phantom_task(folder, cases=6, settings=PhantomSettings(spacing_mm=(3.4, 4.0)))


@pytest.fixture(scope="module")
def whole(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(task, folder)
    return folder


def killed_at(moments: list[tuple[str, int]], task: Path, folder: Path, draw: random.Random) -> list[int]:
    reached = [kill(task, folder, kind, at, draw.uniform(0, 0.1)) for kind, at in moments]
    finish(task, folder)
    return reached


def test_killed_three_times(task: Path, whole: Path, tmp_path: Path) -> None:
    moments = [("anywhere", 4), ("half-written", 3), ("validating", 2)]
    reached = killed_at(moments, task, tmp_path / "run", random.Random(0))
    # The second death is in its third checkpoint; the third in the validation after a step of eight, whose checkpoint
    # is of seven.
    assert reached[0] >= 4
    # Its log may have been a step ahead of its checkpoint when the first one died.
    assert reached[1] - reached[0] in (1, 2)
    assert reached[2] % 8 == 7
    refuse_difference(whole, tmp_path / "run")


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_ten_random_moments(seed: int, task: Path, whole: Path, tmp_path: Path) -> None:
    draw = random.Random(seed)
    anywhere = [("anywhere", at) for at in sorted(draw.sample(range(1, STEPS * 2 // 3), 6))]
    others = [(kind, draw.randint(1, 4)) for kind in ("half-written", "half-written", "validating", "validating")]
    moments = anywhere
    for moment in others:
        moments.insert(draw.randint(0, len(moments) // 2), moment)
    reached = killed_at(moments, task, tmp_path / "run", draw)
    assert len(reached) == 10
    refuse_difference(whole, tmp_path / "run")


def test_a_difference_would_be_seen(task: Path, whole: Path, tmp_path: Path) -> None:
    """Negative control: one weight's last bit, one loss's, or one file too many."""
    import shutil

    from safetensors.torch import save_file

    for fault in ("weight", "loss", "file"):
        other = tmp_path / fault
        shutil.copytree(whole, other)
        refuse_difference(whole, other)
        if fault == "weight":
            weights = load_file(other / "model.safetensors")
            name = next(n for n, t in weights.items() if t.is_floating_point())
            weights[name].view(-1)[0] = torch.nextafter(weights[name].view(-1)[0], torch.tensor(9.0))
            save_file(weights, other / "model.safetensors")
        elif fault == "loss":
            entries = RunFolder(other).read_log()
            entries[0]["loss"] *= 1 + 1e-15
            (other / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        else:
            (other / ".0123.part").touch()
        with pytest.raises(AssertionError):
            refuse_difference(whole, other)
