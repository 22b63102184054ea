"""A cell is a function of its key, and the key of every setting that decides the result, and of nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from medvisionllama.data.splits import read_splits
from medvisionllama.errors import InputError
from medvisionllama.experiments import cells
from medvisionllama.experiments.cells import Cell, completed, folder_digest, key_of, splits_digest
from medvisionllama.experiments.pretraining import PLANNED_TASK, study_cells
from medvisionllama.experiments.rows import read_row
from medvisionllama.models.zoo import PEERS, named, with_block
from tests.experiments.row_maker import make_row
from tests.language.tiny_models import full_model

SMALL = replace(named("medvisionllama-u"), width=16)


def changed(cell: Cell) -> dict[str, Cell]:
    middle = SMALL.middle
    shuffled = replace(SMALL, middle=replace(middle, block=replace(middle.block, init="shuffled")))
    return {
        "task": replace(cell, task="Other"),
        "seed": replace(cell, seed=1),
        "fraction": replace(cell, fraction=0.1),
        "fold": replace(cell, fold=1),
        "splits": replace(cell, splits="others"),
        "protocol": replace(cell, protocol="paper"),
        "network": replace(cell, config=SMALL),
        "init": replace(cell, config=shuffled),
        "peer": replace(cell, config=PEERS["dynunet"]),
        "steps": replace(cell, recipe=replace(cell.recipe, steps=3)),
        "augmentation": replace(
            cell, recipe=replace(cell.recipe, augment=replace(cell.recipe.augment, noise_probability=0.5))
        ),
    }


def test_every_setting_changes_the_key(cell: Cell) -> None:
    keys = {name: other.key for name, other in changed(cell).items()} | {"none": cell.key}
    assert len(set(keys.values())) == len(keys)


def test_what_decides_nothing_leaves_the_key(cell: Cell) -> None:
    same = [
        replace(cell),
        replace(cell, model="a label", block="another"),
        replace(cell, grid=64),  # the native protocol knows no grid
        replace(cell, config=with_block(cell.config, "biobert")),  # no block stands in the middle  # type: ignore[arg-type]
    ]
    assert {other.key for other in same} == {cell.key}
    assert replace(cell, protocol="paper", grid=64).key != replace(cell, protocol="paper").key


def test_a_block_is_known_by_what_its_folder_holds(cell: Cell, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there" / "moved"
    full_model("llama").save_pretrained(here)
    shutil.copytree(here, there)
    assert folder_digest(here) == folder_digest(there)
    a, b = (replace(cell, config=with_block(SMALL, str(folder))) for folder in (here, there))
    assert a.key == b.key
    assert str(tmp_path) not in str(a.settings())
    weights = load_file(there / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, there / "model.safetensors")
    folder_digest.cache_clear()
    assert replace(cell, config=with_block(SMALL, str(there))).key != a.key


def test_a_large_model_is_known_by_the_layers_in_use(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "READ_WHOLE_BYTES", 1024)
    model = full_model("llama")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1

    def key(folder: Path, layer: int = -1) -> str:
        folder_digest.cache_clear()
        config = with_block(SMALL, str(folder))
        block = replace(config.middle.block, layers=(layer,))
        return replace(cell, config=replace(config, middle=replace(config.middle, block=block))).key

    def changed_at(name: str) -> Path:
        """A file of the same size with other numbers in one tensor."""
        weights = load_file(tmp_path / "one" / "model.safetensors")
        assert name in weights
        other = shutil.copytree(tmp_path / "one", tmp_path / f"other {name}")
        save_file(weights | {name: weights[name] + 1}, other / "model.safetensors", metadata={"format": "pt"})
        return Path(other)

    as_it_was = key(tmp_path / "one")
    assert key(tmp_path / "shards") == as_it_was
    in_the_last, in_the_first = (changed_at(f"model.layers.{n}.mlp.up_proj.weight") for n in (2, 0))
    assert key(in_the_last) != as_it_was
    assert key(in_the_first) == as_it_was
    assert key(in_the_first, layer=0) != key(tmp_path / "one", layer=0)


def test_the_digest_of_a_small_folder_stays_what_rows_hold(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"some weights")
    whole = b"config.json/2/{}model.safetensors/12/some weights"
    assert folder_digest(tmp_path) == f"folder:{sha256(whole).hexdigest()[:16]}"


@pytest.mark.parametrize("kind", ["none", "language", "peer"])
def test_a_setting_added_later_leaves_older_rows_what_they_are(cell: Cell, kind: str) -> None:
    config = {"none": cell.config, "language": SMALL, "peer": PEERS["dynunet"]}[kind]
    cell = replace(cell, config=config)
    older = cell.settings()
    del older["recipe"]["patience"], older["recipe"]["augment"]["noise_sd"]
    del older["config"]["norm"]
    assert key_of(older) != cell.key
    assert key_of(completed(older)) == cell.key
    older["recipe"]["patience"] = 7  # but a value that is there is heeded
    assert key_of(completed(older)) != cell.key


def test_names_tell_people_and_differ(cell: Cell) -> None:
    names = [other.name for other in changed(cell).values()]
    assert len(set(names)) == len(names)
    assert cell.name == f"Phantom-vit-u-100pc-f0-s0-{cell.key[:8]}"
    assert "minilm-l6-shuffled" in replace(changed(cell)["init"], model="medvisionllama-u", block="minilm-l6").name


def test_a_name_that_would_be_a_path_is_refused(cell: Cell) -> None:
    study = replace(cell, config=SMALL, model="medvisionllama-u")
    for strange in (replace(study, block="org/name"), replace(study, block="/a/folder"), replace(cell, task="A/B")):
        with pytest.raises(InputError, match=r"cannot hold a slash: got .*--block LABEL=SOURCE"):
            _ = strange.name
    assert replace(study, block="org~name").key == replace(study, block="org/name").key  # labels decide nothing


ROWS = Path(__file__).resolve().parents[2] / "docs" / "results" / "does-pretraining-matter" / "rows"
SPLITS = ROWS.parents[1] / "task04-native" / "splits.json"


def strangers(rows: Path) -> list[str]:
    """Files of the study that no cell of the plan, or of what was added to it, has the key of: measured again."""
    task = [(PLANNED_TASK, splits_digest(read_splits(SPLITS)))]
    without_adapters = study_cells(task, middles=("shuffled", "pretrained"), loras=("none",), fractions=(1.0,))
    known = {cell.key for cell in [*study_cells(task), *without_adapters]}
    files = sorted(rows.glob("*.json"))
    return [path.name for path in files if (row := read_row(path)).block in ("", "minilm-l6") and row.key not in known]


def test_every_committed_row_is_a_cell_of_the_study() -> None:
    assert any(ROWS.glob("*.json"))
    assert strangers(ROWS) == []


def test_every_committed_row_bears_the_name_of_its_cell() -> None:
    """Its key's letters aside, which are of the settings that there were when it was measured."""
    planned = study_cells([(PLANNED_TASK, splits_digest(read_splits(SPLITS)))])
    names = {cell.key: cell.name.rpartition("-")[0] for cell in planned}
    keys = {path.stem: row.key for path in ROWS.glob("*.json") if (row := read_row(path)).key in names}
    assert keys
    assert [stem for stem, key in keys.items() if stem.rpartition("-")[0] != names[key]] == []


