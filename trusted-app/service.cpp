#include "service.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <set>
#include <string_view>
#include <thread>

#include "secure_os.h"
#include "vocabulary.h"

namespace {

using namespace std::chrono_literals;

constexpr size_t most_models = 9;  // one more than policy keeps open: another one goes when it is there
constexpr uint64_t most_sequences = 64;
constexpr uint64_t most_context = 1 << 20;        // tokens
constexpr uint64_t most_file = uint64_t{1} << 40;  // bytes
constexpr size_t most_scores = 1 << 16;            // of a sequence, that nobody took

// What can be done between two slices of a graph.
bool is_about_memory(Ask kind) {
    return kind == Ask::grant || kind == Ask::give_back || kind == Ask::pool || kind == Ask::evict ||
           kind == Ask::resident || kind == Ask::order || kind == Ask::leave || kind == Ask::load || kind == Ask::load_pages;
}

// What would take memory or keys from the threads that decrypt.
bool is_after_loads(Ask kind) {
    return kind == Ask::evict || kind == Ask::close || kind == Ask::write || kind == Ask::image;
}

// Numbers of a payload. None: its length is not that of whole ones.
template <typename Number>
bool numbers(const Service::Bytes &payload, std::vector<Number> &target) {
    if (payload.size() % sizeof(Number) != 0) return false;
    target.resize(payload.size() / sizeof(Number));
    std::copy(payload.begin(), payload.end(), reinterpret_cast<std::byte *>(target.data()));
    return true;
}

// They, as tokens of a model.
bool tokens_of(const Service::Bytes &payload, const Model &model, std::vector<llama_token> &target) {
    const llama_token words = llama_vocab_n_tokens(model.vocabulary());
    const auto is_token = [&](llama_token number) { return number >= 0 && number < words; };
    return numbers(payload, target) && std::all_of(target.begin(), target.end(), is_token);
}

// The last two numbers of a request.
Owner owner(const Request &request) {
    Owner bytes;
    std::memcpy(bytes.data(), &request.arguments[3], sizeof bytes);
    return bytes;
}

}  // namespace

Service::Service(Ring &ring) : ring_(ring), engine_(flexmem_) {
    Key root;
    if (secure_os::secret(root)) sessions_.emplace(*(root_ = root));
    engine_.between_slices = [this](bool waits) {
        if (waits && !waits_) return false;
        while (do_next(waits || (!spares_ && !loads_.empty()))) waits = false;
        return !alone_;
    };
}

void Service::serve() {
    while (do_next(true)) {
    }
}

bool Service::do_next(bool waits) {
    do {
        const bool loads = !loads_.empty(), asked = loads_.size() < most_loads && ring_.waiting();
        if (loads && loads_.front().genuine.wait_for(waits && !asked ? 4ms : 0ms) != std::future_status::timeout) {
            return answer_load();
        }
        if (asked || (waits && !loads)) return answer_next();
    } while (waits);
    return false;
}

bool Service::answer_load() {
    Load load = std::move(loads_.front());
    loads_.pop_front();
    const Status status = load.image->loaded(load.chunk, load.genuine.get());
    Bytes nothing;
    alone_ = !ring_.send({static_cast<uint32_t>(status), 0, load.tag, {}}, nothing);
    return !alone_;
}

bool Service::answer_next() {
    Request request;
    Answer answer{};
    Bytes payload, said;
    alone_ = !ring_.receive(request, payload);
    const auto kind = static_cast<Ask>(request.kind);
    while (!alone_ && is_after_loads(kind) && !loads_.empty()) answer_load();
    if (alone_) return false;
    const bool stepping = stepping_;
    try {
        const Status status = carry_out({request, payload, said, answer.values});
        if (status == Status::done && (kind == Ask::load || kind == Ask::load_pages)) return true;  // it has begun
        if (status == Status::refused) answer.values[0] = std::max<uint64_t>(answer.values[0], 1);
        answer.status = static_cast<uint32_t>(status);
    } catch (const std::exception &) {  // llama.cpp's, or no heap is left. What it says may quote what it was given
        answer.status = static_cast<uint32_t>(Status::failed);
        stepping_ = stepping;
        said.clear();
    }
    answer.tag = request.tag;
    answer.bytes = static_cast<uint32_t>(said.size());
    alone_ = alone_ || !ring_.send(answer, said);
    return !alone_;
}

