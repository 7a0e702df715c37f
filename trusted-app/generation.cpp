#include "generation.h"

#include <algorithm>

Generations::Generations(Model &model)
    : model_(model), batch_(llama_batch_init(static_cast<int32_t>(batch_tokens), 0, 1)) {}

Generations::~Generations() {
    while (!running_.empty()) end(running_.begin()->first);
    llama_batch_free(batch_);
}

Generation *Generations::find(uint64_t sequence) {
    const auto found = running_.find(sequence);
    return found == running_.end() ? nullptr : &found->second;
}

Generation &Generations::begin(uint32_t sequence, const Owner &owner, std::vector<llama_token> prompt, size_t most) {
    Generation generation;
    generation.sequence = sequence;
    const Cached &has = cached_[sequence];
    const auto differs = std::mismatch(has.tokens.begin(), has.tokens.end(), prompt.begin(), prompt.end()).first;
    const size_t same = has.owner == owner ? static_cast<size_t>(differs - has.tokens.begin()) : 0;
    const Sampling usual;
    generation.sampler = Sampler::make(model_, reinterpret_cast<const std::byte *>(&usual), sizeof usual);
    generation.computed = model_.cut(sequence, std::min(same, prompt.size() - 1), has.tokens.size());  // logits need a token
    generation.told = prompt.size();
    generation.tokens = std::move(prompt);
    generation.most = most;
    generation.owner = owner;
    return running_[sequence] = std::move(generation);
}

bool Generations::choose_by(Generation &generation, std::string_view settings) const {
    auto sampler = Sampler::make(model_, reinterpret_cast<const std::byte *>(settings.data()), settings.size());
    if (sampler == nullptr) return false;
    for (const llama_token token : generation.tokens) sampler->accept(token);
    generation.sampler = std::move(sampler);
    return true;
}

int Generations::step(const std::vector<uint32_t> &sequences, size_t limit) {
    size_t room = std::min<size_t>(batch_tokens, llama_n_batch(model_.context())), outputs = model_.outputs();
    batch_.n_tokens = 0;
    for (size_t place = 0; place < sequences.size(); place++) {
        const Generation &generation = running_.at(sequences[place]);
        const size_t others = sequences.size() - place - 1;  // each of them gets a token at least
        const bool tells = generation.told <= generation.computed + 1;  // what comes behind each of the tokens
        const size_t count = std::min({generation.pending(), limit, room - others, tells ? outputs - others : room});
        for (size_t token = 0; token < count; token++) {
            const int32_t row = batch_.n_tokens++;
            batch_.token[row] = generation.tokens[generation.computed + token];
            batch_.pos[row] = static_cast<llama_pos>(generation.computed + token);
            batch_.n_seq_id[row] = 1;
            batch_.seq_id[row][0] = static_cast<llama_seq_id>(sequences[place]);
            batch_.logits[row] = tells || token + 1 == count;
        }
        room -= count;
        outputs -= tells ? count : 1;
    }
    const int status = model_.decode(batch_);
    if (status != 0) return status;
    for (int32_t row = 0; row < batch_.n_tokens; row++) {
        Generation &generation = running_.at(static_cast<uint32_t>(batch_.seq_id[row][0]));
        const float *logits = batch_.logits[row] ? llama_get_logits_ith(model_.context(), row) : nullptr;
        const size_t next = ++generation.computed;
        if (generation.pending() == 0) {
            choose(generation, logits);
        } else if (logits != nullptr && generation.told <= next) {
            generation.sampler->tell(logits, generation.tokens[next], generation.scores);
        }
    }
    return 0;
}

void Generations::choose(Generation &generation, const float *logits) {
    const llama_token token = logits == nullptr ? -1 : generation.sampler->choose(logits, generation.said);
    if (token < 0 || generation.sampler->ends(token)) {
        generation.finished = token < 0 ? Finish::stuck : Finish::stop;
        return;
    }
    generation.sampler->accept(token);
    generation.sampler->tell(logits, token, generation.scores);
    generation.tokens.push_back(token);
    if (++generation.said >= generation.most || generation.tokens.size() >= model_.context_tokens()) {
        generation.finished = Finish::length;
    }
}

bool Generations::shift(Generation &generation, size_t first, size_t end) const {
    std::vector<llama_token> &tokens = generation.tokens;
    if (generation.finished != Finish::length || generation.told < tokens.size()) return false;
    if (first >= end || end >= tokens.size()) return false;
    generation.computed = model_.cut(generation.sequence, std::min(first, generation.computed), generation.computed);
    tokens.erase(tokens.begin() + static_cast<ptrdiff_t>(first), tokens.begin() + static_cast<ptrdiff_t>(end));
    generation.told = tokens.size();
    generation.finished = Finish::no;
    return true;
}

void Generations::end(uint64_t sequence) {
    const auto found = running_.find(sequence);
    if (found == running_.end()) return;
    Generation &generation = found->second;
    generation.tokens.resize(generation.computed);
    cached_[sequence] = {generation.owner, std::move(generation.tokens)};
    running_.erase(found);
}
