// How messages come and go. Over the secure OS: the ring of pages that it shares with the normal world. Elsewhere:
// standard input and output.
#pragma once

#include <cstddef>
#include <vector>

#include "messages.h"

class Channel {
   public:
    // The next request, with its payload in `payload`. False: there will be none any more, or what came is none.
    bool receive(Request &request, std::vector<std::byte> &payload);

    // Answer it. False: nobody listens any more.
    bool send(Answer answer, const std::byte *payload, size_t bytes);
};
