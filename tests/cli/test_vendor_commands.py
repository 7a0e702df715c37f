"""`flexserve vendor` and what list, show, verify and rm say of a vendor's model."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Cli

from flexserve.attestation.layers import key_of
from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import verify
from flexserve.folders import config_folder, data_folder
from flexserve.testing.licensed_device import LicensedDevice
from flexserve.testing.scripted_world import FACTS, IDENTITY
from flexserve.trusted.store import DeviceKey
from flexserve.vendor.content import read_content
from flexserve.vendor.device import adopt
from flexserve.vendor.keys import VendorKeys
from flexserve.vendor.licensing import Terms, issue, verified_device
from flexserve.vendor.server import KeyRelease, KeyServer

NONCE = "ab" * 32


@pytest.fixture
def keys(cli: Cli, tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    made = cli("vendor", "keygen", str(folder))
    assert made.exit_code == 0
    assert (folder / "vendor.pub").read_text().strip() in made.stdout
    return folder


@pytest.fixture
def flex(cli: Cli, gguf: Path, keys: Path, tmp_path: Path) -> Path:
    path = tmp_path / "sold.flex"
    words = ("--keys", str(keys), "--version", "3", "--name", "sold", "--output", str(path))
    sealed = cli("vendor", "seal", str(gguf), *words)
    assert sealed.exit_code == 0, sealed.stderr
    assert f"sealed sold version 3: {path}" in sealed.stdout
    return path


@pytest.fixture
def device(tmp_path: Path) -> LicensedDevice:
    return LicensedDevice(tmp_path / "device")


@pytest.fixture
def evidence(device: LicensedDevice, tmp_path: Path) -> Path:
    said, path = device.attest(bytes.fromhex(NONCE)), tmp_path / "evidence"
    chain = [base64.b64encode(each).decode() for each in said.chain]
    path.write_text(json.dumps({"chain": chain, "token": base64.b64encode(said.token).decode()}))
    return path


def policy(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text("\n".join(lines))
    return path


def root_of(evidence: Path) -> str:
    return base64.b64decode(json.loads(evidence.read_text())["chain"][0])[-32:].hex()


def license_words(flex: Path, keys: Path, evidence: Path, good: Path, nonce: str = NONCE) -> tuple[str, ...]:
    files = ("--keys", str(keys), "--policy", str(good), "--evidence", str(evidence))
    return ("vendor", "license", str(flex), *files, "--nonce", nonce)


def test_a_key_is_made_once(cli: Cli, keys: Path):
    again = cli("vendor", "keygen", str(keys))
    assert again.exit_code == 1
    assert "has a vendor's key already" in again.stderr
    assert (keys / "vendor.key").stat().st_mode & 0o777 == 0o600


def test_keys_that_others_may_read_are_refused(cli: Cli, keys: Path, gguf: Path):
    (keys / "vendor.key").chmod(0o644)
    sealed = cli("vendor", "seal", str(gguf), "--keys", str(keys), "--version", "1")
    assert sealed.exit_code == 1
    assert "is not safe" in sealed.stderr


def test_a_file_that_exists_is_not_replaced(cli: Cli, keys: Path, gguf: Path, flex: Path):
    words = ("--keys", str(keys), "--version", "4", "--output", str(flex))
    assert "exists already" in cli("vendor", "seal", str(gguf), *words).stderr


def test_a_licence_is_written_for_evidence_that_the_policy_calls_good(
    cli: Cli, flex: Path, keys: Path, evidence: Path, tmp_path: Path
):
    root = root_of(evidence)
    good = policy(tmp_path, 'emulated = "allow"', f'roots = ["{root}"]')
    written = cli(*license_words(flex, keys, evidence, good))
    assert written.exit_code == 0, written.stderr
    assert f"for root {root}" in written.stdout
    assert "nobody checked: layer world" in written.stderr
    assert flex.with_suffix(".licence").exists()


@pytest.mark.parametrize(
    ("lines", "nonce", "words"),
    [
        (['emulated = "allow"'], NONCE, "names no root"),
        (['roots = ["00"]'], NONCE, "debug status: expected disabled"),
        (['emulated = "allow"', 'roots = ["00"]'], NONCE, "root: expected 00, found"),
        (
            ['emulated = "allow"', 'roots = ["ROOT"]'],
            "cd" * 32,
            f"nonce: expected {'cd' * 32}, found {NONCE}",
        ),
        (
            ['emulated = "allow"', 'roots = ["ROOT"]', "[layers]", 'world = ["00"]'],
            NONCE,
            "layer world: expected",
        ),
        (['emulated = "allow"', 'roots = ["ROOT"]'], "zz", "A nonce is 8 to 64 bytes"),
    ],
)
def test_evidence_that_is_not_good_gets_no_licence_and_the_field_is_named(
    cli: Cli, flex: Path, keys: Path, evidence: Path, tmp_path: Path, lines: list[str], nonce: str, words: str
):
    root = root_of(evidence)
    good = policy(tmp_path, *(line.replace("ROOT", root) for line in lines))
    refused = cli(*license_words(flex, keys, evidence, good, nonce))
    assert refused.exit_code == 1
    assert words in refused.stderr
    assert not flex.with_suffix(".licence").exists()


def test_a_vendor_whom_nobody_trusts_is_refused_with_the_key_to_compare(cli: Cli, flex: Path, keys: Path):
    public = (keys / "vendor.pub").read_text().strip()
    refused = cli("add", str(flex), "--license", "licence")
    assert refused.exit_code == 1
    assert f"found key {public}" in refused.stderr
    other = cli("add", str(flex), "--license", "licence", "--vendor", "00" * 32)
    assert f"expected {'00' * 32}, found {public}" in other.stderr
    assert "is no vendor's key" in cli("add", str(flex), "--license", "licence", "--vendor", "x").stderr


def test_a_sealed_file_without_a_licence_is_no_gguf_and_the_error_says_what_to_give(cli: Cli, flex: Path):
    assert "--license" in cli("add", str(flex)).stderr


@contextlib.contextmanager
def key_server(keys: Path, root: str) -> Iterator[str]:
    """Yield the address of a key server that trusts the device of that root."""
    release = KeyRelease(VendorKeys(keys), Policy(emulated="allow", roots=[root]), Terms(3600))
    with KeyServer(("127.0.0.1", 0), release) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_device_gets_its_licence_from_a_key_server_and_another_one_none(
    cli: Cli, flex: Path, keys: Path, tmp_path: Path
):
    device = DeviceKey.load_or_create(config_folder() / "device.key")
    root = key_of(device.attestation_root).public_key().public_bytes_raw().hex()
    with key_server(keys, root) as address:
        words = ("add", str(flex), "--license", address, "--vendor", str(keys / "vendor.pub"))
        added = cli(*words)
        assert added.exit_code == 0, added.stderr
        assert "added sold: llama" in added.stdout
        again = cli("add", str(flex), "--license", address, "--json")
        assert json.loads(again.stdout)["vendor"]["version"] == 3
        other = ("--models", str(tmp_path / "other"), "--device-key", str(tmp_path / "other.key"))
        refused = cli(*words, *other)
    assert refused.exit_code == 1
    assert (
        f"The key server refused: The server is not what was asked for: root: expected {root}"
        in refused.stderr
    )
    assert json.loads(cli("list", "--json", *other).stdout) == {"models": []}


@pytest.mark.usefixtures("server")
def test_a_licence_may_be_for_the_running_server_whatever_its_platform(
    cli: Cli, flex: Path, keys: Path, tmp_path: Path
):
    said = IDENTITY.attest(bytes(32), FACTS)
    running = verify(said.chain, said.token, bytes(32), Policy(emulated="allow"))
    vendor, path = VendorKeys(keys), tmp_path / "licence"
    path.write_bytes(
        issue(vendor, vendor.content(read_content(flex).manifest.id_bytes), running, Terms(3600))
    )
    added = cli("add", str(flex), "--license", str(path), "--vendor", vendor.public, "--server")
    assert added.exit_code == 0, added.stderr
    assert "it was not tried: the running server has it" in added.stdout


@pytest.fixture
def added(flex: Path, keys: Path) -> LicensedDevice:
    """The device whose store the commands use, with the vendor's model."""
    key = DeviceKey.load_or_create(config_folder() / "device.key")
    device = LicensedDevice(config_folder())
    assert device.identity == key.identity
    vendor, block = VendorKeys(keys), read_content(flex)
    nonce, models = bytes(32), data_folder() / "models" / "models"
    models.mkdir(parents=True, mode=0o700)
    said = device.attest(nonce)
    root = verify(said.chain, said.token, nonce, Policy(emulated="allow")).root.hex()
    good = verified_device(said.chain, said.token, nonce, Policy(emulated="allow", roots=[root]))
    content = vendor.content(block.manifest.id_bytes)
    signed = issue(vendor, content, good, Terms(1000 * 24 * 3600), now=time.time())
    adopt(models, flex, block, signed, device=device, progress=lambda _done, _total: None)
    return device


