"""The study: its cells, where rows belong, and its page."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from medvisionllama.data.splits import read_splits
from medvisionllama.errors import InputError
from medvisionllama.experiments.cells import Cell, completed, splits_digest
from medvisionllama.experiments.pretraining import (
    MIDDLES,
    NETWORKS,
    PLANNED_SPLITS,
    RECIPE,
    Scope,
    place_of,
    planned_places,
    scope_of,
    study_cells,
    study_network,
)
from medvisionllama.experiments.pretraining_contrasts import Contrast, by_place, lines_of
from medvisionllama.experiments.pretraining_page import write_page
from medvisionllama.models.zoo import named
from tests.experiments.row_maker import make_row, scores

TASK = [("Task04_Hippocampus", "a split")]


def test_the_planned_study_is_as_asked_for() -> None:
    cells = study_cells(TASK)
    assert len(cells) == 2 * 5 * 5 * 2
    assert Counter(cell.recipe.steps for cell in cells) == {1000: 100}
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)  # what is stopped early is balanced
    first = [(cell.fraction, cell.model) for cell in cells[:20]]
    assert first == [(f, m) for f in (0.1, 1.0) for n in NETWORKS for m in [NETWORKS[n]] + [n] * 4]
    assert len({cell.key for cell in cells}) == 100


def test_middles_differ_in_nothing_but_the_middle() -> None:
    cells = {
        (c.model, c.config.middle.kind, c.config.middle.block.init, c.seed, c.fraction): c for c in study_cells(TASK)
    }  # type: ignore[union-attr]
    for cell in cells.values():
        assert replace(cell.config, middle=named("vit-u").middle) in (named("vit-u"), named("vit-baseline"))
        assert (cell.recipe, cell.fold, cell.protocol) == (RECIPE, 0, "native")
    for network in NETWORKS:
        random = [study_network(network, "random-matched", "minilm-l6", seed=s).middle.block.seed for s in range(3)]
        learned = [study_network(network, "pretrained", "minilm-l6", seed=s) for s in range(3)]
        assert random == [0, 1, 2]  # drawn anew for each seed
        assert len(set(learned)) == 1  # while there is one pre-trained block


def test_every_named_middle_is_the_zoos(monkeypatch: pytest.MonkeyPatch) -> None:
    for network in NETWORKS:
        for middle in MIDDLES[1:]:
            name = network if middle == "pretrained" else f"{network}-{middle}"
            assert study_network(network, middle, "minilm-l6") == named(name)
        assert study_network(network, "none", "minilm-l6") == named(NETWORKS[network])
    with pytest.raises(InputError, match="no such cell"):
        study_network("vit-u", "none", "minilm-l6")
    off = study_network("medvisionllama-u", "pretrained", "minilm-l6", "none")
    assert (off.middle.lora, off.middle.kind) == ("none", "language")


def test_none_is_trained_once_for_all_blocks() -> None:
    cells = study_cells(TASK, blocks=[("minilm-l6", "minilm-l6"), ("biobert", "biobert")], seeds=(0,), fractions=(1.0,))
    assert len(cells) == 2 * (1 + 2 * 4)


def test_every_cell_finds_its_place_and_others_have_none() -> None:
    cells = study_cells(TASK, middles=MIDDLES, loras=("both", "none"), fractions=(0.1,), seeds=(3,))
    places = [place_of(completed(c.settings()), c.model, c.block) for c in cells]
    assert None not in places
    assert len(set(places)) == len(cells)
    assert {p.middle for p in places if p} == set(MIDDLES)
    one = cells[0]
    others = [
        replace(one, protocol="paper"),
        replace(one, recipe=replace(RECIPE, learning_rate=1e-3)),
        replace(one, model="vit-v1"),
        replace(one, fold=1),
    ]
    assert [place_of(completed(c.settings()), c.model, c.block) for c in others] == [None] * 4


def test_the_plan_is_the_default_command_and_the_second_block() -> None:
    planned = planned_places("a split")
    default = {(place_of(completed(c.settings()), c.model, c.block), c.seed) for c in study_cells(TASK)}
    assert default <= {(place, seed) for place, seeds in planned.items() for seed in seeds}
    assert sum(map(len, planned.values())) == 100 + 20


PLAN = Scope(planned_places("a split"), planned_places("a split"), is_planned=True)


def study_rows(folder: Path, gain: float, seeds: tuple[int, ...] = (0, 1, 2)) -> list:
    """Rows in which the pre-trained block scores ``gain`` above all other middles."""
    cells = study_cells(TASK, networks=["medvisionllama-u"], seeds=seeds, fractions=(0.1, 1.0))
    rows = []
    for n, cell in enumerate(cells):
        init = cell.config.middle.block.init if cell.config.middle.kind == "language" else ""  # type: ignore[union-attr]
        mean = 0.6 + 0.01 * cell.seed + (gain if init == "pretrained" else 0)
        noisy = {"validation": scores(mean, seed=n), "test": scores(mean, seed=1000 + n)}
        rows.append(make_row(cell, folder, noisy))
    return rows


def test_a_gain_is_found_and_its_absence_is_not(tmp_path: Path) -> None:
    for gain, expected in ((0.1, {True}), (0.0, {False})):
        measured = by_place(study_rows(tmp_path / f"{gain}", gain))
        lines = [line for line in lines_of(measured, "validation", "dice") if line.place.middle == "pretrained"]
        assert len(lines) == 2 * 4
        assert {line.detected for line in lines} == expected
        for line in lines:
            assert line.effect.difference == pytest.approx(gain, abs=0.03)
            assert (line.effect.cases.n, line.effect.seeds) == (8, (0, 1, 2))


def test_the_page_says_what_was_found_and_what_is_missing(tmp_path: Path) -> None:
    rows = study_rows(tmp_path / "rows", 0.2)
    written = write_page(rows, PLAN, tmp_path, ["the command"])
    assert {path.name for path in written} == {
        "README.md", "does-pretraining-matter.md", "does-pretraining-matter.csv", "does-pretraining-matter.png",
        "does-pretraining-matter.svg",
    }  # fmt: skip
    page = (tmp_path / "README.md").read_text()
    assert (
        "Of 4 comparisons of the pre-trained block with its shuffled or random copy 4 detected a gain, 0 a loss, 0 "
        "neither." in page
    )
    assert "30 of 120 planned cells are measured." in page
    assert "**Provisional**: 90 of 120 planned cells are not measured yet. The number of seeds was set before" in page
    assert "| medvisionllama-u, minilm-l6 | Task04 10% | pretrained | 3, 4 |" in page
    assert "minilm-l6 (a block of 1,500 parameters)" in page  # 2,000 are frozen around it, 500 of them in mappers
    assert "0.3 hours of training" in page  # 30 rows of 36 s
    assert "the command" in page
    assert str(tmp_path) not in page
    table = (tmp_path / "does-pretraining-matter.csv").read_text().splitlines()
    assert len(table) == 1 + 2 * 3 * (2 * 4 + 2)  # parts, metrics, fractions, contrasts


def test_an_empty_study_is_a_page_too(tmp_path: Path) -> None:
    write_page([], PLAN, tmp_path, ["the command"])
    page = (tmp_path / "README.md").read_text()
    assert "Nothing has been measured yet" in page
    assert "0 of 120 planned cells are measured" in page


def test_one_seed_is_never_a_detection(tmp_path: Path) -> None:
    rows = study_rows(tmp_path / "rows", 0.1, seeds=(0,))
    write_page(rows, Scope(), tmp_path, [])
    lines = lines_of(by_place(rows), "validation", "dice")
    assert not any(line.detected or line.decided for line in lines)
    page = (tmp_path / "README.md").read_text()
    assert "one seed: no decision" in page
    assert "none allows a decision yet (one seed)" in page


def test_another_split_or_network_is_never_a_pair(tmp_path: Path) -> None:
    def cell(middle: str, splits: str = "one split", depth: int = 2) -> Cell:
        of_study = {"networks": ["medvisionllama-u"], "seeds": (0,), "fractions": (1.0,)}
        (found,) = study_cells([(TASK[0][0], splits)], middles=[middle], **of_study)  # type: ignore[arg-type]
        return replace(found, config=replace(found.config, depth=depth))  # type: ignore[arg-type]

    shuffled = make_row(cell("shuffled"), tmp_path, {"validation": scores(0.5)})
    for other in (cell("pretrained", splits="another split"), cell("pretrained", depth=6)):
        row = make_row(other, tmp_path, {"validation": scores(0.8)})
        assert lines_of(by_place([shuffled, row]), "validation", "dice") == []
        # Both of one name are kept, and told apart.
        twin = make_row(cell("pretrained"), tmp_path, {"validation": scores(0.6)})
        measured = by_place([shuffled, twin, row])
        assert len(measured) == 3
        (line,) = lines_of(measured, "validation", "dice")
        assert line.effect.difference == pytest.approx(0.1)
        assert line.apart.startswith(("split one spli", "network "))
        write_page([shuffled, twin, row], Scope(), tmp_path / "page", [])
        assert f"| Task04 100%, {line.apart} | pretrained | 0.6" in (tmp_path / "page" / "README.md").read_text()


def test_a_block_from_elsewhere_is_another_stage(tmp_path: Path) -> None:
    one, other = (
        study_cells(TASK, networks=["medvisionllama-u"], middles=[m], blocks=[("x", s)], seeds=(0,), fractions=(1.0,))
        for m, s in (("shuffled", "minilm-l6"), ("pretrained", "biobert"))
    )
    rows = [make_row(*cells, tmp_path, {"validation": scores(0.5)}) for cells in (one, other)]  # type: ignore[misc]
    assert lines_of(by_place(rows), "validation", "dice") == []


def test_what_is_asked_for_is_the_whole_plan_where_it_is_a_part_of_it(tmp_path: Path) -> None:
    asked = study_cells(TASK, networks=["medvisionllama-u"], seeds=(7,), fractions=(0.1,))
    scope = scope_of(asked, [], "a split")
    assert sum(map(len, scope.places.values())) == 120 + 5
    assert (scope.declared, scope.is_planned) == (planned_places("a split"), True)
    assert sorted(scope.added.values()) == [[7]] * 5
    own = study_cells([("Task09_Spleen", "s")], seeds=(0,))
    scope = scope_of(own, [], "a split")
    assert sum(map(len, scope.places.values())) == len(own)
    assert (scope.declared, scope.added, scope.is_planned) == (scope.places, {}, False)
    assert not scope_of(asked, []).is_planned, "another split is another study"
    # Where the second block lies is known from its rows.
    options = {"networks": ["medvisionllama-u"], "middles": ["pretrained"], "blocks": [("stories260K", "elsewhere")]}
    rows = [make_row(c, tmp_path, {"validation": scores(0.5)}) for c in study_cells(TASK, seeds=(0,), **options)]  # type: ignore[arg-type]
    assert set(by_place(rows)) <= set(scope_of(asked, rows, "a split").planned)
    assert not set(by_place(rows)) & set(planned_places("a split"))


def test_a_family_is_as_large_as_it_was_planned(tmp_path: Path) -> None:
    rows = study_rows(tmp_path, 0.004)
    alone = {(x.first, x.place): x for x in lines_of(by_place(rows), "validation", "dice")}
    for line in lines_of(by_place(rows), "validation", "dice", PLAN):
        raw, held = line.effect.both.p, line.holm_p
        assert raw <= alone[line.first, line.place].holm_p <= held
        of_family = [x for x in alone.values() if x.declared == line.declared]
        if raw == min(x.effect.both.p for x in of_family):
            declared = 2 * 2 * 2 + 2  # contrasts, networks, shares; the second block's
            assert held == pytest.approx(min(1.0, raw * (declared if line.declared else 3 * 2 * 2)))


def test_what_was_not_planned_is_exploratory(tmp_path: Path) -> None:
    """Whoever widens the study changes neither the declared family nor its judge."""
    rows = study_rows(tmp_path / "planned", 0.01)
    more = study_cells(TASK, networks=["medvisionllama-u"], seeds=(0, 1, 2), fractions=(0.3,))
    more_rows = [make_row(c, tmp_path / "more", {"validation": scores(0.6, seed=n)}) for n, c in enumerate(more)]
    alone = lines_of(by_place(rows), "validation", "dice", scope_of(study_cells(TASK), rows, "a split"))
    scope = scope_of(more, [*rows, *more_rows], "a split")
    widened = lines_of(by_place([*rows, *more_rows]), "validation", "dice", scope)
    assert [line for line in widened if line.declared] == [line for line in alone if line.declared]
    of_more = [line for line in widened if line.place.fraction == 0.3]
    assert len(of_more) == 5
    assert not any(line.declared for line in of_more)
    # The control: where nothing is planned, they are of the one family.
    assert sum(line.declared for line in lines_of(by_place([*rows, *more_rows]), "validation", "dice")) == 2 * 2 + 2


def test_a_difference_is_detectable_from_where_it_would_be_detected(tmp_path: Path) -> None:
    """Shifted to just above its threshold, a difference alone in its family is detected; just below, it is not."""
    cells = study_cells(
        TASK, networks=["medvisionllama-u"], middles=["shuffled", "pretrained"], seeds=(0, 1, 2), fractions=(1.0,)
    )

    def line(gain: float) -> Contrast:
        rows = [
            make_row(
                cell,
                tmp_path,
                {"validation": scores(0.5 + gain * (init == "pretrained"), seed=10 * cell.seed + (init == "shuffled"))},
            )
            for cell in cells
            if (init := cell.config.middle.block.init)  # type: ignore[union-attr]
        ]
        (found,) = lines_of(by_place(rows), "validation", "dice", PLAN)
        return found

    plain = line(0.0)
    needed = plain.detectable - plain.effect.difference
    assert line(needed + 1e-6).detected
    assert not line(needed - 1e-6).detected
    assert line(needed).detectable == pytest.approx(plain.detectable)


def test_the_page_says_the_same_whichever_command_wrote_it_last(tmp_path: Path) -> None:
    rows = study_rows(tmp_path, 0.0)
    of_plan, of_part, of_other = (
        scope_of(cells, rows, "a split")
        for cells in (study_cells(TASK), study_cells(TASK, seeds=(1,)), study_cells([("Task09_Spleen", "s")]))
    )
    assert of_plan == of_part
    assert (of_other.declared, of_other.is_planned) == (of_plan.declared, True)
    measured = by_place(rows)
    declared = [x for x in lines_of(measured, "validation", "dice", of_plan) if x.declared]
    assert len(declared) == 4
    assert declared == [x for x in lines_of(measured, "validation", "dice", of_other) if x.declared]
    asked_more = scope_of(study_cells(TASK, loras=("none",), seeds=(0, 7)), rows, "a split")
    assert asked_more.added
    for scope in (of_other, asked_more):
        assert lines_of(measured, "validation", "dice", scope) == lines_of(measured, "validation", "dice", of_plan)


def test_a_seed_that_was_measured_beyond_the_plan_is_told_without_being_asked_for(tmp_path: Path) -> None:
    cells = study_cells(TASK, networks=["medvisionllama-u"], middles=["pretrained"], seeds=(5,), fractions=(1.0,))
    rows = [make_row(cell, tmp_path, {"validation": scores(0.5)}) for cell in cells]
    assert list(scope_of(study_cells(TASK), rows, "a split").added.values()) == [[5]]


def test_the_plan_is_of_the_committed_split() -> None:
    root = Path(__file__).parents[2]
    assert splits_digest(read_splits(root / "docs/results/task04-native/splits.json")) == PLANNED_SPLITS
