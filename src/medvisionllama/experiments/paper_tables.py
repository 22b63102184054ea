"""Every table and figure of the two papers as data: which networks are its rows, what it prints, which figure it is.

Printed numbers stand in ``tables.py``, networks in ``models/zoo.py``; here is what joins them (SPEC 9).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType

from medvisionllama.config import load_recipe
from medvisionllama.errors import InputError
from medvisionllama.experiments.cells import Cell
from medvisionllama.experiments.tables import Version
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import NetworkConfig, build_network
from medvisionllama.models.zoo import LLAMA, PAPER_ROWS, PEERS, PaperRow, network_named, with_block

PAPER_GRID = 128
_OVERLAP = ("dice", "jaccard", "accuracy", "precision", "recall", "hd95_mm")
_V2_SIX = ("dice", "jaccard", "nsd", "hd95_mm", "specificity", "recall")
_PARAMETERS = ("parameters_m",)
_COSTS = ("parameters_m", "gflops", "inference_ms")
_HA = "MedVisionLlama (HA)"

# The papers' rivals by the names under which `models.zoo.PEERS` has them, or will have them.
RIVALS = {
    "UNet++": "unetpp",
    "UNETR": "unetr",
    "nnU-Net": "dynunet",
    "MissFormer": "missformer",
    "TransUNet": "transunet",
    "Swin-UNet": "swin-unet",
}


@dataclass(frozen=True)
class PaperTable:
    """One table or figure.

    Attributes:
        version: Of the paper.
        number: As the paper numbers it.
        title: What it shows, in our words.
        rows_of: The table whose rows it has, where that is another: a figure shows a table's networks.
        metrics: Of the scores.
        counts: Of the networks, such as ``parameters_m``; see ``experiments.tables.Published``.
        against: The row that all others are compared with; empty for the first.
        fractions: Shares of the training patients.
        figure: Its name in ``reports.paper_figures``; empty for a table.
        maps: Whether the figure draws activation maps, which are collected after the training.
        pictures: Whether it draws cases.
        beaten: Whether a mark stands at a row that is worse than ``against``, as v2's Table 3 prints it; else at one
            that differs, in either direction.
    """

    version: Version
    number: str
    title: str
    rows_of: str = ""
    metrics: tuple[str, ...] = ("dice",)
    counts: tuple[str, ...] = ()
    against: str = ""
    fractions: tuple[float, ...] = (1.0,)
    figure: str = ""
    maps: bool = False
    pictures: bool = False
    beaten: bool = False

    @property
    def name(self) -> str:
        """Such as ``v2-T5``, ``v1-A1`` of an appendix, or ``v1-A-F1``."""
        return self.figure or f"{self.version}-{'T' if self.number.isdecimal() else ''}{self.number}"

    @property
    def printed(self) -> str:
        """As a reader looks for it: ``Table 2``, ``Table A1``, ``Figure 4``, ``Figure 3 of appendix D``."""
        appendix, _, number = self.number.rpartition("-")
        kind = "Figure" if self.figure else "Table"
        return f"{kind} {number.removeprefix('F')}" + (f" of appendix {appendix}" if appendix else "")

    @property
    def of_data(self) -> bool:
        """Whether it counts what the tasks hold: it has no networks."""
        return self.number == "1"

    @property
    def of_cases(self) -> bool:
        """Whether the figure shows images, of one training each, not numbers of all."""
        return self.maps or self.pictures

    @property
    def rows(self) -> Mapping[str, PaperRow]:
        """Printed names to networks; the rivals of v2 Table 3 as far as they are there."""
        own = PAPER_ROWS.get((self.version, self.rows_of or self.number), {})
        if (self.version, self.number) != ("v2", "3"):
            return own
        rivals = {printed: PaperRow(name) for printed, name in RIVALS.items() if name in PEERS}
        return rivals | own

    @property
    def absent(self) -> tuple[str, ...]:
        """Printed rows that no network here stands for."""
        if (self.version, self.number) != ("v2", "3"):
            return ()
        return tuple(printed for printed, name in RIVALS.items() if name not in PEERS)


def _all() -> list[PaperTable]:
    return [
        PaperTable("v1", "1", "the data", metrics=(), counts=("cases",)),
        PaperTable("v1", "2", "six metrics on every task", metrics=_OVERLAP),
        PaperTable("v1", "3", "hybrid and spatial attention, an MLP", counts=_PARAMETERS, against=_HA),
        PaperTable("v1", "4", "five language models", counts=_PARAMETERS),
        PaperTable("v1", "A1", "three ways to join efficient and channel attention", counts=_PARAMETERS),
        PaperTable("v1", "B2", "input sizes and training time", counts=("training_hours",)),
        PaperTable("v1", "D3", "language models by size", metrics=("dice", "hd95_mm"), counts=_PARAMETERS),
        PaperTable("v1", "F3", "learning curves", rows_of="2", figure="v1-F3"),
        PaperTable("v1", "F4", "activation maps", rows_of="2", figure="v1-F4", maps=True),
        PaperTable("v1", "F5", "segmentations side by side", rows_of="2", figure="v1-F5", pictures=True),
        PaperTable("v1", "A-F1", "parameters against Dice, three strategies", rows_of="A1", figure="v1-A-F1"),
        PaperTable("v1", "C2", "segmentations by every language model", rows_of="4", figure="v1-C2", pictures=True),
        PaperTable("v1", "D-F3", "language models, all metrics", rows_of="4", metrics=_OVERLAP, figure="v1-D-F3"),
        PaperTable("v2", "1", "the data", metrics=(), counts=("cases",)),
        PaperTable("v2", "2", "six metrics on every task", metrics=_V2_SIX),
        PaperTable("v2", "3", "rivals", metrics=("dice", "nsd"), against="MedVisionLlama", beaten=True),
        PaperTable("v2", "4", "networks of equal size", counts=_COSTS, against="MedVisionLlama"),
        PaperTable("v2", "5", "LoRA or linear mappers", counts=("frozen_m", "trainable_m", "inference_ms")),
        PaperTable("v2", "6", "LoRA ranks", metrics=("dice", "nsd"), counts=("trainable_m",), against="8"),
        PaperTable("v2", "F2", "segmentations side by side", rows_of="2", figure="v2-F2", pictures=True),
        PaperTable("v2", "F3", "activation and attention maps", rows_of="2", figure="v2-F3", maps=True),
        PaperTable("v2", "F4", "few-shot learning curves", rows_of="2", fractions=(0.1, 0.3), figure="v2-F4"),
        PaperTable("v2", "F5", "medical language models", figure="v2-F5"),
    ]  # fmt: skip


TABLES: Mapping[str, PaperTable] = MappingProxyType({table.name: table for table in _all()})


@dataclass(frozen=True)
class Labelled:
    """A cell and where its numbers go.

    Attributes:
        row: The table's row, as the paper prints it.
        cell: What is measured.
    """

    row: str
    cell: Cell

    @property
    def printed(self) -> str:
        """The row, and the share of the data where that is not all of it."""
        return with_share(self.row, self.cell.fraction)


def with_share(row: str, fraction: float) -> str:
    """A row's name with the share of the training patients; the papers' own rows are of all of them."""
    return row if fraction == 1 else f"{row}, {100 * fraction:g}%"


@dataclass(frozen=True)
class Budget:
    """What all cells of a table are given.

    Attributes:
        grid: Edge of the model's grid; the papers' is 128.
        recipe: Name or file; empty for the version's own.
        steps: Instead of the recipe's epochs.
        fractions: Instead of the table's.
        folds: Which parts validate in turn.
        seeds: Trainings of each row.
        blocks: What stands in for the papers' language models: by their catalog names, or under the empty name for all.
    """

    grid: int = PAPER_GRID
    recipe: str = ""
    steps: int | None = None
    fractions: tuple[float, ...] = ()
    folds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    blocks: Mapping[str, str] = field(default_factory=dict)


def table_cells(table: PaperTable, tasks: Sequence[tuple[str, str]], budget: Budget) -> tuple[Labelled, ...]:
    """The cells of a table, seeds outermost, so that what is stopped early is balanced as far as it came.

    Raises:
        InputError: One block was named for a table that compares several.
    """
    blocks = {row.block for row in table.rows.values() if row.block}
    if "" in budget.blocks and len(blocks) > 1:
        raise InputError(
            f"{table.name} compares {len(blocks)} language models",
            got=f"--block {budget.blocks['']}",
            mend=f"Say in whose place it stands, such as --block {min(blocks)}={budget.blocks['']}.",
        )
    recipe = load_recipe(budget.recipe or ("paper-v1" if table.version == "v1" else "paper-v2"))
    if budget.steps:
        recipe = replace(recipe, steps=budget.steps)
    networks = {row: network_of(row, budget.blocks) for row in table.rows.values()}
    cells = []
    for seed, fold, (task, splits), fraction, (printed, row) in product(
        budget.seeds, budget.folds, tasks, budget.fractions or table.fractions, table.rows.items()
    ):
        config, label = networks[row]
        cells.append(
            Labelled(
                printed,
                Cell(
                    task=task,
                    model=_model_of(row, budget.blocks),
                    config=config,
                    recipe=recipe,
                    splits=splits,
                    block=label,
                    protocol="paper",
                    grid=_grid_of(table, row, budget.grid),
                    fold=fold,
                    fraction=fraction,
                    seed=seed,
                ),
            )
        )
    return tuple(cells)


def network_of(row: PaperRow, blocks: Mapping[str, str]) -> tuple[NetworkConfig, str]:
    """A row's network around the block that stands in for its own, and what tables call that block."""
    config = network_named(_model_of(row, blocks))
    if row.name == "vit-depth" and isinstance(config, ModelConfig):
        return _as_large_as(_standing_in(blocks), config), ""
    if not isinstance(config, ModelConfig) or row.block is None:
        return config, ""
    source = blocks.get(row.block, blocks.get("", row.block))
    if not Path(source).is_dir():
        return with_block(config, source), block_label(source)
    return with_block(config, str(Path(source).resolve())), f"{block_label(source)}~for~{row.block}"


