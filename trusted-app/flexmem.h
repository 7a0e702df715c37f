// Flex-Mem: the secure memory that the OS grants, in chunks, behind ranges of addresses that stay the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "secure_os.h"

constexpr size_t chunk_bytes = 2 << 20;

// A range of addresses, of which each chunk has memory or not. Belongs to the FlexMem that made it.
class Region {
   public:
    Region(std::byte *base, size_t chunks) : base_(base), pages_(chunks) {}

    std::byte *base() const { return base_; }
    size_t chunks() const { return pages_.size(); }
    std::byte *at(size_t chunk) const { return base_ + chunk * chunk_bytes; }
    bool has(size_t chunk) const { return !pages_[chunk].empty(); }
    size_t committed() const;  // chunks with memory

   private:
    friend class FlexMem;
    std::byte *base_;
    std::vector<std::vector<secure_os::Run>> pages_;  // behind each chunk, in order
};

// What is granted, and what of it is behind which region. One thread uses it.
class FlexMem {
   public:
    // Ask the OS for so many more chunks, fewer than `minimum` of which are of no use.
    void grant(size_t chunks, size_t minimum);

    // Give granted and unused chunks back, `most` at most. How many.
    size_t give_back(size_t most);

    size_t unused() const;  // chunks granted and unused

    // Have unused chunks be a part of the heap, `most` at most; how many. And have free ones of them be unused again.
    size_t give_heap(size_t most);
    size_t take_heap(size_t most);

    // Addresses for `bytes`, without memory. Null: there are none left.
    std::unique_ptr<Region> reserve(size_t bytes);

    // Release a region's memory, and have its addresses for another one.
    void free(std::unique_ptr<Region> region);

    // Put zeros behind the chunks from `first` to before `end` that have no memory. False: too little is granted; then
    // all is as it was.
    bool commit(Region &region, size_t first, size_t end);

    // Put these pages, as many as a chunk has, behind a chunk without memory, with what is in them. False: the OS has not
    // granted them, or they are none.
    bool adopt(Region &region, size_t chunk, const std::vector<secure_os::Run> &runs);

    // Take the memory of a chunk, if it has any, which is then granted and unused, and zeros.
    bool release(Region &region, size_t chunk);
    size_t release_all(Region &region);  // chunks that went

   private:
    bool map(Region &region, size_t chunk, const std::vector<secure_os::Run> &runs);
    void put(secure_os::Run run);
    std::vector<secure_os::Run> take();  // pages of a chunk, of those that are unused

    std::vector<secure_os::Run> unused_;
    size_t unused_pages_ = 0;
    std::multimap<size_t, std::byte *> addresses_;  // of regions that were freed, by chunks
};
