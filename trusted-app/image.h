// Where a model's weights come from: the sealed GGUF of the store, from which they are written once, and then an image of
// what is in memory, which this seals and from which chunks are loaded.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "cipher.h"
#include "engine.h"
#include "messages.h"

constexpr size_t file_chunk_bytes = 1 << 20;  // of plaintext in a chunk of a .flex file

class Image {
   public:
    using Bytes = std::vector<std::byte>;

    const Id &id() const { return id_; }

    // `file_bytes` are those of the GGUF.
    Image(FlexMem &flexmem, const Key &model_key, const Salt &salt, const Id &id, size_t file_bytes);
    ~Image();

    // Replace sealed chunks of the GGUF, the first ones, by the plaintext of its first `bytes` bytes.
    Status metadata(Bytes &chunks, size_t bytes);

    // Write the weights of this model. `metadata` are those bytes.
    void belong(Model &model, const Bytes &metadata);

    // Take the next sealed chunk of the GGUF: the first one is that in which weights begin. With the last one, what they are
    // in memory is ready. `chunk` is plaintext afterwards, or zeros. Refused: it is to be given again.
    Status write(size_t number, Bytes &chunk);
    bool writing() const { return next_ > begin_ && next_ < file_chunks_; }  // chunks must not go now

    // Seal a chunk of memory, which stays as it is. Once for each. `salt`: the image's.
    Status seal(size_t chunk, Bytes &sealed, Salt &salt);

    // Load from the image with this salt from now on.
    void use(const Salt &salt);

    // Put a sealed chunk, without its tag, where it belongs. When that is done, it is to be decrypted, for which any thread will do. Nothing uses
    // the chunk before it is known whether it is genuine.
    Status bring(size_t chunk, const Bytes &sealed);
    Status bring_pages(size_t chunk, const std::vector<secure_os::Run> &runs);
    bool decrypt(size_t chunk, const Tag &tag) const;  // whether it is genuine. If not, it is zeros
    Status loaded(size_t chunk, bool genuine);         // what is not has no memory any more

    // A cipher for what depends on the layout of this model in memory.
    std::unique_ptr<ChunkCipher> cipher(const Salt &salt, const char *kind) const;

   private:
    struct Source {
        size_t offset;                   // in the GGUF
        std::unique_ptr<Region> pieces;  // what is there of it already
    };
    bool is_absent(size_t chunk) const;
    bool decrypt_file_chunk(size_t number, std::byte *data, size_t bytes);
    bool prepare(size_t first, size_t end);
    void place(size_t first, size_t end, const std::byte *data);
    FlexMem &flexmem_;
    Key key_;
    Id id_;
    ChunkCipher file_;
    size_t file_bytes_, file_chunks_, begin_ = 0, next_ = 0;
    Model *model_ = nullptr;
    std::vector<Source> sources_;  // by weight
    Salt sealing_salt_{};
    std::vector<bool> sealed_;
    std::unique_ptr<ChunkCipher> sealing_, loading_;
};
