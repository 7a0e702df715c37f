// Conversations on a model: prompts are taken in, and tokens are chosen, one for each step.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "cipher.h"
#include "engine.h"
#include "messages.h"
#include "sampler.h"

using Owner = Id;  // of KV: any bytes, by which nobody else's are taken for one's own

// Those of sealed requests are marked.
inline bool is_of_sealed(const Owner &owner) { return owner.back() >> 7 != 0; }

// Tokens whose KV a sequence has that says nothing, and whose it is.
struct Cached {
    Owner owner{};
    std::vector<llama_token> tokens;
};

// What one sequence of a model says.
struct Generation {
    std::vector<llama_token> tokens;  // of the prompt, and what was said
    size_t prompt = 0;                // tokens of the prompt
    size_t computed = 0;              // tokens whose KV is there
    size_t taken = 0;                 // tokens said that were given out
    size_t most = 0;                  // tokens to say at most
    Owner owner{};
    uint64_t session = 0;  // the sealed request that it answers; 0: none
    std::unique_ptr<Sampler> sampler;
    std::vector<Score> scores;  // of tokens said, until they are given out
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

    Cached &cached(uint32_t sequence) { return cached_[sequence]; }
    void forget_cached() { cached_.clear(); }  // their KV has gone

    // Begin to say up to `most` tokens, the likeliest ones, after a prompt that is shorter than the context. What the
    // sequence's KV has of the prompt stays, if it is this owner's.
    void begin(uint32_t sequence, const Owner &owner, std::vector<llama_token> prompt, size_t most);

    // Choose the tokens of a sequence that has said nothing yet as a payload says. False: it says nothing that is right.
    bool choose_by(uint32_t sequence, std::string_view settings);

    // Compute one graph, with at most `limit` tokens of each of these sequences, each of which is named once and goes on.
    // Then each of which nothing is pending says a token. What Model::decode answers.
    int step(const std::vector<uint32_t> &sequences, size_t limit);

    void end(uint32_t sequence);  // its KV stays

   private:
    void choose(Generation &generation, int32_t row);

    Model &model_;
    llama_batch batch_;
    std::map<uint32_t, Generation> running_;
    std::map<uint32_t, Cached> cached_;
};
