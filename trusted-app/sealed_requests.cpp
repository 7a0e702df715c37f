// Requests that only this application reads: what the normal world does with them, by numbers.
#include "notation.h"
#include "secure_os.h"
#include "service.h"
#include "vocabulary.h"

namespace {

constexpr size_t most_sessions = 64;

// What prompts are rendered by: the chat template, and the texts of control tokens and of those that the file declares.
std::string shape(const Model &model) {
    const llama_vocab *vocabulary = model.vocabulary();
    std::string said = llama_model_chat_template(model.llama(), nullptr) ?: "";
    constexpr int added = LLAMA_TOKEN_ATTR_UNKNOWN | LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED;
    for (llama_token each = 0; each < llama_vocab_n_tokens(vocabulary); each++) {
        if ((llama_vocab_get_attr(vocabulary, each) & added) != 0) said += '\0' + piece(vocabulary, each, true);
    }
    return said;
}

}  // namespace

Status Service::about_sealed(Call call) {
    const std::string_view data = view(call.payload);
    if (!sessions_) return Status::bad;
    const auto found = opened_.find(call.argument(0));
    switch (static_cast<Ask>(call.request.kind)) {
        case Ask::attest: {
            const uint64_t bytes = call.argument(1);
            if (bytes < 8 || bytes > 64 || bytes > data.size() || secure_os::inside() != secure_os::isolated()) return Status::bad;
            put(sessions_->attest(call.argument(0), data.substr(0, bytes), data.substr(bytes)), call.said);
            return Status::done;
        }
        case Ask::know: return sessions_->know(data, call.argument(0) == 1) ? Status::done : Status::damaged;
        case Ask::unseal: return unseal(call);
        case Ask::frame:
            if (found == opened_.end() || hear(*found->second) == nullptr) return Status::bad;
            put(found->second->answer.frame(), call.said);
            return Status::done;
        default: return found == opened_.end() ? Status::bad : finish(*found->second, call);
    }
}

Status Service::unseal(Call call) {
    if (opened_.size() == most_sessions) return Status::busy;
    std::unique_ptr<Session> session = sessions_->open(view(call.payload));
    if (session == nullptr) return Status::damaged;
    if (session->most != 0) {
        const auto found = models_.find(call.argument(0));
        if (found == models_.end()) return Status::damaged;
        session->gguf = sessions_->digest_of(found->second.image->id(), session->model);
        if (session->gguf.empty()) return Status::damaged;
        const Model &model = *found->second.model;
        if (session->shape != Salt{} && session->shape != digest(shape(model))) return Status::damaged;
        session->id = found->second.image->id();
        for (size_t part = 0; part < session->parts.size(); part++) {
            const bool start = part == 0 && session->start;
            if (!tokens(model, session->parts[part], start, part % 2 == 0, session->prompt)) return Status::failed;
        }
    }
    session->number = ++last_session_;
    call.answer({session->number, session->prompt.size(), session->most});
    std::memcpy(call.values + 3, session->owner.data(), sizeof session->owner);
    put(session->answer.nonce(), call.said);
    put(session->told, call.said);
    opened_[session->number] = std::move(session);
    return Status::done;
}

Status Service::begin_sealed(Open &open, Call call) {
    const auto found = opened_.find(call.argument(2));
    if (found == opened_.end() || !is_idle(open, call.argument(1))) return Status::bad;
    Session &session = *found->second;
    const size_t tokens = session.prompt.size();
    if (session.begun || session.id != open.image->id() || session.most == 0) return Status::bad;
    if (tokens == 0 || tokens >= open.model->context_tokens() || !open.model->generates()) return Status::bad;
    session.model_number = call.argument(0);
    session.sequence = static_cast<uint32_t>(call.argument(1));
    Generation &generation = open.generations->begin(session.sequence, session.owner, session.prompt, session.most);
    generation.session = session.number;
    if (!session.sampling.empty() && !open.generations->choose_by(generation, session.sampling)) {
        open.generations->end(session.sequence);
        return Status::bad;
    }
    session.begun = true;
    session.cached = generation.computed;
    session.answer.add(msgpack::message("Started", 2) + msgpack::field("prompt_tokens", tokens) +
                       msgpack::field("cached_tokens", session.cached));
    call.values[0] = generation.pending();
    return Status::done;
}

Generation *Service::hear(Session &session) {
    const auto found = models_.find(session.model_number);
    if (!session.begun || found == models_.end()) return nullptr;
    Generation *generation = found->second.generations->find(session.sequence);
    if (generation == nullptr || generation->session != session.number) return nullptr;  // another request has the sequence
    const size_t tokens = generation->tokens.size() - generation->told;
    std::string text;
    while (generation->told < generation->tokens.size()) {
        text += piece(found->second.model->vocabulary(), generation->tokens[generation->told++], false);
    }
    generation->scores.clear();
    session.text += text;
    session.answer.add(msgpack::message("Pieces", 2) + msgpack::text("data") + msgpack::bytes(text) +
                       msgpack::field("tokens", tokens));
    return generation;
}

Status Service::finish(Session &session, Call call) {
    const Generation *generation = hear(session);
    const bool whole = generation != nullptr && generation->finished != Finish::no;
    const std::string answer(view(call.payload));
    if (whole) {
        using namespace msgpack;
        const size_t said = generation->said;
        const std::string_view reason = generation->finished == Finish::stop ? "stop" : "length";
        session.answer.add(message("Receipt", 1) + text("signed") + bytes(sessions_->receipt(session, said, reason)));
        session.answer.add(message("Finished", 3) + text("reason") + text(reason) + text("usage") + map(3) +
                           field("prompt_tokens", session.prompt.size()) + field("completion_tokens", said) +
                           field("cached_tokens", session.cached) + text("timings") + map(0));
    } else if (!answer.empty()) {
        if (session.most == 0) session.answer.add_all(answer);
        if (session.most != 0) session.answer.add(msgpack::message("Failed", 1) + msgpack::text("failure") + answer);
    }
    if (whole || !answer.empty()) put(session.answer.end(), call.said);
    opened_.erase(session.number);
    return Status::done;
}
