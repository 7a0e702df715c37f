#include "sealed_kv.h"

#include <algorithm>
#include <cstring>

namespace {

constexpr size_t most_bytes = size_t{1} << 36;

}  // namespace

bool SealedKv::start(uint32_t sequence, size_t bytes, const Salt &salt, const Owner &owner) {
    stop();
    plain_ = flexmem_.reserve(bytes);
    if (plain_ == nullptr || !flexmem_.commit(*plain_, 0, plain_->chunks())) {
        stop();
        return false;
    }
    sequence_ = sequence;
    bytes_ = bytes;
    next_ = 0;
    owner_ = owner;
    cipher_ = image_.cipher(digest_of(salt, owner), "kv");  // so another owner's does not authenticate
    return true;
}

void SealedKv::stop() {
    if (plain_ != nullptr) flexmem_.free(std::move(plain_));
    cipher_.reset();
    way_ = Way::none;
}

Status SealedKv::keep(uint32_t sequence, size_t &bytes, Salt &salt) {
    const auto &[owner, tokens] = generations_.cached(sequence);
    if (tokens.empty() || model_.committed(Kind::kv) < model_.size(Kind::kv)) return Status::bad;
    const size_t head = (1 + tokens.size()) * sizeof(uint32_t), state = model_.state_bytes(sequence);
    salt = random<Salt>();
    if (!start(sequence, head + state, salt, owner)) return Status::refused;
    const auto count = static_cast<uint32_t>(tokens.size());
    std::memcpy(plain_->base(), &count, sizeof count);
    std::memcpy(plain_->base() + sizeof count, tokens.data(), head - sizeof count);
    if (!model_.save_state(sequence, plain_->base() + head, state)) {
        stop();
        return Status::failed;
    }
    way_ = Way::out;
    bytes = bytes_;
    return Status::done;
}

Status SealedKv::kept(size_t number, Bytes &sealed) {
    if (way_ != Way::out || number != next_) return Status::bad;
    const size_t first = number * kept_part_bytes, length = std::min<size_t>(kept_part_bytes, bytes_ - first);
    sealed.assign(plain_->base() + first, plain_->base() + first + length);
    sealed.resize(length + tag_bytes);
    cipher_->encrypt(0, number, parts(), sealed.data(), length, sealed.data() + length);
    if (++next_ == parts()) stop();
    return Status::done;
}

Status SealedKv::resume(uint32_t sequence, size_t bytes, const Salt &salt, const Owner &owner) {
    if (bytes == 0 || bytes > most_bytes) return Status::bad;
    if (!model_.prepare() || !start(sequence, bytes, salt, owner)) return Status::refused;
    way_ = Way::in;
    return Status::done;
}

Status SealedKv::resumed(size_t number, const Bytes &sealed) {
    if (way_ != Way::in || number != next_) return Status::bad;
    const size_t first = number * kept_part_bytes, length = std::min<size_t>(kept_part_bytes, bytes_ - first);
    if (sealed.size() != length + tag_bytes) return Status::bad;
    std::byte *target = plain_->base() + first;
    std::memcpy(target, sealed.data(), length);
    if (!cipher_->decrypt(0, number, parts(), target, length, sealed.data() + length)) {
        stop();
        return Status::damaged;
    }
    return ++next_ == parts() ? take_in() : Status::done;
}

// All of it is what was sealed. It is of another context when it does not fit.
Status SealedKv::take_in() {
    uint32_t count = 0;
    if (bytes_ >= sizeof count) std::memcpy(&count, plain_->base(), sizeof count);
    const size_t head = (1 + size_t{count}) * sizeof count;
    bool fits = count != 0 && count <= model_.context_tokens() && head < bytes_ && generations_.find(sequence_) == nullptr &&
                model_.committed(Kind::kv) == model_.size(Kind::kv);
    if (fits) {
        generations_.cached(sequence_) = {};
        model_.cut(sequence_, 0, 0);
        fits = model_.load_state(sequence_, plain_->base() + head, bytes_ - head);
    }
    if (fits) {
        std::vector<llama_token> tokens(count);
        std::memcpy(tokens.data(), plain_->base() + sizeof count, count * sizeof tokens[0]);
        generations_.cached(sequence_) = {owner_, std::move(tokens)};
    }
    stop();
    return fits ? Status::done : Status::unsupported;
}
