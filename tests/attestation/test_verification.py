"""What a client accepts, and how it says what it refuses."""

from __future__ import annotations

import dataclasses
import secrets

import cbor2
import cwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flexserve.attestation import cose
from flexserve.attestation.layers import Layer, Mode, certificate, key_of
from flexserve.attestation.measurement import Measurement, world_digest
from flexserve.attestation.policy import ModelRule, Policy, load_policy, write_policy
from flexserve.attestation.token import AttestedModel, Token, write_token
from flexserve.attestation.token_reader import read_token
from flexserve.attestation.verification import AttestationRefusedError, Verified, verify
from flexserve.errors import CallerError
from flexserve.trusted.identity.identity import Evidence, Facts, Identity, MachineLayer

NOW = 1_800_000_000.0
NONCE = bytes(range(32))
MODEL = AttestedModel("ab" * 32)
FACTS = Facts("linux", {"memory": "memfd_secret"}, [MODEL], [MachineLayer("el2", b"e" * 64)])
PARTS = {"flexserve": b"f" * 64, "engine": b"e" * 64}
CONFIG = {"python": "3.13.0", "program": "flexserve.secure_world.main"}


def identity(root: bytes = b"r" * 32, parts: dict[str, bytes] = PARTS, changed: float = 0.0) -> Identity:
    return Identity(root, lambda: Measurement(parts, changed), started=1.0, config=CONFIG)


@pytest.fixture
def said() -> Evidence:
    return identity().attest(NONCE, FACTS, NOW)


def checked(said: Evidence, policy: Policy, *, nonce: bytes = NONCE, now: float = NOW + 1) -> Verified:
    return verify(said.chain, said.token, nonce, policy, now=now)


def refusal(said: Evidence, policy: Policy, **how) -> AttestationRefusedError:
    with pytest.raises(AttestationRefusedError) as refused:
        checked(said, policy, **how)
    return refused.value


ALLOWED = Policy(emulated="allow")


def good(verified: Verified) -> Policy:
    """Return the policy that allows what was verified, and nothing else."""
    return Policy(
        roots=[verified.root.hex()],
        emulated="allow",
        layers={layer.name: [layer.code.hex()] for layer in verified.layers},
        measurements={name: [digest.hex()] for name, digest in verified.measurements.items()},
        models=[ModelRule(model.digest) for model in verified.models],
    )


def without_debug(said: Evidence) -> Evidence:
    """Return what a root in hardware would have said instead."""
    cdi = b"h" * 32
    verified = checked(said, ALLOWED)
    layer = Layer(world_digest(verified.measurements), mode=Mode.NORMAL, code_descriptor=b"world")
    key = key_of(b"w" * 32)
    token = Token(
        NONCE,
        int(NOW),
        int(NOW) + 60,
        "hardware",
        False,
        "0.1.0",
        verified.measurements,
        {},
        (),
        verified.sealing,
    )
    chain = [cose.encode_key(key_of(cdi).public_key()), certificate(key_of(cdi), layer, key.public_key())]
    return Evidence(chain, write_token(token, key))


def test_a_world_that_the_policy_names_is_accepted_with_all_that_it_says(said: Evidence):
    verified = checked(said, good(checked(said, ALLOWED)))
    assert verified.unchecked == ()
    assert verified.models == (MODEL,)
    assert [layer.name for layer in verified.layers] == ["el2", "world"]
    assert verified.world == world_digest(verified.measurements)
    assert verified.sealing.end == verified.expires > NOW + 3600
    assert verified.debug


def test_what_a_policy_does_not_name_is_listed_as_unchecked(said: Evidence):
    assert set(checked(said, ALLOWED).unchecked) == {
        "root",
        "layer el2",
        "layer world",
        "measurement flexserve",
        "measurement engine",
        "measurement configuration",
        "models",
    }


def test_an_emulated_root_is_refused_by_default_and_the_error_has_the_line_that_allows_it(said: Evidence):
    refused = refusal(said, Policy())
    assert (refused.field, refused.expected) == ("debug status", "disabled")
    assert 'emulated = "allow"' in str(refused)


def test_a_root_in_hardware_needs_no_such_line(said: Evidence):
    assert not checked(without_debug(said), Policy()).debug


def test_a_stale_nonce_is_refused(said: Evidence):
    refused = refusal(said, ALLOWED, nonce=secrets.token_bytes(32))
    assert (refused.field, refused.found) == ("nonce", NONCE.hex())


def test_a_token_that_is_replayed_later_is_refused_by_its_age(said: Evidence):
    strict = Policy(emulated="allow", maximum_age=60)
    assert refusal(said, strict, now=NOW + 200).field == "age"
    assert refusal(said, ALLOWED, now=NOW + 3500 + 3600).field == "age"
    assert refusal(said, ALLOWED, now=NOW - 3600).field == "issued at"


def test_a_token_of_another_world_is_refused(said: Evidence):
    other = identity(root=b"o" * 32).attest(NONCE, FACTS, NOW)
    swapped = Evidence(said.chain, other.token)
    assert refusal(swapped, ALLOWED).field == "token"
    pinned = good(checked(said, ALLOWED))
    refused = refusal(other, pinned)
    assert (refused.field, refused.expected) == ("root", pinned.roots[0])


