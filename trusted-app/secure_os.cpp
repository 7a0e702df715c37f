#include "secure_os.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace secure_os {
namespace {

enum Call : long { flex_reserve = 0x1000, flex_map = 0x1001, flex_unmap = 0x1002 };

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

}  // namespace secure_os
