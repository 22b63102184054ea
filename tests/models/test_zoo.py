"""Every row of the papers' tables that is a network of ours: buildable by name, and of the right size."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from medvisionllama.experiments.tables import PUBLISHED
from medvisionllama.models.medvisionllama import ModelConfig, build
from medvisionllama.models.zoo import DESCRIPTIONS, LLAMA, MODELS, PAPER_ROWS, PEERS, PaperRow, named, with_block

PEERS_OF_THE_PAPERS = {"UNet++", "UNETR", "nnU-Net", "MissFormer", "TransUNet", "Swin-UNet"}
ALL_ROWS = [(place, label, row) for place, rows in PAPER_ROWS.items() for label, row in rows.items()]


@cache
def counts(config: ModelConfig) -> tuple[int, int]:
    """Parameters trained, and all of them."""
    sizes = [(p.numel(), p.requires_grad) for p in build(config, meta=True).parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


def test_every_network_is_described() -> None:
    assert list(DESCRIPTIONS) == [*MODELS, *PEERS]


def test_every_row_of_every_table_is_a_network_of_ours_or_a_peer() -> None:
    printed = {(cell.version, cell.table, cell.row) for cell in PUBLISHED if cell.row}
    ours = {(*place, label) for place, label, _ in ALL_ROWS if not place[1].startswith("F")}
    assert printed - ours == {("v2", "3", peer) for peer in PEERS_OF_THE_PAPERS}
    assert not ours - printed


@pytest.mark.parametrize(("place", "label", "row"), ALL_ROWS, ids=[f"{v}-{t}-{label}" for (v, t), label, _ in ALL_ROWS])
def test_every_row_builds(place: tuple[str, str], label: str, row: PaperRow) -> None:
    trained, total = counts(row.config)
    assert (total > trained) == (row.config.middle.kind == "language")


def test_no_two_names_are_one_network() -> None:
    assert len(set(MODELS.values())) == len(MODELS)


@pytest.mark.parametrize(
    ("name", "block"), [("vit-mlp", LLAMA), ("vit-depth", LLAMA), ("vit-depth-minilm", "minilm-l6")]
)
def test_size_matched_networks_match_within_2_percent(name: str, block: str) -> None:
    of_ours = counts(with_block(named("medvisionllama"), block))[1]
    assert counts(with_block(named(name), block))[1] == pytest.approx(of_ours, rel=0.02)


@pytest.mark.parametrize("block", ["minilm-l6", "smollm2-135m", "gemma-2-9b", "biogpt"])
def test_vit_mlp_matches_whatever_the_block(block: str) -> None:
    of_ours = counts(with_block(named("medvisionllama"), block))[1]
    assert counts(with_block(named("vit-mlp"), block))[1] == pytest.approx(of_ours, rel=0.02)


def test_vit_depth_is_grown_in_width_blocks_and_heads() -> None:
    base, grown = named("vit-baseline"), named("vit-depth")
    assert grown.width > base.width
    assert grown.depth > base.depth
    assert grown.heads > base.heads
    assert replace(grown, width=base.width, depth=base.depth, heads=base.heads) == base


def test_v1_sizes() -> None:
    """Counted once, so that nobody changes them unseen; v1's 0.84 and 0.96 M belong to a width or depth it keeps."""
    llama = with_block(named("medvisionllama-v1"), LLAMA)
    assert counts(named("vit-v1"))[0] == 1_220_921
    assert counts(llama) == (1_220_921 + 2 * 64 * 4096, 1_220_921 + 2 * 64 * 4096 + 218_112_000 + 4_096)
    assert counts(with_block(named("vit-mlp-v1"), LLAMA))[0] == 1_220_921 + 2 * 64 * 4096 + 2 * 4096


def test_hybrid_strategies_order_as_far_as_the_paper_says() -> None:
    """v1 A1: the interleaved strategy has the most parameters; its other two differ, ours have the same parts."""
    sequential, parallel, interleaved = (row.config for row in PAPER_ROWS["v1", "A1"].values())
    assert counts(sequential) == counts(parallel)
    assert counts(interleaved)[1] > counts(sequential)[1]


def test_hybrid_attention_costs_its_gates_alone() -> None:
    gates = 16 * (64 * 4 + 4 + 4 * 64 + 64)
    assert counts(named("vit-baseline-hybrid"))[0] == counts(named("vit-baseline"))[0] + gates


def test_controls_differ_from_the_network_in_nothing_but_the_block() -> None:
    for base in ("medvisionllama", "medvisionllama-u"):
        for control in ("identity", "random", "random-matched", "shuffled", "trained"):
            config = named(f"{base}-{control}")
            assert replace(config, middle=named(base).middle) == named(base)
            same = replace(config.middle, kind="language", block=named(base).middle.block)
            assert same == named(base).middle
        assert counts(named(f"{base}-random")) == counts(named(f"{base}-shuffled")) == counts(named(base))
        trained = counts(named(f"{base}-trained"))
        block = counts(named(base))[1] - counts(named(f"{base}-identity"))[1]
        adapters = counts(named(base))[0] - counts(named(f"{base}-identity"))[0]
        assert trained[0] - counts(named(f"{base}-identity"))[0] == block - adapters


def test_the_reference_page_has_every_network_with_its_counts() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    rows = {
        cells[1].strip("` "): cells for cells in (line.split("|") for line in page.splitlines()) if len(cells) == 10
    }
    assert {name for name in rows if name in MODELS} == MODELS.keys()
    for name, config in MODELS.items():
        for start, counted in ((3, config), (6, with_block(config, LLAMA))):
            if rows[name][start].strip():
                trained, total = counts(counted)
                assert [cell.strip() for cell in rows[name][start : start + 2]] == [
                    f"{trained:,}",
                    f"{total - trained:,}",
                ]
