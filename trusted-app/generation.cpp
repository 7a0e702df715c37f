#include "generation.h"

#include <algorithm>

Generations::Generations(Model &model)
    : model_(model), batch_(llama_batch_init(static_cast<int32_t>(batch_tokens), 0, 1)) {}

Generations::~Generations() {
    while (!running_.empty()) end(running_.begin()->first);
    llama_batch_free(batch_);
}

void Generations::begin(uint32_t sequence, const Owner &owner, std::vector<llama_token> prompt, size_t most) {
    Generation generation;
    const Cached &has = cached_[sequence];
    const auto differs = std::mismatch(has.tokens.begin(), has.tokens.end(), prompt.begin(), prompt.end()).first;
    const size_t same = has.owner == owner ? static_cast<size_t>(differs - has.tokens.begin()) : 0;
    const Sampling usual;
    generation.sampler = Sampler::make(model_, reinterpret_cast<const std::byte *>(&usual), sizeof usual);
    generation.computed = model_.cut(sequence, std::min(same, prompt.size() - 1), has.tokens.size());  // logits need a token
    generation.prompt = prompt.size();
    generation.tokens = std::move(prompt);
    generation.most = most;
    generation.owner = owner;
    running_[sequence] = std::move(generation);
}

bool Generations::choose_by(uint32_t sequence, std::string_view settings) {
    Generation &generation = running_.at(sequence);
    auto sampler = Sampler::make(model_, reinterpret_cast<const std::byte *>(settings.data()), settings.size());
    if (sampler == nullptr) return false;
    for (const llama_token token : generation.tokens) sampler->accept(token);
    generation.sampler = std::move(sampler);
    return true;
}

int Generations::step(const std::vector<uint32_t> &sequences, size_t limit) {
    struct Part {
        Generation *generation;
        size_t count;
        int32_t row;
    };
    std::vector<Part> parts;
    size_t room = std::min<size_t>(batch_tokens, llama_n_batch(model_.context()));
    batch_.n_tokens = 0;
    for (size_t place = 0; place < sequences.size(); place++) {
        Generation &generation = running_.at(sequences[place]);
        const size_t others = sequences.size() - place - 1;  // each of them gets a token at least
        const size_t count = std::min({generation.pending(), limit, room - others});
        for (size_t token = 0; token < count; token++) {
            const int32_t row = batch_.n_tokens++;
            batch_.token[row] = generation.tokens[generation.computed + token];
            batch_.pos[row] = static_cast<llama_pos>(generation.computed + token);
            batch_.n_seq_id[row] = 1;
            batch_.seq_id[row][0] = static_cast<llama_seq_id>(sequences[place]);
            batch_.logits[row] = token + 1 == count;
        }
        room -= count;
        parts.push_back({&generation, count, batch_.n_tokens - 1});
    }
    const int status = model_.decode(batch_);
    if (status != 0) return status;
    for (const Part &part : parts) {
        part.generation->computed += part.count;
        if (part.generation->pending() == 0) choose(*part.generation, part.row);
    }
    return 0;
}

void Generations::choose(Generation &generation, int32_t row) {
    const float *logits = llama_get_logits_ith(model_.context(), row);
    const llama_token token = logits == nullptr ? -1 : generation.sampler->choose(logits, generation.said());
    if (token < 0 || generation.sampler->ends(token)) {
        generation.finished = token < 0 ? Finish::stuck : Finish::stop;
        return;
    }
    generation.sampler->accept(token);
    generation.sampler->tell(logits, token, generation.scores);
    generation.tokens.push_back(token);
    if (generation.said() >= generation.most || generation.tokens.size() >= model_.context_tokens()) {
        generation.finished = Finish::length;
    }
}

void Generations::end(uint32_t sequence) {
    const auto found = running_.find(sequence);
    if (found == running_.end()) return;
    Generation &generation = found->second;
    generation.tokens.resize(generation.computed);
    cached_[sequence] = {generation.owner, std::move(generation.tokens)};
    running_.erase(found);
}
