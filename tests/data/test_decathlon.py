import json
from pathlib import Path
from typing import Any

import pytest

from medvisionllama.data.decathlon import parse_task, read_task
from medvisionllama.errors import InputError

SOUND: dict[str, Any] = {
    "name": "Liver",
    "modality": {"1": "CT", "0": "MRI"},
    "labels": {"0": "background", "2": "tumour", "1": "liver"},
    "training": [
        {"image": "./imagesTr/liver_1.nii.gz", "label": "./labelsTr/liver_1.nii.gz"},
        {"image": "imagesTr/liver_0.nii.gz", "label": "labelsTr/liver_0.nii.gz"},
    ],
    "test": ["./imagesTs/liver_9.nii.gz", {"image": "./imagesTs/liver_8.nii.gz"}],
}


def describe(folder: Path, **changes: object) -> Path:
    description = {key: value for key, value in {**SOUND, **changes}.items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def test_a_task_is_read(tmp_path: Path) -> None:
    task = read_task(describe(tmp_path))
    assert task.name == "Liver"
    assert task.modalities == ("MRI", "CT")
    assert task.channels == 2
    assert list(task.classes.items()) == [(1, "liver"), (2, "tumour")]
    assert [case.name for case in task.cases] == ["liver_1", "liver_0"]
    assert task.cases[0].image == tmp_path / "imagesTr" / "liver_1.nii.gz"
    assert task.cases[1].label == tmp_path / "labelsTr" / "liver_0.nii.gz"
    assert [(case.name, case.label) for case in task.unlabelled] == [("liver_9", None), ("liver_8", None)]
    assert task.case("liver_8").image.name == "liver_8.nii.gz"
    with pytest.raises(InputError, match="liver_7"):
        task.case("liver_7")


@pytest.mark.parametrize(
    ("modality", "channels", "is_ct"),
    [({"0": "CT"}, (True,), True), ({"0": "MRI"}, (False,), False), ({"0": "PET", "1": "ct"}, (False, True), False)],
)
def test_ct_is_known_by_its_name(
    tmp_path: Path, modality: dict[str, str], channels: tuple[bool, ...], is_ct: bool
) -> None:
    task = read_task(describe(tmp_path, modality=modality))
    assert (task.ct_channels, task.is_ct) == (channels, is_ct)


def test_the_way_of_nnu_net_means_the_same(tmp_path: Path) -> None:
    theirs = describe(
        tmp_path,
        modality=None,
        channel_names={"0": "MRI", "1": "CT"},
        labels={"background": 0, "tumour": 2, "liver": 1},
    )
    task = read_task(theirs)
    assert (task.modalities, dict(task.classes)) == (("MRI", "CT"), {1: "liver", 2: "tumour"})


def test_without_a_name_the_folder_names_the_task(tmp_path: Path) -> None:
    assert read_task(describe(tmp_path, name=None)).name == tmp_path.name


def test_companions_of_macos_are_passed_over(tmp_path: Path) -> None:
    hidden = {"image": "./imagesTr/._liver_1.nii.gz", "label": "./labelsTr/._liver_1.nii.gz"}
    assert len(read_task(describe(tmp_path, training=[*SOUND["training"], hidden])).cases) == 2


def test_byte_order_mark_and_no_cases_are_no_fault(tmp_path: Path) -> None:
    describe(tmp_path, training=[], test=None, labels={"0": "background"})
    path = tmp_path / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    task = read_task(tmp_path)
    assert (task.cases, task.unlabelled, dict(task.classes)) == ((), (), {})


def refused(folder: Path, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        read_task(folder)
    assert str(folder) in str(raised.value)
    assert raised.value.mend


def test_folders_that_hold_no_task(tmp_path: Path) -> None:
    refused(tmp_path, "is empty")
    (tmp_path / "imagesTr").mkdir()
    refused(tmp_path, r"holds no dataset\.json")
    refused(tmp_path / "none", "does not exist")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is a file")


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '"text"', "\x00\x01"])
def test_a_description_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    refused(tmp_path, r"dataset\.json")


def test_a_description_in_no_encoding(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes(b'{"name": "\xff\xfe"}')
    refused(tmp_path, "not JSON")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modality": None}, "modality"),
        ({"modality": {}}, "modality"),
        ({"modality": {"0": "MRI", "2": "CT"}}, "without a gap"),
        ({"modality": {"a": "MRI"}}, "whole numbers"),
        ({"labels": None}, "labels"),
        ({"labels": ["background", "liver"]}, "labels"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions"),
        ({"labels": {"0": "background", "1": "liver", "2": "liver"}}, "of its own"),
        ({"labels": {"1": "liver", "2": "liver"}}, "of its own"),
        ({"labels": {"background": 0, "liver": 1, "tumour": 1}}, "of its own"),
        ({"labels": {"background": 0, "void": -1}}, "positive"),
        ({"labels": {"0": "background", "1.5": "liver"}}, "whole numbers"),
        ({"training": {"image": "x"}}, "list"),
        ({"training": [{"label": "x.nii.gz"}]}, "imagesTr"),
        ({"training": [{"image": 3, "label": "x.nii.gz"}]}, "imagesTr"),
        ({"training": [7]}, "imagesTr"),
        ({"training": [{"image": "./imagesTr/x.nii.gz"}]}, "no label for x"),
        ({"training": ["./imagesTr/x.nii.gz"]}, "no label for x"),
        ({"training": SOUND["training"] * 2}, "more than once"),
    ],
)
def test_descriptions_not_understood_are_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    refused(describe(tmp_path, **changes), said)


def test_parsing_takes_what_reading_refuses(tmp_path: Path) -> None:
    task = parse_task(describe(tmp_path, training=["./imagesTr/x.nii.gz"] * 2))
    assert [(case.name, case.label) for case in task.cases] == [("x", None), ("x", None)]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "channels", "classes", "cases", "unlabelled", "is_ct"),
    [
        ("Task04_Hippocampus", 1, 2, 234, 0, False),
        ("BraTS2013_2ch", 2, 4, 6, 0, False),
        ("BraTS_MET_4ch_unlabelled", 4, 0, 0, 1, False),
        ("TotalSeg_CT", 1, 117, 2, 0, True),
        ("TotalSeg_CT_aorta", 1, 2, 1, 0, True),
        ("TotalSeg_MR", 1, 50, 1, 0, False),
        ("pyradiomics_lesions", 1, 1, 3, 0, False),
        ("sct_spinal_cord", 1, 1, 3, 0, False),
    ],
)
def test_real_tasks_are_read(
    real_data: Path, folder: str, channels: int, classes: int, cases: int, unlabelled: int, is_ct: bool
) -> None:
    task = read_task(real_data / folder)
    counted = (task.channels, len(task.classes), len(task.cases), len(task.unlabelled), task.is_ct)
    assert counted == (channels, classes, cases, unlabelled, is_ct)
    assert all(path.is_file() for case in task.cases for path in (case.image, case.label) if path)
