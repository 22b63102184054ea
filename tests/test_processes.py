"""Several processes train as one: gloo, on this machine, started by ``torchrun`` or as it starts them."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import forking
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medvisionllama.cli import main
from medvisionllama.data.augment import AugmentConfig
from medvisionllama.data.dataset import BatchSource, PreparedCase
from medvisionllama.data.phantom import PhantomSettings, write_phantom_task
from medvisionllama.errors import InputError
from medvisionllama.models.medvisionllama import MedVisionLlama, build
from medvisionllama.models.zoo import named
from medvisionllama.processes import ALONE, started_by_torchrun
from medvisionllama.recipe import Recipe
from medvisionllama.run import _share
from medvisionllama.run_folder import RunFolder
from medvisionllama.train import Validated, train, train_step

pytest.importorskip("lightning_fabric")
SIZE = (16, 16, 16)
CPU = torch.device("cpu")
RECIPE = Recipe(
    steps=12, batch_size=2, optimizer="sgd", learning_rate=0.05, clip_norm=0.1, precision="float32", validations=6,
    ema_decay=0.8, deep_supervision=True,
    augment=AugmentConfig(rotate_probability=1.0, noise_probability=1.0, gamma_probability=1.0),
)  # fmt: skip


def network(name: str = "vit-u") -> MedVisionLlama:
    small = {"depth": 1, "dropout": 0.0, "norm": "instance", "stem_widths": (8, 16), "width": 32, "heads": 2}
    ends = {"input_size": SIZE, "out_channels": 3, "deep_supervision": True}
    return build(replace(named(name), **small, **ends))


def cases() -> list[PreparedCase]:
    made = []
    for index in range(3):
        draw = np.random.default_rng(index)
        label = np.zeros(SIZE, np.uint8)
        label[4 : 8 + index, 4:10, 5:9] = 1
        label[9:14, 3:9, 2 : 6 + index] = 2
        image = (label + 0.1 * draw.standard_normal(SIZE)).astype(np.float32)[None]
        places = np.column_stack([label[label > 0], np.argwhere(label)]).astype(np.int32)
        made.append(PreparedCase(f"case_{index}", image, label, places))
    return made


def go(folder: Path, batch: int = 2, **more: Any) -> MedVisionLlama:
    """Train with a share of the batch; validation says how many steps were done, and so that the last is kept."""
    torch.set_num_threads(1)
    looks = iter(range(1, 100))
    batches = BatchSource(cases(), SIZE, batch, 0.3, seed=0)
    model = network()
    train(
        model, batches, RECIPE, RunFolder(folder), device=CPU, left_out=model.left_out_of_files(), notes={},
        validate=lambda m: Validated({"mean": next(looks) / 100}, 0.5), **more,
    )  # fmt: skip
    return model


def joined(rank: int, count: int, port: int) -> None:
    """Make this process believe that torchrun started it."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({key: str(value) for key, value in told.items()})


def together(work: Any, folder: Path, count: int = 2) -> list[Any]:
    """What ``count`` processes say of ``work(processes, folder)``, as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [forking.start(_one_of, work, rank, count, port, folder) for rank in range(count)]
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * count
    return [json.loads((folder / f"said_{rank}.json").read_text()) for rank in range(count)]


def _one_of(work: Any, rank: int, count: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    joined(rank, count, port)
    processes = started_by_torchrun("cpu")
    said = work(processes, folder)
    processes.part()
    (folder / f"said_{rank}.json").write_text(json.dumps(said))


def share_of_the_batch(processes: Any, folder: Path) -> Any:
    go(folder / "run", batch=1, processes=processes)
    return [processes.rank, processes.count]


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in RunFolder(folder).read_log()]


def furthest(one: Path, other: Path) -> float:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def test_two_processes_give_the_loss_curve_of_one_with_the_doubled_batch(tmp_path: Path) -> None:
    """Augmentation, clipping, deep supervision and the average included; the weights agree too."""
    go(tmp_path / "one", batch=2)
    assert together(share_of_the_batch, tmp_path / "two") == [[0, 2], [1, 2]]
    whole = losses(tmp_path / "one")
    assert len(whole) >= 6
    assert losses(tmp_path / "two/run") == pytest.approx(whole, rel=1e-5)
    assert furthest(tmp_path / "one", tmp_path / "two/run") < 1e-5
    # Negative control: half the batch is another curve.
    go(tmp_path / "half", batch=1)
    assert losses(tmp_path / "half") != pytest.approx(whole, rel=1e-3)


def what_is_sent(processes: Any, folder: Path) -> Any:
    """A frozen block that differs between processes stays different; all other weights are everybody's."""
    model = network("medvisionllama-u")
    frozen = model.middle.block.base_state_names()
    state = model.middle.block.state_dict()
    with torch.no_grad():
        for name in frozen:
            state[name].add_(processes.rank)
    wrapped = processes.joined(model)
    sent = []

    def seen(_: Any, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent.append(bucket.buffer().numel())
        return torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda f: f.value()[0])

    for part in wrapped.modules():
        if isinstance(part, torch.nn.parallel.DistributedDataParallel):
            part.register_comm_hook(None, seen)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    train_step(wrapped, optimizer, BatchSource(cases(), SIZE, 1, 0.3, seed=0), RECIPE, 0, CPU, processes)
    return {
        "sent": sum(sent),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "frozen": sum(float(state[name].double().sum()) for name in frozen),
        "frozen_numbers": sum(state[name].numel() for name in frozen),
    }


