// llama.cpp with all of its memory in Flex-Mem: models that are opened from their metadata, and compute what they have.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "flexmem.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "llama.h"

constexpr uint32_t batch_tokens = 512;  // that one graph takes in, at most
constexpr uint32_t most_outputs = 16;   // tokens that have their logits made by one graph, beside one of each sequence
constexpr int most_threads = 8;
constexpr double slice_time = 0.05;  // seconds: a recall waits for a slice at most

class Model;

// The library's hooks, the threads that compute, and their work area. There is one, used by one thread.
class Engine {
   public:
    explicit Engine(FlexMem &flexmem);

    // Have graphs computed by so many threads, from 1 to most_threads.
    void use(int threads);

    FlexMem &flexmem;

    // Called before each slice of a graph, of slice_time or of one node, and as long as weights that it reads are missing: then
    // `waits`, and it waits until something has changed. False: the graph is to end.
    std::function<bool(bool waits)> between_slices;

   private:
    friend class Model;
    friend struct Hooks;
    ggml_status compute(ggml_cgraph *graph);
    ggml_status compute_slice(ggml_cgraph *slice);
    bool prepare(size_t work);  // memory for a work area of so many bytes

    int threads_ = 0;
    ggml_threadpool *pool_ = nullptr;
    std::unique_ptr<Region> work_;
    Model *current_ = nullptr;  // on whose behalf llama.cpp runs now
};

enum class Kind : uint32_t { scratch = 0, kv = 1, weights = 2 };  // the port's, in the order in which they are given up

// One of llama.cpp's buffers.
struct Buffer {
    Kind kind;
    std::unique_ptr<Region> region;
    ggml_backend_buffer_t buffer;
    size_t first;  // for weights: the number of its first chunk among all chunks of the model
    decltype(ggml_backend_buffer_i::init_tensor) init_tensor;
    decltype(ggml_backend_buffer_i::set_tensor) set_tensor;
};

// A weight: where it is, and the size of its form in the GGUF.
struct Weight {
    ggml_tensor *tensor;
    size_t bytes;
    int64_t elements;  // of its first dimension
};

// A chunk of weights: its place, and how much of it is used.
struct Chunk {
    Buffer *buffer;
    size_t index;  // in its buffer
    size_t bytes;
    bool ready;  // the weights in it are whole
    std::byte *address() const { return buffer->region->at(index); }
    bool loaded() const { return buffer->region->has(index); }
};

class Model {
   public:
    // Open a model of `file_bytes` from its GGUF's first part, without its tensors' data. It has no memory then. `context`
    // is in tokens, for each sequence; `kv`: the type of its KV. Null: llama.cpp cannot open it.
    static std::unique_ptr<Model> open(Engine &engine, const std::byte *metadata, size_t bytes, size_t file_bytes,
                                       uint32_t context, uint32_t sequences, ggml_type kv);
    ~Model();

    const llama_model *llama() const { return model_; }
    const llama_vocab *vocabulary() const { return llama_model_get_vocab(model_); }
    uint32_t context_tokens() const { return context_tokens_; }
    uint32_t sequences() const { return sequences_; }
    uint32_t outputs() const { return std::max(sequences_, std::min(most_outputs, context_tokens_)); }  // of a graph, at most

    // ---- weights ----
    const std::vector<Weight> &weights() const { return weights_; }
    const std::vector<Chunk> &chunks() const { return chunks_; }

    // The chunks in the order in which the model's first graph read them. None before it.
    const std::vector<uint32_t> &order() const { return order_; }

    // The chunks [first, end) that a weight touches.
    void reach(const Weight &weight, size_t &first, size_t &end) const;

    // Have memory behind the chunks of a weight. False: too little is granted.
    bool commit(const Weight &weight);

    // The weights in the chunks from `first` to before `end` that have memory are whole.
    void set_ready(size_t first, size_t end);

    // Take the memory of a chunk. False: it has none.
    bool evict(size_t chunk);

    // Chunks that the last graph that was ended waited for; and the microseconds for which graphs waited since this was called.
    size_t missing() const { return missing_; }
    uint64_t waited() { return std::exchange(waited_, 0); }

    // ---- memory ----
    size_t size(Kind kind) const { return sum(kind, &Region::chunks); }          // chunks that it can have
    size_t committed(Kind kind) const { return sum(kind, &Region::committed); }  // chunks that it has
    bool prepare();             // memory for scratch and KV; false: too little is granted
    size_t release(Kind kind);  // all of a kind; for KV, its tokens are forgotten

    // ---- computing ----
    // Take in a batch. 0; 2: weights are missing, and the cache is as it was; negative: it failed.
    int decode(const llama_batch &batch);
    llama_context *context() const { return context_; }
    bool computes() const { return engine_.current_ == this; }  // a graph, now
    bool recurs() const { return llama_model_is_recurrent(model_) || llama_model_is_hybrid(model_); }  // in some layers
    bool generates() const { return llama_get_memory(context_) != nullptr && !llama_model_has_encoder(model_); }

    // Pool what the model makes of a text, as it says itself, or the mean; or its rank, by a model that ranks. At most
    // `at_once` tokens go through one graph. In a context of its own, which lives for this call. As decode; 3: `lacks` chunks
    // have to be unused for it.
    int embed(const std::vector<llama_token> &text, uint32_t at_once, bool ranks, std::vector<float> &vector, size_t &lacks);

    // Have a sequence whose KV is of `has` tokens forget those from `keep` on; how many are left: 0 where it cannot go back.
    size_t cut(uint32_t sequence, size_t keep, size_t has);

    // A sequence's KV as bytes, in llama.cpp's own form.
    size_t state_bytes(uint32_t sequence);
    bool save_state(uint32_t sequence, std::byte *target, size_t bytes);
    bool load_state(uint32_t sequence, const std::byte *source, size_t bytes);

   private:
    friend class Engine;
    friend struct Hooks;
    explicit Model(Engine &engine) : engine_(engine) {}
    bool load(const std::byte *metadata, size_t bytes, size_t file_bytes);
    bool make_context(uint32_t context, uint32_t sequences, ggml_type kv);
    llama_context *new_context(llama_context_params parameters);
    void number_chunks();
    Buffer *find(ggml_backend_buffer_t buffer);
    std::vector<uint32_t> reads(const ggml_cgraph *graph) const;
    size_t count_missing(const ggml_cgraph *graph) const;
    size_t sum(Kind kind, size_t (Region::*count)() const) const;

    Engine &engine_;
    enum class State { loading, making_context, ready } state_ = State::loading;
    std::vector<std::unique_ptr<Buffer>> buffers_;
    std::vector<Weight> weights_;
    std::vector<Chunk> chunks_;
    std::vector<uint32_t> order_;
    llama_model *model_ = nullptr;
    llama_context *context_ = nullptr;
    uint32_t context_tokens_ = 0, sequences_ = 0;
    size_t missing_ = 0, context_heap_ = 1;  // bytes that a context takes of the heap
    uint64_t waited_ = 0;
};
