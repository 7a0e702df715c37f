#include "sampler.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>

#include "cipher.h"

namespace {

constexpr size_t most_biases = 1 << 14, most_breakers = 16, most_scores = 20;
constexpr int32_t mirostat_tokens = 100;  // by which the first version estimates how a text's words are spread

bool is_moderate(float value) { return std::fabs(value) <= 1e6F; }  // nor is it no number

bool is_valid(const Sampling &s) {
    float values[(offsetof(Sampling, samplers) - offsetof(Sampling, temperature)) / sizeof(float)];
    std::memcpy(values, reinterpret_cast<const char *>(&s) + offsetof(Sampling, temperature), sizeof values);
    return std::all_of(values, std::end(values), is_moderate) && s.repeat_last_n >= -1 && s.dry_penalty_last_n >= -1 &&
           s.dry_allowed_length >= 0 && s.biases <= most_biases && s.logprobs <= most_scores + 1;
}

}  // namespace

std::unique_ptr<Sampler> Sampler::make(const Model &model, const std::byte *data, size_t bytes) {
    auto sampler = std::make_unique<Sampler>();
    Sampling &s = sampler->settings_;
    if (bytes < sizeof s) return nullptr;
    std::memcpy(&s, data, sizeof s);
    if (!is_valid(s) || bytes < sizeof s + s.biases * sizeof(Score)) return nullptr;
    sampler->biases_.resize(s.biases);
    if (s.biases != 0) std::memcpy(sampler->biases_.data(), data + sizeof s, s.biases * sizeof(Score));
    const llama_vocab *vocabulary = model.vocabulary();
    for (llama_token token = 0; token < llama_vocab_n_tokens(vocabulary); token++) {
        sampler->endings_.push_back(llama_vocab_is_eog(vocabulary, token));
    }
    sampler->never_ = s.ignore_eos == 1 ? sampler->endings_ : Tokens(sampler->endings_.size());
    for (const Score &each : sampler->biases_) {
        if (each.token >= sampler->endings_.size() || !(is_moderate(each.value) || std::isinf(each.value))) return nullptr;
        if (std::isinf(each.value)) (each.value > 0 ? sampler->endings_ : sampler->never_)[each.token] = true;
    }
    std::vector<const char *> breakers;
    const char *text = reinterpret_cast<const char *>(data + sizeof s + s.biases * sizeof(Score));
    for (const char *end = reinterpret_cast<const char *>(data + bytes); text < end; text += strlen(text) + 1) {
        if (end[-1] != 0 || breakers.size() == most_breakers) return nullptr;
        breakers.push_back(text);
    }
    return sampler->build(model, std::move(breakers)) ? std::move(sampler) : nullptr;
}

// llama.cpp leaves out those that would change nothing.
bool Sampler::build(const Model &model, std::vector<const char *> breakers) {
    const Sampling &s = settings_;
    const auto words = static_cast<int32_t>(endings_.size()), context = static_cast<int32_t>(model.context_tokens());
    const auto window = [&](int32_t count) { return count < 0 ? context : std::min(count, context); };
    const int32_t repeats = window(s.repeat_last_n), dries = window(s.dry_penalty_last_n);
    uint32_t seed = s.seed;
    if (seed == UINT32_MAX) std::memcpy(&seed, random<Salt>().data(), sizeof seed);
    seed %= UINT32_MAX;  // by which llama.cpp would choose one itself
    const auto made = [&](Choice choice) -> llama_sampler * {
        switch (choice) {
            case Choice::penalties:
                return llama_sampler_init_penalties(words, repeats, s.repeat_penalty, s.frequency_penalty, s.presence_penalty);
            case Choice::dry:
                return llama_sampler_init_dry(model.vocabulary(), s.dry_multiplier, s.dry_base, s.dry_allowed_length, dries,
                                              breakers.data(), breakers.size());
            case Choice::top_n_sigma: return llama_sampler_init_top_n_sigma(s.top_n_sigma);
            case Choice::top_k: return llama_sampler_init_top_k(s.top_k);
            case Choice::typ_p: return llama_sampler_init_typical(s.typical_p, s.min_keep);
            case Choice::top_p: return llama_sampler_init_top_p(s.top_p, s.min_keep);
            case Choice::min_p: return llama_sampler_init_min_p(s.min_p, s.min_keep);
            case Choice::xtc: return llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, s.min_keep, seed);
            case Choice::temperature: return llama_sampler_init_temp_ext(s.temperature, s.dynatemp_range, s.dynatemp_exponent);
            case Choice::likeliest: return llama_sampler_init_greedy();
            case Choice::any: return llama_sampler_init_dist(seed);
            case Choice::mirostat:
                return llama_sampler_init_mirostat(words, seed, s.mirostat_tau, s.mirostat_eta, mirostat_tokens);
            case Choice::mirostat_v2: return llama_sampler_init_mirostat_v2(seed, s.mirostat_tau, s.mirostat_eta);
            default: return nullptr;
        }
    };
    chain_.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    return std::all_of(s.samplers, std::end(s.samplers), [&](Choice choice) {
        llama_sampler *part = made(choice);
        if (part != nullptr) llama_sampler_chain_add(chain_.get(), part);
        return part != nullptr || choice == Choice::none;
    });
}

