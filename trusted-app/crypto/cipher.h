// AES-256-GCM over numbered chunks, as the store's files have it (trusted/store/aead.py), and the wrapping of model keys.
#pragma once

#include <nettle/gcm.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

constexpr size_t key_bytes = 32, tag_bytes = 16, salt_bytes = 32, id_bytes = 16, wrapped_bytes = 12 + key_bytes + tag_bytes;

// Any bytes, to be read.
template <typename Bytes>
std::string_view view(const Bytes &bytes) {
    return {reinterpret_cast<const char *>(bytes.data()), bytes.size() * sizeof *bytes.data()};
}

// Bytes that are overwritten when they go.
class Key : public std::array<uint8_t, key_bytes> {
   public:
    Key() : std::array<uint8_t, key_bytes>{} {}
    Key(const Key &) = default;
    Key &operator=(const Key &) = default;
    ~Key();
};

using Salt = std::array<uint8_t, salt_bytes>;
using Id = std::array<uint8_t, id_bytes>;
using Tag = std::array<std::byte, tag_bytes>;

// The first bytes of some, which go then.
template <typename Bytes>
Bytes taken(std::string from) {
    Bytes bytes;
    std::copy_n(from.begin(), bytes.size(), bytes.begin());
    explicit_bzero(from.data(), from.size());
    return bytes;
}

// HKDF with SHA-256, as its two steps, and as a whole; what it is for is a part of it.
Key extract(std::string_view salt, std::string_view input);
std::string expand(const Key &key, std::string_view info, size_t bytes);
Key derive(const Key &secret, const uint8_t *salt, size_t bytes, std::string_view purpose);

// A model's key, of the form in which the device with this root secret keeps it. None: it is another device's or model's.
std::optional<Key> unwrap(const Key &root, const Id &model, const std::array<uint8_t, wrapped_bytes> &wrapped);

// AES-256-GCM in place, with a tag behind: sealing lengthens `data`. False: it is not what was sealed; then nothing is left.
using Nonce = std::array<uint8_t, 12>;
void gcm_seal(const Key &key, const Nonce &nonce, std::string_view bound, std::string &data);
bool gcm_open(const Key &key, const Nonce &nonce, std::string_view bound, std::string &data);

void fill_randomly(void *target, size_t bytes);  // ends the process when there is no randomness
template <typename Bytes>
Bytes random() {
    Bytes bytes;
    fill_randomly(bytes.data(), bytes.size());
    return bytes;
}
Salt digest(std::string_view data);  // SHA-256
template <typename... Parts>
Salt digest_of(const Parts &...parts) {
    return digest((std::string(view(parts)) + ...));
}

// The chunks of one file. A chunk is bound to the file's kind, version and model, and to its place in its stream.
class ChunkCipher {
   public:
    ChunkCipher(const Key &model_key, const Salt &salt, std::string_view kind, uint32_t version, const Id &model);
    ~ChunkCipher();
    ChunkCipher(const ChunkCipher &) = delete;

    // Encrypt in place, and put the tag behind. Once for each place and salt.
    void encrypt(uint32_t stream, uint64_t index, uint64_t total, std::byte *data, size_t bytes, std::byte *tag) const;

    // Decrypt in place. False: it is not what was encrypted at this place; it is zeros then. Several threads may.
    bool decrypt(uint32_t stream, uint64_t index, uint64_t total, std::byte *data, size_t bytes,
                 const std::byte *tag) const;

   private:
    gcm_aes256_ctx begin(uint32_t stream, uint64_t index, uint64_t total) const;

    gcm_aes256_ctx state_;
    std::array<uint8_t, 16> kind_{};
    uint32_t version_;
    Id model_;
};
