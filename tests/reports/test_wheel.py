"""The wheel as somebody else installs it: built from what is committed, unpacked alone, and put to work."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from run_maker import make_run

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="no npm on this machine")
VIEWER = "medvisionllama/reports/niivue/niivue.umd.js"


def build(folder: Path, search: str) -> zipfile.ZipFile:
    """A wheel from a copy of the source without what git ignores, with ``search`` as the path of programs."""
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    assert not (source / "src" / VIEWER).exists(), "NiiVue is not committed"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            ".",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(folder),
            "-q",
        ],
        cwd=source,
        env=os.environ | {"PATH": search},
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


def draw_page(wheel: zipfile.ZipFile, folder: Path) -> Path:
    """The page of a made run, by the wheel's own code and nothing of the checkout's."""
    wheel.extractall(folder / "site")
    run = make_run(folder / "run", cases=1)
    code = (
        "import sys; from pathlib import Path; from medvisionllama.cli import main; import medvisionllama as package;"
        f"assert Path(package.__file__).is_relative_to({str(folder / 'site')!r}), package.__file__;"
        f"sys.exit(main(['report', {str(run)!r}, '--out', {str(folder / 'page')!r}]))"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(folder / "site")}, check=True)
    return folder / "page"


@needs_npm
def test_a_wheel_carries_the_pinned_viewer_and_its_page_uses_it(tmp_path: Path) -> None:
    wheel = build(tmp_path, os.environ["PATH"])
    licences = wheel.read("medvisionllama/reports/niivue/LICENCES.txt").decode()
    assert "Copyright (c) 2021, Niivue" in licences
    assert "fflate" in licences, "and of what it bundles"
    assert '"0.69.0"' in wheel.read(VIEWER).decode()
    assert not [name for name in wheel.namelist() if "node_modules" in name]
    page = draw_page(wheel, tmp_path)
    assert (page / "viewer" / "niivue.umd.js").read_bytes() == wheel.read(VIEWER)
    assert (page / "viewer" / "LICENCES.txt").is_file()
    assert 'id="viewer-controls"' in (page / "index.html").read_text(encoding="utf-8")


def test_where_npm_is_missing_a_wheel_is_built_and_its_page_says_how_to_get_the_viewer(tmp_path: Path) -> None:
    wheel = build(tmp_path, str(tmp_path / "nowhere"))
    assert VIEWER not in wheel.namelist()
    assert "medvisionllama/reports/templates/page.html.jinja" in wheel.namelist()
    page = draw_page(wheel, tmp_path)
    text = (page / "index.html").read_text(encoding="utf-8")
    assert "npm ci --prefix viewer" in text
    assert "image/webp" in text, "mosaics stand in"
    assert not (page / "viewer").exists()
