// The messages between the normal world and the trusted application. Both take the other for hostile.
//
// A request is a Request and `bytes` of payload; its answer, with the same tag, is an Answer and a payload. All numbers are
// little-endian. Answers come in the order of requests, but for two. A load is answered when it is decrypted. And between two
// slices of a step's graph, what was asked meanwhile is answered, if it is about memory; if not, it is refused as `busy`.
#pragma once

#include <array>
#include <cstdint>

constexpr uint64_t protocol_version = 6;
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
    secret = 5,       // once, where no secure OS has it: the device's root secret; and the seed of the first key that clients seal to, or
                      // none
    open = 6,         // model, bytes of the GGUF, context, sequences, bytes of its metadata; an Opening, and the chunks of the
                      // .flex file that have the metadata, each with its tag. `unsupported`: llama.cpp cannot, or not with KV so
                      // → chunks of weights, of KV, of scratch; 1: it recurs, in some layers at least; context
    close = 7,        // model
    write = 8,        // model, number; chunk of the .flex file with its tag, the next one
    seal = 9,         // model, chunk → the image's salt in four values; the chunk, sealed, with its tag
    image = 10,       // model; salt: chunks are loaded from this image from here on
    load = 11,        // model, chunk; sealed, with its tag. Others are answered meanwhile
    evict = 12,       // model, kind, first chunk, end chunk (of weights; of other kinds all go) → chunks that went
    resident = 13,    // model → chunks of scratch, KV, weights; a byte for each chunk of weights, 1: it is whole
    tokenise = 14,    // model, 1: control tokens by name, 1: it does not begin a sequence; text → tokens (u32 each)
    detokenise = 15,  // model; tokens → text
    begin = 16,       // model, sequence, tokens to say at most, owner (two values); tokens of the prompt. What the sequence's
                      // KV has of them, if it is this owner's, is not computed again → tokens to compute
    step = 17,        // model, tokens of each sequence at most, 1: weights that it misses are being loaded; sequences (u32
                      // each) → microseconds for which it stood waiting for them; a Progress for each
    said = 18,        // model, sequence → how many tokens were said since the last time; they, and for each of them
                      // Sampling.logprobs Scores: its own, and the likeliest. Where fewer are left, they are of no token. With
                      // Sampling.prompt, those of the prompt are said before, as they are computed
    end = 19,         // model, sequence: it says no more; its KV stays
    keep = 20,        // model, sequence that says nothing: seal a copy of its KV → bytes; salt
    kept = 21,        // model, part of kept_part bytes, the next one → sealed, with its tag. With the last one the copy goes
    resume = 22,      // model, sequence that says nothing, bytes of its KV, owner of the KV (two values); salt
    resumed = 23,     // model, part, the next one; sealed, with its tag. With the last one the sequence has that KV
    load_pages = 24,  // as load; the chunk's tag, then the pages that have it, sealed: pairs (u64 each) of the first one and how
                      // many, 512 in all, which the OS has granted. They are its memory from here on
    heap = 25,        // chunks, 1: of the unused ones, at most, to be heap from here on; 0: of the heap, free ones, to be unused
                      // → how many. Outside the secure OS: 0
    leave = 26,       // weights that the step under way misses are not loaded any more → 1: there is one
    order = 27,       // model → its chunks of weights (u32 each) in the order in which its first graph reads them; none before it
    sampling = 30,    // model, sequence that has begun and said nothing; a Sampling and its lists. Without it: the likeliest
    admit = 31,       // model, sequence; a bit for each token of the vocabulary: the next token is one of these. Once
    shift = 33,       // model, sequence of which all is said, and which ended since the context is full; first, end: these of its
                      // tokens go, those behind them are computed anew, and it goes on → tokens to compute
    embed = 32,       // model, 1: a rank, tokens of one graph at most, 1 as a step has it; tokens of a text → microseconds as a step
                      // has them; what the model pools of the text: floats
    attest = 40,      // milliseconds since 1970, the first of which counts, bytes of the nonce; nonce, measurements → a token
    know = 41,        // 1: not any more; the first block of a .flex file of this device: its digest is in tokens from here on
    unseal = 42,      // model; a sealed request. `damaged`: it cannot be opened, or is for another model
                      // → session, tokens of its prompt, tokens to say at most, owner (two values); the 32 bytes before
                      // the first frame of its answer, and what the normal world is told
    frame = 43,       // session → one frame, with what was said since the last time, as far as it fits
    finish = 44,      // session → the last frames, if it has said all. Otherwise the payload is its answer, if the normal world
                      // is to answer: messages as protocol/framing has them; or a Failure, in MessagePack; none: nobody waits.
                      // It has gone
    begin_sealed = 45,  // model, sequence, session → tokens to compute. What it says leaves by `frame` alone
    describe = 60,    // model; key of its metadata → the value as text, nothing where there is none or it is a list
    words = 61,       // model, first → tokens in all; a Word and its text for each token from the first on, as many as one
                      // answer takes
    marks = 62,       // model → tokens (i32 each) that mark a text where it is cut: its begin, its end, what parts two; then those
                      // around a gap: before what is before it, before what is behind it, before what fills it, before other
                      // texts. -1: none does
};

