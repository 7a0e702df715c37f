// How messages come and go: through a ring in memory that is shared with the normal world, or through standard input and
// output. Over the secure OS the ring is the one that it maps; elsewhere, a file.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "messages.h"
#include "ring.h"

class Channel {
   public:
    // `file` has the ring, if this is not the secure OS; null: there is none. Ends the process when it cannot be used.
    explicit Channel(const char *file);

    // The next request, with its payload in `payload`. False: there will be none any more, or what came is none.
    bool receive(Request &request, std::vector<std::byte> &payload);

    // Whether a request, or its beginning, has come.
    bool waiting() const;

    // Answer it. False: nobody listens any more.
    bool send(Answer answer, const std::byte *payload, size_t bytes);

   private:
    bool read(void *target, size_t bytes);
    bool write(const void *source, size_t bytes);

    std::unique_ptr<Ring> ring_;
};
