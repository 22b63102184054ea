"""Does pre-training matter? The same network around different middles, at equal steps: the design of the study.

Middles differ in nothing but what stands between encoder and decoder: nothing, mappers alone, and the language block
frozen at several starts. Every other weight starts equal for one seed, and batches, augmentation and dropout are drawn
equal, so that within a seed and a case two middles are a pair (SPEC 3, 8).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from medvisionllama.data.augment import AugmentConfig
from medvisionllama.errors import InputError
from medvisionllama.experiments.cells import Cell, completed, key_of
from medvisionllama.experiments.rows import Row
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.zoo import named, with_block
from medvisionllama.recipe import Recipe
from medvisionllama.run_folder import to_json

NAME = "does-pretraining-matter"
PLANNED_TASK = "Task04_Hippocampus"
PLANNED_SPLITS = "3602b65f62703d00"  # digest of docs/results/task04-native/splits.json
MIDDLES = ("none", "identity", "random", "random-matched", "shuffled", "pretrained", "trained")
NETWORKS = {"medvisionllama-u": "vit-u", "medvisionllama": "vit-baseline"}  # to what each is without a middle
LORAS = ("both", "none")

# The native recipe as it stood when the study began. Every value is written down, so that a later, better recipe
# changes nothing here. The last step's weights are scored: none are chosen on the part that judges them.
RECIPE = Recipe(
    loss="dice_ce",
    optimizer="adamw",
    learning_rate=0.002,
    weight_decay=0.01,
    schedule="cosine",
    warmup=0.05,
    clip_norm=1.0,
    batch_size=4,
    steps=1000,
    precision="bfloat16",
    foreground_share=0.333,
    validations=0,
    augment=AugmentConfig(
        rotate_probability=0.2,
        rotate_degrees=15.0,
        scale_probability=0.2,
        scale_range=(0.85, 1.2),
        mirror_axes=(),
        noise_probability=0.1,
        noise_sd=0.1,
        brightness_probability=0.15,
        brightness_range=(0.75, 1.25),
        contrast_probability=0.15,
        contrast_range=(0.75, 1.25),
        gamma_probability=0.15,
        gamma_range=(0.7, 1.5),
    ),
)


def study_cells(
    tasks: Sequence[tuple[str, str]],
    *,
    networks: Sequence[str] = tuple(NETWORKS),
    middles: Sequence[str] = ("none", "identity", "random-matched", "shuffled", "pretrained"),
    blocks: Sequence[tuple[str, str]] = (("minilm-l6", "minilm-l6"),),
    loras: Sequence[str] = ("both",),
    fractions: Sequence[float] = (0.1, 1.0),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    steps: int = RECIPE.steps,
) -> tuple[Cell, ...]:
    """The study's cells, seeds outermost: a matrix that is stopped early is balanced as far as it came.

    Args:
        tasks: Name of each task and the digest of its splits.
        networks: Of :data:`NETWORKS`.
        middles: Of :data:`MIDDLES`.
        blocks: What tables call each language model, and where it comes from.
        loras: Of ``models.middle.Lora``: adapters in mappers and block, or nowhere. Middles without a block have no
            adapters in it, but theirs in the mappers follow.
        fractions: Shares of the training patients.
        seeds: Of everything random; random and shuffled blocks are drawn anew for each.
        steps: Equal for all.
    """
    recipe = replace(RECIPE, steps=steps)
    cells: dict[str, Cell] = {}
    for seed, (task, splits), fraction, network, lora, (label, source), middle in product(
        seeds, tasks, fractions, networks, loras, blocks, middles
    ):
        config = study_network(network, middle, source, lora, seed)
        cell = Cell(
            task=task,
            model=NETWORKS[network] if middle == "none" else network,
            config=config,
            recipe=recipe,
            splits=splits,
            block="" if middle == "none" else label,
            fraction=fraction,
            seed=seed,
        )
        cells.setdefault(cell.key, cell)  # `none` is the same for every block
    return tuple(cells.values())


def study_network(network: str, middle: str, source: str, lora: str = "both", seed: int = 0) -> ModelConfig:
    """A network with one of the study's middles.

    Raises:
        InputError: A name is unknown.
    """
    if network not in NETWORKS or middle not in MIDDLES or lora not in LORAS:
        raise InputError(
            "no such cell in the study",
            got=f"{network}, {middle}, LoRA {lora}",
            expected=f"{' or '.join(NETWORKS)}; {', '.join(MIDDLES)}; LoRA {' or '.join(LORAS)}",
        )
    if middle == "none":
        return named(NETWORKS[network])
    config = with_block(named(network), str(Path(source).resolve()) if Path(source).is_dir() else source)
    stage = replace(config.middle, lora=lora)  # type: ignore[arg-type]
    if middle in ("identity", "trained"):
        stage = replace(stage, kind=middle)  # type: ignore[arg-type]
    elif middle != "pretrained":
        stage = replace(stage, block=replace(stage.block, init=middle))  # type: ignore[arg-type]
    if middle not in ("identity", "pretrained"):  # a start drawn at random is drawn anew for each seed
        stage = replace(stage, block=replace(stage.block, seed=seed))
    return replace(config, middle=stage)


@dataclass(frozen=True, order=True)
class Place:
    """Where a cell stands in the study: all but its seed. Cells of two places pair where only the middle differs.

    Attributes:
        task: The task.
        block: What tables call the language model; empty without a middle.
        network: Of :data:`NETWORKS`.
        lora: Of :data:`LORAS`; empty without a middle.
        fraction: Share of the training patients.
        steps: Of the training.
        middle: Of :data:`MIDDLES`.
        splits: Digest of the splits.
        body: Digest of the network without its middle stage.
        stage: Digest of the middle stage, less what the middles vary: kind, start and seed. Empty without a middle.
    """

    task: str
    block: str
    network: str
    lora: str
    fraction: float
    steps: int
    middle: str
    splits: str
    body: str
    stage: str

    def with_middle(self, middle: str) -> Place:
        """The same place around another middle; without a middle, there is neither block nor adapter."""
        if middle == "none":
            return replace(self, middle=middle, block="", lora="", stage="")
        return replace(self, middle=middle)


def told_apart(places: Collection[Place]) -> dict[Place, str]:
    """What a page adds to each place's names, so that none is taken for another; empty where names are enough.

    Splits are told where a task has several, networks and middle stages where several bear one name.
    """

    def digests_of(place: Place) -> tuple[tuple[str, str, str], ...]:
        return (
            ("split", place.task, place.splits),
            ("network", place.network, place.body),
            ("stage", f"{place.network}, {place.block}, {place.lora}", place.stage),
        )

    digests: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for place in places:
        for what, name, digest in digests_of(place):
            digests[what, name].add(digest)
    return {
        place: ", ".join(f"{what} {own[:8]}" for what, name, own in digests_of(place) if len(digests[what, name]) > 1)
        for place in places
    }


def place_of(settings: Mapping[str, Any], model: str, block: str) -> Place | None:
    """Where settings stand in the study; None where they are of another study.

    Args:
        settings: Of a cell, as :meth:`~medvisionllama.experiments.cells.Cell.settings` gives them, completed.
        model: The cell's.
        block: What tables call its language model.
    """
    network = {**{name: name for name in NETWORKS}, **{bare: name for name, bare in NETWORKS.items()}}.get(model)
    recipe = json.loads(to_json(asdict(replace(RECIPE, steps=settings["recipe"]["steps"] or 1))))
    if network is None or settings["recipe"] != recipe or settings["protocol"] != "native" or settings["fold"] != 0:
        return None
    body = dict(settings["config"])
    stage = dict(body.pop("middle"))
    name = stage.pop("kind")
    if "block" in stage:
        stage["block"] = dict(stage["block"])
        init = stage["block"].pop("init")
        del stage["block"]["seed"]
        name = init if name == "language" else name
    if name not in MIDDLES:
        return None
    where = Place(
        task=settings["task"],
        block=block,
        network=network,
        lora=stage["lora"],
        fraction=settings["fraction"],
        steps=settings["recipe"]["steps"],
        middle=name,
        splits=settings["splits"],
        body=key_of(body),
        stage=key_of(stage),
    )
    return where.with_middle(name)


def planned_places(splits: str, sources: Mapping[str, str] | None = None) -> dict[Place, set[int]]:
    """The study as it was planned, whatever of it a command asks for: places and their seeds.

    Args:
        splits: Digest of the planned task's splits.
        sources: Where the language models come from, by what tables call them, as settings tell it; by default by
            their own names.
    """
    known = sources or {}
    task = [(PLANNED_TASK, splits)]
    minilm, stories = ((label, known.get(label, label)) for label in ("minilm-l6", "stories260K"))
    cells = [
        *study_cells(task, blocks=[minilm]),
        *study_cells(task, blocks=[stories], networks=["medvisionllama-u"], middles=("shuffled", "pretrained")),
    ]
    return _places_of(cells)


@dataclass(frozen=True)
class Scope:
    """What a page tells of.

    Attributes:
        places: Places with the seeds told of: planned, asked for, or measured.
        declared: Those of them that stood before anything was measured; None where all do. Comparisons with others are
            exploratory, and seeds beyond these were added later.
        is_planned: Whether it is the planned study, or more than that.
    """

    places: Mapping[Place, Collection[int]] = field(default_factory=dict)
    declared: Mapping[Place, Collection[int]] | None = None
    is_planned: bool = False

    @property
    def planned(self) -> Mapping[Place, Collection[int]]:
        """What was declared, all of it where nothing was added."""
        return self.places if self.declared is None else self.declared

    @property
    def added(self) -> dict[Place, list[int]]:
        """The seeds of each place that are told of and were not declared."""
        return gaps_of(self.planned, self.places)


def gaps_of(there: Mapping[Place, Collection[int]], wanted: Mapping[Place, Collection[int]]) -> dict[Place, list[int]]:
    """The seeds that are wanted and not there, of every place that lacks some."""
    gaps = {place: sorted(set(seeds) - set(there.get(place, ()))) for place, seeds in wanted.items()}
    return {place: seeds for place, seeds in gaps.items() if seeds}


def scope_of(cells: Sequence[Cell], rows: Collection[Row], splits: str = PLANNED_SPLITS) -> Scope:
    """What a page tells of: what was asked for or measured; where that is of the planned study, all of that.

    So the page says the same of what is there, whichever command wrote it last; what one asked for beyond the plan is
    listed as missing until it is measured.

    Args:
        cells: Asked for.
        rows: What was measured already.
        splits: Digest of the planned study's.
    """
    told = _places_of(cells)
    for row in rows:
        place = place_of(row.settings, row.model, row.block)
        if place is not None:
            told.setdefault(place, set()).add(row.seed)
    settings = [(row.block, row.settings) for row in rows] + [(cell.block, cell.settings()) for cell in cells]
    sources = {block: own["config"]["middle"]["block"]["source"] for block, own in settings if block}
    planned = planned_places(splits, sources)
    if not set(told) & set(planned):
        return Scope(told, told)
    return Scope(
        {place: told.get(place, set()) | planned.get(place, set()) for place in [*planned, *told]},
        planned,
        is_planned=True,
    )


def _places_of(cells: Sequence[Cell]) -> dict[Place, set[int]]:
    found: defaultdict[Place, set[int]] = defaultdict(set)
    for cell in cells:
        place = place_of(completed(cell.settings()), cell.model, cell.block)
        assert place is not None, "the study's own cells belong to it"
        found[place].add(cell.seed)
    return dict(found)