// Samplers.
enum class Choice : uint8_t {
    none, penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc, temperature,  // as protocol/sampling.py has them
    likeliest, any, mirostat, mirostat_v2  // each chooses a token; the last one has to
};

// How tokens are chosen: protocol/sampling.py says what the numbers mean. Behind it come `biases` Scores, and the texts at which
// a repetition ends for `dry`, each with a zero byte behind it.
struct Sampling {
    uint32_t seed = UINT32_MAX;   // all ones: another one each time
    uint32_t ignore_eos = 0;      // 1: no token of the model's own ends the answer
    uint32_t min_tokens = 0;      // before these, no token ends it
    uint32_t logprobs = 0;        // 0: none; otherwise one more than how many of the likeliest
    uint32_t after_samplers = 0;  // 1: of the tokens that the samplers left, as they left them
    uint32_t prompt = 0;          // 1: the prompt's tokens are told, too, from the second one to be computed on; not if it is sealed
    uint32_t min_keep = 0, biases = 0;
    int32_t top_k = 0, repeat_last_n = 0, dry_allowed_length = 2, dry_penalty_last_n = 0;
    float temperature = 0, dynatemp_range = 0, dynatemp_exponent = 1, top_p = 1, min_p = 0, typical_p = 1, top_n_sigma = -1;
    float xtc_probability = 0, xtc_threshold = 0.1F, repeat_penalty = 1, frequency_penalty = 0, presence_penalty = 0;
    float dry_multiplier = 0, dry_base = 1.75F, mirostat_tau = 5, mirostat_eta = 0.1F;
    Choice samplers[12] = {Choice::likeliest};  // in the order in which they are applied
};

// A token, and the natural logarithm of its probability. Of what is asked: what is added to its score; minus infinity: it never
// comes; infinity: it ends the answer.
struct Score {
    uint32_t token;
    float value;
};

constexpr uint32_t kept_part_bytes = 1 << 16;

// What the manifest of a .flex file says of its sealing. And as what KV is kept: a ggml_type, of F16, Q8_0 and Q4_0.
struct Opening {
    std::array<uint8_t, 16> model;
    std::array<uint8_t, 32> salt;
    std::array<uint8_t, 60> wrapped_key;
    uint32_t kv;
};

// A token, before its text.
struct Word {
    uint32_t attributes;  // llama.cpp's
    uint32_t ends;        // 1: it ends an answer
    uint32_t bytes;
};

// What a sealed request asks (protocol/rendered.py). Behind it: how many bytes each part of the prompt has (u32 each), the model's
// name, a Sampling with its lists, what the normal world is told, and the parts.
struct Asked {
    // magic: "FXR1". most: tokens to say; 0: it asks nothing of the model, and the normal world answers what it is told. start: 1: the token that
    // begins a text goes first, where the model has one. parts: control tokens are meant by name in the first one, the third one, …
    uint32_t magic, most, start, model_bytes, sampling_bytes, told_bytes, parts;
    // SHA-256 of what the sender rendered by: the chat template; and for each token that is a control, unknown or declared by the
    // file, a zero byte and what it stands for. Zeros: it does not matter.
    std::array<uint8_t, 32> shape;
};

enum class Status : uint32_t {
    done = 0,
    refused = 1,      // memory is missing: values[0] chunks more, at least, have to be granted. Nothing was done
    missing = 2,      // values[0] chunks of weights, at least, did not come. Nothing was done
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

// stuck: no token can come next.
enum class Finish : uint32_t { no = 0, stop = 1, length = 2, stuck = 3 };
