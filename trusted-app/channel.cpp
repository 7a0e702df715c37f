#include "channel.h"

#include <unistd.h>

#include <cerrno>

namespace {

// Read or write all of a range.
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

bool Channel::receive(Request &request, std::vector<std::byte> &payload) {
    if (!whole(read, STDIN_FILENO, reinterpret_cast<std::byte *>(&request), sizeof request)) return false;
    if (request.bytes > most_payload) return false;
    payload.resize(request.bytes);
    return whole(read, STDIN_FILENO, payload.data(), payload.size());
}

bool Channel::send(Answer answer, const std::byte *payload, size_t bytes) {
    answer.bytes = static_cast<uint32_t>(bytes);
    return whole(write, STDOUT_FILENO, reinterpret_cast<const std::byte *>(&answer), sizeof answer) &&
           whole(write, STDOUT_FILENO, payload, bytes);
}
