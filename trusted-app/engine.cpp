#include "engine.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "ggml-impl.h"
#include "hooks.h"

namespace {

constexpr int first_slice = 16;  // nodes, while the pace of the graph is unknown

using Seconds = std::chrono::duration<double>;

Seconds now() { return std::chrono::steady_clock::now().time_since_epoch(); }

size_t heap() { return mallinfo2().uordblks + mallinfo2().hblkhd; }  // bytes in use

}  // namespace

Engine::Engine(FlexMem &memory) : flexmem(memory) { Hooks::install(*this); }

void Engine::use(int threads) {
    if (pool_ != nullptr) ggml_threadpool_free(pool_);
    ggml_threadpool_params parameters = ggml_threadpool_params_default(threads);
    pool_ = ggml_threadpool_new(&parameters);
    threads_ = threads;
}

bool Engine::prepare(size_t work) {
    if (work == 0) return true;
    if (work_ == nullptr || work > work_->chunks() * chunk_bytes) {
        if (work_ != nullptr) flexmem.free(std::move(work_));
        work_ = flexmem.reserve(work);
    }
    return work_ != nullptr && flexmem.commit(*work_, 0, work_->chunks());
}

ggml_status Engine::compute(ggml_cgraph *graph) {
    if (current_ == nullptr) return GGML_STATUS_FAILED;
    if (current_->order_.empty()) current_->order_ = current_->reads(graph);
    for (int start = 0, stride = first_slice, end; start < graph->n_nodes; start = end) {
        end = std::min(start + stride, graph->n_nodes);
        ggml_cgraph slice = ggml_graph_view(graph, start, end);
        const Seconds asked = now();
        bool goes_on = between_slices(false);
        while (goes_on && (current_->missing_ = current_->count_missing(&slice)) != 0) goes_on = between_slices(true);
        if (!goes_on) return GGML_STATUS_ABORTED;
        const Seconds began = now();
        current_->waited_ += static_cast<uint64_t>(1e6 * (began - asked).count());
        const ggml_status status = compute_slice(&slice);
        if (status != GGML_STATUS_SUCCESS) return status;
        const double next = (end - start) * slice_time / std::max((now() - began).count(), 1e-6);
        stride = static_cast<int>(std::clamp(next, 1.0, static_cast<double>(graph->n_nodes)));
    }
    return GGML_STATUS_SUCCESS;
}

ggml_status Engine::compute_slice(ggml_cgraph *slice) {
    ggml_cplan plan = ggml_graph_plan(slice, threads_, pool_);
    if (!prepare(plan.work_size)) return GGML_STATUS_ABORTED;
    plan.work_data = work_ == nullptr ? nullptr : reinterpret_cast<uint8_t *>(work_->base());
    return ggml_graph_compute(slice, &plan);
}

// ---- opening ----------------------------------------------------------------------------------------------------

namespace {

// A file of which only the first part is there; the rest reads as zeros.
struct Hollow {
    const std::byte *data;
    size_t bytes, file_bytes, at;

    static ssize_t read(void *cookie, char *target, size_t size) {
        auto &file = *static_cast<Hollow *>(cookie);
        size = std::min(size, file.file_bytes - std::min(file.at, file.file_bytes));
        const size_t there = std::min(size, file.bytes - std::min(file.at, file.bytes));
        if (there != 0) std::memcpy(target, file.data + file.at, there);
        std::memset(target + there, 0, size - there);
        file.at += size;
        return static_cast<ssize_t>(size);
    }

    static int seek(void *cookie, off64_t *offset, int whence) {
        auto &file = *static_cast<Hollow *>(cookie);
        const size_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? file.at : file.file_bytes;
        const off64_t target = static_cast<off64_t>(from) + *offset;
        if (target < 0 || static_cast<size_t>(target) > file.file_bytes) return -1;
        file.at = static_cast<size_t>(target);
        *offset = target;
        return 0;
    }
};

}  // namespace

std::unique_ptr<Model> Model::open(Engine &engine, const std::byte *metadata, size_t bytes, size_t file_bytes,
                                   uint32_t context, uint32_t sequences, ggml_type kv) {
    std::unique_ptr<Model> model(new Model(engine));
    Hooks::Owner owner(engine, model.get());
    if (!model->load(metadata, bytes, file_bytes) || !model->make_context(context, sequences, kv)) return nullptr;
    return model;
}

bool Model::load(const std::byte *metadata, size_t bytes, size_t file_bytes) {
    Hollow file{metadata, bytes, file_bytes, 0};
    FILE *stream = fopencookie(&file, "rb", {Hollow::read, nullptr, Hollow::seek, nullptr});
    if (stream == nullptr) return false;
    llama_model_params parameters = llama_model_default_params();
    parameters.n_gpu_layers = 0;
    parameters.load_mode = LLAMA_LOAD_MODE_NONE;
    parameters.lazy_mode = LLAMA_LAZY_MODE_OFF;
    model_ = llama_model_load_from_file_ptr(stream, parameters);
    fclose(stream);
    if (model_ == nullptr) return false;
    Hooks::settle(*this);
    number_chunks();
    return true;
}

