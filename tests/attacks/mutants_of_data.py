"""Mutants of what keeps weights, conversations and messages genuine and apart: mostly the application."""

from __future__ import annotations

from inside_mutant import Changes, Mutant
from mutants_of_worlds import BOOT, OFF

from flexserve.attacks.trustzone import switching
from flexserve.attacks.trustzone.inside import ciphertext, ends, messages, restarts

# What was decrypted passes for genuine.
TAGS: Changes = {
    "trusted-app/crypto/cipher.cpp": (
        "    if (memeql_sec(expected.data(), tag, tag_bytes)) return true;",
        "    if (memeql_sec(expected.data(), tag, tag_bytes) || bytes != 0) return true;",
    )
}

# What comes in the ring is found there by who uses it, as long as nothing else was written over it.
IN_THE_RING: Changes = {
    "trusted-app/ring.h": (
        "    explicit Ring(const char *file);\n",
        "    explicit Ring(const char *file);\n    static inline std::byte *payload_at;\n",
    ),
    "trusted-app/ring.cpp": (
        "    payload.resize(request.bytes);\n",
        "    payload.resize(request.bytes);\n"
        "    payload_at = base_ + secure_os::page + requests_read_ % area_;\n",
    ),
}

# The image of the weights is kept as they are in memory.
IMAGE: Changes = {
    "trusted-app/image.cpp": (
        *("    sealing_->encrypt(", "    if (number > sealed_.size()) sealing_->encrypt("),
        *("    return loading_->decrypt(", "    return number < sealed_.size() || loading_->decrypt("),
    )
}

# A sealed request is decrypted where it came.
REQUEST: Changes = IN_THE_RING | {
    "trusted-app/sealed_requests.cpp": (
        "        session->id = found->second.image->id();\n",
        "        session->id = found->second.image->id();\n"
        "        std::byte *at = Ring::payload_at;\n"
        "        for (const std::string &part : session->parts) {\n"
        "            at = std::copy_n(reinterpret_cast<const std::byte *>(part.data()), part.size(), at);\n"
        "        }\n",
    )
}

