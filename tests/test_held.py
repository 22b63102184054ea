"""Locks: one holder at a time, none left behind, and no file system without locks that keeps everybody out."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from medvisionllama.errors import InputError
from medvisionllama.held import held, sole_writer

HOLDER = """
import sys, time
from pathlib import Path
from medvisionllama.held import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_one_processs_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"another process is writing in .*in-use\.lock"), sole_writer(tmp_path):
            pass
        holder.kill()
    with sole_writer(tmp_path):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_nobody_is_kept_out(
    missing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def no_flock(*given: object) -> None:
        raise OSError(missing, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_flock)
    for _ in range(2):
        with sole_writer(tmp_path), sole_writer(tmp_path):
            pass
    assert not list(tmp_path.glob(".in-use*")), "nor later, by a file that outlived its holder"


def test_a_lock_that_is_held_says_so(tmp_path: Path) -> None:
    with held(tmp_path / "a.lock") as first, held(tmp_path / "a.lock") as second:
        assert (first, second) == (True, False)