Status Service::carry_out(Call call) {
    const auto kind = static_cast<Ask>(call.request.kind);
    if (!greeted_ && kind != Ask::hello) return Status::bad;
    if (stepping_ && !is_about_memory(kind)) return Status::busy;
    if (kind >= Ask::attest && kind <= Ask::finish) return about_sealed(call);
    switch (kind) {
        case Ask::hello: return hello(call);
        case Ask::give_back: call.values[0] = flexmem_.give_back(call.argument(0)); return Status::done;
        case Ask::heap:
            call.values[0] = call.argument(1) == 1 ? flexmem_.give_heap(call.argument(0)) : flexmem_.take_heap(call.argument(0));
            return Status::done;
        case Ask::grant: flexmem_.grant(call.argument(0), call.argument(1)); [[fallthrough]];
        case Ask::pool: call.values[0] = flexmem_.unused(); return Status::done;
        case Ask::leave: waits_ = false; call.values[0] = stepping_; return Status::done;
        case Ask::secret: return secret(call);
        case Ask::open: return open(call);
        default: break;
    }
    const auto found = models_.find(call.argument(0));
    return found == models_.end() ? Status::bad : of_model(found->second, call);
}

Status Service::of_model(Open &open, Call call) {
    switch (static_cast<Ask>(call.request.kind)) {
        case Ask::close: models_.erase(call.argument(0)); return Status::done;
        case Ask::write: return write(open, call);
        case Ask::seal: return seal(*open.image, call);
        case Ask::image: return use(*open.image, call);
        case Ask::load:
        case Ask::load_pages: return load(*open.image, call);
        case Ask::evict: return evict(open, call);
        case Ask::resident: return resident(*open.model, call);
        case Ask::order: put(open.model->order(), call.said); return Status::done;
        case Ask::tokenise: return tokenise(*open.model, call);
        case Ask::detokenise: return detokenise(*open.model, call);
        case Ask::describe: describe(*open.model, call.payload, call.said); return Status::done;
        case Ask::marks: marks(*open.model, call.said); return Status::done;
        case Ask::words: return words(*open.model, call.argument(1), call.said, call.values);
        case Ask::begin: return begin(open, call);
        case Ask::begin_sealed: return begin_sealed(open, call);
        case Ask::step: return step(open, call);
        case Ask::said: return said(open, call);
        case Ask::end: return end(open, call);
        case Ask::keep: return keep(open, call);
        case Ask::kept: return open.kv->kept(call.argument(1), call.said);
        case Ask::resume: return resume(open, call);
        case Ask::resumed: return open.kv->resumed(call.argument(1), call.payload);
        case Ask::sampling: return sampling(open, call);
        case Ask::admit: return admit(open, call);
        case Ask::shift: return shift(open, call);
        case Ask::embed: return embed(open, call);
        default: return Status::bad;
    }
}

Status Service::hello(Call call) {
    if (greeted_ || call.argument(0) < 1 || call.argument(0) > most_threads) return Status::bad;
    engine_.use(static_cast<int>(call.argument(0)));
    spares_ = call.argument(0) < std::thread::hardware_concurrency();
    greeted_ = true;
    call.answer({protocol_version, chunk_bytes, batch_tokens, secure_os::inside()});
    return Status::done;
}

// ---- memory -----------------------------------------------------------------------------------------------------

Status Service::refused(size_t chunks, Call call) const {
    call.values[0] = chunks - std::min(chunks, flexmem_.unused());
    return Status::refused;
}

