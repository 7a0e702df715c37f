// Conversations on a model: prompts are taken in, and tokens are chosen, one for each step.
#pragma once

#include <algorithm>
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
    uint32_t sequence = 0;
    std::vector<llama_token> tokens;  // of the prompt, and what was said
    size_t computed = 0;              // tokens whose KV is there
    size_t told = 0;                  // tokens that were given out, or are not to be
    size_t said = 0, most = 0;        // tokens said, and to say at most
    Owner owner{};
    uint64_t session = 0;  // the sealed request that it answers; 0: none
    std::unique_ptr<Sampler> sampler;
    std::vector<Score> scores;  // of tokens that are to be given out
    Finish finished = Finish::no;

    size_t pending() const { return tokens.size() - computed; }
    size_t heard() const { return std::min(computed + 1, tokens.size()); }  // tokens that can be given out
};

class Generations {
   public:
    explicit Generations(Model &model);
    ~Generations();
    Generations(const Generations &) = delete;

    bool empty() const { return running_.empty(); }
    Generation *find(uint64_t sequence);  // null: it says nothing

    Cached &cached(uint64_t sequence) { return cached_[sequence]; }
    void forget_cached() { cached_.clear(); }  // their KV has gone

    // Begin to say up to `most` tokens, the likeliest ones, after a prompt that is shorter than the context. What the
    // sequence's KV has of the prompt stays, if it is this owner's.
    Generation &begin(uint32_t sequence, const Owner &owner, std::vector<llama_token> prompt, size_t most);

    // Choose the tokens of one that has said nothing yet as a payload says. False: it says nothing that is right.
    bool choose_by(Generation &generation, std::string_view settings) const;

    // Compute one graph, with at most `limit` tokens of each of these sequences, each of which is named once and goes on.
    // Then each of which nothing is pending says a token. What Model::decode answers.
    int step(const std::vector<uint32_t> &sequences, size_t limit);

    // Have the tokens from `first` to before `end` go, and those behind computed anew, of one that has told all and that ended
    // since the context is full. False: it is none such, or they are none of the tokens before the last one.
    bool shift(Generation &generation, size_t first, size_t end) const;

    void end(uint64_t sequence);  // its KV stays

   private:
    void choose(Generation &generation, const float *logits);  // null: there are none

    Model &model_;
    llama_batch batch_;
    std::map<uint64_t, Generation> running_;
    std::map<uint64_t, Cached> cached_;
};