def block_label(source: str) -> str:
    """What tables and files call a language model without a label: a folder's own name, a hub id without its slash."""
    return Path(source).resolve().name if Path(source).is_dir() else source.replace("/", "~")


def _model_of(row: PaperRow, blocks: Mapping[str, str]) -> str:
    """Its name in the zoo, which has ViT-Depth at two sizes."""
    return "vit-depth-minilm" if row.name == "vit-depth" and _standing_in(blocks) == "minilm-l6" else row.name


def _standing_in(blocks: Mapping[str, str]) -> str:
    """What stands in for the papers' language model; itself where nothing does."""
    return blocks.get(LLAMA, blocks.get("", LLAMA))


def _as_large_as(source: str, config: ModelConfig) -> ModelConfig:
    """ViT-Depth grown to MedVisionLlama's size around the block that is there: v2's Table 4 is of equal sizes.

    The zoo's own two sizes, for Llama-3.1-8B and MiniLM, stand as they are. For any other block, depth and width are
    those that come nearest in parameters, all counted on the papers' grid.
    """
    if source in (LLAMA, "minilm-l6"):
        return config
    ours, _ = network_of(PaperRow("medvisionllama", LLAMA), {LLAMA: source})
    wanted = _parameters(ours)
    shapes = ((depth, width) for depth in range(16, 33) for width in range(64, 2049, 8))
    depth, width = min(shapes, key=lambda shape: abs(_vit_parameters(config, *shape) - wanted))
    return replace(config, depth=depth, width=width, heads=16 if width >= 256 and width % 16 == 0 else 8)


def _parameters(config: NetworkConfig) -> int:
    return sum(p.numel() for p in build_network(config, meta=True).parameters())


def _vit_parameters(config: ModelConfig, depth: int, width: int) -> int:
    """Of a plain network with linear patches and decoder: a test holds it against the network itself."""
    (i, j, k), voxels = config.token_grid, math.prod(config.patch_size)
    block = 3 * (width + 1) * width + (width + 1) * width + 4 * width  # attention, its projection, two norms
    block += (width + 1) * config.mlp_ratio * width + (config.mlp_ratio * width + 1) * width
    patches = (config.in_channels * voxels + 1) * width + i * j * k * width
    return depth * block + patches + (width + 1) * config.out_channels * voxels


def _grid_of(table: PaperTable, row: PaperRow, grid: int) -> int:
    """The model's grid is a cube: where the paper varies the size, its first edge, scaled as ``grid`` is to 128."""
    if table.number != "B2":
        return grid
    return max(16, round(row.input_size[0] * grid / PAPER_GRID / 16) * 16)
