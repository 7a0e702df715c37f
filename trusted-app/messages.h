// The messages between the normal world and the trusted application. Both take the other for hostile.
//
// A request is a Request and `bytes` of payload; its answer, with the same tag, is an Answer and a payload. All numbers are
// little-endian. Answers come in the order of requests, but for a step: between two slices of its graph, what was asked
// meanwhile is answered, if it is about memory; if not, it is refused as `busy`.
#pragma once

#include <cstdint>

constexpr uint64_t protocol_version = 1;
constexpr uint32_t most_payload = 16 << 20;  // bytes

struct Request {
    uint32_t kind;
    uint32_t bytes;
    uint64_t tag;
    uint64_t arguments[5];
};

struct Answer {
    uint32_t status;
    uint32_t bytes;
    uint64_t tag;
    uint64_t values[5];
};

// What is asked. Beside each: arguments; payload → values; payload. Memory is in chunks of chunk_bytes.
enum class Ask : uint32_t {
    hello = 1,        // threads → version, bytes of a chunk, tokens of a batch, 1 inside the secure OS
    grant = 2,        // more chunks, fewer than which are of no use: the OS is asked → chunks granted and unused
    give_back = 3,    // chunks at most, of the unused ones → chunks that went back to the OS
    pool = 4,         // → chunks granted and unused
    secret = 5,       // once, where no secure OS has it: the device's root secret
    open = 6,         // model, bytes of the GGUF, context, sequences, bytes of its metadata; Sealed, and the chunks of the
                      // .flex file that have the metadata, each with its tag
                      // → chunks of weights, of KV, of scratch; weights; context
    close = 7,        // model
    write = 8,        // model, number; chunk of the .flex file with its tag, the next one
    seal = 9,         // model, chunk → the image's salt in four values; the chunk, sealed, with its tag
    image = 10,       // model; salt: chunks are loaded from this image from here on
    load = 11,        // model, chunk; sealed, with its tag
    evict = 12,       // model, kind, first chunk, end chunk (of weights; of other kinds all go) → chunks that went
    resident = 13,    // model → chunks of scratch, KV, weights; a byte for each chunk of weights, 1: it is whole
    tokenise = 14,    // model, 1: control tokens by name, 1: it does not begin a sequence; text → tokens (u32 each)
    detokenise = 15,  // model; tokens → text
    begin = 16,       // model, sequence, tokens to say at most, bits of a float: temperature, seed; tokens of the prompt.
                      // What the sequence's KV has of them is not computed again → tokens to compute
    step = 17,        // model, tokens of each sequence at most; sequences (u32 each) → a Progress for each
    said = 18,        // model, sequence → tokens said since the last time
    end = 19,         // model, sequence: it says no more; its KV stays
    keep = 20,        // model, sequence that says nothing: seal a copy of its KV → bytes; salt
    kept = 21,        // model, part of kept_part bytes, the next one → sealed, with its tag. With the last one the copy goes
    resume = 22,      // model, sequence that says nothing, bytes of its KV; salt
    resumed = 23,     // model, part, the next one; sealed, with its tag. With the last one the sequence has that KV
    load_pages = 24,  // model, chunk; its tag, then the pages that have it, sealed: pairs (u64 each) of the first one and how
                      // many, 512 in all, which the OS has granted. They are its memory from here on
    heap = 25,        // chunks, 1: of the unused ones, at most, to be heap from here on; 0: of the heap, free ones, to be unused
                      // → how many. Outside the secure OS: 0
    describe = 60,    // model; key of its metadata → the value as text, nothing where there is none or it is a list
    words = 61,       // model, first → tokens in all, 1: one begins a sequence, which; a Word and its text for each token from
                      // the first on, as many as one answer takes
};

constexpr uint32_t kept_part_bytes = 1 << 16;

// What the manifest of a .flex file says of its sealing.
struct Sealed {
    uint8_t model[16];
    uint8_t salt[32];
    uint8_t wrapped_key[60];
};

// A token, before its text.
struct Word {
    uint32_t attributes;  // llama.cpp's
    uint32_t ends;        // 1: it ends an answer
    uint32_t bytes;
};

enum class Status : uint32_t {
    done = 0,
    refused = 1,      // memory is missing: values[0] chunks more, at least, have to be granted. Nothing was done
    missing = 2,      // values[0] chunks of weights are missing. Nothing was done
    bad = 3,          // the request is none, or not for now. Nothing was done
    unsupported = 4,  // llama.cpp cannot open this
    failed = 5,       // llama.cpp could not compute
    damaged = 6,      // it is not what was sealed: of what came, nothing is left
    busy = 7,         // a step is under way
};

struct Progress {
    uint32_t sequence;
    uint32_t pending;   // tokens to compute before the next one can be chosen
    uint32_t said;      // tokens said so far
    uint32_t finished;  // Finish
};

enum class Finish : uint32_t { no = 0, stop = 1, length = 2 };