@pytest.mark.parametrize(
    ("field", "policy"),
    [
        ("root", {"roots": ["00" * 32]}),
        ("layer el2", {"layers": {"el2": ["00" * 64]}}),
        ("layer world", {"layers": {"world": ["00" * 64]}}),
        ("layer el3", {"layers": {"el3": ["00" * 64]}}),
        ("measurement engine", {"measurements": {"engine": ["00" * 64]}}),
        ("measurement firmware", {"measurements": {"firmware": ["00" * 64]}}),
        ("model", {"models": [ModelRule("00" * 32)]}),
        ("signer of model abababababababab", {"models": [ModelRule("ab" * 32, "cc" * 32)]}),
        ("version", {"minimum_version": "99.0"}),
        ("profile", {"profile": "urn:other"}),
    ],
)
def test_a_refusal_names_the_field_what_was_expected_and_what_was_found(said: Evidence, field: str, policy):
    refused = refusal(said, Policy(emulated="allow", **policy))
    assert refused.field == field
    assert refused.expected in str(refused)
    assert refused.found in str(refused)


def test_a_changed_file_of_the_world_changes_what_is_refused_and_the_worlds_key(said: Evidence):
    tampered = identity(parts={**PARTS, "flexserve": b"x" * 64}).attest(NONCE, FACTS, NOW)
    policy = good(checked(said, ALLOWED))
    measured = Policy(emulated="allow", measurements=policy.measurements)
    assert refusal(tampered, measured).field == "measurement flexserve"
    assert checked(tampered, ALLOWED).world_key != checked(said, ALLOWED).world_key


def test_tampered_firmware_changes_the_keys_of_all_that_it_starts(said: Evidence):
    facts = Facts("linux", {}, [], [MachineLayer("el2", b"x" * 64)])
    tampered = identity().attest(NONCE, facts, NOW)
    assert refusal(tampered, good(checked(said, ALLOWED))).field == "layer el2"
    assert checked(tampered, ALLOWED).world_key != checked(said, ALLOWED).world_key


def test_no_byte_of_chain_or_token_can_be_changed(said: Evidence):
    policy = good(checked(said, ALLOWED))
    for part in range(len(said.chain) + 1):
        parts = [*said.chain, said.token]
        for place in range(0, len(parts[part]), 7):
            forged = bytearray(parts[part])
            forged[place] ^= 0x20
            parts[part] = bytes(forged)
            refusal(Evidence(parts[:-1], parts[-1]), policy)
            parts[part] = [*said.chain, said.token][part]


def test_a_chain_without_layers_is_refused(said: Evidence):
    assert refusal(Evidence(said.chain[:1], said.token), ALLOWED).field == "chain"
    assert refusal(Evidence([said.chain[0], *said.chain[2:]], said.token), ALLOWED).field == "certificate 1"


def test_a_world_whose_files_changed_while_it_ran_attests_nothing():
    with pytest.raises(Exception, match="changed after it had started"):
        identity(changed=2.0).attest(NONCE, FACTS, NOW)


def test_another_library_reads_the_token_as_the_standard_has_it(said: Evidence):
    key = checked(said, ALLOWED).world_key
    verifier = cwt.COSEKey.new({1: 1, 3: -8, -1: 6, -2: key})
    tagged = b"\xd2" + said.token  # the tag of a COSE_Sign1, which cwt wants
    payload = cwt.COSE.new().decode(tagged, verifier)
    claims = cbor2.loads(payload)
    assert (claims[10], claims[4] - claims[6], claims[263]) == (NONCE, 7200, 0)
    assert {4, 6, 10, 259, 263, 265, 266, 270, 271, 273} < set(claims)


def test_another_librarys_token_is_read_as_its_own(said: Evidence):
    verified = checked(said, ALLOWED)
    token = read_token(said.token, _public(verified.world_key))
    key = key_of(b"k" * 32)
    payload = cose.signed_payload(said.token, _public(verified.world_key))
    private = cwt.COSEKey.new(
        {1: 1, 3: -8, -1: 6, -2: key.public_key().public_bytes_raw(), -4: key.private_bytes_raw()}
    )
    theirs = cwt.COSE.new(alg_auto_inclusion=True).encode(payload, private)
    untagged = cbor2.dumps(cbor2.loads(theirs).value)
    assert read_token(untagged, key.public_key()) == token


def _public(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)


def test_a_policy_survives_its_file(said: Evidence, tmp_path):
    policy = good(checked(said, ALLOWED))
    path = tmp_path / "policy.toml"
    path.write_text(write_policy(policy))
    assert load_policy(path) == policy


@pytest.mark.parametrize(
    "text", ['emulated = "maybe"', "roots = 3", "colour = 1", "maximum_age = 0", "not toml", 'roots = ["xy"]']
)
def test_a_policy_that_is_not_clear_is_refused(text: str, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(CallerError, match="not clear"):
        load_policy(path)


def test_tokens_differ_in_nothing_but_what_was_asked(said: Evidence):
    again = identity().attest(b"another!", FACTS, NOW)
    first, second = checked(said, ALLOWED), checked(again, ALLOWED, nonce=b"another!")
    assert dataclasses.replace(second, sealing=first.sealing) == first
