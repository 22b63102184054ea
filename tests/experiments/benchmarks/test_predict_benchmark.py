"""The benchmark of predicting: that both sides do the whole work. Its figures belong to benchmarks/."""

from pathlib import Path

import pytest
import torch

from medvisionllama.data.nifti import read_label_map
from medvisionllama.experiments.benchmarks import predict as benchmark


def test_the_stub_tells_classes_by_their_grey_values() -> None:
    stub = benchmark.Stub(5)
    grey = torch.tensor([0.1, 0.9, 2.2, 3.4, 4.0, 7.0]).view(1, 1, 6, 1, 1)
    logits = stub(grey)
    assert logits.shape == (1, 5, 6, 1, 1)
    assert logits.argmax(1).ravel().tolist() == [0, 1, 2, 3, 4, 4]
    assert stub.windows == 1
    assert 0 < stub.wall_s < 5


@pytest.mark.parametrize("side", ["ours", "monai"])
def test_each_side_goes_from_file_to_file(side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if side == "monai":
        pytest.importorskip("monai")
    monkeypatch.setattr(benchmark.resource, "setrlimit", lambda *_: None)  # the suite's own process is not limited
    threads = torch.get_num_threads()
    image, labels = tmp_path / "image.nii", tmp_path / "labels.nii"
    benchmark.generate((90, 80, 70), 9, image, labels)
    assert set(read_label_map(labels).array.ravel()) == set(range(9))
    job = benchmark.Job(image, tmp_path / "out.nii.gz", 9, 4.0, 8.0, threads)
    segment = benchmark.segment_with_ours if side == "ours" else benchmark.segment_with_monai
    cost = segment(job, labels)
    assert cost.agreement > 0.95, "where classes touch, half a planned voxel is lost, and no more"
    assert cost.windows >= 1
    assert cost.overhead_wall_s == pytest.approx(cost.wall_s - cost.network_wall_s)
    assert 0 < cost.file_wall_s < cost.wall_s
    assert cost.start_gb <= cost.peak_gb
