"""A vendor's one file on two devices: real secure worlds get licences, and answer as plain llama.cpp."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from library import PROMPTS, Library

from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import verify
from flexserve.errors import CallerError, StoredDataError
from flexserve.harness.worlds import DrivenWorld
from flexserve.trusted.store.keys import DeviceKey
from flexserve.vendor.content import read_content, seal_content
from flexserve.vendor.device import adopt
from flexserve.vendor.keys import VendorKeys
from flexserve.vendor.licensing import Terms, issue

pytestmark = pytest.mark.engine

TOKENS = 12


def quiet(_done: int, _total: int) -> None:
    pass


def test_both_devices_answer_alike_and_neither_by_the_licence_of_the_other(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = Library(tmp_path / "one"), Library(tmp_path / "two")
    source = one.file("small-llama", "q8_0")
    expected = one.answer(source, PROMPTS[0], TOKENS)
    keys, flex = VendorKeys.make(tmp_path / "vendor"), tmp_path / "sold.flex"
    seal_content(source, flex, keys, name="sold", version=1, progress=quiet)
    block = read_content(flex)
    models = {device: device.root / "models" for device in (one, two)}

    def licence(world: DrivenWorld, *uses: str) -> bytes:
        nonce = secrets.token_bytes(32)
        said = world.attest(nonce)
        device = verify(said.chain, said.token, nonce, Policy(emulated="allow"))
        return issue(keys, keys.content(block.manifest.id_bytes), device, Terms(3600, uses or ("text",)))

    with one.open() as first, two.open() as second:
        of_one, of_two = licence(first), licence(second)
        for library, signed in ((one, of_one), (two, of_two)):
            device = DeviceKey.load(library.key)
            adopt(models[library], flex, block, signed, device=device, progress=quiet)
        assert first.generate("sold", PROMPTS[0], TOKENS).text == expected
        assert second.generate("sold", PROMPTS[0], TOKENS).text == expected
        second.recall(None)
        assert second.generate("sold", PROMPTS[0], TOKENS).text == expected
        with pytest.raises(CallerError, match="use: expected one of text, found vectors"):
            second.vectors(second.start_embedding("sold", [PROMPTS[1]]))

        nonce = secrets.token_bytes(32)
        said = second.attest(nonce)
        attested = verify(said.chain, said.token, nonce, Policy(emulated="allow")).models
        assert [(it.signer, it.generation) for it in attested] == [(keys.public, 1)]

    (models[two] / f"{block.manifest.model_id}.licence").write_bytes(of_one)
    with two.open() as second, pytest.raises(StoredDataError) as refused:
        second.generate("sold", PROMPTS[0], TOKENS)
    assert refused.value.code == "licence_other_device"
