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
uint8_t *bytes_of(std::string &data) { return reinterpret_cast<uint8_t *>(data.data()); }
const uint8_t *bytes_of(std::string_view data) { return reinterpret_cast<const uint8_t *>(data.data()); }

// What a chunk is bound to; as the machine is little-endian, so are its numbers.
struct __attribute__((packed)) Binding {
    std::array<uint8_t, 16> kind;
    uint32_t version;
    Id model;
    uint32_t stream;
    uint64_t index, total;
};

struct __attribute__((packed)) Place {
    uint32_t stream;
    uint64_t index;
};

void update(void *context, size_t length, const uint8_t *data) {
    hmac_sha256_update(static_cast<hmac_sha256_ctx *>(context), length, data);
}

void finish(void *context, size_t length, uint8_t *target) {
    hmac_sha256_digest(static_cast<hmac_sha256_ctx *>(context), length, target);
}

void begin(gcm_aes256_ctx &state, const Key &key, const Nonce &nonce, std::string_view bound) {
    gcm_aes256_set_key(&state, key.data());
    gcm_aes256_set_iv(&state, nonce.size(), nonce.data());
    gcm_aes256_update(&state, bound.size(), bytes_of(bound));
}

}  // namespace

Key::~Key() { explicit_bzero(data(), size()); }

Key extract(std::string_view salt, std::string_view input) {
    hmac_sha256_ctx context;
    Key key;
    hmac_sha256_set_key(&context, salt.size(), bytes_of(salt));
    hkdf_extract(&context, update, finish, SHA256_DIGEST_SIZE, input.size(), bytes_of(input), key.data());
    explicit_bzero(&context, sizeof context);
    return key;
}

std::string expand(const Key &key, std::string_view info, size_t bytes) {
    hmac_sha256_ctx context;
    std::string derived(bytes, '\0');
    hmac_sha256_set_key(&context, key.size(), key.data());
    hkdf_expand(&context, update, finish, SHA256_DIGEST_SIZE, info.size(), bytes_of(info), bytes, bytes_of(derived));
    explicit_bzero(&context, sizeof context);
    return derived;
}

Key derive(const Key &secret, const uint8_t *salt, size_t bytes, std::string_view purpose) {
    const Key extracted = extract({reinterpret_cast<const char *>(salt), bytes}, view(secret));
    return taken<Key>(expand(extracted, "flexserve " + std::string(purpose), key_bytes));
}

void gcm_seal(const Key &key, const Nonce &nonce, std::string_view bound, std::string &data) {
    gcm_aes256_ctx state;
    begin(state, key, nonce, bound);
    gcm_aes256_encrypt(&state, data.size(), bytes_of(data), bytes_of(data));
    data.resize(data.size() + tag_bytes);
    gcm_aes256_digest(&state, tag_bytes, bytes_of(data) + data.size() - tag_bytes);
    explicit_bzero(&state, sizeof state);
}

bool gcm_open(const Key &key, const Nonce &nonce, std::string_view bound, std::string &data) {
    if (data.size() < tag_bytes) return false;
    gcm_aes256_ctx state;
    std::array<uint8_t, tag_bytes> tag, expected;
    std::copy(data.end() - tag_bytes, data.end(), tag.begin());
    data.resize(data.size() - tag_bytes);
    begin(state, key, nonce, bound);
    gcm_aes256_decrypt(&state, data.size(), bytes_of(data), bytes_of(data));
    gcm_aes256_digest(&state, tag_bytes, expected.data());
    explicit_bzero(&state, sizeof state);
    if (memeql_sec(expected.data(), tag.data(), tag_bytes)) return true;
    explicit_bzero(data.data(), data.size());
    data.clear();
    return false;
}

std::optional<Key> unwrap(const Key &root, const Id &model, const std::array<uint8_t, wrapped_bytes> &wrapped) {
    std::string sealed(view(wrapped).substr(sizeof(Nonce)));
    const Nonce nonce = taken<Nonce>(std::string(view(wrapped)));
    if (!gcm_open(derive(root, nullptr, 0, "wrap model keys v1"), nonce, view(model), sealed)) return std::nullopt;
    return taken<Key>(std::move(sealed));
}

void fill_randomly(void *target, size_t bytes) {
    if (getrandom(target, bytes, 0) != static_cast<ssize_t>(bytes)) abort();
}

Salt digest(std::string_view data) {
    sha256_ctx context;
    Salt result;
    sha256_init(&context);
    sha256_update(&context, data.size(), bytes_of(data));
    sha256_digest(&context, result.size(), result.data());
    return result;
}

ChunkCipher::ChunkCipher(const Key &model_key, const Salt &salt, std::string_view kind, uint32_t version, const Id &model)
    : version_(version), model_(model) {
    gcm_aes256_set_key(&state_, derive(model_key, salt.data(), salt.size(), kind).data());
    std::copy(kind.begin(), kind.end(), kind_.begin());
}

ChunkCipher::~ChunkCipher() { explicit_bzero(&state_, sizeof state_); }

gcm_aes256_ctx ChunkCipher::begin(uint32_t stream, uint64_t index, uint64_t total) const {
    gcm_aes256_ctx state = state_;
    const Place nonce{stream, index};
    const Binding binding{kind_, version_, model_, stream, index, total};
    gcm_aes256_set_iv(&state, sizeof nonce, reinterpret_cast<const uint8_t *>(&nonce));
    gcm_aes256_update(&state, sizeof binding, reinterpret_cast<const uint8_t *>(&binding));
    return state;
}

void ChunkCipher::encrypt(uint32_t stream, uint64_t index, uint64_t total, std::byte *data, size_t bytes,
                          std::byte *tag) const {
    gcm_aes256_ctx state = begin(stream, index, total);
    gcm_aes256_encrypt(&state, bytes, bytes_of(data), bytes_of(data));
    gcm_aes256_digest(&state, tag_bytes, bytes_of(tag));
    explicit_bzero(&state, sizeof state);
}

bool ChunkCipher::decrypt(uint32_t stream, uint64_t index, uint64_t total, std::byte *data, size_t bytes,
                          const std::byte *tag) const {
    std::array<uint8_t, tag_bytes> expected;
    gcm_aes256_ctx state = begin(stream, index, total);
    gcm_aes256_decrypt(&state, bytes, bytes_of(data), bytes_of(data));
    gcm_aes256_digest(&state, tag_bytes, expected.data());
    explicit_bzero(&state, sizeof state);
    if (memeql_sec(expected.data(), tag, tag_bytes)) return true;
    explicit_bzero(data, bytes);
    return false;
}