void Model::number_chunks() {
    for (const auto &each : buffers_) {
        each->first = chunks_.size();
        for (size_t index = 0; index < each->region->chunks(); index++) {
            const size_t rest = each->buffer->size - index * chunk_bytes;
            chunks_.push_back({each.get(), index, std::min(rest, chunk_bytes), false});
        }
    }
}

bool Model::make_context(uint32_t context, uint32_t sequences, ggml_type kv) {
    sequences_ = sequences;
    context_tokens_ = std::min(context, static_cast<uint32_t>(llama_model_n_ctx_train(model_)));
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = context_tokens_ * sequences;
    parameters.n_batch = parameters.n_ubatch = std::max(std::min(batch_tokens, context_tokens_), sequences);
    parameters.n_seq_max = sequences;
    parameters.n_outputs_max = outputs();
    parameters.type_k = parameters.type_v = kv;  // one that is quantised takes flash attention, which llama.cpp chooses
    parameters.kv_unified = false;  // a stream for each sequence: the same logits as if it were alone
    return (context_ = new_context(parameters)) != nullptr;
}

llama_context *Model::new_context(llama_context_params parameters) {
    parameters.n_threads = parameters.n_threads_batch = engine_.threads_;
    parameters.no_perf = true;
    // llama.cpp does not ask whether it got what it wanted. As much as the first context took has to be there for another one.
    void *volatile probe = malloc(context_heap_ + context_heap_ / 2);  // not to be left out; more is in use for a moment
    free(probe);
    if (probe == nullptr) return nullptr;
    const size_t others = heap();
    state_ = State::making_context;
    llama_context *context = llama_init_from_model(model_, parameters);
    context_heap_ = std::max(context_heap_, heap() - std::min(others, heap()));
    for (const auto &each : buffers_) {
        if (each->kind != Kind::weights) each->buffer->iface.init_tensor = nullptr;  // graphs place tensors all the time
    }
    state_ = State::ready;
    return context;
}

Model::~Model() {
    Hooks::Owner owner(engine_, this);
    if (context_ != nullptr) llama_free(context_);
    if (model_ != nullptr) llama_model_free(model_);
}

Buffer *Model::find(ggml_backend_buffer_t buffer) {
    for (const auto &each : buffers_) {
        if (each->buffer == buffer) return each.get();
    }
    return nullptr;
}

// ---- weights ----------------------------------------------------------------------------------------------------

void Model::reach(const Weight &weight, size_t &first, size_t &end) const {
    first = end = 0;
    for (const auto &each : buffers_) {
        const size_t offset = reinterpret_cast<size_t>(weight.tensor->data) - reinterpret_cast<size_t>(each->region->base());
        if (each->kind != Kind::weights || offset >= each->region->chunks() * chunk_bytes) continue;  // too large, if before
        first = each->first + offset / chunk_bytes;
        end = each->first + (offset + weight.bytes + chunk_bytes - 1) / chunk_bytes;
    }
}

bool Model::commit(const Weight &weight) {
    size_t first, end;
    reach(weight, first, end);
    if (first == end) return true;
    return engine_.flexmem.commit(*chunks_[first].buffer->region, chunks_[first].index, chunks_[end - 1].index + 1);
}

void Model::set_ready(size_t first, size_t end) {
    for (size_t chunk = first; chunk < end; chunk++) chunks_[chunk].ready = chunks_[chunk].loaded();
}

bool Model::evict(size_t chunk) {
    chunks_[chunk].ready = false;
    return engine_.flexmem.release(*chunks_[chunk].buffer->region, chunks_[chunk].index);
}

std::vector<uint32_t> Model::reads(const ggml_cgraph *graph) const {
    std::vector<bool> seen(chunks_.size());
    std::vector<uint32_t> order;
    for (int node = 0; node < graph->n_nodes; node++) {
        for (const ggml_tensor *source : graph->nodes[node]->src) {
            if (source == nullptr || source->data == nullptr) continue;
            size_t first, end;
            reach({const_cast<ggml_tensor *>(source), ggml_nbytes(source), 0}, first, end);
            for (; first < end; first++) {
                if (!seen[first]) order.push_back(static_cast<uint32_t>(first));
                seen[first] = true;
            }
        }
    }
    return order;
}

size_t Model::count_missing(const ggml_cgraph *graph) const {
    const std::vector<uint32_t> read = reads(graph);
    return static_cast<size_t>(std::count_if(read.begin(), read.end(), [&](uint32_t each) { return !chunks_[each].ready; }));
}

