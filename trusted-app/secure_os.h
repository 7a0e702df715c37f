// The calls of the secure OS, above Linux's numbers. Elsewhere, where they answer ENOSYS, ordinary memory stands in:
// the same file runs as a process of the guest and under qemu-aarch64.
#pragma once

#include <cstddef>
#include <cstdint>

namespace secure_os {

constexpr size_t page = 4096;

// Whether this runs over the secure OS.
bool inside();

// Addresses for `bytes`, with nothing behind them: whatever touches them ends the process. Null: there are none left.
std::byte *reserve(size_t bytes);

// Put `count` physical pages from number `first` on behind `address`. False: they are not the secure world's, or are
// mapped already. Elsewhere the pages are new ones, of zeros.
bool map(std::byte *address, uint64_t first, size_t count);

// Take them away, from all CPUs, so that they may be recalled. Their contents are gone.
void unmap(std::byte *address, size_t count);

// Memory that is shared with the normal world: elsewhere, the whole of `file`. False: there is none.
bool ring(const char *file, std::byte *&base, size_t &bytes);

// Wait for a message, or for so many nanoseconds.
void wait(uint64_t nanoseconds);

}  // namespace secure_os