def test_a_row_of_other_settings_is_a_stranger(cell: Cell, tmp_path: Path) -> None:
    digest = splits_digest(read_splits(SPLITS))
    longer, planned = (study_cells([(PLANNED_TASK, digest)], seeds=(0,), steps=n)[1] for n in (999, 1000))
    make_row(planned, tmp_path, {"test": [0.5]})
    assert strangers(tmp_path) == []
    make_row(longer, tmp_path, {"test": [0.5]})
    assert strangers(tmp_path) == [f"{longer.name}.json"]


def test_every_committed_row_of_the_papers_was_scored_as_its_training_saw_it() -> None:
    """The kept weights' Dice on the validation part, looked at while training: nothing came between but the scoring."""
    rows = [read_row(path) for path in (ROWS.parents[1] / "paper-protocol" / "rows").glob("*.json")]
    assert len(rows) >= 16
    for row in rows:
        looks = {entry["step"]: entry.get("validation_dice") for entry in row.content["log"]}
        scored = row.parts["validation/model"].by_case("dice").values()
        assert np.mean([*scored]) == pytest.approx(looks[row.content["best_step"]], abs=5e-5), row.name


@pytest.mark.real_data
def test_every_committed_row_of_the_second_block_is_a_cell_too(real_data: Path) -> None:
    folder = real_data / "weights" / "stories260K" / "hf"
    if not folder.is_dir():
        pytest.skip("the second block is not at hand")
    second = study_cells(
        [(PLANNED_TASK, splits_digest(read_splits(SPLITS)))],
        networks=["medvisionllama-u"],
        middles=["shuffled", "pretrained"],
        blocks=[("stories260K", str(folder))],
    )
    rows = [row for path in ROWS.glob("*.json") if (row := read_row(path)).block == "stories260K"]
    if not rows:
        pytest.skip("no row of the second block is committed yet")
    assert {row.key for row in rows} <= {cell.key for cell in second}
