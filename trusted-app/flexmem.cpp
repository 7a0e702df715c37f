#include "flexmem.h"

#include <algorithm>
#include <cstring>

#include "secure_os.h"

namespace {

constexpr size_t chunk_pages = chunk_bytes / secure_os::page;
constexpr uint64_t most_pages = uint64_t{1} << 36;  // of 48 bits of address
constexpr size_t most_chunks = size_t{1} << 16;     // 128 GiB

}  // namespace

size_t Region::committed() const {
    return pages_.size() - static_cast<size_t>(std::count(pages_.begin(), pages_.end(), none));
}

bool FlexMem::grant(uint64_t first, uint64_t chunks) {
    if (chunks > most_chunks - std::min(most_chunks, granted_.size()) || first > most_pages) return false;
    for (uint64_t chunk = 0; chunk < chunks; chunk++) granted_.push_back(first + chunk * chunk_pages);
    return true;
}

bool FlexMem::give_back(uint64_t &first) {
    if (granted_.empty()) return false;
    first = granted_.back();
    granted_.pop_back();
    return true;
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
    std::vector<size_t> done;
    for (size_t chunk = first; chunk < end; chunk++) {
        if (region.has(chunk)) continue;
        if (!commit_one(region, chunk)) {
            for (size_t each : done) release(region, each);
            return false;
        }
        done.push_back(chunk);
    }
    return true;
}

bool FlexMem::commit_one(Region &region, size_t chunk) {
    if (granted_.empty() || !secure_os::map(region.at(chunk), granted_.back(), chunk_pages)) return false;
    if (secure_os::inside()) std::memset(region.at(chunk), 0, chunk_bytes);  // it holds what the OS had there
    region.pages_[chunk] = granted_.back();
    granted_.pop_back();
    return true;
}

bool FlexMem::release(Region &region, size_t chunk) {
    if (!region.has(chunk)) return false;
    secure_os::unmap(region.at(chunk), chunk_pages);
    granted_.push_back(region.pages_[chunk]);
    region.pages_[chunk] = Region::none;
    return true;
}

size_t FlexMem::release_all(Region &region) {
    size_t released = 0;
    for (size_t chunk = 0; chunk < region.chunks(); chunk++) released += release(region, chunk);
    return released;
}
