#include "cipher.h"

#include <nettle/hkdf.h>
#include <nettle/hmac.h>
#include <nettle/memops.h>
#include <nettle/sha2.h>

#include <sys/random.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

uint8_t *bytes_of(std::byte *data) { return reinterpret_cast<uint8_t *>(data); }

// What a chunk is bound to; as the machine is little-endian, so are its numbers.
struct __attribute__((packed)) Binding {
    std::array<uint8_t, 16> kind;
    uint32_t version;
    Id model;
    uint32_t stream;
    uint64_t index, total;
};

struct __attribute__((packed)) Nonce {
    uint32_t stream;
    uint64_t index;
};

void update(void *context, size_t length, const uint8_t *data) {
    hmac_sha256_update(static_cast<hmac_sha256_ctx *>(context), length, data);
}

void finish(void *context, size_t length, uint8_t *target) {
    hmac_sha256_digest(static_cast<hmac_sha256_ctx *>(context), length, target);
}

}  // namespace

Key::~Key() { explicit_bzero(data(), size()); }

Key derive(const Key &secret, const uint8_t *salt, size_t bytes, std::string_view purpose) {
    const std::string info = "flexserve " + std::string(purpose);
    hmac_sha256_ctx context;
    Key extracted, derived;
    hmac_sha256_set_key(&context, bytes, salt);
    hkdf_extract(&context, update, finish, SHA256_DIGEST_SIZE, secret.size(), secret.data(), extracted.data());
    hmac_sha256_set_key(&context, extracted.size(), extracted.data());
    hkdf_expand(&context, update, finish, SHA256_DIGEST_SIZE, info.size(), reinterpret_cast<const uint8_t *>(info.data()),
                derived.size(), derived.data());
    explicit_bzero(&context, sizeof context);
    return derived;
}

std::optional<Key> unwrap(const Key &root, const Id &model, const std::array<uint8_t, wrapped_bytes> &wrapped) {
    const Key wrapping = derive(root, nullptr, 0, "wrap model keys v1");
    const uint8_t *nonce = wrapped.data(), *sealed = nonce + GCM_IV_SIZE, *tag = sealed + key_bytes;
    gcm_aes256_ctx state;
    gcm_aes256_set_key(&state, wrapping.data());
    gcm_aes256_set_iv(&state, GCM_IV_SIZE, nonce);
    gcm_aes256_update(&state, model.size(), model.data());
    Key key;
    std::array<uint8_t, tag_bytes> expected;
    gcm_aes256_decrypt(&state, key.size(), key.data(), sealed);
    gcm_aes256_digest(&state, expected.size(), expected.data());
    explicit_bzero(&state, sizeof state);
    if (!memeql_sec(expected.data(), tag, tag_bytes)) return std::nullopt;
    return key;
}

Salt random_salt() {
    Salt salt;
    if (getrandom(salt.data(), salt.size(), 0) != static_cast<ssize_t>(salt.size())) abort();
    return salt;
}

Salt digest(const Salt &first, const void *second, size_t bytes) {
    sha256_ctx context;
    Salt result;
    sha256_init(&context);
    sha256_update(&context, first.size(), first.data());
    sha256_update(&context, bytes, static_cast<const uint8_t *>(second));
    sha256_digest(&context, result.size(), result.data());
    return result;
}

ChunkCipher::ChunkCipher(const Key &model_key, const Salt &salt, std::string_view kind, uint32_t version, const Id &model)
    : version_(version), model_(model) {
    gcm_aes256_set_key(&state_, derive(model_key, salt.data(), salt.size(), kind).data());
    std::copy(kind.begin(), kind.end(), kind_.begin());
}

ChunkCipher::~ChunkCipher() { explicit_bzero(&state_, sizeof state_); }

void ChunkCipher::begin(uint32_t stream, uint64_t index, uint64_t total) {
    const Nonce nonce{stream, index};
    const Binding binding{kind_, version_, model_, stream, index, total};
    gcm_aes256_set_iv(&state_, sizeof nonce, reinterpret_cast<const uint8_t *>(&nonce));
    gcm_aes256_update(&state_, sizeof binding, reinterpret_cast<const uint8_t *>(&binding));
}

void ChunkCipher::encrypt(uint32_t stream, uint64_t index, uint64_t total, std::byte *data, size_t bytes, std::byte *tag) {
    begin(stream, index, total);
    gcm_aes256_encrypt(&state_, bytes, bytes_of(data), bytes_of(data));
    gcm_aes256_digest(&state_, tag_bytes, bytes_of(tag));
}

bool ChunkCipher::decrypt(uint32_t stream, uint64_t index, uint64_t total, std::byte *data, size_t bytes,
                          const std::byte *tag) {
    std::array<uint8_t, tag_bytes> expected;
    begin(stream, index, total);
    gcm_aes256_decrypt(&state_, bytes, bytes_of(data), bytes_of(data));
    gcm_aes256_digest(&state_, tag_bytes, expected.data());
    if (memeql_sec(expected.data(), tag, tag_bytes)) return true;
    explicit_bzero(data, bytes);
    return false;
}
