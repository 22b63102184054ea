"""What is not as in the paper, in words, read from what was asked for and what was measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from medvisionllama.config import load_recipe
from medvisionllama.experiments.paper_tables import PAPER_GRID, Labelled, PaperTable
from medvisionllama.experiments.rows import Row
from medvisionllama.experiments.table_counts import CLOCKED
from medvisionllama.experiments.tables import TASKS, impossible_cells, published
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.recipe import Recipe

OTHERS_TRAINING = (
    "label maps of another program. Their training, its data, length and seeds, are that program's and unknown here; "
    "equal are the cases scored, their references and the scoring. They stand for one training."
)


def differences_of(
    table: PaperTable,
    cells: Sequence[Labelled],
    rows: Collection[Row],
    cases: Mapping[str, int],
    outside: Collection[str] = (),
) -> list[str]:
    """What is not as in the paper, read from what was asked for and what was measured.

    Args:
        table: The table.
        cells: What was asked for.
        rows: What was measured.
        cases: How many each task holds here.
        outside: Other programs' rows.
    """
    if not cells:
        return [
            "**Cases** are counted here, in each task's description. The papers' counts are printed as they stand; "
            "Liver 100 and Lung 53 are not the release's numbers."
        ]
    recipes = list(dict.fromkeys(x.cell.recipe for x in cells))
    counts = {cell.task: cell.value for cell in published(table.version, "1", metric="cases")}
    paper = "100 epochs" if table.version == "v1" else "200 epochs"
    data = "; ".join(
        f"{task} {n} cases here, {f'{counts[task]:g} in the paper' if task in counts else 'not in the paper'}"
        for task, n in cases.items()
    )
    papers = {row: network.block for row, network in table.rows.items() if network.block}
    blocks = {x.row: x.cell.block for x in cells if x.cell.block}
    swapped = sorted({f"{b} in place of {papers[row]}" for row, b in blocks.items() if b != papers.get(row, b)})
    said = [
        f"**Data**: {data}; {len(cases)} of the papers' {len(TASKS)} tasks. Averages are over those.",
        *_shares(table, cells),
        *_unnamed_task(table, cells),
        f"**Budget**: {_budget(rows, recipes[0])}, batch {recipes[0].batch_size}; the paper {paper}, batch 4.",
        f"**Recipe**: {_recipe_said(table, recipes)}.",
        f"**Weights**: {'; '.join(swapped) or 'the language models that the paper names, or none'}.",
        *_depth_said(table, cells),
        *_times_said(table, rows),
        *_impossible_said(table, cells),
        _grid_said(table, cells),
        "**Protocol**: labels by nearest neighbour; split by patient before augmentation, test 10 %, folds over the "
        "rest; scored on the model's grid, as the papers must have, and on the image's own, as the networks leave "
        "them, without any clean-up.",
        f"**Seeds**: {', '.join(str(seed) for seed in sorted({x.cell.seed for x in cells}))}; fold "
        f"{', '.join(str(fold) for fold in sorted({x.cell.fold for x in cells}))}.",
    ]
    absent = [printed for printed in table.absent if printed not in outside]
    said += [f"**{name}**: {OTHERS_TRAINING}" for name in outside]
    said += [f"**{printed}**: no such network here yet; nothing stands in for it." for printed in absent]
    return said


def _shares(table: PaperTable, cells: Sequence[Labelled]) -> list[str]:
    """Shares of the training patients, where they are not all and not the table's own."""
    shares = sorted({x.cell.fraction for x in cells})
    if shares == sorted(table.fractions):
        return []
    here = ", ".join(f"{100 * share:g}%" for share in shares)
    return [
        f"**Share of the data**: {here} of the training patients; the paper "
        f"{', '.join(f'{100 * share:g}%' for share in sorted(table.fractions))}. Rows of other shares carry theirs in "
        "their name, and no published number stands beside them."
    ]


def _unnamed_task(table: PaperTable, cells: Sequence[Labelled]) -> list[str]:
    """Where printed scores are of no task in particular, and stand beside those that were measured all the same."""
    number = table.rows_of or table.number
    unnamed = [cell for metric in table.metrics for cell in published(table.version, number, task="", metric=metric)]
    tasks = ", ".join(dict.fromkeys(x.cell.task for x in cells))
    return [f"**Task**: the paper does not name the task of its scores; they stand beside {tasks}."] * bool(unnamed)


