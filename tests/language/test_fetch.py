"""Fetching one layer, against a local server that plays the hub."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, FakeHub, serve
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_models import FAMILY_NAMES, N_LAYERS, full_model

from medvisionllama.errors import InputError
from medvisionllama.language import store as store_module
from medvisionllama.language.block import BlockConfig
from medvisionllama.language.building import load_block
from medvisionllama.language.families import FAMILIES
from medvisionllama.language.fetch import FetchResult, fetch_block
from medvisionllama.language.hub import Hub
from medvisionllama.language.listing import list_blocks, show_block

CheckpointOf = Callable[[str], Path]
MODEL = "someone/model"


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The server; the hub library's own cache and token are out of reach."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve(FakeHub()) as hub:
        yield hub


def fetch(hub: FakeHub, cache: Path, name: str = MODEL, layer: int = -1, **options: object) -> FetchResult:
    token = options.pop("token", None)
    client = Hub(hub.endpoint, token=token, pause_s=0)  # type: ignore[arg-type]
    (result,) = fetch_block(name, (layer,), cache=cache, hub=client, **options)  # type: ignore[arg-type]
    return result


@pytest.fixture(scope="session")
def medium_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of 1.1 M parameters: large enough that headers are small beside them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("medium")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def split_last_layer(folder: Path, target: Path) -> Path:
    """The same checkpoint in two shards that share the last layer, as Llama-3.1-8B's do."""
    target.mkdir()
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    last = max(int(n.split(".")[2]) for n in names if n.startswith("model.layers."))
    second = {n for n in names if f"layers.{last}." in n and "mlp" in n} | {"model.norm.weight"}
    weight_map = {n: f"model-0000{2 if n in second else 1}-of-00002.safetensors" for n in names}
    for shard in set(weight_map.values()):
        part = {n: tensors[n] for n in names if weight_map[n] == shard}
        save_file(part, target / shard, {"format": "pt"})
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return target