Status Service::evict(Open &open, Call call) {
    Model &model = *open.model;
    const uint64_t kind = call.argument(1), first = call.argument(2), end = call.argument(3);
    if (kind == static_cast<uint64_t>(Kind::weights)) {
        if (first > end || end > model.chunks().size() || open.image->writing()) return Status::bad;
        for (size_t chunk = first; chunk < end; chunk++) call.values[0] += model.evict(chunk);
        return Status::done;
    }
    if (kind > static_cast<uint64_t>(Kind::kv) || !open.generations->empty() || model.computes()) return Status::bad;
    if (kind == static_cast<uint64_t>(Kind::kv)) open.generations->forget_cached();
    call.values[0] = model.release(static_cast<Kind>(kind));
    return Status::done;
}

Status Service::resident(const Model &model, Call call) {
    for (const Kind kind : {Kind::scratch, Kind::kv, Kind::weights}) {
        call.values[static_cast<size_t>(kind)] = model.committed(kind);
    }
    for (const Chunk &chunk : model.chunks()) call.said.push_back(static_cast<std::byte>(chunk.ready));
    return Status::done;
}

// ---- models -----------------------------------------------------------------------------------------------------

Status Service::secret(Call call) {
    const size_t bytes = call.payload.size();
    if (root_ || (bytes != key_bytes && bytes != key_bytes + sizeof(SealingKey::Seed))) return Status::bad;
    if (secure_os::inside()) return Status::bad;  // it is the normal world's word
    root_ = taken<Key>(std::string(view(call.payload)));
    const std::string_view seed = view(call.payload).substr(key_bytes);  // of the first key that clients seal to
    sessions_.emplace(*root_, seed.empty() ? random<SealingKey::Seed>() : taken<SealingKey::Seed>(std::string(seed)));
    explicit_bzero(call.payload.data(), bytes);
    return Status::done;
}

Status Service::open(Call call) {
    const uint64_t file = call.argument(1), context = call.argument(2), sequences = call.argument(3);
    if (!root_ || models_.count(call.argument(0)) != 0 || models_.size() == most_models) return Status::bad;
    if (file > most_file || call.payload.size() < sizeof(Opening)) return Status::bad;
    if (context < 1 || context > most_context || sequences < 1 || sequences > most_sequences) return Status::bad;
    Opening opening;
    std::memcpy(&opening, call.payload.data(), sizeof opening);
    const auto type = static_cast<ggml_type>(opening.kv);
    if (type != GGML_TYPE_F16 && type != GGML_TYPE_Q8_0 && type != GGML_TYPE_Q4_0) return Status::bad;
    const std::optional<Key> key = unwrap(*root_, opening.model, opening.wrapped_key);
    if (!key) return Status::damaged;
    auto image = std::make_unique<Image>(flexmem_, *key, opening.salt, opening.model, file);
    Bytes metadata(call.payload.begin() + sizeof opening, call.payload.end());
    const Status status = image->metadata(metadata, call.argument(4));
    if (status != Status::done) return status;
    auto model = Model::open(engine_, metadata.data(), metadata.size(), file, static_cast<uint32_t>(context),
                             static_cast<uint32_t>(sequences), type);
    if (model == nullptr) return Status::unsupported;
    image->belong(*model, metadata);
    call.answer({model->chunks().size(), model->size(Kind::kv), model->size(Kind::scratch), model->recurs(),
                 model->context_tokens()});
    auto generations = std::make_unique<Generations>(*model);
    auto kv = std::make_unique<SealedKv>(flexmem_, *model, *generations, *image);
    models_[call.argument(0)] = {std::move(image), std::move(model), std::move(generations), std::move(kv)};
    return Status::done;
}

Status Service::write(Open &open, Call call) {
    const Status status = open.image->write(call.argument(1), call.payload);
    if (!call.payload.empty()) explicit_bzero(call.payload.data(), call.payload.size());
    return status;
}

Status Service::seal(Image &image, Call call) {
    Salt salt;
    const Status status = image.seal(call.argument(1), call.said, salt);
    if (status == Status::done) std::memcpy(call.values, salt.data(), sizeof salt);
    return status;
}

