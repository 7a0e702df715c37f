// The trusted application: it answers the normal world's requests until there are none any more.
#include <unistd.h>

#include <cstring>

#include "ring.h"
#include "service.h"

namespace {

// What llama.cpp says of itself may quote what it is given, and the console is the normal world's.
void say_nothing(ggml_log_level, const char *, void *) {}

// It cannot go on. The place in the source may go out; what follows it may quote what it was given. llama.cpp's own way would
// start a debugger.
void give_up(const char *message) {
    const char *end = strstr(message, ": ");
    const size_t length = end == nullptr ? 0 : static_cast<size_t>(end - message);
    if (write(STDERR_FILENO, message, length) < 0) _exit(2);
    _exit(1);
}

}  // namespace

int main(int count, char **words) {
    llama_log_set(say_nothing, nullptr);
    ggml_set_abort_callback(give_up);
    Ring ring(count > 1 ? words[1] : "");
    Service service(ring);
    service.serve();
    _exit(0);
}
