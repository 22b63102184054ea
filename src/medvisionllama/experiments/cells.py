"""One cell of a matrix as a value: what is trained, on what, for how long, from which seed.

A cell is a function of its key. The key is a hash of every setting that decides the result; where files lie, what
computes and how tables label it is not among them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from medvisionllama.config import Experiment
from medvisionllama.data.plan import Protocol
from medvisionllama.data.splits import Splits
from medvisionllama.errors import InputError
from medvisionllama.language.families import family_of
from medvisionllama.language.fetch import locate
from medvisionllama.language.layout import digest as digest_of_tensors
from medvisionllama.language.source import find_source
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import NetworkConfig
from medvisionllama.recipe import Recipe
from medvisionllama.run_folder import to_json

KEY_LETTERS = 16
# A language model's folder of files up to this size is read whole for its digest; of a larger one the layers in use.
READ_WHOLE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Cell:
    """One training and its scores.

    Attributes:
        task: Name of the task, such as ``Task04_Hippocampus``.
        model: The name in ``models.zoo`` that ``config`` started from.
        config: The network, without what the plan decides (channels and input size).
        recipe: The training, its length included.
        splits: Digest of the splits (:func:`splits_digest`).
        block: What tables call the language model; empty for none.
        protocol: ``native`` or ``paper``.
        grid: Edge of the paper protocol's grid; without meaning in the native one.
        fold: Which part validates.
        fraction: Share of the training patients.
        seed: Of the network's start, the order of cases, augmentation and dropout.
    """

    task: str
    model: str
    config: NetworkConfig
    recipe: Recipe
    splits: str
    block: str = ""
    protocol: Protocol = "native"
    grid: int = 128
    fold: int = 0
    fraction: float = 1.0
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        """All that decides the result, in plain JSON: a folder of weights stands as what it holds."""
        config = asdict(self.config)
        if isinstance(self.config, ModelConfig):
            block = self.config.middle.block
            if self.config.middle.kind == "none":
                del config["middle"]["block"]  # no block stands there, whatever its settings
            elif (folder := Path(block.source)).is_dir():
                config["middle"]["block"]["source"] = folder_digest(folder, block.layers, block.final_norm)
        own = {
            "task": self.task,
            "protocol": self.protocol,
            "grid": self.grid if self.protocol == "paper" else None,
            "fold": self.fold,
            "fraction": self.fraction,
            "seed": self.seed,
            "splits": self.splits,
        }
        plain: dict[str, Any] = json.loads(to_json(own | {"config": config, "recipe": asdict(self.recipe)}))
        return plain

    @property
    def key(self) -> str:
        """A hash of :meth:`settings`."""
        return key_of(self.settings())

    @property
    def name(self) -> str:
        """For people: model, block, how it starts, share and seed; and the key, since others may be called alike.

        Rows, locks and run folders bear it.

        Raises:
            InputError: It would be a path of several folders, in which no row is found again.
        """
        parts = [self.task.split("_")[0], self.model]
        if isinstance(self.config, ModelConfig) and self.config.middle.kind != "none":
            middle = self.config.middle
            parts += [self.block] if self.block else []
            parts += [middle.block.init if middle.kind == "language" else middle.kind]
            parts += [] if middle.lora == "both" else [f"lora-{middle.lora}"]
        parts += [f"{100 * self.fraction:g}pc", f"f{self.fold}", f"s{self.seed}", self.key[:8]]
        name = "-".join(parts)
        if "/" in name or "\\" in name:
            raise InputError(
                "a cell's name is that of its files and cannot hold a slash",
                got=name,
                mend="Give the language model a label of its own (--block LABEL=SOURCE), or the task another name.",
            )
        return name

    def experiment(self, dataset: Path) -> Experiment:
        """What :func:`~medvisionllama.run.train_run` takes."""
        return Experiment(
            dataset=str(dataset.resolve()),
            model_name=self.model,
            recipe_name="as in the cell",
            protocol=self.protocol,
            grid=self.grid,
            fold=self.fold,
            fraction=self.fraction,
            seed=self.seed,
            model=self.config,
            recipe=self.recipe,
        )


def key_of(settings: dict[str, Any]) -> str:
    """The key of a cell with these settings."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:KEY_LETTERS]


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of an older row with those that have been added since, at their defaults.

    A new setting's default is the former behaviour, so that what was measured before stays the same cell.
    """
    defaults = (_plain(asdict(kind())) for kind in get_args(NetworkConfig))
    config = next(of_kind for of_kind in defaults if of_kind.get("kind") == settings["config"].get("kind"))
    if "middle" in config and "block" not in settings["config"]["middle"]:
        del config["middle"]["block"]
    return settings | {
        "config": _filled(settings["config"], config),
        "recipe": _filled(settings["recipe"], _plain(asdict(Recipe()))),
    }


def splits_digest(splits: Splits) -> str:
    """Which cases test, train and validate, as one word."""
    return sha256(json.dumps(splits.to_dict(), sort_keys=True).encode()).hexdigest()[:KEY_LETTERS]


@lru_cache
def folder_digest(folder: Path, layers: tuple[int, ...] = (-1,), final_norm: bool = True) -> str:
    """What a language model's folder holds, wherever it lies: configuration and weights.

    Args:
        folder: In Hugging Face layout.
        layers: Those in use: of a large model no others are read, however its weights are divided into files.
        final_norm: Whether the model's final norm is in use.

    Raises:
        InputError: A large model has no such layer, or its files cannot be read.
    """
    digest = sha256()
    files = [p for p in sorted(folder.iterdir()) if p.name == "config.json" or p.suffix in (".safetensors", ".bin")]
    if any(path.suffix == ".safetensors" and path.stat().st_size > READ_WHOLE_BYTES for path in files):
        digest.update((folder / "config.json").read_bytes())
        for layer in _layer_digests(folder, layers, final_norm):
            digest.update(layer.encode())
        return f"folder:{digest.hexdigest()[:KEY_LETTERS]}"
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}/{size}/".encode())
        if size <= READ_WHOLE_BYTES:
            digest.update(path.read_bytes())
    return f"folder:{digest.hexdigest()[:KEY_LETTERS]}"


def _layer_digests(folder: Path, layers: tuple[int, ...], final_norm: bool) -> Iterator[str]:
    located = locate(find_source(str(folder)), layers, cache=None, hub=None)
    family = family_of(located.numbers, source=str(folder))
    for index, checkpoint in located.layers.items():
        yield digest_of_tensors(checkpoint.read(checkpoint.layer_names(family, index, final_norm=final_norm)))


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(to_json(value))
    return plain


def _filled(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    filled = defaults | settings
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(filled[name], dict):
            filled[name] = _filled(filled[name], default)
    return filled