def test_only_what_trains_is_sent(tmp_path: Path) -> None:
    first, second = together(what_is_sent, tmp_path)
    assert first["sent"] == second["sent"] == first["trained"]
    assert first["frozen_numbers"] > 10 * first["trained"]
    assert second["frozen"] - first["frozen"] == pytest.approx(first["frozen_numbers"], rel=1e-6)


def one_is_interrupted(processes: Any, folder: Path) -> Any:
    """The second process alone is told to stop, in its fifth step; then both go on."""
    from medvisionllama import train as loop

    step = loop.train_step

    def pressing(*arguments: Any) -> float:
        if arguments[4] == 4 and processes.rank == 1:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    loop.train_step = pressing
    try:
        go(folder / "run", batch=1, processes=processes)
    except KeyboardInterrupt:
        state = json.loads((folder / "run/checkpoint.json").read_text()) if processes.rank == 0 else {"step": None}
    loop.train_step = step
    with processes.first_goes_first():
        go_on = (folder / "run/checkpoint.safetensors").exists()
    go(folder / "run", batch=1, processes=processes, resume=go_on)
    return state["step"]


def test_all_stop_after_the_same_step_and_go_on(tmp_path: Path) -> None:
    assert together(one_is_interrupted, tmp_path / "broken") == [5, None]
    together(share_of_the_batch, tmp_path / "whole")
    assert losses(tmp_path / "broken/run") == losses(tmp_path / "whole/run")
    assert furthest(tmp_path / "broken/run", tmp_path / "whole/run") == 0


def starts_differ(processes: Any, folder: Path) -> Any:
    model = network()
    if processes.rank == 1:
        next(p for p in model.parameters() if p.requires_grad).data.view(-1)[0] += 1e-3
    try:
        train(
            model, BatchSource(cases(), SIZE, 1, 0.3, seed=0), RECIPE, RunFolder(folder / "run"), device=CPU,
            left_out=model.left_out_of_files(), notes={}, processes=processes,
        )  # fmt: skip
    except InputError as error:
        return str(error)
    except RuntimeError:  # the other has gone
        return "left alone"


def test_processes_that_do_not_start_alike_are_refused(tmp_path: Path) -> None:
    said = together(starts_differ, tmp_path)
    assert "process 1 does not start with the first one's weights" in said[1]


def test_numbers_are_exchanged(tmp_path: Path) -> None:
    assert together(exchange, tmp_path) == [[[0.5, 5.0], [0.0, 7.5], ["first", "second"]]] * 2


def exchange(processes: Any, folder: Path) -> Any:
    rank = processes.rank
    with processes.first_goes_first():
        order = [*json.loads((folder / "order.json").read_text()), "second"] if rank else ["first"]
        (folder / "order.json").write_text(json.dumps(order))
    with processes.first_goes_first():
        order = json.loads((folder / "order.json").read_text())
    return [processes.mean(rank, 5.0), processes.of_first(rank, 7.5 if rank == 0 else -1), order]


def test_alone_nothing_is_exchanged() -> None:
    assert ALONE.mean(1.0, 2.0) == ALONE.of_first(1.0, 2.0) == (1.0, 2.0)
    model = torch.nn.Linear(1, 1)
    assert ALONE.joined(model) is model
    assert started_by_torchrun("cpu") is ALONE


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    class Three:
        count = 3

    assert _share(replace(RECIPE, batch_size=6), Three()) == 2
    for batch in (2, 4):
        with pytest.raises(InputError, match=rf"a batch of {batch} cannot be shared out evenly to 3 processes"):
            _share(replace(RECIPE, batch_size=batch), Three())


def test_without_fabric_torchrun_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(InputError, match=r"pip install 'medvisionllama\[distributed\]'"):
        started_by_torchrun("cpu")


def test_torchrun_starts_the_command_line(tmp_path: Path) -> None:
    """Two processes by the documented command: one run folder, one summary, the losses of one process."""
    task = write_phantom_task(tmp_path / "task", cases=6, settings=PhantomSettings(spacing_mm=(3.4, 4.0)))
    small = ["--model.norm=instance", "--model.dropout=0", "--model.depth=1", "--model.width=16", "--model.heads=2"]
    small += ["--recipe.precision=float32", "--recipe.optimizer=sgd", "--recipe.learning_rate=0.01"]
    small += ["--recipe.batch_size=2", "--recipe.validations=2", "--steps=6", "--model=vit-u"]
    small += ["--device=cpu", "--threads=1", f"--cache={tmp_path / 'cache'}", "--json"]
    train_to = ["train", str(task), *small, "--run"]
    alone = forking.start(command_line, [*train_to, str(tmp_path / "one")])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--"]
    done = subprocess.run(
        [*torchrun, "medvisionllama", *train_to, str(tmp_path / "two")], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    alone.join()
    assert alone.exitcode == 0
    said = json.loads(done.stdout)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    logs = [RunFolder(tmp_path / name).read_log() for name in ("one", "two")]
    looks = [[entry["validation_loss"] for entry in log if "validation_loss" in entry] for log in logs]
    assert len(looks[0]) == 2
    assert looks[1] == pytest.approx(looks[0], rel=1e-4)
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "two").iterdir()}
    assert json.loads((tmp_path / "two/environment.json").read_text())["processes"] == 2
    assert said["validation"] == json.loads((tmp_path / "two/summary.json").read_text())["validation"]


def command_line(arguments: list[str]) -> None:
    sys.exit(main(arguments))
