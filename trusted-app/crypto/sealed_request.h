// A sealed request as it comes: what of it is in the clear, and how the rest is opened (protocol/sealed_request.py).
#pragma once

#include <string>

#include "cipher.h"
#include "identity.h"

// An AES-256-GCM key with its nonce, both derived of a request's secret.
struct Derived {
    Derived(const Key &secret, std::string_view salt, std::string_view purpose);
    Key key;
    Nonce nonce;
};

struct SealedRequest {
    static constexpr size_t sealed_bytes = SealingKey::kem_ciphertext + SealingKey::curve + key_bytes + tag_bytes;

    explicit SealedRequest(std::string_view body);

    // Whether the secret comes by the name that an earlier request gave it, and is not sealed.
    bool is_named() const { return secret.size() == key_bytes; }
    std::string info() const;  // of HPKE

    // What is in it, without padding. False: it is not what was sealed with this secret.
    bool open(const Key &secret, std::string &content) const;

    std::string_view header{}, token{}, model{}, secret{}, ciphertext{}, clear{};  // empty: it is none
};
