// AES-256-GCM over numbered chunks, as the store's files have it (trusted/store/aead.py), and the wrapping of model keys.
#pragma once

#include <nettle/gcm.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

constexpr size_t key_bytes = 32, tag_bytes = 16, salt_bytes = 32, id_bytes = 16, wrapped_bytes = 12 + key_bytes + tag_bytes;

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

// HKDF with SHA-256; what it is for is a part of it.
Key derive(const Key &secret, const uint8_t *salt, size_t bytes, std::string_view purpose);

// A model's key, of the form in which the device with this root secret keeps it. None: it is another device's or model's.
std::optional<Key> unwrap(const Key &root, const Id &model, const std::array<uint8_t, wrapped_bytes> &wrapped);

Salt random_salt();  // ends the process when there is no randomness
Salt digest(const Salt &first, const void *second, size_t bytes);  // SHA-256 of both

// The chunks of one file. A chunk is bound to the file's kind, version and model, and to its place in its stream.
class ChunkCipher {
   public:
    ChunkCipher(const Key &model_key, const Salt &salt, std::string_view kind, uint32_t version, const Id &model);
    ~ChunkCipher();
    ChunkCipher(const ChunkCipher &) = delete;

    // Encrypt in place, and put the tag behind. Once for each place and salt.
    void encrypt(uint32_t stream, uint64_t index, uint64_t total, std::byte *data, size_t bytes, std::byte *tag);

    // Decrypt in place. False: it is not what was encrypted at this place; it is zeros then.
    bool decrypt(uint32_t stream, uint64_t index, uint64_t total, std::byte *data, size_t bytes, const std::byte *tag);

   private:
    void begin(uint32_t stream, uint64_t index, uint64_t total);

    gcm_aes256_ctx state_;
    std::array<uint8_t, 16> kind_{};
    uint32_t version_;
    Id model_;
};
