// The calls of the secure OS, above Linux's numbers. Elsewhere, where they answer ENOSYS, ordinary memory stands in:
// the same file runs as a process of the guest and under qemu-aarch64.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace secure_os {

// Consecutive physical pages: the number of the first one, and how many.
struct Run {
    uint64_t first, count;
};

constexpr size_t page = 4096;

// Whether this runs over the secure OS.
bool inside();

// Addresses for `bytes`, with nothing behind them: whatever touches them ends the process. Null: there are none left.
std::byte *reserve(size_t bytes);

// Ask the OS for `pages`, of which fewer than `minimum` are of no use, and wait for its answer. What it granted, in runs
// that are the secure world's now. Elsewhere all of it.
std::vector<Run> want(uint64_t pages, uint64_t minimum);

// Make pages the secure world's that the OS granted unasked. False: they are not granted, or this is not inside.
bool commit(Run run);

// Have the OS take pages back, which are not mapped.
void recall(Run run);

// Have pages be a part of the heap. False: they cannot; elsewhere the heap needs none.
bool give(Run run);

// Take free ones of them back, `most` at most. None: a run of no pages.
Run take(uint64_t most);

// Put a run of most_pages at most behind `address`. False: it is not the secure world's, or is mapped already. Elsewhere
// the pages are new ones, of zeros.
constexpr size_t most_pages = 512;
bool map(std::byte *address, Run run);

// Take them away, from all CPUs, so that they may be recalled. Their contents are gone.
void unmap(std::byte *address, size_t count);

// Memory that is shared with the normal world: elsewhere, the whole of `file`. False: there is none.
bool ring(const char *file, std::byte *&base, size_t &bytes);

// The secret from which this layer's keys are derived. False: nobody handed it over, as elsewhere.
bool secret(std::array<uint8_t, 32> &target);

// Whether the OS cannot reach pages of the secure world: EL3 answers. Elsewhere it can.
bool isolated();

// Wait for a message, or for so many nanoseconds.
void wait(uint64_t nanoseconds);

}  // namespace secure_os
