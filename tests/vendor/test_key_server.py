"""The key server gives licences to devices that prove what they are, and strangers nothing else."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from vendors import Vendor, evidence, opened, policy_for, put

from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import AttestationRefusedError
from flexserve.errors import CallerError, NormalWorldError
from flexserve.testing.licensed_device import LicensedDevice
from flexserve.vendor.content import read_content
from flexserve.vendor.device import licence_of
from flexserve.vendor.licensing import Terms
from flexserve.vendor.server import (
    MAX_BODY,
    NONCE_LIFE,
    Challenges,
    KeyRelease,
    KeyServer,
    RateLimit,
)


@contextlib.contextmanager
def serving(vendor: Vendor, policy: Policy, *, a_minute: int = 1000) -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a key server, and the lines of its log."""
    said: list[str] = []
    release = KeyRelease(vendor.keys, policy, Terms(3600), said.append)
    with KeyServer(("127.0.0.1", 0), release, a_minute=a_minute) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", said
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(vendor: Vendor, device: LicensedDevice) -> Iterator[str]:
    """The address of a key server that trusts `device`."""
    with serving(vendor, policy_for(device)) as (address, _):
        yield address


def challenge(server: str) -> bytes:
    return bytes.fromhex(httpx.post(f"{server}/v1/challenge", content=b"").json()["nonce"])


def ask(server: str, nonce: bytes, content: str, said: Any) -> httpx.Response:
    body = {
        "nonce": nonce.hex(),
        "chain": [base64.b64encode(each).decode() for each in said.chain],
        "token": base64.b64encode(said.token).decode(),
        "content": content,
    }
    return httpx.post(f"{server}/v1/licence", content=json.dumps(body).encode())


def test_a_device_that_proves_what_it_is_gets_a_licence_that_opens_the_model(
    vendor: Vendor, device: LicensedDevice, source, clock
):
    flex, clock.now = vendor.seal(1), int(time.time())
    with serving(vendor, policy_for(device)) as (address, said):
        licence = licence_of(address, read_content(flex), lambda nonce: evidence(device, nonce))
    put(flex, licence, device)
    assert opened(device) == source.read_bytes()
    assert len(said) == 1
    assert said[0].startswith("licence of model 1 for root ")


def test_a_device_that_the_policy_does_not_name_is_refused_by_field_expected_and_found(
    vendor: Vendor, device: LicensedDevice, other: LicensedDevice, server: str
):
    nonce = challenge(server)
    content = read_content(vendor.seal(1)).digest.hex()
    answer = ask(server, nonce, content, evidence(other, nonce))
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert error["field"] == "root"
    assert error["expected"] == policy_for(device).roots[0]
    assert error["found"] == policy_for(other).roots[0]
    with pytest.raises(CallerError, match=r"The key server refused: .* root: expected"):
        licence_of(server, read_content(vendor.seal(1)), lambda nonce: evidence(other, nonce))


def test_evidence_is_good_once_and_for_its_own_nonce_only(
    vendor: Vendor, device: LicensedDevice, server: str
):
    content = read_content(vendor.seal(1)).digest.hex()
    nonce = challenge(server)
    said = evidence(device, nonce)
    assert ask(server, nonce, content, said).status_code == 200
    for other in (nonce, secrets.token_bytes(32), challenge(server)):
        answer = ask(server, other, content, said)
        assert (answer.status_code, answer.json()["error"]["field"]) == (403, "nonce")


def test_a_token_with_another_key_of_licences_is_refused(
    vendor: Vendor, device: LicensedDevice, other: LicensedDevice, server: str
):
    nonce = challenge(server)
    said, theirs = evidence(device, nonce), evidence(other, nonce)
    content = read_content(vendor.seal(1)).digest.hex()
    mixed = type(said)(said.chain, theirs.token)
    answer = ask(server, nonce, content, mixed)
    assert (answer.status_code, answer.json()["error"]["field"]) == (403, "token")