llama_token Sampler::choose(const float *logits, size_t said) {
    std::vector<float> biased(logits, logits + endings_.size());
    for (const Score &each : biases_) biased[each.token] += std::isinf(each.value) ? 0 : each.value;
    const Tokens admitted = std::exchange(admitted_, {});
    const bool early = said < settings_.min_tokens;
    Tokens out = never_;
    for (size_t token = 0; early && token < out.size(); token++) out[token] = out[token] || endings_[token];
    llama_token token = draw(biased, out, {});
    if (token < 0 || admitted.empty() || admitted[static_cast<size_t>(token)]) return token;
    token = draw(biased, out, admitted);
    return token < 0 ? draw(biased, {}, admitted) : token;  // a text that is complete ends, whatever else was asked for
}

// Choose one of the tokens that are not out and, if that is said, admitted.
llama_token Sampler::draw(const std::vector<float> &logits, const Tokens &out, const Tokens &admitted) {
    left_.clear();
    for (size_t token = 0; token < logits.size(); token++) {
        if (!(logits[token] <= FLT_MAX)) return -1;  // what computes such is no model
        if ((!out.empty() && out[token]) || (!admitted.empty() && !admitted[token])) continue;
        left_.push_back({static_cast<llama_token>(token), logits[token], 0});
    }
    llama_token_data_array array{left_.data(), left_.size(), -1, false};
    for (int part = 0; part < llama_sampler_chain_n(chain_.get()); part++) {
        // Samplers sort by scores. Of what are no numbers, a sort would leave its bounds.
        const auto is_none = [](const llama_token_data &each) { return std::isnan(each.logit); };
        if (array.size == 0 || std::any_of(array.data, array.data + array.size, is_none)) return -1;
        llama_sampler_apply(llama_sampler_chain_get(chain_.get(), part), &array);
    }
    left_.resize(static_cast<size_t>(array.data - left_.data()) + array.size);
    left_.erase(left_.begin(), left_.begin() + (array.data - left_.data()));  // that a sampler left out
    if (array.selected < 0 || static_cast<size_t>(array.selected) >= array.size) return -1;
    return left_[static_cast<size_t>(array.selected)].id;
}

bool Sampler::admit(const std::vector<std::byte> &bits) {
    if (bits.size() != (endings_.size() + 7) / 8) return false;
    admitted_.clear();
    for (size_t token = 0; token < endings_.size(); token++) {
        admitted_.push_back((bits[token / 8] & std::byte{1} << token % 8) != std::byte{0});
    }
    return true;
}

void Sampler::tell(const float *logits, llama_token token, std::vector<Score> &target) const {
    if (settings_.logprobs == 0) return;
    const bool is_of_all = settings_.after_samplers != 1 || left_.empty();
    std::vector<llama_token_data> all = is_of_all ? decltype(left_){} : left_;
    for (llama_token each = 0; is_of_all && all.size() < endings_.size(); each++) all.push_back({each, logits[each], 0});
    const auto is_likelier = [](const auto &a, const auto &b) { return std::tie(b.logit, a.id) < std::tie(a.logit, b.id); };
    const auto end = all.begin() + static_cast<ptrdiff_t>(std::min<size_t>(settings_.logprobs, all.size()));
    std::partial_sort(all.begin(), end, all.end(), is_likelier);
    double sum = 0;
    for (const llama_token_data &each : all) sum += std::exp(static_cast<double>(each.logit) - all[0].logit);
    const double whole = all[0].logit + std::log(sum);
    all.insert(all.begin(), *std::find_if(all.begin(), all.end(), [&](const auto &each) { return each.id == token; }));
    all.resize(settings_.logprobs, {-1, 0, 0});
    for (const auto &each : all) target.push_back({static_cast<uint32_t>(each.id), static_cast<float>(each.logit - whole)});
}
