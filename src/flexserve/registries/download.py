"""A published GGUF as a source to seal: read as it comes, and on from where a connection broke."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx

from flexserve.errors import CallerError, NormalWorldError
from flexserve.registries.hub import RemoteFile, authorization, refuse, unreachable
from flexserve.trusted.store.source import check_digest

_PATIENCE = httpx.Timeout(30.0)  # seconds without a byte
_TRIES = 6  # in a row that bring nothing
_FIRST_TRIES = 3  # while nobody ever answered: where nobody listens, there is no busy server
_LONGEST = 120.0  # seconds between two of them, whatever the server wishes
_BUSY = frozenset({429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")
_NUMBER = re.compile(r"\d{1,18}")


def make_client() -> httpx.Client:
    """Return a client that follows redirections, and shows a token to the host it is for alone."""
    return httpx.Client(
        follow_redirects=True,
        timeout=_PATIENCE,
        headers={"User-Agent": "flexserve", "Accept-Encoding": "identity"},
    )


class Download:
    """A Source (flexserve.trusted.store.source) over HTTP. A context manager."""

    def __init__(
        self,
        file: RemoteFile,
        client: httpx.Client,
        *,
        tell: Callable[[str], None] = lambda _text: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Ask for the file. Raises CallerError when it is not there, NormalWorldError.

        `tell` is told of each try that failed and is made again, before `pause` waits for so many seconds.
        """
        self._file, self._client, self._tell, self._pause = file, client, tell, pause
        self._answer: httpx.Response | None = None
        self._answered = False  # whether there ever was one
        self._pieces: Iterator[bytes] = iter(())
        self._rest = memoryview(b"")
        self._at = 0  # of the next byte
        self._size, self._tag = file.size, ""
        self._idle = 0  # tries in a row that brought nothing
        self._open_patiently(0)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    @property
    def identity(self) -> str:
        """The digest of the file where it is known, else one of its address, entity tag and size."""
        known = f"{self._file.url} {self._tag} {self._size}"
        return self._file.sha256 or hashlib.sha256(known.encode()).hexdigest()

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on, trying again as long as that helps.

        Raises CallerError when the file is another one now, NormalWorldError (code "network_failed").
        """
        if offset != self._at:
            self._open_patiently(offset)
        while target:
            try:
                self._rest = self._rest or self._next()
            except httpx.HTTPError as error:
                self._wait(unreachable(self._file.url, error))
                self._open_patiently(self._at)
                continue
            count = min(len(target), len(self._rest))
            target[:count] = self._rest[:count]
            target, self._rest = target[count:], self._rest[count:]
            self._at += count
            self._idle = 0

    def saw(self, text: memoryview) -> None:
        """Nothing is to be done: the digest of the whole tells."""

    def check(self, digest: str, /) -> None:
        """Raise CallerError when `digest` is not the one that was published."""
        check_digest(self._file.url, self._file.sha256, digest)

    def close(self) -> None:
        """End the connection. Always safe."""
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _open_patiently(self, offset: int) -> None:
        while True:
            try:
                self._open(offset)
            except httpx.HTTPError as error:
                self._wait(unreachable(self._file.url, error))
            else:
                answer = self._answer
                assert answer is not None
                if answer.status_code not in _BUSY:
                    return
                busy = f"{answer.url.host} answers {answer.status_code}"
                self._wait(
                    NormalWorldError(f"{busy}.", hint="Try again later.", code="network_failed"),
                    answer.headers.get("Retry-After", ""),
                )

    def _open(self, offset: int) -> None:
        """Ask for the bytes from `offset` on; the answer brings them, or is busy. Raises httpx.HTTPError."""
        self.close()
        file, headers = self._file, authorization(self._file.token)
        headers |= {"Range": f"bytes={offset}-"}
        if offset and self._tag:
            headers["If-Range"] = self._tag
        answer = self._client.send(self._client.build_request("GET", file.url, headers=headers), stream=True)
        self._answer, self._answered = answer, True
        if file.url.startswith("https:") and answer.url.scheme != "https":
            raise CallerError(
                f"{file.url} leads to http, where anybody could change what comes.",
                hint="Get the file elsewhere.",
                code="not_confidential",
            )
        if answer.status_code in _BUSY:
            return
        refuse(answer, urlsplit(file.url).path.rpartition("/")[2] or file.url, token=file.token)
        start, size = _extent(answer)
        if size is None:
            raise NormalWorldError(f"{answer.url.host} does not say how large the file is.")
        if start > offset or (self._size and size != self._size):
            raise self._replaced()
        tag = answer.headers.get("ETag", "")
        if offset and self._tag and tag and tag != self._tag:
            raise self._replaced()
        self._size = size
        # Only a strong tag may stand in If-Range.
        self._tag = "" if tag.startswith("W/") else tag
        self._pieces, self._rest, self._at = answer.iter_raw(), memoryview(b""), offset
        self._skip(offset - start)

    def _skip(self, count: int) -> None:
        """Drop `count` bytes: a server that knows no ranges sends all of them."""
        while count:
            piece = self._next()
            self._rest = piece[min(count, len(piece)) :]
            count -= min(count, len(piece))

    def _next(self) -> memoryview:
        """Return the bytes that come next. Raises httpx.HTTPError where the answer breaks or ends early."""
        try:
            return memoryview(next(self._pieces))
        except StopIteration:
            raise httpx.ReadError("the connection ended") from None

    def _wait(self, why: NormalWorldError, wish: str = "") -> None:
        """Say why, and wait before the next try; raise `why` when there were enough of them."""
        self._idle += 1
        if not self._answered and self._idle >= _FIRST_TRIES:
            raise why
        if self._idle >= _TRIES:
            raise NormalWorldError(
                why.message, hint="Run the same command again: it goes on where it stopped.", code=why.code
            )
        wanted = float(wish) if _NUMBER.fullmatch(wish) else 0.0
        seconds = min(max(2.0 ** (self._idle - 1), wanted), _LONGEST)
        self._tell(f"{why.message.removesuffix('.')}; trying again in {seconds:g} s")
        self._pause(seconds)

    def _replaced(self) -> CallerError:
        return CallerError(
            f"{self._file.url} is another file now.", hint="Run the command again.", code="source_changed"
        )


def _extent(answer: httpx.Response) -> tuple[int, int | None]:
    """Return where the bytes of an answer start, and how many the file has (None: it does not say)."""
    if answer.status_code == 206:
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        return (int(found[1]), int(found[2])) if found else (0, None)
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if _NUMBER.fullmatch(length) else None
