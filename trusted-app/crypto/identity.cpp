#include "identity.h"

#include <nettle/curve25519.h>
#include <nettle/eddsa.h>
#include <nettle/hkdf.h>
#include <nettle/hmac.h>
#include <nettle/sha3.h>

#include <cstdlib>

#include "notation.h"

extern "C" {  // of mlkem-native
int mlkem768_keypair_derand(uint8_t *shown, uint8_t *secret, const uint8_t *seed);
int mlkem768_dec(uint8_t *shared, const uint8_t *ciphertext, const uint8_t *secret);
}

namespace {

using namespace std::literals;

const std::string suite = "HPKE-v1HPKE\x64\x7a\0\1\0\2"s;
constexpr std::string_view kem_label = "\\.//^\\";
// The salt of the profile's keys.
constexpr std::string_view key_salt =
    "\x63\xb6\xa0\x4d\x2c\x07\x7f\xc1\x0f\x63\x9f\x21\xda\x79\x38\x44\x35\x6c\xc2\xb0\xb4\x41\xb3\xa7\x71\x24\x03\x5c\x03\xf8\xe1"
    "\xbe\x60\x35\xd3\x1f\x28\x28\x21\xa7\x45\x0a\x02\x22\x2a\xb1\xb3\xcf\xf1\x67\x9b\x05\xab\x1c\xa5\xd1\xaf\xfb\x78\x9c\xcd\x2b"
    "\x0b\x3b"sv;

const uint8_t *bytes_of(std::string_view data) { return reinterpret_cast<const uint8_t *>(data.data()); }

Key labelled(std::string_view salt, std::string_view label, std::string_view input) {
    return extract(salt, suite + std::string(label) + std::string(input));
}

void update(void *state, size_t bytes, const uint8_t *data) {
    hmac_sha512_update(static_cast<hmac_sha512_ctx *>(state), bytes, data);
}

void finish(void *state, size_t bytes, uint8_t *target) {
    hmac_sha512_digest(static_cast<hmac_sha512_ctx *>(state), bytes, target);
}

}  // namespace

SealingKey::SealingKey(const Seed &seed) : scalar_(taken<Key>(std::string(view(seed).substr(kem_seed)))) {
    if (mlkem768_keypair_derand(public_.data(), kem_.data(), seed.data()) != 0) abort();
    curve25519_mul_g(public_.data() + kem_public, scalar_.data());
}

SealingKey::~SealingKey() { explicit_bzero(kem_.data(), kem_.size()); }

bool SealingKey::open(std::string_view sealed, std::string_view info, Key &opened) const {
    if (sealed.size() != kem_ciphertext + curve + key_bytes + tag_bytes) return false;
    const std::string_view point = sealed.substr(kem_ciphertext, curve);
    Key kem, shared;
    if (mlkem768_dec(kem.data(), bytes_of(sealed), kem_.data()) != 0) return false;
    curve25519_mul(shared.data(), scalar_.data(), bytes_of(point));
    sha3_256_ctx context;
    sha3_256_init(&context);
    for (const std::string_view part : {view(kem), view(shared), point, shown().substr(kem_public), kem_label}) {
        sha3_256_update(&context, part.size(), bytes_of(part));
    }
    sha3_256_digest(&context, shared.size(), shared.data());
    explicit_bzero(&context, sizeof context);
    const Key no_name = labelled({}, "psk_id_hash", {}), about = labelled({}, "info_hash", info);
    const std::string schedule = '\0' + std::string(view(no_name)) + std::string(view(about));
    const Key secret = labelled(view(shared), "secret", {});
    const Key key = taken<Key>(expand(secret, "\0\x20"s + suite + "key" + schedule, key_bytes));
    const Nonce nonce = taken<Nonce>(expand(secret, "\0\x0c"s + suite + "base_nonce" + schedule, sizeof nonce));
    std::string data(sealed.substr(kem_ciphertext + curve));
    if (!gcm_open(key, nonce, {}, data)) return false;
    opened = taken<Key>(std::move(data));
    return true;
}

const SealingKeys::Shown &SealingKeys::shown(uint64_t now) {
    if (keys_.empty() || keys_.back().end < now + life / 2) {
        keys_.push_back({std::make_unique<SealingKey>(seed_), now + life});
        seed_ = random<SealingKey::Seed>();
    }
    return keys_.back();
}

bool SealingKeys::open(std::string_view sealed, std::string_view info, uint64_t now, Key &opened) {
    while (!keys_.empty() && keys_.front().end <= now) keys_.pop_front();
    return std::any_of(keys_.begin(), keys_.end(), [&](const Shown &each) { return each.key->open(sealed, info, opened); });
}

Identity::Identity(const Key &secret) {
    hmac_sha512_ctx context;
    uint8_t extracted[SHA512_DIGEST_SIZE];
    hmac_sha512_set_key(&context, key_salt.size(), bytes_of(key_salt));
    hkdf_extract(&context, update, finish, sizeof extracted, secret.size(), secret.data(), extracted);
    hmac_sha512_set_key(&context, sizeof extracted, extracted);
    hkdf_expand(&context, update, finish, sizeof extracted, 8, bytes_of("Key Pair"), key_.size(), key_.data());
    explicit_bzero(&context, sizeof context);
    explicit_bzero(extracted, sizeof extracted);
    ed25519_sha512_public_key(public_.data(), key_.data());
}

std::string Identity::sign(std::string_view payload, std::string_view kind) const {
    std::string header = cbor::map(1) + cbor::number(1) + cbor::negative(8);
    if (!kind.empty()) header = cbor::map(2) + header.substr(1) + cbor::number(3) + cbor::text(kind);
    const std::string content = cbor::bytes(payload);
    const std::string said = cbor::list(4) + cbor::text("Signature1") + cbor::bytes(header) + cbor::bytes({}) + content;
    std::array<uint8_t, ED25519_SIGNATURE_SIZE> signature;
    ed25519_sha512_sign(public_.data(), key_.data(), said.size(), bytes_of(said), signature.data());
    return cbor::list(4) + cbor::bytes(header) + cbor::map(0) + content + cbor::bytes(view(signature));
}

bool is_signed(const Key &root, std::string_view block) {
    const Key key = derive(root, nullptr, 0, "sign manifests v1");
    std::array<uint8_t, ED25519_KEY_SIZE> shown;
    ed25519_sha512_public_key(shown.data(), key.data());
    const std::string_view signature = block.substr(block.size() - ED25519_SIGNATURE_SIZE);
    return ed25519_sha512_verify(shown.data(), block.size() - signature.size(), bytes_of(block), bytes_of(signature)) == 1;
}
