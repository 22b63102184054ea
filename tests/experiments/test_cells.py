"""A cell is a function of its key, and the key of every setting that decides the result, and of nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from medvisionllama.experiments.cells import Cell, completed, folder_digest, key_of
from medvisionllama.models.zoo import PEERS, named, with_block
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
