// Two streams of bytes in memory that is shared with the normal world: its requests, and our answers.
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

class Ring {
   public:
    // `bytes` of memory at `base`, which is page-aligned; three pages at least.
    Ring(std::byte *base, size_t bytes);

    // Whether there is something to read.
    bool waiting() const;

    // Move a whole range. False: the normal world's counts cannot be.
    bool read(std::byte *target, size_t bytes);
    bool write(const std::byte *source, size_t bytes);

   private:
    std::atomic<uint32_t> &count(size_t number) const;

    std::byte *base_;
    uint32_t area_;  // bytes of each
    uint32_t requests_read_ = 0, answers_written_ = 0;
};