@pytest.mark.usefixtures("added")
def test_list_and_show_say_whose_it_is_and_until_when(cli: Cli, keys: Path):
    public = (keys / "vendor.pub").read_text().strip()
    (listed,) = json.loads(cli("list", "--json").stdout)["models"]
    assert listed["vendor"]["key"] == public
    assert listed["vendor"]["version"] == 3
    assert listed["vendor"]["licence"]["uses"] == ["text", "vectors", "ranks"]
    shown = cli("show", "sold").stdout
    assert f"version 3 of vendor {public[:16]}…, licence until " in shown
    assert "each that has a licence" in shown


@pytest.mark.usefixtures("added")
def test_a_model_whose_licence_is_gone_is_listed_with_what_to_do(cli: Cli):
    (licence,) = (data_folder() / "models" / "models").glob("*.licence")
    licence.unlink()
    shown = cli("show", "sold")
    assert "sold has no licence here" in shown.stdout
    checked = cli("verify", "sold")
    assert checked.exit_code == 1
    assert "has no licence here" in checked.stderr


@pytest.mark.usefixtures("added")
def test_a_damaged_file_is_not_sound(cli: Cli):
    path = data_folder() / "models" / "models" / "sold.flex"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    checked = cli("verify", "sold")
    assert checked.exit_code == 1
    assert "content: expected" in checked.stderr


@pytest.mark.usefixtures("added")
def test_rm_takes_the_licence_along(cli: Cli):
    assert cli("rm", "sold", "--yes").exit_code == 0
    left = {path.suffix for path in (data_folder() / "models" / "models").iterdir()}
    assert left == {".ledger", ".lock"}
