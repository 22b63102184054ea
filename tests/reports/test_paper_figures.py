"""The papers' figures: each by name from run folders, showing the numbers of its runs."""

from pathlib import Path

import numpy as np
import pytest
from run_maker import AFFINE, make_run, write_picture

from medvisionllama.errors import InputError
from medvisionllama.reports.paper_figures import (
    PAPER_FIGURES,
    activation_maps,
    draw_paper_figure,
    few_shot_curves,
    hybrid_strategies,
    language_model_boxes,
    qualitative_grid,
    radar,
)
from medvisionllama.reports.run_contents import read_maps, read_runs
from medvisionllama.run_folder import read_json, write_json


def write_maps(path: Path, stages: tuple[str, ...] = ("encoder", "block", "attention")) -> None:
    generator = np.random.default_rng(0)
    write_picture(path, generator)
    with np.load(path) as arrays:
        picture = dict(arrays)
    maps = generator.normal(size=(len(stages), *picture["image"].shape))
    np.savez_compressed(path, **picture, stages=np.array(stages), maps=maps)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models, each with a tenth and all of the data, with maps."""
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for index, (model, fraction) in enumerate((m, f) for m in ("medvisionllama", "vit-baseline") for f in (0.1, 1.0)):
        run = make_run(folder / f"{model}-{fraction}", model=model, cases=4, seed=index, lift=0.05 * index)
        write_json(run / "summary.json", read_json(run / "summary.json") | {"fraction": fraction})
        write_maps(run / "maps" / "case_000.npz")
        made.append(run)
    return made


@pytest.mark.parametrize("name", PAPER_FIGURES)
def test_every_figure_is_written_under_its_name(name: str, runs: list[Path], tmp_path: Path) -> None:
    paths = draw_paper_figure(name, runs, tmp_path)
    assert [path.name for path in paths] == [f"{name}.png", f"{name}.svg"]
    assert all(path.stat().st_size > 5_000 for path in paths)


def test_an_unknown_figure_names_the_known_ones(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="v2-F4"):
        draw_paper_figure("v3-F1", runs, tmp_path)


@pytest.mark.parametrize("draw", [qualitative_grid, language_model_boxes, radar, hybrid_strategies])
def test_a_part_that_was_never_scored_is_said(draw, runs: list[Path]) -> None:
    with pytest.raises(InputError, match="none of the runs has"):
        draw(read_runs(runs), "test")


def test_the_qualitative_grid_prints_each_runs_dice(runs: list[Path]) -> None:
    contents = read_runs(runs[:2])
    figure = qualitative_grid(contents, "validation")
    assert len(figure.axes) == 4 * 4
    printed = [t.get_text() for axes in figure.axes for t in axes.texts if t.get_text()[0].isdigit()]
    dice = [run.parts[0].values("dice") for run in contents]
    order = sorted(dice[0], key=lambda case: -dice[0][case])
    assert printed == [f"{of_run[case]:.2f}" for case in order for of_run in dice]


def test_few_shot_colours_a_share_and_patterns_a_model(runs: list[Path]) -> None:
    upper = few_shot_curves(read_runs(runs)).axes[0]
    style = {line.get_label(): (line.get_color(), str(line.get_linestyle())) for line in upper.lines}
    assert style["medvisionllama, 10% of the data"][0] == style["vit-baseline, 10% of the data"][0]
    assert style["medvisionllama, 10% of the data"][0] != style["medvisionllama, 100% of the data"][0]
    assert style["medvisionllama, 10% of the data"][1] == style["medvisionllama, 100% of the data"][1]
    assert style["medvisionllama, 10% of the data"][1] != style["vit-baseline, 10% of the data"][1]


def test_few_shot_averages_runs_of_one_model_and_share(tmp_path: Path) -> None:
    made = [make_run(tmp_path / str(s), cases=3, seed=s, lift=0.1 * s, pictures=False) for s in range(2)]
    contents = read_runs(made)
    (line,) = few_shot_curves(contents).axes[0].lines
    values = [[e["validation_dice"] for e in run.logs[""] if "validation_dice" in e] for run in contents]
    assert list(line.get_ydata()) == pytest.approx(np.mean(values, axis=0))


def test_the_radar_puts_hd95_backwards(runs: list[Path]) -> None:
    contents = read_runs(runs[:2])
    axes = radar(contents, "validation").axes[0]
    hd95 = [np.mean(list(run.parts[0].values("hd95_mm").values())) for run in contents]
    radii = [line.get_ydata()[-2] for line in axes.lines]
    assert radii == pytest.approx([1 - value / (2 * max(hd95)) for value in hd95])


def test_activation_maps_have_a_column_a_stage(runs: list[Path]) -> None:
    figure = activation_maps(read_runs(runs[:2]))
    assert [axes.get_title() or axes.get_title(loc="center") for axes in figure.axes[:4]] == [
        "input and output",
        "encoder",
        "block",
        "attention",
    ]


def test_maps_of_another_shape_are_refused(tmp_path: Path) -> None:
    blank = np.zeros((2, 2, 2), np.uint8)
    path = tmp_path / "a.npz"
    np.savez(path, image=blank, prediction=blank, affine=AFFINE, stages=np.array(["a"]), maps=np.zeros((1, 2, 2, 3)))
    with pytest.raises(InputError, match="do not fit"):
        read_maps(path)
