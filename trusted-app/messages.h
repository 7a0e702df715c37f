// The messages between the normal world and the trusted application. Both take the other for hostile.
//
// A request is a Request and `bytes` of payload; its answer is an Answer and a payload. All numbers are little-endian.
// One request is under way at a time. tests/trusted_app/messages.py has the same in Python.
#pragma once

#include <cstdint>

constexpr uint64_t protocol_version = 1;
constexpr uint32_t most_payload = 16 << 20;  // bytes

struct Request {
    uint32_t kind;
    uint32_t bytes;
    uint64_t arguments[6];
};

struct Answer {
    uint32_t status;
    uint32_t bytes;
    uint64_t values[6];
};

// What is asked. Beside each: arguments and payload → values and payload. Memory is in chunks.
enum class Ask : uint32_t {
    hello = 1,       // threads → version, bytes of a chunk, tokens of a batch, 1 inside the secure OS
    grant = 2,       // first page, chunks: they may be used from here on
    give_back = 3,   // → first page of a chunk that is not used any more; refused: there is none
    pool = 4,        // → chunks granted and unused
    open = 5,        // model, bytes of the file, context, sequences; GGUF up to its data
                     // → chunks of weights, of KV, of scratch; weights (tensors); context
    close = 6,       // model
    weight = 7,      // model, number → bytes, first chunk, end chunk; name
    write = 8,       // model, number, offset; a piece of the weight as the GGUF has it, from its first to its last. With the
                     // last one its chunks get memory
    read = 9,        // model, chunk → its contents as they are in memory
    load = 10,       // model, chunk; its contents. It gets memory
    evict = 11,      // model, kind, first chunk, end chunk (of weights; of other kinds all go) → chunks that went
    resident = 12,   // model → chunks of scratch, KV, weights; a byte for each chunk of weights, 1: it is there
    tokenise = 13,   // model, 1: control tokens by name; text → tokens (u32 each)
    detokenise = 14, // model; tokens → text
    begin = 15,      // model, sequence, tokens to say at most, bits of a float: temperature, seed; tokens of the prompt
    step = 16,       // model, tokens of each sequence at most; sequences (u32 each) → a Progress for each
    said = 17,       // model, sequence → tokens said since the last time
    end = 18,        // model, sequence: it is forgotten
};

enum class Status : uint32_t {
    done = 0,
    refused = 1,      // memory is missing: values[0] chunks more have to be granted. All is as it was
    missing = 2,      // values[0] chunks of weights are missing. All is as it was
    bad = 3,          // the request is none, or not for now. All is as it was
    unsupported = 4,  // llama.cpp cannot open this
    failed = 5,       // llama.cpp could not compute
};

struct Progress {
    uint32_t sequence;
    uint32_t pending;   // tokens to compute before the next one can be chosen
    uint32_t said;      // tokens said so far
    uint32_t finished;  // Finish
};

enum class Finish : uint32_t { no = 0, stop = 1, length = 2 };
