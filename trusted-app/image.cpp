#include "image.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "gguf.h"

namespace {

constexpr uint32_t file_version = 1, image_version = 1;

size_t chunks_of(size_t bytes, size_t chunk) { return (bytes + chunk - 1) / chunk; }

}  // namespace

Image::Image(FlexMem &flexmem, const Key &model_key, const Salt &salt, const Id &id, size_t file_bytes)
    : flexmem_(flexmem), key_(model_key), id_(id), file_(model_key, salt, "gguf", file_version, id), file_bytes_(file_bytes),
      file_chunks_(chunks_of(file_bytes, file_chunk_bytes)) {}

Image::~Image() {
    for (Source &source : sources_) {
        if (source.pieces != nullptr) flexmem_.free(std::move(source.pieces));
    }
}

// ---- the GGUF ---------------------------------------------------------------------------------------------------

bool Image::decrypt_file_chunk(size_t number, std::byte *data, size_t bytes) {
    return file_.decrypt(0, number, file_chunks_, data, bytes, data + bytes);
}

Status Image::metadata(Bytes &chunks, size_t bytes) {
    if (bytes == 0 || bytes > file_bytes_) return Status::bad;
    const size_t count = chunks_of(bytes, file_chunk_bytes);
    const size_t plain = std::min(count * file_chunk_bytes, file_bytes_);
    if (chunks.size() != plain + count * tag_bytes) return Status::bad;
    std::byte *source = chunks.data(), *target = chunks.data();
    for (size_t number = 0; number < count; number++) {
        const size_t length = std::min(file_chunk_bytes, file_bytes_ - number * file_chunk_bytes);
        if (!decrypt_file_chunk(number, source, length)) return Status::damaged;
        std::memmove(target, source, length);
        source += length + tag_bytes;
        target += length;
    }
    chunks.resize(bytes);
    return Status::done;
}

void Image::belong(Model &model, const Bytes &metadata) {
    model_ = &model;
    gguf_context *gguf = gguf_init_from_buffer(metadata.data(), metadata.size(), {true, nullptr});
    for (const Weight &weight : model.weights()) {
        const int64_t tensor = gguf_find_tensor(gguf, ggml_get_name(weight.tensor));
        if (tensor < 0) abort();  // llama.cpp has it from there
        sources_.push_back({gguf_get_data_offset(gguf) + gguf_get_tensor_offset(gguf, tensor), nullptr});
    }
    gguf_free(gguf);
    begin_ = next_ = metadata.size() / file_chunk_bytes;
    sealed_.resize(model.chunks().size());
}

Status Image::write(size_t number, Bytes &chunk) {
    if (number != next_ || number >= file_chunks_) return Status::bad;
    const size_t first = number * file_chunk_bytes, end = std::min(first + file_chunk_bytes, file_bytes_);
    if (chunk.size() != end - first + tag_bytes) return Status::bad;
    if (!prepare(first, end)) return Status::refused;
    if (!decrypt_file_chunk(number, chunk.data(), end - first)) return Status::damaged;
    place(first, end, chunk.data());
    if (++next_ == file_chunks_) model_->set_ready(0, model_->chunks().size());
    return Status::done;
}

// Have memory for what bytes [first, end) of the GGUF belong to, and for the weights that they complete.
bool Image::prepare(size_t first, size_t end) {
    for (size_t number = 0; number < sources_.size(); number++) {
        const Weight &weight = model_->weights()[number];
        Source &source = sources_[number];
        if (source.offset >= end || source.offset + weight.bytes <= first) continue;
        if (source.pieces == nullptr) source.pieces = flexmem_.reserve(weight.bytes);
        if (source.pieces == nullptr || !flexmem_.commit(*source.pieces, 0, source.pieces->chunks())) return false;
        if (source.offset + weight.bytes <= end && !model_->commit(weight)) return false;
    }
    return true;
}

void Image::place(size_t first, size_t end, const std::byte *data) {
    for (size_t number = 0; number < sources_.size(); number++) {
        const Weight &weight = model_->weights()[number];
        Source &source = sources_[number];
        const size_t from = std::max(first, source.offset), to = std::min(end, source.offset + weight.bytes);
        if (from >= to) continue;
        std::memcpy(source.pieces->base() + (from - source.offset), data + (from - first), to - from);
        if (to < source.offset + weight.bytes) continue;
        ggml_backend_tensor_set(weight.tensor, source.pieces->base(), 0, weight.bytes);
        flexmem_.free(std::move(source.pieces));
    }
}

// ---- the image --------------------------------------------------------------------------------------------------

std::unique_ptr<ChunkCipher> Image::cipher(const Salt &salt, const char *kind) const {
    std::vector<uint64_t> layout;
    for (const Chunk &chunk : model_->chunks()) layout.push_back(chunk.bytes);
    for (const Weight &weight : model_->weights()) {
        size_t begin, end;
        model_->reach(weight, begin, end);
        const auto *data = static_cast<const std::byte *>(weight.tensor->data);
        const ptrdiff_t offset = begin < end ? data - model_->chunks()[begin].address() : 0;
        layout.insert(layout.end(), {begin, static_cast<uint64_t>(offset), weight.bytes});
    }
    return std::make_unique<ChunkCipher>(key_, digest_of(salt, layout), kind, image_version, id_);
}

Status Image::seal(size_t number, Bytes &sealed, Salt &salt) {
    if (number >= sealed_.size() || sealed_[number] || !model_->chunks()[number].ready) return Status::bad;
    if (sealing_ == nullptr) {
        sealing_salt_ = random<Salt>();
        sealing_ = cipher(sealing_salt_, "image");
    }
    const Chunk &chunk = model_->chunks()[number];
    sealed.assign(chunk.address(), chunk.address() + chunk.bytes);
    sealed.resize(chunk.bytes + tag_bytes);
    sealed_[number] = true;
    sealing_->encrypt(0, number, sealed_.size(), sealed.data(), chunk.bytes, sealed.data() + chunk.bytes);
    salt = sealing_salt_;
    return Status::done;
}

void Image::use(const Salt &salt) { loading_ = cipher(salt, "image"); }

bool Image::is_absent(size_t number) const {
    return loading_ != nullptr && number < model_->chunks().size() && !model_->chunks()[number].loaded();
}

Status Image::bring(size_t number, const Bytes &sealed) {
    if (!is_absent(number)) return Status::bad;
    const Chunk &chunk = model_->chunks()[number];
    if (sealed.size() != chunk.bytes) return Status::bad;
    if (!flexmem_.commit(*chunk.buffer->region, chunk.index, chunk.index + 1)) return Status::refused;
    std::memcpy(chunk.address(), sealed.data(), chunk.bytes);
    return Status::done;
}

Status Image::bring_pages(size_t number, const std::vector<secure_os::Run> &runs) {
    if (!is_absent(number)) return Status::bad;
    const Chunk &chunk = model_->chunks()[number];
    if (!flexmem_.adopt(*chunk.buffer->region, chunk.index, runs)) return Status::bad;
    std::memset(chunk.address() + chunk.bytes, 0, chunk_bytes - chunk.bytes);  // what the OS had there
    return Status::done;
}

bool Image::decrypt(size_t number, const Tag &tag) const {
    const Chunk &chunk = model_->chunks()[number];
    return loading_->decrypt(0, number, model_->chunks().size(), chunk.address(), chunk.bytes, tag.data());
}

Status Image::loaded(size_t number, bool genuine) {
    if (!genuine) model_->evict(number);
    model_->set_ready(number, number + 1);
    return genuine ? Status::done : Status::damaged;
}
