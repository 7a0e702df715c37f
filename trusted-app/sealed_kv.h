// KV that leaves memory, and comes back: a sequence's tokens and their KV, sealed part by part.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "cipher.h"
#include "generation.h"
#include "image.h"

class SealedKv {
   public:
    using Bytes = std::vector<std::byte>;

    SealedKv(FlexMem &flexmem, Model &model, Generations &generations, const Image &image)
        : flexmem_(flexmem), model_(model), generations_(generations), image_(image) {}
    ~SealedKv() { stop(); }
    SealedKv(const SealedKv &) = delete;

    // Copy what sequence `sequence` has, which says nothing, to be sealed.
    Status keep(uint32_t sequence, size_t &bytes, Salt &salt);

    // Seal the next part, `number`.
    Status kept(size_t number, Bytes &sealed);

    // Begin to take in `bytes` of an owner's for a sequence that says nothing.
    Status resume(uint32_t sequence, size_t bytes, const Salt &salt, const Owner &owner);

    // Take the next part, `number`. With the last one the sequence has it.
    Status resumed(size_t number, const Bytes &sealed);

   private:
    bool start(uint32_t sequence, size_t bytes, const Salt &salt, const Owner &owner);
    void stop();
    size_t parts() const { return (bytes_ + kept_part_bytes - 1) / kept_part_bytes; }
    Status take_in();

    FlexMem &flexmem_;
    Model &model_;
    Generations &generations_;
    const Image &image_;

    // What is under way: one at a time.
    enum class Way { none, out, in } way_ = Way::none;
    uint32_t sequence_ = 0;
    Owner owner_{};
    size_t bytes_ = 0, next_ = 0;
    std::unique_ptr<Region> plain_;  // a count of tokens, the tokens (u32 each), llama.cpp's state
    std::unique_ptr<ChunkCipher> cipher_;
};
