"""Takes the page's viewer from npm when a wheel is built; all else about the package stands in pyproject.toml."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
IN_PACKAGE = Path("medvisionllama", "reports", "niivue")
TAKEN = "niivue.umd.js"


class BuildWithViewer(build_py):
    """Copies the package, and puts NiiVue and its licences into the copy where the source has none."""

    def run(self) -> None:
        """Build, then take the viewer; without npm the wheel is whole but for it."""
        super().run()
        inside = Path(self.build_lib) / IN_PACKAGE
        if self.editable_mode or (inside / TAKEN).is_file():
            return
        if fault := take_viewer(inside):
            print(f"No viewer in this wheel: {fault}. Its pages show mosaics instead.", file=sys.stderr)


def take_viewer(folder: Path) -> str:
    """Install the pinned version into a scratch folder and copy it to ``folder``; what went wrong, empty if nothing."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        return "npm was not found"
    with tempfile.TemporaryDirectory() as scratch:
        viewer = shutil.copytree(
            HERE / "viewer", Path(scratch, "viewer"), ignore=shutil.ignore_patterns("node_modules")
        )
        # No package's scripts run: the lock file vouches for bytes, not for what they do when run.
        install = [npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        for command in (install, [node, "take.mjs", str(folder.resolve())]):
            done = subprocess.run(command, cwd=viewer, capture_output=True, text=True)
            if done.returncode:
                return f"{command[0]} {command[1]} failed: {done.stderr.strip().splitlines()[-1:]}"
    return ""


setup(cmdclass={"build_py": BuildWithViewer})
