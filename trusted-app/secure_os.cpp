#include "secure_os.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "flex.h"
#include "flex_secure.h"

namespace secure_os {
namespace {

constexpr uint64_t patience = 1'000'000;  // ns between two looks at what has come

// Make a call until it is not put off any more. Whether it was done.
template <typename... Arguments>
bool call(long number, Arguments... arguments) {
    while (syscall(number, arguments...) == -1) {
        if (errno != EAGAIN) return false;
        wait(patience);
    }
    return true;
}

// The monitor's mailbox, in which one command waits for its answer at a time.
class Mailbox {
   public:
    // Have the OS know of us, if it does not, and so keep protection on.
    void attach() {
        if (epoch_ != 0) return;
        if (getrandom(&epoch_, sizeof epoch_, 0) != sizeof epoch_) abort();
        epoch_ |= 1;
        send(FLEX_COMMAND_ATTACH, epoch_, 0, 0);
        await([&] { return attached_; });
    }

    std::vector<Run> want(uint64_t pages, uint64_t minimum) {
        attach();
        const uint64_t serial = ++serial_;
        granted_.clear();
        wanting_ = true;
        send(FLEX_COMMAND_WANT, serial, pages, minimum);
        await([&] { return !wanting_; });
        // The OS answers right after it granted. What it granted before that is for who names it (load_pages).
        auto first = granted_.end();
        for (uint64_t rest = answer_; first != granted_.begin() && (first - 1)->count <= rest; first--) rest -= (first - 1)->count;
        std::vector<Run> committed;
        for (; first != granted_.end(); first++) {
            if (done(FLEX_COMMAND_COMMIT, *first)) committed.push_back(*first);
        }
        return committed;
    }

    // Have a command carried out. Whether it was: the secure OS refuses what is no page of the OS's, or is in use.
    bool done(uint64_t command, Run run) {
        attach();
        const uint64_t serial = ++serial_;
        done_ = 0;
        if (!call(FLEX_SECURE_COMMAND, command, run.first * page, run.count, serial)) return false;
        await([&] { return done_ == serial; });
        return status_ == FLEX_STATUS_OK;
    }

    // Take in the events that have come. Whether there were any.
    bool look() {
        uint64_t event[4];
        bool any = false;
        for (; syscall(FLEX_SECURE_EVENT, event) == 1; any = true) hear(event);
        return any;
    }

   private:
    static void send(uint64_t command, uint64_t a, uint64_t b, uint64_t c) {
        if (!call(FLEX_SECURE_COMMAND, command, a, b, c)) abort();
    }

    template <typename Condition>
    void await(Condition condition) {
        while (!condition()) {
            if (!look()) wait(patience);
        }
    }

    // What it does not know of is for the policy, to which the OS itself tells it.
    void hear(const uint64_t (&event)[4]) {
        switch (event[0]) {
            case FLEX_EVENT_GRANTED:
                for (uint64_t first = event[1] / page, rest = wanting_ ? event[2] : 0; rest != 0;) {
                    const uint64_t count = std::min<uint64_t>(rest, most_pages);
                    granted_.push_back({first, count});
                    first += count;
                    rest -= count;
                }
                break;
            case FLEX_EVENT_ANSWER:  // the OS may say it of anything: what was not asked must not pass for what is
                if (event[1] != serial_) break;
                answer_ = event[2];
                wanting_ = false;
                break;
            case FLEX_EVENT_ATTACHED: attached_ = event[1] == epoch_; break;
            case FLEX_EVENT_DONE:
                done_ = event[1];
                status_ = static_cast<int64_t>(event[2]);
                break;
            default: break;
        }
    }

    uint64_t epoch_ = 0, serial_ = 0, answer_ = 0, done_ = 0;
    int64_t status_ = 0;
    bool attached_ = false, wanting_ = false;
    std::vector<Run> granted_;
};

Mailbox mailbox;

}  // namespace

bool inside() {
    static const bool answer = syscall(FLEX_SECURE_RESERVE, size_t{0}) != -1 || errno != ENOSYS;
    return answer;
}

std::byte *reserve(size_t bytes) {
    void *range = inside() ? reinterpret_cast<void *>(syscall(FLEX_SECURE_RESERVE, bytes))  // -1 where there are none, both
                           : mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return range == MAP_FAILED ? nullptr : static_cast<std::byte *>(range);
}

std::vector<Run> want(uint64_t pages, uint64_t minimum) {
    static uint64_t next = 0;  // elsewhere a page is a number, and there are enough of them
    if (inside()) return mailbox.want(pages, minimum);
    next += pages;
    return {{next - pages, pages}};
}

bool commit(Run run) { return inside() && mailbox.done(FLEX_COMMAND_COMMIT, run); }

void recall(Run run) {
    if (inside() && !mailbox.done(FLEX_COMMAND_RECALL, run)) abort();
}

bool give(Run run) { return inside() && call(FLEX_SECURE_GIVE, run.first, run.count); }

Run take(uint64_t most) {
    Run run{0, 0};
    const long pages = inside() ? syscall(FLEX_SECURE_TAKE, std::min<uint64_t>(most, most_pages), &run.first) : 0;
    run.count = pages > 0 ? static_cast<uint64_t>(pages) : 0;
    return run;
}

bool map(std::byte *address, Run run) {
    if (inside()) return call(FLEX_SECURE_MAP, address, run.first, run.count);
    return mprotect(address, run.count * page, PROT_READ | PROT_WRITE) == 0;
}

void unmap(std::byte *address, size_t count) {
    std::memset(address, 0, count * page);
    const bool done = inside() ? call(FLEX_SECURE_UNMAP, address, count)
                               : madvise(address, count * page, MADV_DONTNEED) == 0 &&
                                     mprotect(address, count * page, PROT_NONE) == 0;
    if (!done) abort();  // a page that may still be mapped must not be given away
}

bool ring(const char *file, std::byte *&base, size_t &bytes) {
    if (inside()) {
        uint64_t address, size;
        while (syscall(FLEX_SECURE_RING, &address, &size) != 0) {
            if (errno != ENOENT) return false;
            wait(patience);  // the OS has named none yet
        }
        base = reinterpret_cast<std::byte *>(address);
        bytes = size;
        return true;
    }
    const int opened = open(file, O_RDWR | O_CLOEXEC);
    struct stat status;
    if (opened == -1 || fstat(opened, &status) != 0) return false;
    bytes = static_cast<size_t>(status.st_size);
    void *range = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, opened, 0);
    close(opened);
    base = static_cast<std::byte *>(range);
    return range != MAP_FAILED;
}

bool secret(std::array<uint8_t, 32> &target) { return inside() && syscall(FLEX_SECURE_SECRET, target.data()) == 0; }

bool isolated() {
    flex_secure_protection report;
    // While nobody is attached the OS may switch it off, and then has to switch it on.
    if (inside() && syscall(FLEX_SECURE_PROTECTION, &report) == FLEX_SECURE_OFF) mailbox.attach();
    return inside() && syscall(FLEX_SECURE_PROTECTION, &report) == FLEX_SECURE_ON;
}

void wait(uint64_t nanoseconds) {
    const timespec time{static_cast<time_t>(nanoseconds / 1'000'000'000), static_cast<long>(nanoseconds % 1'000'000'000)};
    if (!inside()) {
        nanosleep(&time, nullptr);
    } else if (!mailbox.look()) {  // while there is an event, nobody waits
        syscall(FLEX_SECURE_WAIT, nanoseconds);
    }
}

}  // namespace secure_os
