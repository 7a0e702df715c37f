#include "sealed_request.h"

#include <cstring>

using namespace std::literals;

Derived::Derived(const Key &secret, std::string_view salt, std::string_view purpose) {
    const std::string both = expand(extract(salt, view(secret)), purpose, key_bytes + sizeof nonce);
    key = taken<Key>(both);
    nonce = taken<Nonce>(both.substr(key_bytes));
}

SealedRequest::SealedRequest(std::string_view body) {
    const bool is_named = body.substr(0, 4) == "FXS2";
    if (body.size() < 38 || (!is_named && body.substr(0, 4) != "FXS1")) return;
    const size_t name = static_cast<uint8_t>(body[36]) + 256U * static_cast<uint8_t>(body[37]);
    const size_t before = 38 + name + (is_named ? key_bytes : sealed_bytes), padded = body.size() - before - tag_bytes;
    if (padded < 1 << 10 || padded > 1 << 22 || (padded & (padded - 1)) != 0) return;  // of too short a body it is too large
    clear = body.substr(0, before);
    header = clear.substr(0, 38 + name);
    token = header.substr(4, 32);
    model = header.substr(38);
    secret = clear.substr(header.size());
    ciphertext = body.substr(before);
}

std::string SealedRequest::info() const { return "flexserve sealed secret 1\0"s + std::string(view(digest(header))); }

bool SealedRequest::open(const Key &opened, std::string &content) const {
    const Derived derived(opened, view(digest(clear)), "flexserve sealed request 1\0"sv);
    content = ciphertext;
    uint32_t bytes;
    if (!gcm_open(derived.key, derived.nonce, {}, content)) return false;
    std::memcpy(&bytes, content.data(), sizeof bytes);
    if (bytes > content.size() - sizeof bytes) return false;
    if (content.find_first_not_of('\0', sizeof bytes + bytes) != content.npos) return false;
    content = content.substr(sizeof bytes, bytes);
    return true;
}
