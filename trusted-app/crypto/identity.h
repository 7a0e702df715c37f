// Who this application is: the key that signs, by the secret that the layer below made of it, and the keys that clients seal to.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <string>
#include <string_view>

#include "cipher.h"

// A key of HPKE (RFC 9180, base mode, one shot): MLKEM768-X25519, HKDF-SHA-256, AES-256-GCM.
class SealingKey {
   public:
    static constexpr size_t kem_seed = 64, kem_public = 1184, kem_secret = 2400, kem_ciphertext = 1088, curve = 32;
    using Seed = std::array<uint8_t, kem_seed + curve>;

    explicit SealingKey(const Seed &seed);
    ~SealingKey();
    SealingKey(const SealingKey &) = delete;

    std::string_view shown() const { return view(public_); }

    // What was sealed to it, if that has as many bytes as a key. False: it is nothing of that kind.
    bool open(std::string_view sealed, std::string_view info, Key &opened) const;

   private:
    std::array<uint8_t, kem_public + curve> public_;
    std::array<uint8_t, kem_secret> kem_;
    Key scalar_;
};

// The keys that clients seal to: one is shown for an hour, opens for two, and is overwritten then. Times are seconds.
class SealingKeys {
   public:
    struct Shown {
        std::unique_ptr<SealingKey> key;
        uint64_t end;
    };

    explicit SealingKeys(const SealingKey::Seed &first) : seed_(first) {}

    const Shown &shown(uint64_t now);
    bool open(std::string_view sealed, std::string_view info, uint64_t now, Key &opened);

   private:
    static constexpr uint64_t life = 7200;
    SealingKey::Seed seed_;  // of the next one
    std::deque<Shown> keys_;
};

// The key of a layer, as the Open Profile for DICE derives it of the layer's secret (attestation/layers.py).
class Identity {
   public:
    explicit Identity(const Key &secret);

    // A COSE_Sign1, without a tag, of a payload whose content type is `kind`.
    std::string sign(std::string_view payload, std::string_view kind) const;

   private:
    Key key_;
    std::array<uint8_t, 32> public_;
};

// Whether the device whose root secret this is signed what stands in a block, as the first ones of .flex files are.
constexpr size_t signed_block = 8192;
bool is_signed(const Key &root, std::string_view block);
