"""The papers' figures: each by name from run folders, showing the numbers of its runs."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from run_maker import AFFINE, make_run, write_picture

from medvisionllama.cli import main
from medvisionllama.commands.figures import NAMES
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
    stage_columns,
    training_curves,
)
from medvisionllama.reports.run_contents import read_maps, read_runs
from medvisionllama.reports.settings import compared, settings_of
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


def test_attention_stands_last_and_stages_in_their_networks_order() -> None:
    """A network without a block comes first: its decoder and attention do not push the block's stages to the end."""
    without, with_block = ["encoder", "decoder", "attention"], ["encoder", "mapper in", "block", "decoder", "attention"]
    wanted = ["encoder", "mapper in", "block", "decoder", "attention"]
    assert stage_columns([without, with_block]) == stage_columns([with_block, without]) == wanted
    assert list(dict.fromkeys(without + with_block)) != wanted, "naming them as they come would not do"
    both = ["encoder", "encoder attention", "block", "block attention", "decoder"]
    assert stage_columns([both]) == ["encoder", "block", "decoder", "encoder attention", "block attention"]


def with_validation_loss(run: Path) -> Path:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    looked = [e | {"validation_loss": 2 - e["validation_dice"]} if "validation_dice" in e else e for e in entries]
    (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in looked))
    return run


def test_curves_show_the_validation_loss_where_it_was_logged(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", cases=1, pictures=False, model="old")
    new = with_validation_loss(make_run(tmp_path / "new", cases=1, pictures=False, model="new"))
    before = training_curves(read_runs([old]))
    assert [axes.get_title("left") for axes in before.axes] == ["Training loss", "Validation Dice"]
    after = training_curves(read_runs([old, new])).axes
    assert [axes.get_title("left") for axes in after] == ["Training loss", "Validation loss", "Validation Dice"]
    (line,) = after[1].lines
    assert list(line.get_ydata()) == pytest.approx([2 - value for value in after[2].lines[1].get_ydata()])
    assert few_shot_curves(read_runs([new])).axes[1].get_ylabel() == "validation loss"
    assert few_shot_curves(read_runs([old, new])).axes[1].get_ylabel() == "training loss", "one way for all"


def test_the_command_draws_a_figure_by_name(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figures", "v2-F5", *map(str, runs), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "v2-F5.png"), str(tmp_path / "v2-F5.svg")]
    assert main(["figures", "v2-F9", str(runs[0]), "--out", str(tmp_path)]) == 2
    assert "v2-F2" in capsys.readouterr().err
    assert main(["figures", "v2-F5", str(runs[0]), "--out", str(tmp_path), "--part", "test"]) == 2
    assert "parts 'validation'" in capsys.readouterr().err
    assert NAMES.keys() == PAPER_FIGURES.keys()


def test_the_qualitative_grid_names_its_classes(runs: list[Path]) -> None:
    (legend,) = qualitative_grid(read_runs(runs[:2]), "validation").legends
    assert [text.get_text() for text in legend.get_texts()] == ["Anterior", "Posterior"]


def test_few_shot_curves_of_one_share_do_not_hide_each_other(tmp_path: Path) -> None:
    """Two models with the very same curves: the later is thinner and on top, and marked at other steps."""
    made = [make_run(tmp_path / m, model=m, cases=1, pictures=False) for m in ("one", "two")]
    for axes in few_shot_curves(read_runs(made)).axes:
        first, second = axes.lines
        assert (first.get_ydata() == second.get_ydata()).all()
        assert first.get_linewidth() > second.get_linewidth()
        assert first.get_zorder() < second.get_zorder()
        assert first.get_marker() != second.get_marker()
    steps = [set(range(40)[line.get_markevery()]) for line in axes.lines]
    assert steps[0]
    assert steps[0].isdisjoint(steps[1])


@pytest.fixture
def two_tasks(tmp_path: Path) -> list[Path]:
    """Two networks with two seeds each on two tasks; the second is better on the first task alone."""
    made = []
    for n, (task, model, seed) in enumerate(product(("Task04", "Task09"), ("vit-u", "medvisionllama-u"), (0, 1))):
        lift = 0.05 if (task, model) == ("Task04", "medvisionllama-u") else 0.0
        run = make_run(tmp_path / f"{n:03d}", model=model, cases=6, lift=lift, seed=seed)
        summary = json.loads((run / "summary.json").read_text())
        write_json(run / "summary.json", summary | {"task": task, "seed": seed, "fold": 0})
        made.append(run)
    return made


def test_charts_take_seeds_together_and_keep_tasks_apart(two_tasks: list[Path]) -> None:
    runs = read_runs(two_tasks)
    settings = settings_of(runs)
    assert [setting.label for setting in settings] == ["vit-u", "medvisionllama-u"]
    assert [len(setting.runs) for setting in settings] == [4, 4]
    figure = language_model_boxes(runs, "validation")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Task04", "Task09"]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["vit-u", "medvisionllama-u"]
        (said,) = [text.get_text() for text in axes.texts]
        assert said.endswith("n = 6"), "one value a case, however many seeds"
    for draw in (radar, hybrid_strategies):
        drawn = draw(runs, "validation")
        assert [axes.get_title(loc="left") for axes in drawn.axes] == ["Task04", "Task09"]
        assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["vit-u", "medvisionllama-u"]
    curves = training_curves(runs)
    told = [text.get_text() for text in curves.legends[0].get_texts()]
    assert told == ["vit-u, mean of 4", "medvisionllama-u, mean of 4"]


def test_settings_are_compared_by_case_over_the_trainings_both_have(two_tasks: list[Path]) -> None:
    first, second = settings_of(read_runs(two_tasks))
    lifted = compared(first, second, "Task04", "validation", "dice")
    same = compared(first, second, "Task09", "validation", "dice")
    assert (lifted.n, same.n, same.difference, same.t_p) == (6, 6, 0, 1)  # equal seeds draw equal numbers
    assert 0 < lifted.difference <= 0.05 + 1e-9
    lacking = settings_of(read_runs([path for n, path in enumerate(two_tasks) if n != 2]))  # its first seed
    of_one = compared(*lacking, "Task04", "validation", "dice")
    assert of_one.n == 6
    theirs, ours = (each.by_case("Task04", "validation", "dice", {(1, 0)}) for each in lacking)
    assert of_one.difference == pytest.approx(np.mean([ours[case] - theirs[case] for case in ours]))


def test_a_seed_is_no_rival_of_its_own_network(two_tasks: list[Path]) -> None:
    figure = language_model_boxes(read_runs(two_tasks[:2]), "validation")
    assert len(figure.axes) == 1
    assert not figure.axes[0].texts
    apart = settings_of(read_runs([two_tasks[0], two_tasks[0]]))  # nothing tells them apart: two lines, as named
    assert len({setting.label for setting in apart}) == 2


def test_tasks_share_a_row_of_the_grid(two_tasks: list[Path]) -> None:
    figure = qualitative_grid(read_runs(two_tasks[::2]), "validation")
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [word for word in words if word in ("image", "reference", "vit-u", "medvisionllama-u")] == [
        "image", "reference", "vit-u", "medvisionllama-u",
    ]  # fmt: skip
    assert "no picture\nwas kept" not in words
    assert len(figure.axes) == 4 * 10  # five cases of each task
    assert read_runs(two_tasks)[0].label == "vit-u, Task04, seed 0"