@pytest.mark.parametrize(
    "content", ["0" * 64, "../../vendor.key", "..%2Fvendor.key", "A" * 64, "0" * 63, "", "\x00" * 64]
)
def test_nothing_that_is_asked_for_becomes_a_path(device: LicensedDevice, server: str, content: str):
    nonce = challenge(server)
    answer = ask(server, nonce, content, evidence(device, nonce))
    assert answer.status_code == (404 if content == "0" * 64 else 400)
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize(
    "path", ["/", "/vendor.key", "/../keys/vendor.key", "/v1/licence/..", "/v1/challenge?a"]
)
def test_there_is_nothing_but_its_two_paths(server: str, path: str):
    answer = httpx.post(f"{server}{path}", content=b"{}")
    assert answer.status_code == 404
    assert httpx.get(f"{server}{path}").status_code == 501


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"null", b"\xff\xfe", b"[" * 5000, b'{"nonce": 1}', b"\x00" * 1000, b'"' * 30]
)
def test_what_is_no_request_is_refused_in_words(server: str, body: bytes):
    answer = httpx.post(f"{server}/v1/licence", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "That is no request for a licence."


def raw(server: str, data: bytes) -> bytes:
    host, _, port = server.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        with contextlib.suppress(ConnectionError):
            return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 99999999999999999999999",
        f"Content-Length: {MAX_BODY + 1}".encode(),
        b"Content-Length: -1",
        b"Content-Length: \xb2",
        b"Transfer-Encoding: chunked",
    ],
)
def test_a_body_without_a_bound_is_not_read(server: str, headers: bytes):
    answer = raw(server, b"POST /v1/licence HTTP/1.1\r\n" + headers + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 400")


def test_bytes_that_are_no_http_end_their_connection_alone(server: str):
    for junk in (b"\x00" * 100 + b"\r\n\r\n", b"POST\r\n\r\n", b"\xff\r\n", b"POST / HTTP/9\r\n\r\n"):
        raw(server, junk)
    assert len(challenge(server)) == 32


def test_who_asks_too_often_waits(vendor: Vendor, device: LicensedDevice):
    with serving(vendor, policy_for(device), a_minute=2) as (address, _):
        status = [httpx.post(f"{address}/v1/challenge").status_code for _ in range(4)]
    assert status == [200, 200, 429, 429]


def test_what_is_wrong_with_the_vendors_folder_is_told_to_the_vendor_alone(
    vendor: Vendor, device: LicensedDevice
):
    content = read_content(vendor.seal(1)).digest.hex()
    (key,) = (vendor.keys.folder / "contents").iterdir()
    key.chmod(0o644)
    with serving(vendor, policy_for(device)) as (address, said):
        nonce = challenge(address)
        answer = ask(address, nonce, content, evidence(device, nonce))
    assert answer.status_code == 503
    assert str(vendor.keys.folder) not in answer.text
    assert str(key) in said[0]


def test_a_policy_without_roots_serves_nobody(vendor: Vendor):
    with pytest.raises(CallerError, match="names no root"):
        KeyRelease(vendor.keys, Policy(emulated="allow"), Terms(1))


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_nonce_is_good_for_a_while_and_the_oldest_of_too_many_is_forgotten():
    clock = Time()
    challenges = Challenges(clock)
    late, first = challenges.new(), challenges.new()
    clock.now = NONCE_LIFE
    challenges.take(first)
    clock.now += 0.1
    with pytest.raises(AttestationRefusedError):
        challenges.take(late)
    oldest, second = challenges.new(), challenges.new()
    for _ in range(4095):
        challenges.new()
    challenges.take(second)
    with pytest.raises(AttestationRefusedError):
        challenges.take(oldest)


def test_each_address_has_its_own_rate_and_gets_it_back():
    clock = Time()
    limit = RateLimit(2, clock)
    assert [limit.admit("a") for _ in range(3)] == [True, True, False]
    assert limit.admit("b")
    clock.now = 30
    assert [limit.admit("a") for _ in range(2)] == [True, False]


def test_a_key_server_that_is_not_one_or_not_there_is_said(
    vendor: Vendor, device: LicensedDevice, server: str
):
    block = read_content(vendor.seal(1))
    with pytest.raises(NormalWorldError, match="does not answer"):
        licence_of("http://127.0.0.1:9", block, lambda nonce: evidence(device, nonce))
    with pytest.raises(CallerError, match="no address"):
        licence_of("file:///etc/passwd", block, lambda nonce: evidence(device, nonce))
    with pytest.raises(CallerError, match="no such path"):
        licence_of(f"{server}/deeper", block, lambda nonce: evidence(device, nonce))
