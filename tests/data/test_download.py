import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medvisionllama.data import download as module
from medvisionllama.data.download import MD5, Archive, download, download_task, task_archive
from medvisionllama.data.unpack import unpack
from medvisionllama.errors import InputError

NAME = "Task99_Tiny"
CONTENT = {f"{NAME}/dataset.json": b"{}", f"{NAME}/imagesTr/a.nii.gz": bytes(range(256)) * 300}


def tar_of(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def file(name: str, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


SOUND = tar_of([(file(name), content) for name, content in CONTENT.items()])


class Shelf:
    """A web server on this machine that hands out one file, and may misbehave."""

    def __init__(self) -> None:
        self.content = SOUND
        self.requests: list[str | None] = []
        self.break_after: int | None = None
        self.ranges = True
        self.status = 0
        shelf = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                shelf.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def archive(self) -> Archive:
        md5 = hashlib.md5(self.content, usedforsecurity=False).hexdigest()
        return Archive(NAME, f"http://127.0.0.1:{self.server.server_port}/{NAME}.tar", md5)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requests.append(asked)
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if self.status or begin >= len(self.content):
            handler.send_error(self.status or 416)
            return
        handler.send_response(206 if begin else 200)
        handler.send_header("Content-Length", str(len(self.content) - begin))
        if begin:
            handler.send_header("Content-Range", f"bytes {begin}-{len(self.content) - 1}/{len(self.content)}")
        handler.end_headers()
        end = len(self.content) if self.break_after is None else begin + self.break_after
        handler.wfile.write(self.content[begin:end])


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()
    yield shelf
    shelf.server.shutdown()
    shelf.server.server_close()


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_task_arrives_whole(shelf: Shelf, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = download(shelf.archive, tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert folder == tmp_path / "new" / NAME
    assert files_below(tmp_path / "new") == CONTENT
    assert seen[-1] == (len(SOUND), len(SOUND))


def test_what_is_there_is_not_fetched_again(shelf: Shelf, tmp_path: Path) -> None:
    download(shelf.archive, tmp_path)
    download(shelf.archive, tmp_path)
    assert len(shelf.requests) == 1


def test_a_broken_download_goes_on_where_it_stopped(shelf: Shelf, tmp_path: Path) -> None:
    shelf.break_after = 30_000
    for _ in range(2):
        with pytest.raises(InputError, match="broke") as raised:
            download(shelf.archive, tmp_path)
        assert "goes on where it stopped" in raised.value.mend
    shelf.break_after = None
    assert files_below(download(shelf.archive, tmp_path).parent) == CONTENT
    assert shelf.requests == [None, "bytes=30000-", "bytes=60000-"]


def test_a_server_without_ranges_begins_anew(shelf: Shelf, tmp_path: Path) -> None:
    shelf.break_after = 30_000
    with pytest.raises(InputError, match="broke"):
        download(shelf.archive, tmp_path)
    shelf.break_after, shelf.ranges = None, False
    assert files_below(download(shelf.archive, tmp_path).parent) == CONTENT


def test_stopped_between_arrival_and_unpacking(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.tar.part").write_bytes(SOUND)
    assert files_below(download(shelf.archive, tmp_path).parent) == CONTENT
    assert shelf.requests == [f"bytes={len(SOUND)}-"]


def test_damage_is_found_and_the_next_attempt_is_clean(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.tar.part").write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match="not the file that was published"):
        download(shelf.archive, tmp_path)
    assert files_below(tmp_path) == {}
    assert files_below(download(shelf.archive, tmp_path).parent) == CONTENT


def test_another_file_than_the_published_is_not_unpacked(shelf: Shelf, tmp_path: Path) -> None:
    archive = shelf.archive
    shelf.content = tar_of([(file(f"{NAME}/dataset.json"), b'{"other": 1}')])
    with pytest.raises(InputError, match="MD5"):
        download(archive, tmp_path)
    assert files_below(tmp_path) == {}


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_server_that_refuses_is_quoted(shelf: Shelf, tmp_path: Path, status: int) -> None:
    shelf.status = status
    with pytest.raises(InputError, match=str(status)):
        download(shelf.archive, tmp_path)


def test_no_server_no_web_address_no_place(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = shelf.archive
    with pytest.raises(InputError, match="no web address"):
        download(Archive(NAME, (tmp_path / "x.tar").as_uri(), ""), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        download(archive, tmp_path / "file")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="too small"):
        download(archive, tmp_path)
    shelf.server.shutdown()
    shelf.server.server_close()
    with pytest.raises(InputError, match="cannot be reached"):
        download(archive, tmp_path)


def test_an_archive_without_a_task_leaves_nothing(shelf: Shelf, tmp_path: Path) -> None:
    shelf.content = tar_of([(file(f"{NAME}/readme.txt"), b"hello")])
    with pytest.raises(InputError, match="so no task"):
        download(shelf.archive, tmp_path)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("name", ["Task04_Hippocampus", "task04", "04", "4", " Hippocampus "])
def test_tasks_have_several_names(name: str) -> None:
    archive = task_archive(name)
    assert (archive.name, archive.md5) == ("Task04_Hippocampus", MD5["Task04_Hippocampus"])
    assert archive.url.endswith("/Task04_Hippocampus.tar")


@pytest.mark.parametrize("name", ["", "Task11", "Task04_Liver", "../x"])
def test_tasks_that_there_are_not(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Task10_Colon"):
        download_task(name, tmp_path)


def test_addresses_and_sums_are_those_of_monai() -> None:
    monai = pytest.importorskip("monai.apps.datasets").DecathlonDataset
    assert monai.md5 == MD5
    assert monai.resource == {name: task_archive(name).url for name in MD5}


# --- hostile archives ---

LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
HOSTILE: dict[str, Callable[[], bytes]] = {
    "absolute": lambda: tar_of([(file("/etc/evil"), b"x")]),
    "dots": lambda: tar_of([(file(f"{NAME}/../../evil"), b"x")]),
    "beside": lambda: tar_of([(file("Other/evil"), b"x")]),
    "bare": lambda: tar_of([(file("evil"), b"x")]),
    "top is a file": lambda: tar_of([(file(NAME), b"x")]),
    "symlink": lambda: tar_of([(file(f"{NAME}/evil", **LINK), b"")]),
    "symlink then through it": lambda: tar_of(
        [
            (file(f"{NAME}/out", type=tarfile.SYMTYPE, linkname="../.."), b""),
            (file(f"{NAME}/out/evil"), b"x"),
        ]
    ),
    "hard link": lambda: tar_of([(file(f"{NAME}/evil", type=tarfile.LNKTYPE, linkname="/etc/passwd"), b"")]),
    "pipe": lambda: tar_of([(file(f"{NAME}/evil", type=tarfile.FIFOTYPE), b"")]),
    "device": lambda: tar_of([(file(f"{NAME}/evil", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b"")]),
    "sparse bomb": lambda: tar_of([(file(f"{NAME}/evil", pax_headers=SPARSE), b"1\n0\n1\n" + bytes(600))]),
    "backslashes": lambda: tar_of([(file(f"{NAME}/..\\..\\evil"), b"x")]),
    "drive": lambda: tar_of([(file(f"{NAME}/C:evil"), b"x")]),
    "twice": lambda: tar_of([(file(f"{NAME}/a"), b"1"), (file(f"{NAME}/A"), b"2")]),
    "file as folder": lambda: tar_of([(file(f"{NAME}/a"), b"1"), (file(f"{NAME}/a/b"), b"2")]),
    "cut short": lambda: SOUND[:20_000],
    "no archive": lambda: b"hello" * 500,
}
SPARSE = {
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.name": f"{NAME}/evil",
    "GNU.sparse.realsize": "1099511627776",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    inside = tmp_path / "in" / "deep"
    inside.mkdir(parents=True)
    archive = tmp_path / "archive.tar"
    archive.write_bytes(HOSTILE[kind]())
    with pytest.raises(InputError, match=r"archive\.tar"):
        unpack(archive, inside / NAME)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["archive.tar", "deep", "in"]


def test_a_sound_archive_is_unpacked_without_its_hidden_files_and_modes(tmp_path: Path) -> None:
    members = [(file(NAME, type=tarfile.DIRTYPE), b""), (file(f"._{NAME}"), b"macOS")]
    members += [(file(name, mode=0o4777, uid=0), content) for name, content in CONTENT.items()]
    members += [(file(f"{NAME}/imagesTr/._a.nii.gz"), b"macOS"), (file(f"{NAME}/.DS_Store"), b"macOS")]
    (tmp_path / "archive.tar").write_bytes(tar_of(members))
    folder = unpack(tmp_path / "archive.tar", tmp_path / NAME)
    assert files_below(folder) == {name.removeprefix(f"{NAME}/"): content for name, content in CONTENT.items()}
    assert not (folder / "dataset.json").stat().st_mode & 0o7000


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "archive.tar").write_bytes(SOUND)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        unpack(tmp_path / "archive.tar", tmp_path / NAME)
    assert files_below(tmp_path / NAME) == {"mine.txt": b"mine"}
