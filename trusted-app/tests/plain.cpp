// llama.cpp as its own programs use it: `plain MODEL THREADS TOKENS PROMPT` prints the greedy tokens, one in a line, and
// then their pace to standard error.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "llama.h"

static void say_nothing(ggml_log_level, const char *, void *) {}

int main(int count, char **words) {
    if (count != 5) return 2;
    llama_log_set(say_nothing, nullptr);
    llama_model *model = llama_model_load_from_file(words[1], llama_model_default_params());
    if (model == nullptr) return 1;
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = 1024;
    parameters.n_batch = parameters.n_ubatch = 512;
    parameters.n_threads = parameters.n_threads_batch = atoi(words[2]);
    llama_context *context = llama_init_from_model(model, parameters);
    if (context == nullptr) return 1;
    const llama_vocab *vocabulary = llama_model_get_vocab(model);
    std::vector<llama_token> tokens(strlen(words[4]) + 16);
    const int prompt = llama_tokenize(vocabulary, words[4], (int)strlen(words[4]), tokens.data(), (int)tokens.size(), true, true);
    if (prompt < 1) return 1;
    llama_sampler *sampler = llama_sampler_init_greedy();
    llama_batch batch = llama_batch_get_one(tokens.data(), prompt);
    const auto began = std::chrono::steady_clock::now();
    int said = 0;
    for (const int most = atoi(words[3]); said < most; said++) {
        if (llama_decode(context, batch) != 0) return 1;
        llama_token token = llama_sampler_sample(sampler, context, -1);
        if (llama_vocab_is_eog(vocabulary, token)) break;
        printf("%d\n", token);
        tokens[0] = token;
        batch = llama_batch_get_one(tokens.data(), 1);
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    fprintf(stderr, "%.1f tokens/s\n", said / seconds);
    return 0;
}
