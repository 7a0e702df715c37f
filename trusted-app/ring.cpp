#include "ring.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "secure_os.h"

namespace {

constexpr size_t stride = 64;
constexpr uint64_t patience = 1'000'000, longest = 128 * patience;  // ns for which a count that changed goes unseen, at most

enum Count : size_t { requests_written, requests_read, answers_written, answers_read };

}  // namespace

Ring::Ring(const char *file) {
    size_t bytes;
    if (!secure_os::ring(file, base_, bytes) || bytes < 3 * secure_os::page) abort();
    while (2 * (2 * size_t{area_}) + secure_os::page <= bytes && area_ < 1u << 30) area_ *= 2;
    count(requests_read).store(0, std::memory_order_relaxed);
    count(answers_written).store(0, std::memory_order_release);
}

std::atomic<uint32_t> &Ring::count(size_t number) const {
    return *reinterpret_cast<std::atomic<uint32_t> *>(base_ + number * stride);
}

bool Ring::waiting() const {
    return count(requests_written).load(std::memory_order_acquire) != requests_read_;
}

bool Ring::receive(Request &request, std::vector<std::byte> &payload) {
    if (!move(Way::in, &request, sizeof request) || request.bytes > most_payload) return false;
    payload.resize(request.bytes);
    return move(Way::in, payload.data(), payload.size());
}

bool Ring::send(Answer answer, std::vector<std::byte> &payload) {
    return move(Way::out, &answer, sizeof answer) && move(Way::out, payload.data(), payload.size());
}

bool Ring::move(Way way, void *data, size_t bytes) {
    const bool in = way == Way::in;
    auto *ours = static_cast<std::byte *>(data), *area = base_ + secure_os::page + (in ? 0 : area_);
    uint32_t &done = in ? requests_read_ : answers_written_;
    uint64_t rest = patience;  // longer each time: who has nothing to do is not lent a CPU again and again
    while (bytes != 0) {
        const uint32_t theirs = count(in ? requests_written : answers_read).load(std::memory_order_acquire);
        const uint32_t there = in ? theirs - done : done - theirs, movable = in ? there : area_ - there;
        if (there > area_) return false;
        if (movable == 0) {
            secure_os::wait(rest);
            rest = in ? std::min(2 * rest, longest) : patience;
            continue;
        }
        rest = patience;
        const uint32_t at = done % area_;
        const size_t moved = std::min<size_t>({bytes, movable, area_ - at});
        std::memcpy(in ? ours : area + at, in ? area + at : ours, moved);
        ours += moved;
        bytes -= moved;
        done += static_cast<uint32_t>(moved);
        count(in ? requests_read : answers_written).store(done, std::memory_order_release);
    }
    return true;
}