Status Service::load(Image &image, Call call) {
    if (call.payload.size() < tag_bytes) return Status::bad;
    const size_t chunk = call.argument(1);
    std::vector<secure_os::Run> runs;
    Tag tag;
    const bool whole = static_cast<Ask>(call.request.kind) == Ask::load;
    const auto place = whole ? call.payload.end() - tag_bytes : call.payload.begin();
    std::copy(place, place + tag_bytes, tag.begin());
    call.payload.erase(place, place + tag_bytes);
    if (!whole && !numbers(call.payload, runs)) return Status::bad;
    const Status status = whole ? image.bring(chunk, call.payload) : image.bring_pages(chunk, runs);
    if (status != Status::done) return status;
    loads_.push_back({call.request.tag, &image, chunk, std::async([&image, chunk, tag] { return image.decrypt(chunk, tag); })});
    return Status::done;
}

Status Service::use(Image &image, Call call) {
    if (call.payload.size() != salt_bytes) return Status::bad;
    image.use(taken<Salt>(std::string(view(call.payload))));
    return Status::done;
}

// ---- text -------------------------------------------------------------------------------------------------------

bool tokens(const Model &model, std::string_view text, bool start, bool control, std::vector<llama_token> &target) {
    std::vector<llama_token> found(text.size() + 16);  // no vocabulary has tokens of no bytes
    const int32_t count = llama_tokenize(model.vocabulary(), text.data(), static_cast<int32_t>(text.size()), found.data(),
                                         static_cast<int32_t>(found.size()), start, control);  // most_payload fits
    if (count > 0) target.insert(target.end(), found.begin(), found.begin() + count);
    return count >= 0;
}

Status Service::tokenise(const Model &model, Call call) {
    std::vector<llama_token> found;
    if (!tokens(model, view(call.payload), call.argument(2) == 0, call.argument(1) == 1, found)) return Status::failed;
    put(found, call.said);
    return Status::done;
}

Status Service::detokenise(const Model &model, Call call) {
    std::vector<llama_token> said;
    if (!tokens_of(call.payload, model, said)) return Status::bad;
    for (const llama_token token : said) put(piece(model.vocabulary(), token, false), call.said);
    return Status::done;
}

// ---- generations ------------------------------------------------------------------------------------------------

Status Service::begin(Open &open, Call call) {
    std::vector<llama_token> prompt;
    const Model &model = *open.model;
    if (!tokens_of(call.payload, model, prompt) || !is_idle(open, call.argument(1))) return Status::bad;
    if (prompt.empty() || prompt.size() >= model.context_tokens() || call.argument(2) < 1) return Status::bad;
    if (is_of_sealed(owner(call.request))) return Status::bad;
    if (!model.generates()) return Status::unsupported;
    const auto sequence = static_cast<uint32_t>(call.argument(1));
    call.values[0] = open.generations->begin(sequence, owner(call.request), std::move(prompt), call.argument(2)).pending();
    return Status::done;
}

Status Service::step(Open &open, Call call) {
    std::vector<uint32_t> sequences;
    const uint64_t limit = call.argument(1);
    if (!numbers(call.payload, sequences) || sequences.empty() || limit < 1) return Status::bad;
    if (std::set<uint32_t>(sequences.begin(), sequences.end()).size() != sequences.size()) return Status::bad;
    for (const uint32_t sequence : sequences) {
        const Generation *each = open.generations->find(sequence);
        if (each == nullptr || each->finished != Finish::no || each->scores.size() >= most_scores) return Status::bad;
    }
    Model &model = *open.model;
    if (!model.prepare()) {
        return refused(model.size(Kind::kv) + model.size(Kind::scratch) - model.committed(Kind::kv) -
                           model.committed(Kind::scratch), call);
    }
    stepping_ = true;
    waits_ = call.argument(2) == 1;
    const int status = open.generations->step(sequences, limit);
    stepping_ = false;
    std::vector<Progress> progress;
    for (const uint32_t sequence : sequences) {
        const Generation &each = *open.generations->find(sequence);
        progress.push_back({sequence, static_cast<uint32_t>(each.pending()), static_cast<uint32_t>(each.said),
                            static_cast<uint32_t>(each.finished)});
    }
    put(progress, call.said);
    return computed(status, model, call);
}

