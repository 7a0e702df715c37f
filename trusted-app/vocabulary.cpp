#include "vocabulary.h"

#include <array>

#include "llama.h"
#include "service.h"

namespace {

constexpr size_t most_words_bytes = 1 << 20;  // of one answer; a word may go beyond it

}  // namespace

std::string piece(const llama_vocab *vocabulary, llama_token token, bool control) {
    std::string text(64, '\0');
    int32_t length = llama_token_to_piece(vocabulary, token, text.data(), static_cast<int32_t>(text.size()), 0, control);
    if (length < 0) {
        text.resize(static_cast<size_t>(-length));
        length = llama_token_to_piece(vocabulary, token, text.data(), -length, 0, control);
    }
    text.resize(length < 0 ? 0 : static_cast<size_t>(length));
    return text;
}

void describe(const Model &model, const std::vector<std::byte> &key, std::vector<std::byte> &said) {
    const std::string name(reinterpret_cast<const char *>(key.data()), key.size());
    const int32_t length = llama_model_meta_val_str(model.llama(), name.c_str(), nullptr, 0);
    if (length <= 0 || static_cast<uint32_t>(length) > most_payload - 1) return;
    said.resize(static_cast<size_t>(length) + 1);
    llama_model_meta_val_str(model.llama(), name.c_str(), reinterpret_cast<char *>(said.data()), said.size());
    said.pop_back();
}

Status words(const Model &model, uint64_t first, std::vector<std::byte> &said, uint64_t (&values)[5]) {
    const llama_vocab *vocabulary = model.vocabulary();
    const auto count = static_cast<uint64_t>(llama_vocab_n_tokens(vocabulary));
    if (first > count) return Status::bad;
    for (uint64_t number = first; number < count && said.size() < most_words_bytes; number++) {
        const auto token = static_cast<llama_token>(number);
        const std::string text = piece(vocabulary, token, true);
        const Word word{static_cast<uint32_t>(llama_vocab_get_attr(vocabulary, token)),
                        llama_vocab_is_eog(vocabulary, token), static_cast<uint32_t>(text.size())};
        put(std::array<Word, 1>{word}, said);
        put(text, said);
    }
    values[0] = count;
    return Status::done;
}

void marks(const Model &model, std::vector<std::byte> &said) {
    const llama_vocab *vocabulary = model.vocabulary();
    const llama_token end = llama_vocab_eos(vocabulary), parts = llama_vocab_sep(vocabulary);
    put(std::array{llama_vocab_get_add_bos(vocabulary) ? llama_vocab_bos(vocabulary) : -1,
                   llama_vocab_get_add_eos(vocabulary) ? (end < 0 ? parts : end) : -1,
                   llama_vocab_get_add_sep(vocabulary) ? parts : -1, llama_vocab_fim_pre(vocabulary),
                   llama_vocab_fim_suf(vocabulary), llama_vocab_fim_mid(vocabulary), llama_vocab_fim_sep(vocabulary)},
        said);
}
