"""The papers' figures: each by name from run folders, showing the numbers of its runs."""

import json
from collections.abc import Sequence
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
    shown_columns,
    stage_columns,
    training_curves,
)
from medvisionllama.reports.run_contents import RunContents, read_maps, read_runs
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
    """What a table leaves of two networks with two seeds on two tasks; the second is better on the first task alone."""
    made = []
    for n, (task, model, seed) in enumerate(product(("Task04", "Task09"), ("vit-u", "medvisionllama-u"), (0, 1))):
        lift = (0.05 if (task, model) == ("Task04", "medvisionllama-u") else 0.0) - 0.1 * (task == "Task09")
        run = make_run(tmp_path / f"{n:03d}", model=model, cases=6, lift=lift - 0.04 * seed, seed=seed)
        known = {"task": task, "seed": seed, "fold": 0, "setting": model}
        write_json(run / "summary.json", read_json(run / "summary.json") | known)
        made.append(run)
    return made


def dice_of(runs: Sequence[RunContents], task: str, model: str) -> dict[str, float]:
    """By case, the mean over the runs of that task and model."""
    parts = [run.part("validation") for run in runs if (run.summary["task"], run.summary["model"]) == (task, model)]
    values = [part.values("dice") for part in parts if part is not None]
    return {case: float(np.mean([of_run[case] for of_run in values])) for case in values[0]}


TASKS, MODELS = ["Task04", "Task09"], ["vit-u", "medvisionllama-u"]


def test_charts_take_seeds_together_and_keep_tasks_apart(two_tasks: list[Path]) -> None:
    runs = read_runs(two_tasks)
    settings = settings_of(runs)
    assert [(setting.label, len(setting.runs)) for setting in settings] == [(model, 4) for model in MODELS]
    means = {(task, m): np.mean([*dice_of(runs, task, m).values()]) for task in TASKS for m in MODELS}
    assert len({round(float(mean), 4) for mean in means.values()}) == 4 - 1, "networks are equal on the second task"
    figure = language_model_boxes(runs, "validation")
    assert [axes.get_title(loc="left") for axes in figure.axes] == TASKS
    for task, axes in zip(TASKS, figure.axes, strict=True):
        assert [label.get_text() for label in axes.get_xticklabels()] == MODELS
        (said,) = [text.get_text() for text in axes.texts]
        assert said.endswith("n = 6"), "one value a case, however many seeds"
        diamonds = [float(line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "D"]
        assert diamonds == pytest.approx([means[task, model] for model in MODELS])
    markers, rays = hybrid_strategies(runs, "validation"), radar(runs, "validation")
    for drawn in (markers, rays):
        assert [axes.get_title(loc="left") for axes in drawn.axes] == TASKS
        assert [text.get_text() for text in drawn.legends[0].get_texts()] == MODELS
    for at, task in enumerate(TASKS):
        own = [means[task, model] for model in MODELS]
        assert [float(c.lines[0].get_ydata()[0]) for c in markers.axes[at].containers] == pytest.approx(own)
        assert [float(line.get_ydata()[0]) for line in rays.axes[at].lines] == pytest.approx(own)


def test_curves_average_seeds_and_keep_tasks_apart(two_tasks: list[Path]) -> None:
    runs = read_runs(two_tasks)
    ends = {run.path.name: run.logs[""][-1] for run in runs}
    wanted = [
        [
            np.mean([ends[f"{4 * task + 2 * model + seed:03d}"]["validation_dice"] for seed in (0, 1)])
            for model in (0, 1)
        ]
        for task in (0, 1)
    ]
    for figure in (training_curves(runs), few_shot_curves(runs)):
        dice = [axes for axes in figure.axes if "Dice" in axes.get_ylabel()]
        drawn = [sorted(float(line.get_ydata()[-1]) for line in axes.lines) for axes in dice]
        assert drawn == [pytest.approx(sorted(of_task)) for of_task in wanted]
        assert len(figure.axes) == 4


def test_curves_without_a_common_step_are_drawn_each(two_tasks: list[Path]) -> None:
    log = two_tasks[0] / "log.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("\n".join(json.dumps(entry | {"step": entry["step"] + 0.5}) for entry in entries) + "\n")
    figure = training_curves(read_runs(two_tasks[:4]))
    for axes in figure.axes:
        assert [len(line.get_xdata()) > 0 for line in axes.lines] == [
            True
        ] * 3  # both seeds of one, the mean of the other
    assert [text.get_text() for text in figure.legends[0].get_texts()] == MODELS


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
    apart = settings_of(read_runs([two_tasks[0], two_tasks[3]]))  # seed 0 of one, seed 1 of the other
    assert compared(*apart, "Task04", "validation", "dice").n == 0


def test_a_seed_is_no_rival_of_its_own_row(two_tasks: list[Path]) -> None:
    figure = language_model_boxes(read_runs(two_tasks[:2]), "validation")
    assert len(figure.axes) == 1
    assert not figure.axes[0].texts


def test_runs_of_folders_are_never_taken_together(two_tasks: list[Path]) -> None:
    """Whether they differ in their seed alone no summary tells: adapters, recipe and grid stand elsewhere."""
    for path in two_tasks:
        known = read_json(path / "summary.json")
        write_json(path / "summary.json", {key: value for key, value in known.items() if key != "setting"})
    runs = read_runs(two_tasks[:2])
    assert [setting.label for setting in settings_of(runs)] == ["vit-u, seed 0", "vit-u, seed 1"]
    (said,) = [text.get_text() for text in language_model_boxes(runs, "validation").axes[0].texts]
    assert said.endswith("n = 6")
    assert read_runs(two_tasks)[0].label == "vit-u, Task04, seed 0"


def test_tasks_share_a_row_of_the_grid(two_tasks: list[Path]) -> None:
    figure = qualitative_grid(read_runs(two_tasks[::2]), "validation")
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [word for word in words if word in ("image", "reference", *MODELS)] == ["image", "reference", *MODELS]
    assert "no picture\nwas kept" not in words
    assert len(figure.axes) == 4 * 10


def test_columns_are_of_all_tasks_in_turn() -> None:
    of_row = {(task, f"case_{n}"): None for task in TASKS for n in range(8)}
    columns = shown_columns({"vit": of_row, "ours": {column: None for column in of_row if column[1] != "case_0"}})
    assert columns == [(task, f"case_{n}") for task in TASKS for n in range(1, 6)]