// What llama.cpp answers, as a status. Unless it is done, nothing is said.
Status Service::computed(int status, Model &model, Call call) {
    call.values[0] = status == 2 ? model.missing() : model.waited();
    if (status == 0) return Status::done;
    call.said.clear();
    if (status != 2) return Status::failed;
    return model.missing() == 0 ? Status::refused : Status::missing;  // for the work area
}

Status Service::embed(Open &open, Call call) {
    std::vector<llama_token> text;
    Model &model = *open.model;
    const auto at_once = static_cast<uint32_t>(std::min<uint64_t>(call.argument(2), batch_tokens));
    if (!tokens_of(call.payload, model, text) || text.empty() || at_once == 0) return Status::bad;
    if (text.size() > model.context_tokens()) return Status::bad;
    std::vector<float> vector;
    size_t lacks = 0;
    stepping_ = true;
    waits_ = call.argument(3) == 1;
    const int status = model.embed(text, at_once, call.argument(1) == 1, vector, lacks);
    stepping_ = false;
    if (status == 3) return refused(lacks, call);
    put(vector, call.said);
    return computed(status, model, call);
}

Generation *Service::running(Open &open, Call call) {
    Generation *generation = open.generations->find(call.argument(1));
    return generation != nullptr && generation->session == 0 ? generation : nullptr;
}

Status Service::sampling(Open &open, Call call) {
    Generation *generation = running(open, call);
    if (generation == nullptr || generation->said != 0) return Status::bad;
    if (!open.generations->choose_by(*generation, view(call.payload))) return Status::bad;
    if (generation->sampler->tells_prompt()) generation->told = generation->computed + 1;
    return Status::done;
}

Status Service::admit(Open &open, Call call) {
    Generation *generation = running(open, call);
    return generation != nullptr && generation->sampler->admit(call.payload) ? Status::done : Status::bad;
}

Status Service::said(Open &open, Call call) {
    Generation *generation = running(open, call);
    if (generation == nullptr) return Status::bad;
    for (; generation->told < generation->heard(); call.values[0]++) {
        put(std::array{generation->tokens[generation->told++]}, call.said);
    }
    put(generation->scores, call.said);
    generation->scores.clear();
    return Status::done;
}

Status Service::shift(Open &open, Call call) {
    Generation *generation = running(open, call);
    if (generation == nullptr || !open.generations->shift(*generation, call.argument(2), call.argument(3))) return Status::bad;
    call.values[0] = generation->pending();
    return Status::done;
}

Status Service::end(Open &open, Call call) {
    if (call.argument(1) >= open.model->sequences()) return Status::bad;
    open.generations->end(call.argument(1));
    return Status::done;
}

// ---- KV ---------------------------------------------------------------------------------------------------------

bool Service::is_idle(Open &open, uint64_t sequence) const {
    return sequence < open.model->sequences() && open.generations->find(sequence) == nullptr;
}

Status Service::keep(Open &open, Call call) {
    if (!is_idle(open, call.argument(1))) return Status::bad;
    Salt salt;
    size_t bytes = 0;
    const Status status = open.kv->keep(static_cast<uint32_t>(call.argument(1)), bytes, salt);
    if (status != Status::done) return status;
    call.values[0] = bytes;
    put(salt, call.said);
    return Status::done;
}

Status Service::resume(Open &open, Call call) {
    if (!is_idle(open, call.argument(1)) || call.payload.size() != salt_bytes) return Status::bad;
    const auto salt = taken<Salt>(std::string(view(call.payload)));
    return open.kv->resume(static_cast<uint32_t>(call.argument(1)), call.argument(2), salt, owner(call.request));
}
