"""Bearer keys: who is let in, what others hear, and that keys go nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from flexserve.errors import CallerError
from flexserve.normal.api.admission import Admission
from flexserve.normal.api.app import create_app
from flexserve.normal.api.keys import Key, Keys, key_of, owner_of
from flexserve.normal.key_file import read_keys
from flexserve.normal.world import World

pytestmark = pytest.mark.anyio
KEYS = Keys([Key.of("first", "sk-first-key"), Key.of("second", "sk-second-key")])


@pytest.fixture
async def guarded(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(world, Admission(keys=KEYS)), raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/models", "/metrics", "/memory", "/openapi.json", "/nowhere", "/health/x", "/%2fhealth"],
)
async def test_every_route_but_health_wants_a_key(guarded: httpx.AsyncClient, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic sk-first-key"}):
        response = await guarded.get(path, headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")


async def test_health_is_for_everybody_and_the_rest_for_each_of_the_keys(guarded: httpx.AsyncClient) -> None:
    assert (await guarded.get("/health")).status_code == 200
    for key in ("sk-first-key", "sk-second-key"):
        response = await guarded.get("/v1/models", headers={"Authorization": f"bearer  {key}"})
        assert response.status_code == 200


async def test_no_key_reaches_the_log_or_an_answer(
    guarded: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in ("sk-first-key", "sk-guessed-key"):
        response = await guarded.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert key not in response.text + str(response.headers)
    out, errors = capsys.readouterr()
    assert "status=200" in out + errors
    assert "sk-" not in out + errors


async def test_without_keys_everybody_is_let_in(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("key", ["short", "with a space", "schlüssel-lang", "x" * 600, "line\nbreak"])
def test_a_key_that_no_client_could_send_is_refused_unquoted(key: str) -> None:
    with pytest.raises(CallerError) as caught:
        Key.of("mine", key)
    assert key not in str(caught.value)
    assert "mine" in caught.value.message


def test_only_whole_keys_count() -> None:
    found = KEYS.find(b"sk-first-key")
    assert found is not None
    assert found.name == "first"
    for wrong in (b"", b"sk-first-ke", b"sk-first-keyy", b"sk-second-key\x00", b"\xff" * 12):
        assert KEYS.find(wrong) is None
    assert key_of({"authorization": "Bearer"}) == key_of({}) == b""
    assert key_of({"x-api-key": "sk-first-key"}) == b"sk-first-key"
    assert key_of({"authorization": "Bearer a", "x-api-key": "b"}) == b"a"


def test_owners_of_different_keys_and_users_never_meet() -> None:
    pairs = [(b"", None), (b"k", None), (b"k", "u"), (b"ku", None), (b"", "k"), (b"", "ku")]
    assert len({owner_of(key, user) for key, user in pairs}) == len(pairs)
    assert owner_of(b"", None) == ""


def test_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# for the house\nsk-first-key\n\n  sk-second-key  \n")
    path.chmod(0o600)
    assert [key.name for key in read_keys(path)] == ["line-2", "line-4"]
    assert Keys(read_keys(path)).find(b"sk-second-key") is not None
    for content in (b"", b"# none\n", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(CallerError):
            read_keys(path)
    with pytest.raises(CallerError):
        read_keys(tmp_path / "absent")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o604])
def test_a_file_of_keys_that_others_may_access_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    path.write_text("sk-first-key\n")
    path.chmod(mode)
    with pytest.raises(CallerError, match="chmod 600") as caught:
        read_keys(path)
    assert caught.value.code == "key_file_unsafe"


def test_a_file_of_keys_in_a_folder_of_everybodys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("sk-first-key\n")
    path.chmod(0o600)
    tmp_path.chmod(0o777)
    with pytest.raises(CallerError, match="chmod go-w"):
        read_keys(path)
