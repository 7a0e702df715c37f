// Conversations on a model: prompts are taken in, and tokens are chosen, one for each step.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "engine.h"
#include "messages.h"

// What one sequence of a model says.
struct Generation {
    std::vector<llama_token> tokens;  // of the prompt, and what was said
    size_t prompt = 0;                // tokens of the prompt
    size_t computed = 0;              // tokens whose KV is there
    size_t taken = 0;                 // tokens said that were given out
    size_t most = 0;                  // tokens to say at most
    llama_sampler *sampler = nullptr;
    Finish finished = Finish::no;

    size_t said() const { return tokens.size() - prompt; }
    size_t pending() const { return tokens.size() - computed; }
};

class Generations {
   public:
    explicit Generations(Model &model);
    ~Generations();
    Generations(const Generations &) = delete;

    bool has(uint32_t sequence) const { return running_.count(sequence) != 0; }
    bool empty() const { return running_.empty(); }
    Generation &at(uint32_t sequence) { return running_.at(sequence); }

    // Tokens whose KV a sequence that says nothing has.
    const std::vector<llama_token> &cached(uint32_t sequence) { return cached_[sequence]; }
    void set_cached(uint32_t sequence, std::vector<llama_token> tokens) { cached_[sequence] = std::move(tokens); }
    void forget_cached() { cached_.clear(); }  // their KV has gone

    // Begin to say up to `most` tokens after a prompt that is shorter than the context. Temperature 0: the likeliest.
    // What the sequence's KV has of the prompt stays.
    void begin(uint32_t sequence, std::vector<llama_token> prompt, size_t most, float temperature, uint32_t seed);

    // Compute one graph, with at most `limit` tokens of each of these sequences, each of which is named once and goes on.
    // Then each of which nothing is pending says a token. What Model::decode answers.
    int step(const std::vector<uint32_t> &sequences, size_t limit);

    void end(uint32_t sequence);  // its KV stays

   private:
    void choose(Generation &generation, int32_t row);

    Model &model_;
    llama_batch batch_;
    std::map<uint32_t, Generation> running_;
    std::map<uint32_t, std::vector<llama_token>> cached_;
};
