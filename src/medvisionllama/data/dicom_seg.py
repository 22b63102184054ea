"""A label map as a DICOM segmentation of its series. Needs highdicom, which comes with the extra ``dicom``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvisionllama import __version__
from medvisionllama.data.dicom import Slice, grid_of, import_extra, is_dicom_folder, read_slices
from medvisionllama.errors import InputError
from medvisionllama.geometry import AFFINE_TOLERANCE_MM, Array, Volume
from medvisionllama.whole_file import whole_file

if TYPE_CHECKING:
    from pydicom import Dataset

# What a segmentation repeats of its series: what must be there, and what may be empty but must be there.
_TYPE_1 = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
_TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_LONGEST_TEXT = 64  # characters of a Long String
_SERIES_NUMBERS_APART = 1000  # from the source's number to the segmentation's


def refuse_seg(source: Path, out: Path) -> None:
    """Refuse, before hours are spent on a label map, what :func:`write_seg` could not write.

    Raises:
        InputError: ``source`` is no DICOM series, or the very folder to write to, its headers lack what a segmentation
            must repeat, or highdicom is not installed.
    """
    if not is_dicom_folder(source):
        raise InputError(
            f"a DICOM segmentation needs a DICOM series, and {source} is none",
            mend="Leave out --dicom-seg, or name the folder of a series.",
        )
    _refuse_same_folder(source, out)
    import_extra("highdicom")
    _source_images(source, read_slices(source))


def write_seg(label_map: Volume, folder: Path | str, classes: Mapping[int, str], path: Path | str) -> None:
    """Write a label map as a DICOM segmentation (SEG, type BINARY) of a series; whole file or nothing.

    Patient and study are the series'. Segments are numbered 1, 2, ... in ascending order of the classes' values, as
    the standard demands, and labelled with their names; a class without a voxel has a segment without frames.

    Args:
        label_map: Integers or booleans ``(I,J,K)`` on the series' own grid, as :func:`read_series` gives it.
        folder: The series.
        classes: Label value to name, without background (0).
        path: The file, by custom ``NAME.dcm``. Not within ``folder``, where it would be a second series.

    Raises:
        InputError: The series cannot be read or lacks what a segmentation must repeat, the label map lies elsewhere or
            has other values than ``classes``, highdicom is not installed, or the path cannot be written.
    """
    folder, path = Path(folder), Path(path)
    _refuse_same_folder(folder, path.parent)
    slices = read_slices(folder)
    distance = label_map.grid.distance_mm(grid_of(slices))
    if label_map.array.ndim != 3 or distance > AFFINE_TOLERANCE_MM:
        raise InputError(
            f"the label map does not lie on the grid of {folder}",
            got=f"{label_map.array.shape}, voxels up to {distance:.3g} mm off",
            expected=f"{grid_of(slices).shape}",
            mend="Segment this very series, or resample the label map onto its grid.",
        )
    segmentation = _segmentation(_source_images(folder, slices), _segment_numbers(label_map.array, classes), classes)
    with whole_file(path) as part:
        segmentation.save_as(part)


def _refuse_same_folder(folder: Path, out: Path) -> None:
    if out.resolve() == folder.resolve():
        raise InputError(f"a segmentation in {folder} would be a second series there", mend="Write to another folder.")


def _source_images(folder: Path, slices: Sequence[Slice]) -> list[Dataset]:
    """The headers of sorted slices, with what highdicom must find in them."""
    headers = [one.header for one in slices]
    lacking = [keyword for keyword in _TYPE_1 if not all(header.get(keyword) for header in headers)]
    if lacking:
        raise InputError(
            f"{folder} cannot be segmented in DICOM, since its files lack {', '.join(lacking)}",
            mend="Export the series again, or leave out --dicom-seg.",
        )
    if len({header.SOPInstanceUID for header in headers}) < len(headers):
        raise InputError(f"files of {folder} share a SOPInstanceUID", mend="Export the series again.")
    for header in headers:
        for keyword in _TYPE_2:
            if keyword not in header:
                setattr(header, keyword, "")
    return headers


def _segment_numbers(label_map: Array, classes: Mapping[int, str]) -> Array:
    """``(K,J,I)``, values turned into segment numbers, which have no gaps."""
    values = sorted(classes)
    unknown = set(np.unique(label_map).tolist()) - {0, *values}
    if unknown:
        raise InputError(
            "the label map has values that are no class",
            got=", ".join(map(str, sorted(unknown)[:5])),
            expected=", ".join(map(str, values)),
        )
    transposed = label_map.T
    numbers = np.zeros(transposed.shape, dtype=np.uint16)
    for number, value in enumerate(values, start=1):
        numbers[transposed == value] = number
    return numbers


def _segmentation(sources: list[Dataset], numbers_KJI: Array, classes: Mapping[int, str]) -> Any:
    highdicom = import_extra("highdicom")
    descriptions = [_description(number, classes[value]) for number, value in enumerate(sorted(classes), start=1)]
    try:
        return highdicom.seg.Segmentation(
            # Frame n of the array is taken to be source n: both ascend along the normal.
            source_images=sources,
            pixel_array=numbers_KJI,
            segmentation_type="BINARY",
            segment_descriptions=descriptions,
            series_instance_uid=highdicom.UID(),
            series_number=int(sources[0].get("SeriesNumber") or 0) + _SERIES_NUMBERS_APART,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="MedVisionLlama",
            manufacturer_model_name="MedVisionLlama",
            software_versions=__version__,
            device_serial_number="none",
            series_description="MedVisionLlama segmentation",
            content_description="By research software, not a medical device",
            omit_empty_frames=bool(numbers_KJI.any()),
            specific_character_set="ISO_IR 192",  # UTF-8, whatever the series has: class names may need it
        )
    except ValueError as error:
        raise InputError(
            "the series' headers do not fit into a DICOM segmentation",
            got=str(error),
            mend="Correct the series' headers, or leave out --dicom-seg.",
        ) from error


def _description(number: int, name: str) -> Any:
    """A segment of a class. What a name means is not known here: the category is the widest, the type the name."""
    highdicom, codes = import_extra("highdicom"), import_extra("pydicom.sr.codedict").codes
    text = name[:_LONGEST_TEXT]
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=text,
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=highdicom.sr.CodedConcept(f"CLASS{number}", "99MEDVISION", text),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="MedVisionLlama", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
