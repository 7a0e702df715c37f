// llama.cpp as its own programs use it:
// `plain MODEL THREADS say TOKENS PROMPT` prints the greedy tokens, one in a line, and then their pace to standard error;
// `plain MODEL THREADS score COUNT TOKEN…` takes COUNT tokens in, and then the others one by one, and writes the scores behind
// each of these graphs as floats; `plain MODEL THREADS each COUNT TOKEN…` takes all tokens in, COUNT in a graph, and
// writes the scores behind each of them; `plain MODEL THREADS embed POOLING TOKEN…` writes the vector of a text.
// KV_TYPE in the environment is the ggml_type of its KV.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "llama.h"

static void say_nothing(ggml_log_level, const char *, void *) {}

static void put(const float *values, int count) { fwrite(values, sizeof *values, (size_t)count, stdout); }

static int say(llama_context *context, const llama_vocab *vocabulary, int most, const char *text) {
    std::vector<llama_token> tokens(strlen(text) + 16);
    const int prompt = llama_tokenize(vocabulary, text, (int)strlen(text), tokens.data(), (int)tokens.size(), true, true);
    if (prompt < 1) return 1;
    llama_sampler *sampler = llama_sampler_init_greedy();
    llama_batch batch = llama_batch_get_one(tokens.data(), prompt);
    const auto began = std::chrono::steady_clock::now();
    int said = 0;
    for (; said < most; said++) {
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

static int score(llama_context *context, const llama_vocab *vocabulary, int count, std::vector<llama_token> tokens) {
    for (int taken = 0; taken < (int)tokens.size(); taken += count, count = 1) {
        if (llama_decode(context, llama_batch_get_one(&tokens[(size_t)taken], count)) != 0) return 1;
        put(llama_get_logits_ith(context, -1), llama_vocab_n_tokens(vocabulary));
    }
    return 0;
}

static int each(llama_context *context, const llama_vocab *vocabulary, int count, std::vector<llama_token> tokens) {
    llama_batch batch = llama_batch_init(count, 0, 1);
    for (int taken = 0; taken < (int)tokens.size(); taken += count) {
        batch.n_tokens = 0;
        for (; batch.n_tokens < count && taken + batch.n_tokens < (int)tokens.size(); batch.n_tokens++) {
            batch.token[batch.n_tokens] = tokens[(size_t)(taken + batch.n_tokens)];
            batch.pos[batch.n_tokens] = taken + batch.n_tokens;
            batch.n_seq_id[batch.n_tokens] = 1;
            batch.seq_id[batch.n_tokens][0] = 0;
            batch.logits[batch.n_tokens] = 1;
        }
        if (llama_decode(context, batch) != 0) return 1;
        for (int row = 0; row < batch.n_tokens; row++) {
            put(llama_get_logits_ith(context, row), llama_vocab_n_tokens(vocabulary));
        }
    }
    return 0;
}

static int embed(llama_context *context, const llama_model *model, std::vector<llama_token> tokens) {
    const llama_batch batch = llama_batch_get_one(tokens.data(), (int)tokens.size());
    if ((llama_model_has_encoder(model) ? llama_encode : llama_decode)(context, batch) != 0) return 1;
    const bool ranks = llama_pooling_type(context) == LLAMA_POOLING_TYPE_RANK;
    put(llama_get_embeddings_seq(context, 0), ranks ? 1 : llama_model_n_embd_out(model));
    return 0;
}

int main(int count, char **words) {
    if (count < 6) return 2;
    llama_log_set(say_nothing, nullptr);
    llama_model *model = llama_model_load_from_file(words[1], llama_model_default_params());
    if (model == nullptr) return 1;
    const bool embeds = strcmp(words[3], "embed") == 0;
    const int number = atoi(words[4]);
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = 1024;
    parameters.n_batch = parameters.n_ubatch = 512;
    parameters.n_threads = parameters.n_threads_batch = atoi(words[2]);
    parameters.embeddings = embeds;
    if (const char *type = getenv("KV_TYPE")) parameters.type_k = parameters.type_v = (ggml_type)atoi(type);
    if (embeds) parameters.pooling_type = (enum llama_pooling_type)number;
    llama_context *context = llama_init_from_model(model, parameters);
    if (context == nullptr) return 1;
    if (strcmp(words[3], "say") == 0) return say(context, llama_model_get_vocab(model), number, words[5]);
    std::vector<llama_token> tokens;
    for (int word = 5; word < count; word++) tokens.push_back(atoi(words[word]));
    if (strcmp(words[3], "each") == 0) return each(context, llama_model_get_vocab(model), number, tokens);
    return embeds ? embed(context, model, tokens) : score(context, llama_model_get_vocab(model), number, tokens);
}
