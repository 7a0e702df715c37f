#include "channel.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "secure_os.h"

namespace {

// Move all of a range through a file.
template <typename Move, typename Byte>
bool whole(Move move, int file, Byte *data, size_t bytes) {
    while (bytes != 0) {
        const ssize_t moved = move(file, data, bytes);
        if (moved == -1 && errno == EINTR) continue;
        if (moved <= 0) return false;
        data += moved;
        bytes -= static_cast<size_t>(moved);
    }
    return true;
}

}  // namespace

Channel::Channel(const char *file) {
    if (!secure_os::inside() && file == nullptr) return;
    std::byte *base;
    size_t bytes;
    if (!secure_os::ring(file, base, bytes) || bytes < 3 * secure_os::page) abort();
    ring_ = std::make_unique<Ring>(base, bytes);
}

bool Channel::read(void *target, size_t bytes) {
    auto *data = static_cast<std::byte *>(target);
    return ring_ != nullptr ? ring_->read(data, bytes) : whole(::read, STDIN_FILENO, data, bytes);
}

bool Channel::write(const void *source, size_t bytes) {
    const auto *data = static_cast<const std::byte *>(source);
    return ring_ != nullptr ? ring_->write(data, bytes) : whole(::write, STDOUT_FILENO, data, bytes);
}

bool Channel::receive(Request &request, std::vector<std::byte> &payload) {
    if (!read(&request, sizeof request) || request.bytes > most_payload) return false;
    payload.resize(request.bytes);
    return read(payload.data(), payload.size());
}

bool Channel::waiting() const {
    if (ring_ != nullptr) return ring_->waiting();
    pollfd input{STDIN_FILENO, POLLIN, 0};
    return poll(&input, 1, 0) > 0;
}

bool Channel::send(Answer answer, const std::byte *payload, size_t bytes) {
    answer.bytes = static_cast<uint32_t>(bytes);
    return write(&answer, sizeof answer) && write(payload, bytes);
}
