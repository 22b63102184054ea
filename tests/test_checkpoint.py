import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medvisionllama.checkpoint import (
    load_tensors,
    model_tensors,
    optimizer_tensors,
    put_model_tensors,
    put_optimizer_tensors,
    save_tensors,
)
from medvisionllama.errors import InputError

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda groups: torch.optim.Adam(groups, lr=1e-2),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "amsgrad": lambda groups: torch.optim.AdamW(groups, lr=1e-2, amsgrad=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.99, nesterov=True),
    "plain sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2),
}


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def optimizer_of(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    """Two groups, as training has them, and one parameter that never gets a gradient."""
    unused = nn.Parameter(torch.ones(2))
    weights = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 1]
    return OPTIMIZERS[kind]([{"params": [*weights, unused], "weight_decay": 0.1}, {"params": others}])


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn((5, 3), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoint.safetensors"


def only_file(path: Path) -> bool:
    return [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_and_notes_come_back(path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "whole": torch.randn(3, 4).to(dtype),
        "turned": torch.randn(3, 4).to(dtype).T,
        "a part": torch.randn(9, 2).to(dtype)[1::3],
        "number": torch.tensor(1).to(dtype),
        "nothing": torch.zeros(0, 3, dtype=dtype),
    }
    notes = {"step": 7, "best": 0.1 + 0.2, "name": "Größe 大", "none": None, "deep": {"list": [1, True]}}
    save_tensors(path, tensors, notes)
    back, told = load_tensors(path)
    assert same(back, tensors)
    assert all(back[name].dtype == dtype for name in back)
    assert told == notes
    assert only_file(path)


def test_parameters_that_learn_are_saved_without_their_graph(path: Path) -> None:
    weight = nn.Parameter(torch.ones(2))
    save_tensors(path, {"weight": weight * 2}, {})
    assert not load_tensors(path)[0]["weight"].requires_grad


def test_any_reader_of_safetensors_reads_it(path: Path) -> None:
    save_tensors(path, {"a": torch.arange(3)}, {"step": 1})
    with safe_open(path, framework="np") as file:
        assert file.get_tensor("a").tolist() == [0, 1, 2]
        assert json.loads(file.metadata()["notes"]) == {"step": 1}


def half_written(fault: BaseException) -> Callable[[Path, bytes], None]:
    """A way of writing that stops in the middle."""

    def write(part: Path, content: bytes) -> None:
        with part.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise fault

    return write


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors(path, {"a": torch.zeros(3)}, {"step": 1})
    monkeypatch.setattr(Path, "write_bytes", half_written(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="cannot write"):
        save_tensors(path, {"a": torch.ones(3)}, {"step": 2})
    assert load_tensors(path)[1] == {"step": 1}
    assert only_file(path)


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors(path, {"a": torch.zeros(3)}, {"step": 1})
    monkeypatch.setattr(Path, "write_bytes", half_written(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_tensors(path, {"a": torch.ones(3)}, {"step": 2})
    assert load_tensors(path)[1] == {"step": 1}
    assert only_file(path)


def test_notes_that_are_no_json_write_nothing(path: Path) -> None:
    with pytest.raises(TypeError):
        save_tensors(path, {"a": torch.zeros(3)}, {"step": torch.zeros(3)})
    assert not path.exists()


def test_a_new_file_takes_the_place_of_one_that_is_being_read(path: Path) -> None:
    save_tensors(path, {"a": torch.zeros(1000)}, {})
    read = load_tensors(path)[0]["a"]
    save_tensors(path, {"a": torch.ones(1000)}, {})
    assert read.sum() == 0
    assert load_tensors(path)[0]["a"].sum() == 1000


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="cannot write"):
        save_tensors(tmp_path / "file" / "a.safetensors", {"a": torch.zeros(1)}, {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        save_tensors(tmp_path / "folder", {"a": torch.zeros(1)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_others_may_read_what_the_umask_lets_them(path: Path) -> None:
    (path.parent).mkdir(parents=True, exist_ok=True)
    (path.parent / "plain").write_bytes(b"")
    save_tensors(path, {"a": torch.zeros(3)}, {})
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode


def spoilt(content: bytes) -> list[bytes]:
    return [b"", b"PK", content[: len(content) // 2], content[:-1], b"\0" * len(content), pickle.dumps({"a": 1})]


def test_damaged_and_foreign_files_are_refused_in_words(path: Path, tmp_path: Path) -> None:
    save_tensors(path, {"a": torch.zeros(300)}, {"step": 1})
    for content in spoilt(path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot read"):
            load_tensors(path)
    for wrong in (path.parent, tmp_path / "absent"):
        with pytest.raises(InputError, match="cannot read"):
            load_tensors(wrong)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"notes": "[]"}])
def test_a_file_without_our_notes_is_refused(path: Path, metadata: dict[str, str] | None) -> None:
    path.parent.mkdir()
    save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(InputError, match="no notes"):
        load_tensors(path)


def test_a_pickle_is_never_run(path: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    path.parent.mkdir()
    torch.save({"a": Trap()}, path)
    with pytest.raises(InputError):
        load_tensors(path)
    assert not (tmp_path / "sprung").exists()
    torch.load(io.BytesIO(path.read_bytes()), weights_only=False)  # negative control: the trap works
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_training_ends_as_an_uninterrupted_one(path: Path, kind: str) -> None:
    whole = network()
    learn(whole, optimizer_of(whole, kind), range(6))

    first = network()
    optimizer = optimizer_of(first, kind)
    learn(first, optimizer, range(3))
    save_tensors(path, model_tensors(first) | optimizer_tensors(optimizer), {})

    tensors, _ = load_tensors(path)
    second = network(seed=1)
    resumed = optimizer_of(second, kind)
    put_model_tensors(second, {k: v for k, v in tensors.items() if not k.startswith("optimizer.")})
    put_optimizer_tensors(resumed, {k: v for k, v in tensors.items() if k.startswith("optimizer.")})
    learn(second, resumed, range(3, 6))
    assert same(dict(second.state_dict()), dict(whole.state_dict()))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_without_its_moments_it_would_end_elsewhere(kind: str) -> None:
    whole, forgetful = network(), network()
    learn(whole, optimizer_of(whole, kind), range(6))
    learn(forgetful, optimizer_of(forgetful, kind), range(3))
    learn(forgetful, optimizer_of(forgetful, kind), range(3, 6))
    assert not same(dict(forgetful.state_dict()), dict(whole.state_dict()))


def test_rates_come_from_the_recipe_and_not_from_the_file(path: Path) -> None:
    model = network()
    optimizer = optimizer_of(model, "adamw")
    learn(model, optimizer, range(1))
    tensors = optimizer_tensors(optimizer)
    other = torch.optim.AdamW(optimizer.param_groups[0]["params"] + optimizer.param_groups[1]["params"], lr=0.5)
    put_optimizer_tensors(other, tensors)
    assert other.param_groups[0]["lr"] == 0.5


def test_what_is_left_out_is_neither_saved_nor_asked_for() -> None:
    model, other = network(), network(seed=1)
    frozen = ["2.weight", "2.bias"]
    tensors = model_tensors(model, frozen)
    assert tensors.keys() == model.state_dict().keys() - set(frozen)
    assert "1.running_mean" in tensors
    kept = other.state_dict()["2.weight"].clone()
    put_model_tensors(other, tensors, frozen)
    assert torch.equal(other.state_dict()["2.weight"], kept)
    assert torch.equal(other.state_dict()["0.weight"], model.state_dict()["0.weight"])


def test_weights_that_do_not_fit_are_refused_and_change_nothing() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sound = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    without = {name: tensor for name, tensor in sound.items() if name != "0.bias"}
    for tensors, told in [
        (without, "0.bias is missing"),
        (sound | {"extra": torch.zeros(1)}, "extra is not of this model"),
        (sound | {"0.weight": torch.zeros(3, 4)}, r"0.weight is \(3, 4\) instead of \(4, 3\)"),
        ({}, "and 5 more"),
    ]:
        with pytest.raises(InputError, match=told):
            put_model_tensors(model, tensors)
        assert same(dict(model.state_dict()), before)
