"""A download goes on where it broke, waits as it is told, and is the file that was published."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hubs import Hub, running_hub

from flexserve.errors import CallerError, NormalWorldError
from flexserve.registries.download import Download
from flexserve.registries.hub import RemoteFile

DATA = random.Random(1).randbytes(300_000)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def start(hub: Hub, client: httpx.Client, pauses: list[float]) -> Callable[..., Download]:
    hub.files["/x.gguf"] = DATA

    def begin(path: str = "/x.gguf", **more: Any) -> Download:
        return Download(RemoteFile(hub.url + path, **more), client, pause=pauses.append)

    return begin


def read(download: Download, offset: int = 0, count: int = len(DATA)) -> bytes:
    data = bytearray(count)
    for start in range(0, count, 70_001):
        download.read_into(offset + start, memoryview(data)[start : start + 70_001])
    return bytes(data)


def test_all_of_a_file_comes(start: Callable[..., Download]) -> None:
    with start() as download:
        assert download.size == len(DATA)
        assert read(download) == DATA
        assert read(download, 5, 100) == DATA[5:105]


def test_it_goes_on_where_a_connection_broke(
    hub: Hub, start: Callable[..., Download], pauses: list[float]
) -> None:
    hub.break_after = [100_000, 50_000]
    with start() as download:
        assert read(download) == DATA
    assert [range_ for _, range_, _ in hub.asked] == ["bytes=0-", "bytes=100000-", "bytes=150000-"]
    assert pauses == [1, 1]


def test_a_server_without_ranges_is_read_again_from_the_start(
    hub: Hub, start: Callable[..., Download]
) -> None:
    hub.ranges, hub.break_after = False, [100_000]
    with start() as download:
        assert read(download) == DATA


def test_a_busy_server_is_waited_for_as_long_as_it_asks(
    hub: Hub, start: Callable[..., Download], pauses: list[float]
) -> None:
    hub.busy = ["7", "", "99999"]
    with start() as download:
        assert read(download) == DATA
    assert pauses == [7, 2, 120]


def test_one_that_stays_busy_ends_the_download_with_what_to_do(
    hub: Hub, start: Callable[..., Download]
) -> None:
    hub.busy = [""] * 99
    with pytest.raises(NormalWorldError, match="answers 429") as failed:
        start()
    assert "goes on where it stopped" in failed.value.hint


def test_each_try_that_is_made_again_is_told(hub: Hub, client: httpx.Client) -> None:
    hub.files["/x.gguf"], hub.break_after, hub.busy = DATA, [100_000], ["7"]
    told: list[str] = []
    file = RemoteFile(f"{hub.url}/x.gguf")
    with Download(file, client, tell=told.append, pause=lambda _seconds: None) as download:
        assert read(download) == DATA
    busy, broken = told
    assert busy == "127.0.0.1 answers 429; trying again in 7 s"
    assert broken.startswith(f"{hub.url.removeprefix('http://')} broke off: ")
    assert broken.endswith("; trying again in 1 s")


def test_where_nobody_listens_a_download_gives_up_soon(client: httpx.Client, pauses: list[float]) -> None:
    with running_hub() as hub:
        file = RemoteFile(f"{hub.url}/x.gguf")
    told: list[str] = []
    with pytest.raises(NormalWorldError, match=r"127\.0\.0\.1:\d+ cannot be reached: Connection refused"):
        Download(file, client, tell=told.append, pause=pauses.append)
    assert pauses == [1, 2]
    assert [text.partition("; ")[2] for text in told] == ["trying again in 1 s", "trying again in 2 s"]


def test_one_that_went_away_for_a_while_is_waited_for(pauses: list[float]) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if 2 <= len(asked) <= 5:
            raise httpx.ConnectError("[Errno -2] Name or service not known")
        return httpx.Response(200, headers={"Content-Length": "5"}, stream=httpx.ByteStream(b"abcde"))

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        download = Download(RemoteFile("https://hub.example/x"), client, pause=pauses.append)
        data = bytearray(3)
        download.read_into(2, memoryview(data))
    assert data == b"cde"
    assert pauses == [1, 2, 4, 8]


def test_a_file_that_was_replaced_meanwhile_is_not_mixed(hub: Hub, start: Callable[..., Download]) -> None:
    hub.break_after = [100_000]
    with start() as download:
        hub.files["/x.gguf"] = DATA[::-1]
        with pytest.raises(CallerError, match="another file now"):
            read(download)


def test_another_size_than_was_published_is_refused(start: Callable[..., Download]) -> None:
    with pytest.raises(CallerError, match="another file now"):
        start(size=5)


def test_the_digest_is_the_published_one(start: Callable[..., Download]) -> None:
    with start(sha256=DIGEST) as download:
        assert download.identity == DIGEST
        download.check(DIGEST)
        with pytest.raises(CallerError, match="is not what it should be") as refused:
            download.check("0" * 64)
        assert refused.value.code == "digest_mismatch"


def test_a_file_that_is_not_there_is_refused(start: Callable[..., Download]) -> None:
    with pytest.raises(CallerError, match=r"no y\.gguf"):
        start("/y.gguf")


def test_a_token_stays_with_the_host_it_is_for(hub: Hub, start: Callable[..., Download]) -> None:
    with running_hub() as other:
        other.files["/blob"] = DATA
        hub.redirects["/there.gguf"] = other.url.replace("127.0.0.1", "localhost") + "/blob"
        with start("/there.gguf", token="hf_mine") as download:
            assert read(download) == DATA
        assert hub.asked[0][2] == "Bearer hf_mine"
        assert [authorization for _, _, authorization in other.asked] == [""]


@pytest.mark.parametrize("number", ["\xb2", "9" * 5000, "-1", "soon"])
def test_numbers_of_a_server_that_are_none_are_no_fault_of_ours(number: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        headers = [(b"Content-Range", f"bytes 0-1/{number}".encode("latin-1"))]
        headers.append((b"Retry-After", number.encode("latin-1")))
        return httpx.Response(206 if request.url.path == "/x" else 429, headers=headers, content=b"")

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        for path, said in (("x", "how large the file is"), ("busy", "answers 429")):
            with pytest.raises(NormalWorldError, match=said):
                Download(RemoteFile(f"https://hub.example/{path}"), client, pause=lambda _seconds: None)


def test_no_redirection_leads_from_https_to_http() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.scheme == "https":
            return httpx.Response(302, headers={"Location": "http://mirror.example/x"})
        return httpx.Response(200, content=DATA)

    with (
        httpx.Client(transport=httpx.MockTransport(answer), follow_redirects=True) as client,
        pytest.raises(CallerError, match="leads to http") as refused,
    ):
        Download(RemoteFile("https://hub.example/x"), client)
    assert refused.value.code == "not_confidential"
