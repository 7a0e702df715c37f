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
    if (!read(&request, sizeof request) || request.bytes > most_payload) return false;
    payload.resize(request.bytes);
    return read(payload.data(), payload.size());
}

bool Ring::send(const Answer &answer, const std::vector<std::byte> &payload) {
    return write(&answer, sizeof answer) && write(payload.data(), payload.size());
}

bool Ring::read(void *data, size_t bytes) {
    auto *target = static_cast<std::byte *>(data);
    const std::byte *area = base_ + secure_os::page;
    uint64_t rest = patience;  // longer each time: who has nothing to do is not lent a CPU again and again
    while (bytes != 0) {
        const uint32_t there = count(requests_written).load(std::memory_order_acquire) - requests_read_;
        if (there > area_) return false;
        if (there == 0) {
            secure_os::wait(rest);
            rest = std::min(2 * rest, longest);
            continue;
        }
        rest = patience;
        const uint32_t at = requests_read_ % area_;
        const size_t moved = std::min<size_t>({bytes, there, area_ - at});
        std::memcpy(target, area + at, moved);
        target += moved;
        bytes -= moved;
        requests_read_ += static_cast<uint32_t>(moved);
        count(requests_read).store(requests_read_, std::memory_order_release);
    }
    return true;
}

bool Ring::write(const void *data, size_t bytes) {
    const auto *source = static_cast<const std::byte *>(data);
    std::byte *area = base_ + secure_os::page + area_;
    while (bytes != 0) {
        const uint32_t waiting = answers_written_ - count(answers_read).load(std::memory_order_acquire);
        if (waiting > area_) return false;
        if (waiting == area_) {
            secure_os::wait(patience);
            continue;
        }
        const uint32_t at = answers_written_ % area_;
        const size_t moved = std::min<size_t>({bytes, area_ - waiting, area_ - at});
        std::memcpy(area + at, source, moved);
        source += moved;
        bytes -= moved;
        answers_written_ += static_cast<uint32_t>(moved);
        count(answers_written).store(answers_written_, std::memory_order_release);
    }
    return true;
}
