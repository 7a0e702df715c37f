#include "sealed_answer.h"

namespace {

constexpr size_t last_bytes = 1 << 12;  // that the end takes at least

std::string length_of(uint32_t bytes, size_t places) { return std::string(reinterpret_cast<const char *>(&bytes), places); }

}  // namespace

SealedAnswer::SealedAnswer(const Key &secret, std::string_view body, size_t frame)
    : nonce_(random<Salt>()),
      frame_(frame),
      derived_(secret, std::string(view(digest(body))) + std::string(view(nonce_)), {"flexserve sealed answer 1", 26}) {}

void SealedAnswer::add(std::string_view message) {
    waiting_ += length_of(static_cast<uint32_t>(message.size()), 4) + std::string(message);
}

std::string SealedAnswer::end() {
    const size_t least = std::max(last_bytes / frame_, (waiting_.size() + room() - 1) / room());
    size_t count = 1;
    while (count < least) count *= 2;
    std::string said;
    while (--count != 0) said += sealed('\0');
    return said + sealed('\1');
}

std::string SealedAnswer::sealed(char mark) {
    const size_t bytes = std::min(room(), waiting_.size());
    std::string data = length_of(static_cast<uint32_t>(bytes), 2) + waiting_.substr(0, bytes);
    data.resize(room() + 2);
    waiting_.erase(0, bytes);
    Nonce nonce = derived_.nonce;
    for (size_t place = 0; place < sizeof number_; place++) nonce[11 - place] ^= static_cast<uint8_t>(number_ >> (8 * place));
    number_++;
    gcm_seal(derived_.key, nonce, {&mark, 1}, data);
    return mark + data;
}