def _recipe_said(table: PaperTable, recipes: Sequence[Recipe]) -> str:
    """Every value of the recipe that is not the version's own; its length is told as the budget."""
    own = asdict(load_recipe(f"paper-{table.version}"))
    differing = {
        name: [value for value in dict.fromkeys(str(asdict(recipe)[name]) for recipe in recipes) if value != str(was)]
        for name, was in own.items()
        if name not in ("steps", "epochs", "batch_size")
    }
    said = [f"{name} {' and '.join(values)}, not {own[name]}" for name, values in differing.items() if values]
    return "; ".join(said) or f"paper-{table.version}, {table.version}'s own as far as it tells"


def _depth_said(table: PaperTable, cells: Sequence[Labelled]) -> list[str]:
    """Which ViT-Depth it is: the network of equal size follows the block that stands there."""
    grown = next((x.cell.config for x in cells if x.cell.model.startswith("vit-depth")), None)
    if not isinstance(grown, ModelConfig) or grown == table.rows["ViT-Depth"].config:
        return []
    return [
        f"**ViT-Depth**: {grown.width} wide, {grown.depth} blocks, {grown.heads} heads, as many parameters as "
        "MedVisionLlama has around the block that stands in."
    ]


def _times_said(table: PaperTable, rows: Collection[Row]) -> list[str]:
    """Where the clock stood, and that it also measures what else a machine does."""
    clocked = [count for count in table.counts if count in CLOCKED]
    if not clocked or not rows:
        return []
    seen = [row.content["environment"] for row in rows]
    where = sorted({_clock_stood_on(environment) for environment in seen})
    said = (
        f"**Times** are a clock's, here on {' and '.join(where)}, together with whatever else the machine did then, "
        "which no row knows; the paper's on an A100"
    )
    if "inference_ms" in clocked:
        said += ". `inference_ms`: one volume of the model's grid through the trained network, the faster of two passes"
    return [f"{said}."]


def _impossible_said(table: PaperTable, cells: Sequence[Labelled]) -> list[str]:
    """Of Table 2, how many printed mean Jaccard indices cannot be."""
    if table.number != "2":
        return []
    impossible = impossible_cells(table.version)
    printed = len(published(table.version, "2", metric="jaccard"))
    tasks = {x.cell.task for x in cells}
    here = [f"{cell.jaccard.row} on {cell.jaccard.task}" for cell in impossible if cell.jaccard.task in tasks]
    return [
        f"**Printed Jaccard indices**: {len(impossible)} of {printed} are below what the mean Dice beside them allows "
        f"(J is convex in Dice); of the tasks here {', '.join(here) or 'none'}."
    ]


def _clock_stood_on(environment: Mapping[str, Any]) -> str:
    if environment["device"] != "cpu":
        return str(environment["device"])
    threads = environment["cores"]
    return f"{environment['processor']} ({threads} {'thread' if threads == 1 else 'threads'})"


def _grid_said(table: PaperTable, cells: Sequence[Labelled]) -> str:
    grids = ", ".join(f"{grid}³" for grid in sorted({labelled.cell.grid for labelled in cells}))
    if table.number == "B2":
        sizes = ", ".join("x".join(map(str, size)) for size in dict.fromkeys(r.input_size for r in table.rows.values()))
        return f"**Grid**: {grids}, cubes of the paper's first edge; the paper {sizes}, whose third edge is shorter."
    if table.version == "v1":
        return f"**Grid**: {grids}; the paper names none but for its Table B2."
    return f"**Grid**: {grids}; the paper {PAPER_GRID}³."


def _budget(rows: Collection[Row], recipe: Recipe) -> str:
    """Steps, and what they come to in passes over the training cases: the smaller the share, the more."""
    steps = sorted({row.steps for row in rows})
    if not (steps or recipe.steps):
        return f"{recipe.epochs} epochs"
    said = f"{', '.join(f'{n:,}' for n in steps or [recipe.steps])} steps"
    passes: defaultdict[float, set[int]] = defaultdict(set)
    for row in rows:
        passes[row.fraction].add(round(row.steps / math.ceil(row.content["cases"]["training"] / recipe.batch_size)))
    told = [
        f"{' to '.join(map(str, sorted({min(of), max(of)})))} epochs of {100 * share:g}% of the data"
        for share, of in sorted(passes.items())
    ]
    return f"{said} ({', '.join(told)})" if told else said
