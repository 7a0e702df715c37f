// A secure OS, a monitor and an OS in the place of the C library's `syscall`: linked with the application, they have it run
// as if inside, in a process of its own. The OS grants what it has, in short runs that are full of old contents, and answers
// what was not asked, too. A page that is mapped when it must not be, or comes back with something in it, ends the process.
// The file FLEX_RAM, if it is named, is the memory: a byte for each page's state, then the pages. So a test can play the OS,
// too.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "flex.h"
#include "flex_secure.h"

namespace {

constexpr uint64_t page = 4096, pages = 1 << 16, first_page = 0x40000, run = 300;

struct Event {
    uint64_t words[4];
};

int memory = -1;
uint8_t *states;
std::map<uint64_t, uint64_t> mapped;  // by address: the page
std::vector<uint64_t> heap;
std::deque<Event> events;

__attribute__((constructor)) void start() {
    const char *name = getenv("FLEX_RAM");
    memory = name == nullptr ? memfd_create("ram", 0) : open(name, O_RDWR);
    if (memory == -1 || ftruncate(memory, static_cast<off_t>(pages + pages * page)) != 0) abort();
    states = static_cast<uint8_t *>(mmap(nullptr, pages, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0));
    if (states == MAP_FAILED) abort();
}

// Where a page is in the file.
off_t place(uint64_t number) { return static_cast<off_t>(pages + (number - first_page) * page); }

long fail(int error) {
    errno = error;
    return -1;
}

bool are_pages(uint64_t first, uint64_t count) {
    return first >= first_page && count != 0 && count <= FLEX_CALL_PAGES_MAX && first - first_page <= pages - count;
}

bool all(uint64_t first, uint64_t count, flex_state state) {
    if (!are_pages(first, count)) return false;
    for (uint64_t each = first; each < first + count; each++) {
        if (states[each - first_page] != state) return false;
    }
    return true;
}

void set(uint64_t first, uint64_t count, flex_state state) {
    for (uint64_t each = first; each < first + count; each++) states[each - first_page] = static_cast<uint8_t>(state);
}

bool in_use(uint64_t first, uint64_t count) {
    for (const auto &[address, each] : mapped) {
        if (each >= first && each < first + count) return true;
    }
    for (const uint64_t each : heap) {
        if (each >= first && each < first + count) return true;
    }
    return false;
}

void fill(uint64_t number, const std::vector<char> &with) {
    if (pwrite(memory, with.data(), page, place(number)) != (ssize_t)page) abort();
}

const std::vector<char> old(page, '\xaa'), zeros(page);

void grant(uint64_t wanted, uint64_t serial) {
    uint64_t granted = 0, count = 0;
    for (uint64_t each = first_page; each < first_page + pages && granted < wanted; each++) {
        const bool gap = each % (run + 1) == run;
        if (!gap && states[each - first_page] == FLEX_STATE_NORMAL) {
            fill(each, old);
            set(each, 1, FLEX_STATE_GRANTED);
            granted++;
            count++;
            if (granted < wanted) continue;
            each++;
        }
        if (count != 0) events.push_back({{FLEX_EVENT_GRANTED, (each - count) * page, count, 0}});
        count = 0;
    }
    events.push_back({{FLEX_EVENT_ANSWER, serial, granted, 0}});
    for (const uint64_t other : {serial - 1, serial + 1, ~uint64_t{0}}) events.push_back({{FLEX_EVENT_ANSWER, other, 0, 0}});
}

void recall(uint64_t first, uint64_t count) {
    std::vector<char> found(page);
    for (uint64_t each = first; each < first + count; each++) {
        if (pread(memory, found.data(), page, place(each)) != (ssize_t)page) abort();
        if (found != zeros && found != old) abort();  // old: it was never used
    }
}

long command(uint64_t kind, uint64_t a, uint64_t b, uint64_t c) {
    static unsigned full = 0;
    if (++full % 5 == 0) return fail(EAGAIN);  // the mailbox is full
    if (kind == FLEX_COMMAND_ATTACH) events.push_back({{FLEX_EVENT_ATTACHED, a, 0, 0}});
    if (kind == FLEX_COMMAND_WANT) grant(b, a);
    if (kind != FLEX_COMMAND_COMMIT && kind != FLEX_COMMAND_RECALL) return 0;
    if (a % page != 0 || !are_pages(a / page, b)) return fail(EINVAL);
    if (in_use(a / page, b)) return fail(EBUSY);
    const bool commits = kind == FLEX_COMMAND_COMMIT;
    const bool right = all(a / page, b, commits ? FLEX_STATE_GRANTED : FLEX_STATE_SECURE);
    if (right && !commits) recall(a / page, b);
    if (right) set(a / page, b, commits ? FLEX_STATE_SECURE : FLEX_STATE_NORMAL);
    const auto status = static_cast<uint64_t>(right ? FLEX_STATUS_OK : FLEX_STATUS_DENIED);
    events.push_back({{FLEX_EVENT_DONE, c, status, 0}});
    return 0;
}

long map(uint64_t address, uint64_t first, uint64_t count) {
    if (!all(first, count, FLEX_STATE_SECURE) || in_use(first, count)) return fail(EPERM);
    void *target = reinterpret_cast<void *>(address);
    if (mmap(target, count * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, place(first)) != target) abort();
    for (uint64_t each = 0; each < count; each++) mapped[address + each * page] = first + each;
    return 0;
}

long unmap(uint64_t address, uint64_t count) {
    for (uint64_t each = 0; each < count; each++) {
        if (mapped.erase(address + each * page) == 0) return fail(EINVAL);
    }
    void *target = reinterpret_cast<void *>(address);
    return mmap(target, count * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == target ? 0 : fail(EINVAL);
}

long give(uint64_t first, uint64_t count) {
    if (!all(first, count, FLEX_STATE_SECURE) || in_use(first, count)) return fail(EPERM);
    for (uint64_t each = first; each < first + count; each++) {
        fill(each, zeros);
        heap.push_back(each);
    }
    return 0;
}

long take(uint64_t most, uint64_t *first) {
    long count = 0;
    for (; count < static_cast<long>(most) && !heap.empty(); count++) {
        if (count != 0 && heap.back() != *first - 1) break;
        *first = heap.back();
        heap.pop_back();
    }
    return count;
}

long ring(uint64_t *address, uint64_t *bytes) {
    const char *name = getenv("FLEX_RING");
    const int file = name == nullptr ? -1 : open(name, O_RDWR);
    struct stat status;
    if (file == -1 || fstat(file, &status) != 0) return fail(ENOENT);
    *bytes = static_cast<uint64_t>(status.st_size);
    *address = reinterpret_cast<uint64_t>(mmap(nullptr, *bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    return 0;
}

long secret(uint8_t *target) {
    for (uint8_t each = 0; each < 32; each++) target[each] = each;
    return 0;
}

long reserve(uint64_t bytes) {
    if (bytes == 0) return fail(EINVAL);
    return reinterpret_cast<long>(mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
}

long event(uint64_t *target) {
    if (events.empty()) return 0;
    std::memcpy(target, events.front().words, sizeof events.front().words);
    events.pop_front();
    return 1;
}

long linux_call(long number, const long (&x)[6]) {
    register long x8 asm("x8") = number, x0 asm("x0") = x[0], x1 asm("x1") = x[1], x2 asm("x2") = x[2], x3 asm("x3") = x[3],
                                 x4 asm("x4") = x[4], x5 asm("x5") = x[5];
    asm volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0 < 0 && x0 > -4096 ? fail(static_cast<int>(-x0)) : x0;
}

}  // namespace

extern "C" long syscall(long number, ...) {
    long x[6];
    va_list list;
    va_start(list, number);
    for (long &each : x) each = va_arg(list, long);
    va_end(list);
    const auto a = static_cast<uint64_t>(x[0]), b = static_cast<uint64_t>(x[1]), c = static_cast<uint64_t>(x[2]);
    switch (number) {
        case FLEX_SECURE_RESERVE: return reserve(a);
        case FLEX_SECURE_MAP: return map(a, b, c);
        case FLEX_SECURE_UNMAP: return unmap(a, b);
        case FLEX_SECURE_COMMAND: return command(a, b, c, static_cast<uint64_t>(x[3]));
        case FLEX_SECURE_EVENT: return event(reinterpret_cast<uint64_t *>(x[0]));
        case FLEX_SECURE_WAIT: usleep(200); return 0;
        case FLEX_SECURE_RING: return ring(reinterpret_cast<uint64_t *>(x[0]), reinterpret_cast<uint64_t *>(x[1]));
        case FLEX_SECURE_GIVE: return give(a, b);
        case FLEX_SECURE_TAKE: return take(a, reinterpret_cast<uint64_t *>(x[1]));
        case FLEX_SECURE_SECRET: return secret(reinterpret_cast<uint8_t *>(x[0]));
        default: return linux_call(number, x);
    }
}
