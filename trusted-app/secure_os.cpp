#include "secure_os.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace secure_os {
namespace {

enum Call : long { flex_reserve = 0x1000, flex_map = 0x1001, flex_unmap = 0x1002, flex_wait = 0x1005, flex_ring = 0x1006 };

}  // namespace

bool inside() {
    static const bool answer = syscall(flex_reserve, size_t{0}) != -1 || errno != ENOSYS;
    return answer;
}

std::byte *reserve(size_t bytes) {
    if (inside()) {
        const long address = syscall(flex_reserve, bytes);
        return address == -1 ? nullptr : reinterpret_cast<std::byte *>(address);
    }
    void *range = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return range == MAP_FAILED ? nullptr : static_cast<std::byte *>(range);
}

bool map(std::byte *address, uint64_t first, size_t count) {
    if (inside()) return syscall(flex_map, address, first, count) == 0;
    return mprotect(address, count * page, PROT_READ | PROT_WRITE) == 0;
}

void unmap(std::byte *address, size_t count) {
    std::memset(address, 0, count * page);
    const bool done = inside() ? syscall(flex_unmap, address, count) == 0
                               : madvise(address, count * page, MADV_DONTNEED) == 0 &&
                                     mprotect(address, count * page, PROT_NONE) == 0;
    if (!done) abort();  // a page that may still be mapped must not be given away
}

bool ring(const char *file, std::byte *&base, size_t &bytes) {
    if (inside()) {
        uint64_t address, size;
        if (syscall(flex_ring, &address, &size) != 0) return false;
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

void wait(uint64_t nanoseconds) {
    const timespec time{static_cast<time_t>(nanoseconds / 1'000'000'000), static_cast<long>(nanoseconds % 1'000'000'000)};
    if (!inside()) {
        nanosleep(&time, nullptr);
    } else {
        syscall(flex_wait, nanoseconds);
    }
}

}  // namespace secure_os
