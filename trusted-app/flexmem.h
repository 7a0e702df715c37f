// Flex-Mem: the secure memory that the OS grants, in chunks, behind ranges of addresses that stay the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

constexpr size_t chunk_bytes = 2 << 20;

// A range of addresses, of which each chunk has memory or not. Belongs to the FlexMem that made it.
class Region {
   public:
    Region(std::byte *base, size_t chunks) : base_(base), pages_(chunks, none) {}

    std::byte *base() const { return base_; }
    size_t chunks() const { return pages_.size(); }
    std::byte *at(size_t chunk) const { return base_ + chunk * chunk_bytes; }
    bool has(size_t chunk) const { return pages_[chunk] != none; }
    bool contains(const void *address) const {
        const auto *byte = static_cast<const std::byte *>(address);
        return byte >= base_ && byte < base_ + chunks() * chunk_bytes;
    }
    size_t committed() const;  // chunks with memory

   private:
    friend class FlexMem;
    static constexpr uint64_t none = UINT64_MAX;
    std::byte *base_;
    std::vector<uint64_t> pages_;  // the first page of each chunk's memory
};

// What is granted, and what of it is behind which region. One thread uses it.
class FlexMem {
   public:
    // Take `chunks` that the OS granted: consecutive pages from `first` on. False: there are too many, or the numbers
    // are none. Whether they are secure is seen when they are mapped.
    bool grant(uint64_t first, uint64_t chunks);

    // Give a granted and unused chunk back. Its first page; false: there is none.
    bool give_back(uint64_t &first);

    size_t unused() const { return granted_.size(); }

    // Addresses for `bytes`, without memory. Null: there are none left.
    std::unique_ptr<Region> reserve(size_t bytes);

    // Release a region's memory, and have its addresses for another one.
    void free(std::unique_ptr<Region> region);

    // Put zeros behind the chunks from `first` to before `end` that have no memory. False: too little is granted, or what
    // was granted is not secure; then all is as it was.
    bool commit(Region &region, size_t first, size_t end);

    // Take the memory of a chunk, if it has any, which is then granted and unused, and zeros.
    bool release(Region &region, size_t chunk);
    size_t release_all(Region &region);  // chunks that went

   private:
    bool commit_one(Region &region, size_t chunk);

    std::vector<uint64_t> granted_;                   // first pages
    std::multimap<size_t, std::byte *> addresses_;  // of regions that were freed, by chunks
};