// ---- memory -----------------------------------------------------------------------------------------------------

size_t Model::sum(Kind kind, size_t (Region::*count)() const) const {
    size_t chunks = 0;
    for (const auto &each : buffers_) chunks += each->kind == kind ? (*each->region.*count)() : 0;
    return chunks;
}

bool Model::prepare() {
    for (const auto &each : buffers_) {
        if (each->kind == Kind::weights) continue;
        if (!engine_.flexmem.commit(*each->region, 0, each->region->chunks())) return false;
    }
    return true;
}

size_t Model::release(Kind kind) {
    Hooks::Owner owner(engine_, this);
    if (kind == Kind::kv) llama_memory_clear(llama_get_memory(context_), false);
    size_t chunks = 0;
    for (const auto &each : buffers_) chunks += each->kind == kind ? engine_.flexmem.release_all(*each->region) : 0;
    return chunks;
}

// ---- computing --------------------------------------------------------------------------------------------------

int Model::decode(const llama_batch &batch) {
    Hooks::Owner owner(engine_, this);
    return llama_decode(context_, batch);
}

int Model::embed(const std::vector<llama_token> &text, uint32_t at_once, bool ranks, std::vector<float> &vector,
                 size_t &lacks) {
    Hooks::Owner owner(engine_, this);
    const auto size = static_cast<uint32_t>(text.size()), step = std::min({size, at_once, batch_tokens});
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = size;
    parameters.n_batch = parameters.n_ubatch = parameters.n_outputs_max = step;
    parameters.embeddings = true;
    parameters.pooling_type = std::max(llama_pooling_type(context_), LLAMA_POOLING_TYPE_MEAN);  // those below are none
    if ((parameters.pooling_type == LLAMA_POOLING_TYPE_RANK) != ranks) return -1;
    const size_t others = buffers_.size();
    const std::unique_ptr<llama_context, decltype(&llama_free)> context(new_context(parameters), llama_free);
    if (context == nullptr) return -1;
    for (size_t each = others; each < buffers_.size(); each++) lacks += buffers_[each]->region->chunks();
    for (size_t each = others; each < buffers_.size(); each++) {
        if (!engine_.flexmem.commit(*buffers_[each]->region, 0, buffers_[each]->region->chunks())) return 3;
    }
    vector.assign(ranks ? 1 : static_cast<size_t>(llama_model_n_embd_out(model_)), 0);
    for (uint32_t at = 0; at < size; at += step) {
        const uint32_t count = std::min(step, size - at);
        const llama_batch batch = llama_batch_get_one(const_cast<llama_token *>(&text[at]), static_cast<int32_t>(count));
        const int status = (llama_model_has_encoder(model_) ? llama_encode : llama_decode)(context.get(), batch);
        const float *pooled = status == 0 ? llama_get_embeddings_seq(context.get(), 0) : nullptr;
        if (pooled == nullptr) return status == 0 ? -1 : status;
        const bool is_mean = parameters.pooling_type == LLAMA_POOLING_TYPE_MEAN;
        const bool counts = parameters.pooling_type == LLAMA_POOLING_TYPE_CLS ? at == 0 : at + count == size;
        const float weight = is_mean ? static_cast<float>(count) / static_cast<float>(size) : counts;
        for (size_t each = 0; each < vector.size(); each++) vector[each] += weight * pooled[each];
    }
    return 0;
}

// Of layers with a window the cache may hold the last window only, and of recurrent layers there is the latest state.
size_t Model::cut(uint32_t sequence, size_t keep, size_t has) {
    Hooks::Owner owner(engine_, this);
    llama_memory_t memory = llama_get_memory(context_);
    const auto id = static_cast<llama_seq_id>(sequence);
    const bool goes_back = llama_model_n_swa(model_) == 0 && !recurs();
    if ((keep == has || goes_back) && llama_memory_seq_rm(memory, id, static_cast<llama_pos>(keep), -1)) return keep;
    llama_memory_seq_rm(memory, id, -1, -1);
    return 0;
}

size_t Model::state_bytes(uint32_t sequence) {
    return llama_state_seq_get_size(context_, static_cast<llama_seq_id>(sequence));
}

bool Model::save_state(uint32_t sequence, std::byte *target, size_t bytes) {
    Hooks::Owner owner(engine_, this);
    return llama_state_seq_get_data(context_, reinterpret_cast<uint8_t *>(target), bytes,
                                    static_cast<llama_seq_id>(sequence)) == bytes;
}

bool Model::load_state(uint32_t sequence, const std::byte *source, size_t bytes) {
    Hooks::Owner owner(engine_, this);
    return llama_state_seq_set_data(context_, reinterpret_cast<const uint8_t *>(source), bytes,
                                    static_cast<llama_seq_id>(sequence)) == bytes;
}
