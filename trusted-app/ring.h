// Messages in memory that is shared with the normal world: a stream of its requests, and one of our answers. Over the secure OS
// the ring is the one that it maps; elsewhere, a file.
//
//     0       u32 × 4, each at the start of 64 bytes: requests written, requests read, answers written, answers read;
//             bytes since the beginning, modulo 2^32. The normal world writes the first and the last one
//     4096    the requests, then the answers: areas of the same size, a power of two, as large as there is room for
//
// All of it is the normal world's to change at any time. So our own two counts are kept elsewhere, each of its counts is
// read once for what is done with it, and bytes are copied out before anybody looks at them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "messages.h"

class Ring {
   public:
    // `file` has the ring, if this is not the secure OS. Ends the process when it cannot be used.
    explicit Ring(const char *file);

    // Whether a request, or its beginning, has come.
    bool waiting() const;

    // The next request, with its payload in `payload`. False: the normal world's counts cannot be, or what came is none.
    bool receive(Request &request, std::vector<std::byte> &payload);

    // Answer it. False: the normal world's counts cannot be.
    bool send(Answer answer, std::vector<std::byte> &payload);

   private:
    std::atomic<uint32_t> &count(size_t number) const;
    enum class Way { in, out };
    bool move(Way way, void *data, size_t bytes);

    std::byte *base_;
    uint32_t area_ = 4096;  // bytes of each
    uint32_t requests_read_ = 0, answers_written_ = 0;
};
