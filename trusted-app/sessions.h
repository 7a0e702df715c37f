// Sealed requests (protocol/sealed_request.py): who passes them on reads neither them nor their answers. And who says so.
#pragma once

#include <map>
#include <vector>

#include "identity.h"
#include "messages.h"
#include "sealed_answer.h"

// A request that was opened, and what of its answer is under way.
struct Session {
    SealedAnswer answer;
    Salt request, token, shape;  // SHA-256 of what was asked, of the attestation, of the template
    size_t most;                 // tokens to say; 0: the normal world answers
    bool start;
    std::string model, sampling, told;
    Id owner;  // of its KV; no plain request has one like it
    std::vector<std::string> parts{};
    uint64_t number = 0, model_number = 0;
    Id id{};  // of the model
    std::string gguf{};  // its digest
    std::vector<int32_t> prompt{};
    // From its beginning on:
    bool begun = false;
    uint32_t sequence = 0;
    size_t cached = 0;
    std::string text{};
};

class Sessions {
   public:
    // `secret`: this layer's. `seed`: of the first key that clients seal to.
    explicit Sessions(const Key &secret, const SealingKey::Seed &seed = random<SealingKey::Seed>());

    // A token with `nonce`. `measurements`: what the layer's certificate is about, in CBOR. `time`: milliseconds since 1970; the
    // normal world is believed once, and from then on it is counted here.
    std::string attest(uint64_t time, std::string_view nonce, std::string_view measurements);

    // Believe what the first block of a .flex file says, or forget it. False: this device did not sign it.
    bool know(std::string_view block, bool gone);

    // The digest of a model, by the id of its sealing and its name, in hexadecimal. None: it is not known.
    std::string digest_of(const Id &model, const std::string &name) const;

    // Null: whatever is wrong with it.
    std::unique_ptr<Session> open(std::string_view body);

    std::string receipt(const Session &session, size_t tokens, std::string_view reason);

   private:
    uint64_t now() const;                                            // milliseconds
    bool find(const SealedRequest &sealed, Key &secret);
    bool admit(std::string_view id, uint64_t time, std::string_view next);

    Key root_;
    Identity identity_;
    uint64_t offset_ = 0, receipts_ = 0;
    SealingKeys keys_;
    std::map<std::string, std::pair<std::string, std::string>> models_;  // name and digest, by the id of a sealing
    // What clients brought in the last minutes, and until when it counts: ids of requests, which have 16 bytes and no secret;
    // secrets for later ones, by their names, which have 32.
    std::map<std::string, std::pair<Key, uint64_t>> recent_;
};