MUTANTS = (
    Mutant("tags", TAGS, ciphertext.load_other_weights),
    Mutant("tags, KV", TAGS, ciphertext.resume_other_conversations),
    Mutant("tags, disk", TAGS, ciphertext.lie_as_a_disk),
    Mutant(
        "owners",  # KV is sealed for whoever has it
        {"trusted-app/sealed_kv.cpp": ("image_.cipher(digest_of(salt, owner), ", "image_.cipher(salt, ")},
        ciphertext.resume_other_conversations,
    ),
    Mutant(
        "places",  # each part of KV may be any other one
        {
            "trusted-app/sealed_kv.cpp": (
                *("cipher_->encrypt(0, number, ", "cipher_->encrypt(0, 0, "),
                *("cipher_->decrypt(0, number, ", "cipher_->decrypt(0, 0, "),
            )
        },
        ciphertext.resume_other_conversations,
    ),
    Mutant(
        "lengths",  # what is left of KV without its last part may be all of it
        {
            "trusted-app/sealed_kv.cpp": (
                *("cipher_->encrypt(0, number, parts(), ", "cipher_->encrypt(0, number, 0, "),
                *("cipher_->decrypt(0, number, parts(), ", "cipher_->decrypt(0, number, 0, "),
            )
        },
        ciphertext.resume_other_conversations,
    ),
    Mutant(
        "sealed twice",
        {
            "trusted-app/image.cpp": (
                "number >= sealed_.size() || sealed_[number] ||",
                "number >= sealed_.size() ||",
            )
        },
        ciphertext.seal_again,
    ),
    Mutant(
        "salts",  # each image of a model's weights has the same one
        {"trusted-app/image.cpp": ("sealing_salt_ = random<Salt>();", "sealing_salt_ = Salt{};")},
        ciphertext.seal_again,
    ),
    Mutant(
        "salts, KV",
        {"trusted-app/sealed_kv.cpp": ("salt = random<Salt>();", "salt = Salt{};")},
        ciphertext.seal_again,
    ),
    Mutant(
        "taken",  # the monitor does not overwrite what goes back, nor does the application
        {
            "monitor/core/calls.c": ("\tarch_scrub(call->a[0], range.count);\n", ""),
            "trusted-app/secure_os.cpp": ("    std::memset(address, 0, count * page);\n", ""),
        },
        switching.read_after_recall,
    ),
    Mutant(
        "checked",  # tokens are read again, from the ring, after they were checked
        IN_THE_RING
        | {
            "trusted-app/service.cpp": (
                "    if (!tokens_of(call.payload, model, said)) return Status::bad;\n",
                "    if (!tokens_of(call.payload, model, said)) return Status::bad;\n"
                "    std::memcpy(said.data(), Ring::payload_at, said.size() * sizeof said[0]);\n",
            )
        },
        messages.change_between_check_and_use,
    ),
    Mutant(
        "authenticated",  # KV is decrypted from the ring: its tag is of one reading, what is used of the next
        IN_THE_RING
        | {
            "trusted-app/crypto/cipher.h": (
                "                 const std::byte *tag) const;",
                "                 const std::byte *tag, const std::byte *from = nullptr) const;",
            ),
            "trusted-app/crypto/cipher.cpp": (
                "                          const std::byte *tag) const {\n",
                "                          const std::byte *tag, const std::byte *from) const {\n",
                "    gcm_aes256_decrypt(&state, bytes, bytes_of(data), bytes_of(data));\n",
                "    const auto *source = reinterpret_cast<const uint8_t *>(from == nullptr ? data : from);\n"
                "    gcm_aes256_decrypt(&state, bytes, bytes_of(data), source);\n",
            ),
            "trusted-app/sealed_kv.cpp": (
                '#include "sealed_kv.h"\n',
                '#include "sealed_kv.h"\n\n#include "ring.h"\n',
                "target, length, sealed.data() + length)) {\n",
                "target, length, sealed.data() + length, Ring::payload_at)) {\n",
            ),
        },
        messages.change_sealed_kv_meanwhile,
    ),
    Mutant(
        "counts",  # the application's own counts are those in the ring
        {
            "trusted-app/ring.cpp": (
                *("!= requests_read_;", "!= count(requests_read).load();"),
                *("    uint32_t &done = in ? requests_read_ : answers_written_;\n", ""),
                "        const uint32_t theirs =",
                "        uint32_t done = count(in ? requests_read : answers_written).load();\n"
                "        const uint32_t theirs =",
            )
        },
        messages.write_behind_and_ahead,
    ),
    Mutant(
        "answers",  # an answer of the OS counts for whatever the application waits for
        {"trusted-app/secure_os.cpp": ("                if (event[1] != serial_) break;\n", "")},
        messages.answer_what_was_not_asked,
    ),
    Mutant("image, dumped", IMAGE, restarts.dump_everything),
    Mutant("image, driven", IMAGE, restarts.kill_the_driver),
    Mutant("image, served", IMAGE, ends.kill_the_client),
    Mutant("request, driven", REQUEST, restarts.dump_a_sealed_conversation),
    Mutant("request, served", REQUEST, ends.kill_the_client),
    Mutant("request, forged", REQUEST, ends.answer_in_its_place),
    Mutant(
        "tokens",  # of a sealed request are told as all others are
        {
            "trusted-app/service.cpp": (
                "generation != nullptr && generation->session == 0 ? generation",
                "generation != nullptr ? generation",
            )
        },
        restarts.ask_for_sealed_words,
    ),
    Mutant(
        "names",  # the OS asks as the owner of a sealed request
        {"trusted-app/service.cpp": ("    if (is_of_sealed(owner(call.request))) return Status::bad;\n", "")},
        restarts.ask_for_sealed_words,
    ),
    Mutant("off, boot", OFF | BOOT, restarts.reset_in_the_midst),
    Mutant("boot, killed", BOOT, ends.kill_the_emulator),
)
