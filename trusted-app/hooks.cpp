#include "hooks.h"

#include <cstring>
#include <map>

namespace {

Engine *engine;
std::map<ggml_backend_buffer_type_t, decltype(ggml_backend_buffer_type_i::alloc_buffer)> extra_allocators;
decltype(ggml_backend_device_i::init_backend) original_backend;

}  // namespace

void Hooks::install(Engine &ours) {
    engine = &ours;
    ggml_backend_cpu_buffer_type()->iface.alloc_buffer = allocate;
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    auto *extra_types = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
    for (ggml_backend_buffer_type_t *type = extra_types(device); *type != nullptr; type++) {
        extra_allocators[*type] = (*type)->iface.alloc_buffer;  // they allocate a plain buffer and make it theirs
        (*type)->iface.alloc_buffer = allocate_extra;
    }
    original_backend = device->iface.init_backend;
    device->iface.init_backend = make_backend;
}

ggml_backend_buffer_t Hooks::allocate(ggml_backend_buffer_type_t type, size_t bytes) {
    Model *model = engine->current_;
    if (model == nullptr) return nullptr;
    auto region = engine->flexmem.reserve(bytes);
    if (region == nullptr) return nullptr;
    // Made anew in the middle of a decode, it is written next.
    if (model->state_ == Model::State::ready && !engine->flexmem.commit(*region, 0, region->chunks())) {
        engine->flexmem.free(std::move(region));
        return nullptr;
    }
    ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(region->base(), bytes);
    buffer->buft = type;
    buffer->iface.free_buffer = free_buffer;
    buffer->iface.clear = clear;
    const bool loading = model->state_ == Model::State::loading;
    model->buffers_.push_back(std::make_unique<Buffer>(
        Buffer{loading ? Kind::weights : Kind::scratch, std::move(region), buffer, 0, nullptr, nullptr}));
    if (model->state_ != Model::State::ready) divert(*model->buffers_.back());
    return buffer;
}

ggml_backend_buffer_t Hooks::allocate_extra(ggml_backend_buffer_type_t type, size_t bytes) {
    ggml_backend_buffer_t buffer = extra_allocators.at(type)(type, bytes);
    if (buffer != nullptr) divert(*engine->current_->find(buffer));  // it has functions of its own now
    return buffer;
}

void Hooks::divert(Buffer &ours) {
    ggml_backend_buffer_i &functions = ours.buffer->iface;
    if (functions.init_tensor == place) return;
    ours.init_tensor = functions.init_tensor;
    ours.set_tensor = functions.set_tensor;
    functions.init_tensor = place;
    if (ours.kind == Kind::weights) functions.set_tensor = skip;
}

void Hooks::settle(Model &model) {
    for (const auto &each : model.buffers_) {
        each->buffer->iface.init_tensor = each->init_tensor;
        each->buffer->iface.set_tensor = each->set_tensor;
    }
    for (const Weight &weight : model.weights_) weight.tensor->ne[0] = weight.elements;
}

// A tensor of a model gets its place. llama.cpp would read its data next: of a tensor without elements it reads none.
// What gets a place while a context is made, before any graph runs, is KV.
ggml_status Hooks::place(ggml_backend_buffer_t buffer, ggml_tensor *tensor) {
    Model *model = engine->current_;
    Buffer *ours = model == nullptr ? nullptr : model->find(buffer);
    if (ours == nullptr) return GGML_STATUS_FAILED;
    if (ours->kind != Kind::weights) {
        ours->kind = Kind::kv;
        return GGML_STATUS_SUCCESS;
    }
    if (ours->init_tensor != nullptr && ours->init_tensor(buffer, tensor) != GGML_STATUS_SUCCESS) return GGML_STATUS_FAILED;
    model->weights_.push_back({tensor, ggml_nbytes(tensor), tensor->ne[0]});
    tensor->ne[0] = 0;
    return GGML_STATUS_SUCCESS;
}

void Hooks::free_buffer(ggml_backend_buffer_t buffer) {
    Model *model = engine->current_;
    for (auto each = model->buffers_.begin(); each != model->buffers_.end(); ++each) {
        if ((*each)->buffer != buffer) continue;
        engine->flexmem.free(std::move((*each)->region));
        model->buffers_.erase(each);
        return;
    }
}

// Where there is no memory, there will be zeros.
void Hooks::clear(ggml_backend_buffer_t buffer, uint8_t value) {
    const Region &region = *engine->current_->find(buffer)->region;
    for (size_t chunk = 0; chunk < region.chunks(); chunk++) {
        if (region.has(chunk)) std::memset(region.at(chunk), value, chunk_bytes);
    }
}

ggml_backend_t Hooks::make_backend(ggml_backend_dev_t device, const char *parameters) {
    ggml_backend_t backend = original_backend(device, parameters);
    if (backend != nullptr) backend->iface.graph_compute = compute;
    return backend;
}

ggml_status Hooks::compute(ggml_backend_t, ggml_cgraph *graph) { return engine->compute(graph); }
