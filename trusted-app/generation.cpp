#include "generation.h"

#include <algorithm>

Generations::Generations(Model &model)
    : model_(model), batch_(llama_batch_init(static_cast<int32_t>(batch_tokens), 0, 1)) {}

Generations::~Generations() {
    while (!running_.empty()) end(running_.begin()->first);
    llama_batch_free(batch_);
}

void Generations::begin(uint32_t sequence, std::vector<llama_token> prompt, size_t most, float temperature, uint32_t seed) {
    Generation &generation = running_[sequence];
    const std::vector<llama_token> &has = cached_[sequence];
    const auto differs = std::mismatch(has.begin(), has.end(), prompt.begin(), prompt.end()).first;
    const size_t same = std::min(static_cast<size_t>(differs - has.begin()), prompt.size() - 1);  // logits need a token
    generation.computed = model_.cut(sequence, same, has.size());
    generation.prompt = prompt.size();
    generation.tokens = std::move(prompt);
    generation.most = most;
    generation.sampler = llama_sampler_chain_init(llama_sampler_chain_default_params());
    if (temperature > 0) {
        llama_sampler_chain_add(generation.sampler, llama_sampler_init_temp(temperature));
        llama_sampler_chain_add(generation.sampler, llama_sampler_init_dist(seed));
    } else {
        llama_sampler_chain_add(generation.sampler, llama_sampler_init_greedy());
    }
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
    const llama_token token = llama_sampler_sample(generation.sampler, model_.context(), row);
    if (llama_vocab_is_eog(model_.vocabulary(), token)) {
        generation.finished = Finish::stop;
        return;
    }
    generation.tokens.push_back(token);
    if (generation.said() >= generation.most || generation.tokens.size() >= model_.context_tokens()) {
        generation.finished = Finish::length;
    }
}

void Generations::end(uint32_t sequence) {
    const auto found = running_.find(sequence);
    if (found == running_.end()) return;
    Generation &generation = found->second;
    llama_sampler_free(generation.sampler);
    generation.tokens.resize(generation.computed);
    cached_[sequence] = std::move(generation.tokens);
    running_.erase(found);
}
