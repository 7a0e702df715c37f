#include "flexmem.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace {

constexpr size_t chunk_pages = chunk_bytes / secure_os::page;
constexpr uint64_t most_page = uint64_t{1} << 36;  // of 48 bits of address
constexpr size_t most_chunks = size_t{1} << 16;  // 128 GiB

}  // namespace

size_t Region::committed() const {
    return static_cast<size_t>(std::count_if(pages_.begin(), pages_.end(), [](const auto &runs) { return !runs.empty(); }));
}

size_t FlexMem::unused() const { return unused_pages_ / chunk_pages; }

void FlexMem::grant(size_t chunks, size_t minimum) {
    chunks = std::min(chunks, most_chunks);
    if (chunks == 0) return;
    for (const secure_os::Run &run : secure_os::want(chunks * chunk_pages, std::min(minimum, chunks) * chunk_pages)) {
        put(run);
    }
}

void FlexMem::put(secure_os::Run run) {
    unused_.push_back(run);
    unused_pages_ += run.count;
}

size_t FlexMem::give_heap(size_t most) {
    size_t chunks = 0;
    for (bool given = true; given && chunks < most && unused() > 0; chunks += given) {
        for (const secure_os::Run &run : take()) {
            given = given && secure_os::give(run);
            if (!given) put(run);
        }
    }
    return chunks;
}

size_t FlexMem::take_heap(size_t most) {
    uint64_t pages = 0;
    const uint64_t wanted = std::min(most, most_chunks) * chunk_pages;
    while (pages < wanted) {
        const secure_os::Run run = secure_os::take(wanted - pages);
        if (run.count == 0) break;
        put(run);
        pages += run.count;
    }
    return pages / chunk_pages;
}

size_t FlexMem::give_back(size_t most) {
    size_t chunks = 0;
    for (; chunks < most && unused() > 0; chunks++) {
        for (const secure_os::Run &run : take()) secure_os::recall(run);
    }
    return chunks;
}

std::vector<secure_os::Run> FlexMem::take() {
    std::vector<secure_os::Run> taken;
    for (size_t missing = chunk_pages; missing > 0;) {
        secure_os::Run &last = unused_.back();
        const uint64_t count = std::min<uint64_t>(missing, last.count);
        last.count -= count;
        taken.push_back({last.first + last.count, count});
        if (last.count == 0) unused_.pop_back();
        missing -= count;
    }
    unused_pages_ -= chunk_pages;
    return taken;
}

std::unique_ptr<Region> FlexMem::reserve(size_t bytes) {
    const size_t chunks = (std::max<size_t>(bytes, 1) + chunk_bytes - 1) / chunk_bytes;
    if (bytes > most_chunks * chunk_bytes) return nullptr;
    const auto freed = addresses_.find(chunks);
    std::byte *base = freed != addresses_.end() ? freed->second : secure_os::reserve(chunks * chunk_bytes);
    if (freed != addresses_.end()) addresses_.erase(freed);
    return base == nullptr ? nullptr : std::make_unique<Region>(base, chunks);
}

void FlexMem::free(std::unique_ptr<Region> region) {
    release_all(*region);
    addresses_.emplace(region->chunks(), region->base());
}

bool FlexMem::commit(Region &region, size_t first, size_t end) {
    size_t missing = 0;
    for (size_t chunk = first; chunk < end; chunk++) missing += !region.has(chunk);
    if (missing > unused()) return false;
    for (size_t chunk = first; chunk < end; chunk++) {
        if (region.has(chunk)) continue;
        if (!map(region, chunk, take())) abort();  // the monitor said that they are ours
        if (secure_os::inside()) std::memset(region.at(chunk), 0, chunk_bytes);  // it holds what the OS had there
    }
    return true;
}

// Put pages that are ours behind a chunk.
bool FlexMem::map(Region &region, size_t chunk, const std::vector<secure_os::Run> &runs) {
    std::byte *address = region.at(chunk);
    for (const secure_os::Run &run : runs) {
        if (!secure_os::map(address, run)) return false;
        region.pages_[chunk].push_back(run);
        address += run.count * secure_os::page;
    }
    return true;
}

bool FlexMem::adopt(Region &region, size_t chunk, const std::vector<secure_os::Run> &runs) {
    uint64_t pages = 0;
    for (const secure_os::Run &run : runs) {
        if (run.count < 1 || run.count > chunk_pages || run.first > most_page) return false;
        pages += run.count;
    }
    if (region.has(chunk) || pages != chunk_pages) return false;
    size_t committed = 0;  // runs: the monitor commits no page twice, so they do not overlap
    while (committed < runs.size() && secure_os::commit(runs[committed])) committed++;
    if (committed == runs.size()) {
        if (!map(region, chunk, runs)) abort();  // the monitor said that they are ours
        return true;
    }
    for (size_t number = 0; number < committed; number++) put(runs[number]);
    return false;
}

bool FlexMem::release(Region &region, size_t chunk) {
    if (!region.has(chunk)) return false;
    std::byte *address = region.at(chunk);
    for (const secure_os::Run &run : region.pages_[chunk]) {
        secure_os::unmap(address, run.count);
        address += run.count * secure_os::page;
        put(run);
    }
    region.pages_[chunk].clear();
    return true;
}

size_t FlexMem::release_all(Region &region) {
    size_t released = 0;
    for (size_t chunk = 0; chunk < region.chunks(); chunk++) released += release(region, chunk);
    return released;
}
