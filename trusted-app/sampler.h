// Choosing the next token: llama.cpp's own samplers, as trusted/engine/sampler.py has them.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "engine.h"
#include "messages.h"

class Sampler {
   public:
    // As a message says: a Sampling, and its lists. Null: it is none. Takes up to some tenths of a second.
    static std::unique_ptr<Sampler> make(const Model &model, const std::byte *data, size_t bytes);

    // The next token. `logits` are those of the whole vocabulary; `said` tokens were said. Negative: none can come.
    llama_token choose(const float *logits, size_t said);

    // Go on behind a token, of the prompt or of the answer.
    void accept(llama_token token) { llama_sampler_accept(chain_.get(), token); }

    bool tells_prompt() const { return settings_.prompt == 1; }

    // Whether a token ends an answer.
    bool ends(llama_token token) const { return endings_[static_cast<size_t>(token)]; }

    // Have the next token be one of these: a bit for each of the vocabulary, the lowest first. False: they are not so many.
    bool admit(const std::vector<std::byte> &bits);

    // Add what was asked for of the token that was chosen last, or of one of the prompt: its log-probability, and the likeliest ones.
    void tell(const float *logits, llama_token token, std::vector<Score> &target) const;

   private:
    using Tokens = std::vector<bool>;  // of the vocabulary
    bool build(const Model &model, std::vector<const char *> breakers);
    llama_token draw(const std::vector<float> &logits, const Tokens &out, const Tokens &admitted);

    Sampling settings_;
    std::unique_ptr<llama_sampler, decltype(&llama_sampler_free)> chain_{nullptr, llama_sampler_free};
    std::vector<Score> biases_;
    Tokens endings_, never_, admitted_;
    std::vector<llama_token_data> left_;  // of the last draw
};
