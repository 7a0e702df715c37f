// What of a model the normal world renders templates and shows tokens by: its metadata and its vocabulary. No weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine.h"
#include "messages.h"

// What a token stands for: with `control`, those of control by name; without, those stand for nothing.
std::string piece(const llama_vocab *vocabulary, llama_token token, bool control);

// The value of a key of the metadata, as text; nothing, where there is none or it is a list.
void describe(const Model &model, const std::vector<std::byte> &key, std::vector<std::byte> &said);

// Tokens that mark a text where it is cut into tokens.
void marks(const Model &model, std::vector<std::byte> &said);

// Words from `first` on, as many as one answer takes, and how many there are.
Status words(const Model &model, uint64_t first, std::vector<std::byte> &said, uint64_t (&values)[5]);