# What arrives


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ({"num_attention_heads": 7}, r"hidden size \(32\) is not a multiple of the number of attention heads \(7\)"),
        ({"hidden_size": "abc"}, "'hidden_size' expected int, got str"),
        ({"hidden_act": "foo"}, "KeyError: 'foo'"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
    ],
)
def test_a_config_that_fits_no_layer_is_told_in_one_message(
    number: dict[str, object], words: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((checkpoint_of("llama") / "model.safetensors").read_bytes())
    numbers = json.loads((checkpoint_of("llama") / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(numbers), encoding="utf-8")
    assert fetch_block(str(folder)), "the control: undamaged it is taken"
    (folder / "config.json").write_text(json.dumps(numbers | number), encoding="utf-8")
    for use in (fetch_block, lambda name: load_block(BlockConfig(source=name))):
        with pytest.raises(InputError, match=f"(?s)config.json of .*damaged describes no layer.*{words}"):
            use(str(folder))


def test_a_layer_asked_for_twice_is_brought_once(checkpoint_of: CheckpointOf) -> None:
    results = fetch_block(str(checkpoint_of("llama")), (2, -1, 0))
    assert [result.layer for result in results] == [N_LAYERS - 1, 0]


@pytest.mark.parametrize("family_name", FAMILY_NAMES)
def test_a_fetched_block_is_the_local_one(
    family_name: str, checkpoint_of: CheckpointOf, fake_hub: FakeHub, tmp_path: Path
) -> None:
    fake_hub.models[MODEL] = checkpoint_of(family_name)
    result = fetch(fake_hub, tmp_path, layer=1)
    assert result.layer == 1
    assert result.revision == COMMIT
    for final_norm in (True, False):
        fields = {"layers": (1,), "final_norm": final_norm}
        fetched = load_block(BlockConfig(source=MODEL, **fields), cache=tmp_path, offline=True)  # type: ignore[arg-type]
        local = load_block(BlockConfig(source=str(checkpoint_of(family_name)), **fields))  # type: ignore[arg-type]
        assert fetched.identity.sha256 == local.identity.sha256
        assert fetched.identity.revision == COMMIT
        assert fetched.identity.id == MODEL


def test_bytes_on_the_wire_are_the_layers(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    result = fetch(fake_hub, tmp_path, layer=2)
    layer_bytes = 2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 1024 + 2 * 256 + 256)
    assert result.bytes_needed == layer_bytes
    assert layer_bytes < result.bytes_fetched <= 1.01 * layer_bytes + 200_000
    assert fake_hub.bytes_sent == result.bytes_fetched
    assert fake_hub.bytes_sent < (medium_llama / "model.safetensors").stat().st_size / 2


def test_a_layer_across_two_shards(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = split_last_layer(medium_llama, tmp_path / "sharded")
    result = fetch(fake_hub, tmp_path / "cache")
    assert result.bytes_fetched <= 1.01 * result.bytes_needed + 200_000
    whole = load_file(medium_llama / "model.safetensors")
    found = load_file(result.path)
    assert {n for n in whole if "layers.3." in n} | {"model.norm.weight"} == set(found)
    assert all(torch.equal(whole[name], value) for name, value in found.items())
    asked = [one.range for one in fake_hub.seen if one.host == "storage"]
    assert len(asked) <= 7, "a size and a header for each shard, and one request for each run of tensors"


def test_a_second_fetch_needs_no_network(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    first = fetch(fake_hub, tmp_path)
    requests = len(fake_hub.seen)
    again = fetch(fake_hub, tmp_path)
    assert len(fake_hub.seen) == requests
    assert again.bytes_fetched == 0
    assert (again.sha256, again.path) == (first.sha256, first.path)
    (offline,) = fetch_block(MODEL, cache=tmp_path, offline=True)
    assert offline == again
    shown = show_block(MODEL, cache=tmp_path)
    assert shown["at_hand"] == [first.path]
    assert shown["layer_parameters"] * 2 + 512 == first.bytes_needed


def test_several_layers_at_once(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    hub = Hub(fake_hub.endpoint, pause_s=0)
    told: list[tuple[str, int, int]] = []
    results = fetch_block(MODEL, (0, -1), cache=tmp_path, hub=hub, progress=lambda *now: told.append(now))
    assert [one.layer for one in results] == [0, 3]
    assert sum(one.bytes_fetched for one in results) == hub.bytes_received == fake_hub.bytes_sent
    block = load_block(BlockConfig(source=MODEL, layers=(0, 3)), cache=tmp_path, offline=True)
    assert block.identity.sha256 == load_block(BlockConfig(source=str(medium_llama), layers=(0, 3))).identity.sha256
    for what in {what for what, _, _ in told}:
        done = [now for name, now, _ in told if name == what]
        assert done == sorted(done)
        assert done[-1] == next(total for name, _, total in told if name == what)


# Tokens, redirects, links


def test_authorisation_does_not_follow_a_redirect(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    fake_hub.gated.add(MODEL)
    fetch(fake_hub, tmp_path, token="secret")
    hub = [one for one in fake_hub.seen if one.host == "hub"]
    storage = [one for one in fake_hub.seen if one.host == "storage"]
    assert hub
    assert storage
    assert {one.authorization for one in hub} == {"Bearer secret"}
    assert {one.authorization for one in storage} == {None}


def test_the_hub_librarys_token_is_found(
    fake_hub: FakeHub, medium_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.models[MODEL] = medium_llama
    fake_hub.gated.add(MODEL)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert fetch(fake_hub, tmp_path).bytes_fetched > 0


@pytest.mark.parametrize(("token", "words"), [(None, "no token was sent"), ("wrong", "gives no access")])
def test_a_gated_models_refusal_says_what_to_do(
    token: str | None, words: str, fake_hub: FakeHub, medium_llama: Path, tmp_path: Path
) -> None:
    fake_hub.models["meta-llama/Llama-3.1-8B"] = medium_llama
    fake_hub.gated.add("meta-llama/Llama-3.1-8B")
    with pytest.raises(InputError, match=f"(?s)gated.*{words}.*Accept the licence at .*hf auth login"):
        fetch(fake_hub, tmp_path, name="llama-3.1-8b", token=token)
    assert len(fake_hub.seen) == 1, "a refusal is not asked for twice"


def test_expiring_links_are_asked_for_anew(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    fake_hub.link_uses = 1
    fake_hub.break_after_bytes = [40_000, 300_000, 100_000]
    result = fetch(fake_hub, tmp_path)
    assert len(set(fake_hub.paths("storage"))) == len(fake_hub.paths("storage"))
    assert load_file(result.path).keys() >= {"model.norm.weight"}


# Breaks


def test_a_broken_connection_is_taken_up_where_it_broke(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    whole = fetch(fake_hub, tmp_path / "whole")
    smooth = fake_hub.bytes_sent
    fake_hub.bytes_sent = 0
    fake_hub.break_after_bytes = [whole.bytes_needed // 2, 1]
    broken = fetch(fake_hub, tmp_path / "broken")
    assert broken.sha256 == whole.sha256
    assert fake_hub.bytes_sent == smooth, "no byte was sent twice"
    assert not fake_hub.break_after_bytes, "it did break"


def test_a_fetch_that_gave_up_is_resumed(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    whole = fetch(fake_hub, tmp_path / "whole")
    half = whole.bytes_needed // 2
    fake_hub.break_after_bytes = [half, 0, 0, 0, 0]
    with pytest.raises(InputError, match="try again: what has arrived is kept"):
        fetch(fake_hub, tmp_path / "broken")
    with pytest.raises(InputError, match="not on this machine"):
        load_block(BlockConfig(source=MODEL), cache=tmp_path / "broken", offline=True)
    fake_hub.break_after_bytes = []
    resumed = fetch(fake_hub, tmp_path / "broken")
    assert resumed.sha256 == whole.sha256
    assert resumed.bytes_fetched <= whole.bytes_fetched - half + 1000


def test_a_leftover_of_something_else_is_not_resumed(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    whole = fetch(fake_hub, tmp_path / "whole")
    part = tmp_path / "other" / "someone--model" / COMMIT / "layer-03.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 5000)
    assert fetch(fake_hub, tmp_path / "other").sha256 == whole.sha256


def test_a_server_without_ranges_is_refused(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    fake_hub.ranges = False
    with pytest.raises(InputError, match=r"whole files only.*--whole-file"):
        fetch(fake_hub, tmp_path)
    result = fetch(fake_hub, tmp_path, whole_file=True)
    assert result.bytes_fetched > result.bytes_needed
    fake_hub.ranges = True
    assert fetch(fake_hub, tmp_path / "other").sha256 == result.sha256


def test_an_unreachable_hub_is_told(tmp_path: Path, fake_hub: FakeHub, medium_llama: Path) -> None:
    nobody = FakeHub(endpoint="http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot be had from http://127.0.0.1:9.*Check the network"):
        fetch(nobody, tmp_path)
    fake_hub.models[MODEL] = medium_llama
    fake_hub.storage_down = True
    with pytest.raises(InputError, match="status 503"):
        fetch(fake_hub, tmp_path)


def test_the_hub_librarys_offline_switch_is_heeded(
    fake_hub: FakeHub, medium_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    fake_hub.models[MODEL] = medium_llama
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        fetch(fake_hub, tmp_path)
    assert not fake_hub.seen


# The cache


_FETCH_IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from medvisionllama.language.fetch import fetch_block
from medvisionllama.language.hub import Hub
(result,) = fetch_block("someone/model", cache=Path(sys.argv[2]), hub=Hub(sys.argv[1], pause_s=0))
print(result.bytes_fetched, result.sha256)
"""


def test_two_processes_fetch_once(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    command = [sys.executable, "-c", _FETCH_IN_ANOTHER_PROCESS, fake_hub.endpoint, str(tmp_path / "cache")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf")}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    results = [one.communicate()[0].split() for one in both]
    assert all(one.returncode == 0 for one in both)
    assert results[0][1] == results[1][1] == fetch(fake_hub, tmp_path / "alone").sha256
    weight_runs = [one for one in fake_hub.seen if one.host == "storage" and one.range not in (None, "bytes=0-0")]
    large = [one for one in weight_runs if _length(one.range) > 100_000]
    assert len(large) == 2 * len({one.range for one in large}), "once by the two, once by the third alone"


def _length(asked: str | None) -> int:
    assert asked is not None
    start, last = asked.removeprefix("bytes=").split("-")
    return int(last) - int(start) + 1


@pytest.mark.parametrize("position", [10, -10])
def test_a_damaged_cache_file_is_fetched_anew(
    position: int, fake_hub: FakeHub, medium_llama: Path, tmp_path: Path
) -> None:
    fake_hub.models[MODEL] = medium_llama
    first = fetch(fake_hub, tmp_path)
    content = bytearray(Path(first.path).read_bytes())
    content[position] ^= 0xFF
    Path(first.path).write_bytes(content)
    with pytest.raises(InputError, match="blocks fetch someone/model"):
        load_block(BlockConfig(source=MODEL), cache=tmp_path, offline=True)
    again = fetch(fake_hub, tmp_path)
    assert again.bytes_fetched > 0
    assert again.sha256 == first.sha256


def test_no_room_is_told_beforehand(
    fake_hub: FakeHub, medium_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    fake_hub.models[MODEL] = medium_llama
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(InputError, match=r"no room for layer 3.*0\.0 MB free.*Free some space"):
            fetch(fake_hub, tmp_path)
    assert fetch(fake_hub, tmp_path).bytes_fetched > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_disk_that_fills_up_leaves_the_cache_sound(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    folder = tmp_path / "someone--model" / COMMIT
    folder.mkdir(parents=True)
    (folder / "layer-03.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match="cannot be read or written: No space left on device"):
        fetch(fake_hub, tmp_path)
    assert not list(folder.glob("*.safetensors"))
    (folder / "layer-03.part").unlink()
    assert fetch(fake_hub, tmp_path).bytes_fetched > 0


def test_the_hub_librarys_cache_is_used(
    fake_hub: FakeHub, medium_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshots = tmp_path / "hub" / "models--someone--model" / "snapshots"
    snapshots.mkdir(parents=True)
    sharded = split_last_layer(medium_llama, snapshots / COMMIT)
    refs = tmp_path / "hub" / "models--someone--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    result = fetch(fake_hub, tmp_path / "cache")
    assert result.bytes_fetched == 0
    assert not fake_hub.seen
    assert result.revision == COMMIT
    block = load_block(BlockConfig(source=MODEL), cache=tmp_path / "cache", offline=True)
    assert block.identity.sha256 == load_block(BlockConfig(source=str(medium_llama))).identity.sha256
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="not on this machine"):
        fetch_block(MODEL, cache=tmp_path / "cache", offline=True)


# Pickles


def pickled(folder: Path, target: Path, state: object) -> Path:
    target.mkdir()
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(state, target / "pytorch_model.bin")
    return target


@pytest.mark.parametrize("family_name", ["bert", "biogpt"])
def test_a_pickle_is_converted_once_and_says_so(
    family_name: str,
    checkpoint_of: CheckpointOf,
    fake_hub: FakeHub,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = checkpoint_of(family_name)
    state = full_model(family_name).state_dict()
    fake_hub.models[MODEL] = pickled(folder, tmp_path / "pickled", state)
    result = fetch(fake_hub, tmp_path / "cache")
    assert "converted once" in caplog.text
    assert Path(result.path).name == "converted.safetensors"
    assert not list((tmp_path / "cache").rglob("*.bin*")), "the pickle itself is not kept"
    caplog.clear()
    assert fetch(fake_hub, tmp_path / "cache", layer=0).bytes_fetched == 0
    assert not caplog.text
    for index in range(N_LAYERS):
        fetched = load_block(BlockConfig(source=MODEL, layers=(index,)), cache=tmp_path / "cache", offline=True)
        local = load_block(BlockConfig(source=str(folder), layers=(index,)))
        assert fetched.identity.sha256 == local.identity.sha256


class _Mischief:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_that_would_run_code_is_refused(
    checkpoint_of: CheckpointOf, fake_hub: FakeHub, tmp_path: Path
) -> None:
    trace = tmp_path / "ran"
    pickle.loads(pickle.dumps(_Mischief(trace)))
    assert trace.exists(), "the trap works"
    trace.unlink()
    folder = pickled(checkpoint_of("bert"), tmp_path / "pickled", {"x": _Mischief(trace)})
    fake_hub.models[MODEL] = folder
    with pytest.raises(InputError, match="nothing in the file was run"):
        fetch(fake_hub, tmp_path / "cache")
    assert not trace.exists()


# Bad input


def test_unknown_names_are_told(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    with pytest.raises(InputError, match="knows no model nobody/nothing"):
        fetch(fake_hub, tmp_path, name="nobody/nothing")
    with pytest.raises(InputError, match="has no revision v2"):
        fetch(fake_hub, tmp_path, revision="v2")
    with pytest.raises(InputError, match="no layer 4"):
        fetch(fake_hub, tmp_path, layer=4)
    assert not fake_hub.paths("storage"), "no weights were asked for"


def test_unknown_families_are_told_before_any_weight(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "t5"}')
    fake_hub.models[MODEL] = folder
    with pytest.raises(InputError, match=r"'t5'.*one of llama"):
        fetch(fake_hub, tmp_path / "cache")
    (folder / "config.json").write_bytes((medium_llama / "config.json").read_bytes())
    with pytest.raises(InputError, match="in no form that is read here"):
        fetch(fake_hub, tmp_path / "cache")


def test_unfit_files_are_refused_before_any_weight(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    name = "model.layers.3.mlp.up_proj.weight"
    whole = load_file(medium_llama / "model.safetensors")
    cases = {
        "lacks 1 tensors": {k: v for k, v in whole.items() if k != name},
        "misshapen tensor": whole | {name: whole[name][1:].clone()},
        "quantised": whole | {name: whole[name].to(torch.int8)},
    }
    for number, (words, tensors) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_bytes((medium_llama / "config.json").read_bytes())
        save_file(tensors, folder / "model.safetensors")
        fake_hub.models[MODEL] = folder
        fake_hub.bytes_sent = 0
        with pytest.raises(InputError, match=words):
            fetch(fake_hub, tmp_path / f"cache{number}")
        assert fake_hub.bytes_sent < 100_000


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"not json at all!" + b"\0" * 9])
def test_nonsense_in_place_of_weights_is_refused(
    content: bytes, fake_hub: FakeHub, medium_llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((medium_llama / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(content)
    fake_hub.models[MODEL] = folder
    with pytest.raises(InputError):
        fetch(fake_hub, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_an_index_cannot_point_outside_its_folder(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    sharded = split_last_layer(medium_llama, tmp_path / "sharded")
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../secret.safetensors")
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="plain file names"):
        load_block(BlockConfig(source=str(sharded)))
    fake_hub.models[MODEL] = sharded
    with pytest.raises(InputError, match="plain file names"):
        fetch(fake_hub, tmp_path / "cache")


# Without a hub


def test_local_models_need_no_fetch(medium_llama: Path, tmp_path: Path) -> None:
    (result,) = fetch_block(str(medium_llama), (0,), cache=tmp_path)
    assert result.bytes_fetched == 0
    assert result.path == str(medium_llama / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_default_cache_follows_the_hub_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    assert tmp_path in store_module.default_store().parents


def test_the_list_names_every_family() -> None:
    rows = list_blocks()
    assert {row.family for row in rows} == set(FAMILIES)
    assert [row.name for row in rows if row.gated] == ["llama-3.1-8b", "gemma-2-9b"]
    assert json.loads(json.dumps(show_block("minilm-l6")))["layer_parameters"] == 1_774_464


# Faults that a reviewer found


def leftover(hub: FakeHub, cache: Path, needed: int) -> Path:
    """What a fetch that broke half way leaves behind."""
    hub.break_after_bytes = [needed // 2, 0, 0, 0, 0]
    with pytest.raises(InputError):
        fetch(hub, cache)
    hub.break_after_bytes = []
    (part,) = cache.rglob("layer-*.part")
    return part


@pytest.mark.parametrize("damage", ["zeros to the full size", "one bit", "cut short", "no proof"])
def test_a_damaged_leftover_is_not_gone_on_from(
    damage: str, fake_hub: FakeHub, medium_llama: Path, tmp_path: Path
) -> None:
    fake_hub.models[MODEL] = medium_llama
    whole = fetch(fake_hub, tmp_path / "whole")
    part = leftover(fake_hub, tmp_path / "broken", whole.bytes_needed)
    content = bytearray(part.read_bytes())
    if damage == "zeros to the full size":
        content = content[:5000] + bytes(Path(whole.path).stat().st_size - 5000)
    elif damage == "one bit":
        content[-1] ^= 1
    elif damage == "cut short":
        del content[-1]
    else:
        part.with_name(part.name + ".proven").unlink()
    part.write_bytes(content)
    resumed = fetch(fake_hub, tmp_path / "broken")
    assert resumed.sha256 == whole.sha256
    assert resumed.bytes_fetched >= whole.bytes_needed
    assert Path(resumed.path).read_bytes() == Path(whole.path).read_bytes()
    assert not list((tmp_path / "broken").rglob("*.part*"))


def test_what_came_after_the_last_proof_is_fetched_again(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    whole = fetch(fake_hub, tmp_path / "whole")
    part = leftover(fake_hub, tmp_path / "broken", whole.bytes_needed)
    with part.open("ab") as file:
        file.write(bytes(70_000))
    resumed = fetch(fake_hub, tmp_path / "broken")
    assert resumed.sha256 == whole.sha256
    assert resumed.bytes_fetched <= whole.bytes_fetched - whole.bytes_needed // 2 + 1000, "what was proven was kept"


def test_a_killed_fetch_keeps_what_was_proven(
    fake_hub: FakeHub, medium_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power fails: nothing is tidied up, and bytes after the last proof are lost."""
    from medvisionllama.language import download

    fake_hub.models[MODEL] = medium_llama
    whole = fetch(fake_hub, tmp_path / "whole")
    monkeypatch.setattr(download, "_PROVEN_EVERY_BYTES", 200_000)
    proofs: list[int] = []

    def until_the_third(out: download._ProvenFile, prove: Callable[..., None] = download._ProvenFile.prove) -> None:
        if len(proofs) == 3:
            raise KeyboardInterrupt
        proofs.append(out.done)
        prove(out)

    with monkeypatch.context() as patch:
        patch.setattr(download._ProvenFile, "prove", until_the_third)
        with pytest.raises(KeyboardInterrupt):
            fetch(fake_hub, tmp_path / "broken")
    resumed = fetch(fake_hub, tmp_path / "broken")
    assert resumed.sha256 == whole.sha256
    assert whole.bytes_fetched - proofs[-1] <= resumed.bytes_fetched <= whole.bytes_fetched - proofs[-1] + 5000


def test_a_file_that_is_not_what_was_written_is_not_admitted(tmp_path: Path) -> None:
    part = tmp_path / "layer-00.part"
    save_file({"x": torch.ones(3)}, part)
    store = store_module.ModelStore(tmp_path, MODEL)
    with pytest.raises(InputError, match="not what was written"):
        store.admit(part, tmp_path / "layer-00.safetensors", {}, arrived="0" * 64)
    assert not (tmp_path / "layer-00.safetensors").exists()


def test_a_renamed_gated_models_refusal_is_told(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models["new/name"] = medium_llama
    fake_hub.renamed["old/name"] = "new/name"
    fake_hub.gated.add("new/name")
    with pytest.raises(InputError, match="gated and no token was sent"):
        fetch(fake_hub, tmp_path, name="old/name")
    assert len(fake_hub.seen) == 2, "the redirect and the refusal, once"
    assert fetch(fake_hub, tmp_path, name="old/name", token="secret").revision == COMMIT


@pytest.mark.parametrize("name", ["foo/bar--baz", "foo/bar..x", "foo/x.git", "-a/b", "a/b.", "a/é"])
def test_names_that_the_hub_cannot_have_are_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no language model"):
        fetch_block(name, cache=tmp_path)


def test_a_redirect_that_never_ends_is_told(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.renamed[MODEL] = MODEL
    with pytest.raises(InputError, match="cannot be had"):
        fetch(fake_hub, tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"../../elsewhere", b"main"])
def test_a_damaged_ref_heals(content: bytes, fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    fetch(fake_hub, tmp_path)
    ref = tmp_path / "someone--model" / "refs" / "main"
    ref.write_bytes(content)
    with pytest.raises(InputError, match="not on this machine"):
        fetch_block(MODEL, cache=tmp_path, offline=True)
    again = fetch(fake_hub, tmp_path)
    assert again.revision == ref.read_text() == COMMIT
    assert again.bytes_fetched < 2000, "the layer itself was still good"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[]", b""])
def test_a_damaged_config_heals(content: bytes, fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    fetch(fake_hub, tmp_path)
    config = tmp_path / "someone--model" / COMMIT / "config.json"
    config.write_bytes(content)
    assert fetch(fake_hub, tmp_path).bytes_fetched < 2000
    assert config.read_bytes() == (medium_llama / "config.json").read_bytes()


def unfit(medium_llama: Path) -> dict[str, dict[str, torch.Tensor]]:
    name = "model.layers.3.mlp.up_proj.weight"
    whole = load_file(medium_llama / "model.safetensors")
    return {
        "lacks 1 tensors": {k: v for k, v in whole.items() if k != name},
        "misshapen tensor": whole | {name: whole[name][1:].clone()},
        "quantised": whole | {name: whole[name].to(torch.int8)},
    }


@pytest.mark.parametrize("words", ["lacks 1 tensors", "misshapen tensor", "quantised"])
@pytest.mark.parametrize("origin", ["folder", "pickle", "library"])
def test_unfit_checkpoints_of_every_origin_are_refused(
    words: str,
    origin: str,
    fake_hub: FakeHub,
    medium_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = unfit(medium_llama)[words]
    folder = tmp_path / "model"
    if origin == "pickle":
        fake_hub.models[MODEL] = pickled(medium_llama, folder, tensors)
        with pytest.raises(InputError, match=words):
            fetch(fake_hub, tmp_path / "cache")
        return
    if origin == "library":
        folder = in_the_librarys_cache(tmp_path, monkeypatch)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((medium_llama / "config.json").read_bytes())
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=words):
        fetch_block(MODEL if origin == "library" else str(folder), cache=tmp_path / "cache", offline=True)


def in_the_librarys_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty snapshot of the model in the hub library's own cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--someone--model"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


def test_a_damaged_copy_of_the_hub_library_is_passed_over(
    fake_hub: FakeHub, medium_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.models[MODEL] = medium_llama
    snapshot = in_the_librarys_cache(tmp_path, monkeypatch)
    (snapshot / "config.json").write_bytes((medium_llama / "config.json").read_bytes())
    (snapshot / "model.safetensors").write_bytes(b"damaged")
    assert fetch(fake_hub, tmp_path / "a").bytes_fetched > 0
    (snapshot / "config.json").write_bytes(b"\xff")
    assert fetch(fake_hub, tmp_path / "b").bytes_fetched > 0
    (snapshot.parents[1] / "refs" / "main").write_bytes(b"\xff\xfe")
    assert fetch(fake_hub, tmp_path / "c").bytes_fetched > 0


def test_a_reader_without_the_lock_removes_nothing(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    """Between a writer's record and its weights both may disagree: whoever looks then must leave them alone."""
    fake_hub.models[MODEL] = medium_llama
    path = Path(fetch(fake_hub, tmp_path).path)
    record = path.with_suffix(".json")
    sound = record.read_text()
    record.write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(InputError, match="not on this machine"):
        fetch_block(MODEL, cache=tmp_path, offline=True)
    assert path.is_file()
    record.write_text(sound)
    assert fetch_block(MODEL, cache=tmp_path, offline=True)[0].bytes_fetched == 0


def test_a_disk_that_fills_up_while_converting_is_told(
    checkpoint_of: CheckpointOf, fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medvisionllama.language import pickled as pickled_module

    def full(tensors: object, path: Path, origin: object) -> None:
        path.write_bytes(b"half of it")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    fake_hub.models[MODEL] = pickled(checkpoint_of("bert"), tmp_path / "p", full_model("bert").state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(pickled_module, "save_file", full)
        with pytest.raises(InputError, match=r"cannot be written.*Free some space"):
            fetch(fake_hub, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.part"))
    assert fetch(fake_hub, tmp_path / "cache").bytes_fetched > 0


def test_a_pickle_that_is_none_is_not_kept(checkpoint_of: CheckpointOf, fake_hub: FakeHub, tmp_path: Path) -> None:
    folder = pickled(checkpoint_of("bert"), tmp_path / "p", full_model("bert").state_dict())
    sound = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(b"garbage" * 1000)
    fake_hub.models[MODEL] = folder
    with pytest.raises(InputError, match="tensors only"):
        fetch(fake_hub, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.bin*"))
    (folder / "pytorch_model.bin").write_bytes(sound)
    assert fetch(fake_hub, tmp_path / "cache").bytes_fetched > 0


def test_a_default_cache_that_cannot_be_made_hinders_no_reader(
    fake_hub: FakeHub, medium_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "file" / "assets"))
    snapshot = in_the_librarys_cache(tmp_path, monkeypatch)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_bytes((medium_llama / name).read_bytes())
    assert fetch_block(MODEL, offline=True)[0].revision == COMMIT
    assert show_block("smollm2-135m")["at_hand"] == []
    fake_hub.models["other/model"] = medium_llama
    with pytest.raises(InputError, match="written"):
        fetch_block("other/model", hub=Hub(fake_hub.endpoint, pause_s=0))


def test_a_file_that_changes_its_size_is_noticed(fake_hub: FakeHub, medium_llama: Path, tmp_path: Path) -> None:
    fake_hub.models[MODEL] = medium_llama
    fake_hub.said_size = 10**9
    with pytest.raises(InputError, match=r"said to have \d+ bytes, and now 1000000000"):
        fetch(fake_hub, tmp_path)


def test_the_list_shows_what_will_be_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    from medvisionllama.cli import main

    assert main(["blocks", "list"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("smollm2-135m"))
    assert "7.1 MB" in row
    assert "93efa2f097d5" in row


def test_several_layers_are_one_object(medium_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medvisionllama.cli import main

    assert main(["blocks", "fetch", str(medium_llama), "--layer", "0", "1", "--json"]) == 0
    assert [one["layer"] for one in json.loads(capsys.readouterr().out)["layers"]] == [0, 1]
