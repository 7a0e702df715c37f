#include "sessions.h"

#include <chrono>
#include <set>

#include "notation.h"
#include "secure_os.h"

namespace {

using namespace std::literals;

constexpr uint64_t window = 300'000;               // milliseconds that a request's time may differ, and a next secret is good
constexpr size_t most_recent = 1 << 14;
constexpr std::string_view version = "0.1.0";
constexpr std::string_view inside = "S-EL0 of an emulated machine: its OS cannot reach this memory. Who runs the emulator can.";
constexpr std::string_view outside = "A process of an ordinary system, for tests: nothing protects it.";

}  // namespace

Sessions::Sessions(const Key &secret, const SealingKey::Seed &seed) : root_(secret), identity_(secret), keys_(seed) {}

uint64_t Sessions::now() const {
    using namespace std::chrono;
    return offset_ + static_cast<uint64_t>(duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count());
}

// ---- who this is ------------------------------------------------------------------------------------------------

std::string Sessions::attest(uint64_t time, std::string_view nonce, std::string_view measurements) {
    if (offset_ == 0) offset_ = time - now();
    const uint64_t second = now() / 1000;
    const auto &[key, end] = keys_.shown(second);
    using namespace cbor;
    std::set<std::string> digests;  // a model may have two names
    for (const auto &[id, model] : models_) digests.insert(model.second);
    std::string models = map(digests.size());
    for (const auto &each : digests) models += text(each) + list(2) + text("") + number(0);
    return identity_.sign(
        map(11) + number(4) + number(end) + number(6) + number(second) + number(10) + bytes(nonce) + number(259) +
            bytes("qemu-virt") + number(263) + number(0) + number(265) + text("urn:x-flexserve:attestation:1") + number(266) +
            map(2) + text("platform") + map(4) + text("memory") + text("flex_mem") + text("protected") +
            text(secure_os::isolated() ? "yes" : "no") + text("label") + text(secure_os::inside() ? inside : outside) +
            text("rollback") + text("refused while this machine runs; no counter outlives it") + text("models") + models +
            number(270) + text("flexserve") + number(271) + list(1) + text(version) + number(273) + list(1) + list(2) +
            number(65000) + bytes(measurements) + negative(70001) + map(3) + number(1) + list(3) + number(0x647a) + number(1) +
            number(2) + number(2) + bytes(key->shown()) + number(3) + number(end),
        {});
}

bool Sessions::know(std::string_view block, bool gone) {
    if (block.size() != signed_block || block.substr(0, 8) != "FLEXSEAL" || !is_signed(root_, block)) return false;
    if (gone) models_.erase(field(block, "model_id"));
    if (!gone) models_[field(block, "model_id")] = {field(block, "name"), field(block, "digest")};
    return true;
}

std::string Sessions::digest_of(const Id &model, const std::string &name) const {
    const auto found = models_.find(hex(view(model)));
    return found != models_.end() && found->second.first == name ? found->second.second : "";
}

std::string Sessions::receipt(const Session &session, size_t tokens, std::string_view reason) {
    using namespace cbor;
    return identity_.sign(
        map(14) + text("profile") + text("urn:x-flexserve:receipt:1") + text("model") + text(session.model) + text("gguf") +
            bytes(unhex(session.gguf)) + text("base") + bytes({}) + text("request") +
            bytes(view(session.request)) + text("answer") + bytes(view(digest(session.text))) + text("token") + bytes(view(session.token)) + text("sampling") +
            text("{\"settings\":\"" + hex(session.sampling) + "\"}") + text("prompt_tokens") + number(session.prompt.size()) +
            text("answer_tokens") + number(tokens) + text("reason") + text(reason) + text("label") +
            text(secure_os::inside() ? inside : outside) + text("time") + number(now() / 1000) + text("counter") +
            number(++receipts_),
        "application/vnd.flexserve.receipt+cbor");
}

// ---- what it is asked -------------------------------------------------------------------------------------------

bool Sessions::find(const SealedRequest &sealed, Key &secret) {
    for (auto each = recent_.begin(); each != recent_.end();) {
        each = each->second.second < now() ? recent_.erase(each) : std::next(each);
    }
    if (!sealed.is_named()) return keys_.open(sealed.secret, sealed.info(), now() / 1000, secret);
    const auto found = recent_.extract(std::string(sealed.secret));
    if (!found.empty()) secret = found.mapped().first;
    return !found.empty();
}

bool Sessions::admit(std::string_view id, uint64_t time, std::string_view next) {
    if (time + window < now() || time > now() + window || recent_.size() >= most_recent) return false;
    if (!recent_.emplace(id, std::make_pair(Key(), now() + 2 * window)).second) return false;
    const std::string name(view(digest("flexserve next secret 1\0"s + std::string(next))));
    recent_[name] = {taken<Key>(std::string(next)), now() + window};
    return true;
}

std::unique_ptr<Session> Sessions::open(std::string_view body) {
    const SealedRequest sealed(body);
    Key secret;
    std::string plain;
    if (sealed.header.empty() || !find(sealed, secret) || !sealed.open(secret, plain)) return nullptr;
    Reader content{plain};  // Content of protocol/sealed_request.py, as MessagePack has it
    const std::string id = content.behind("\x85\xa2id\xc4\x10", 16);
    const uint64_t time = big_endian(content.behind("\xa4time\xcf", 8));
    const Salt whose = digest("flexserve owner of sealed requests\0"s + content.behind("\xa5owner\xc4\x20", 32));
    const uint64_t kind = big_endian(content.behind("\xa5" "asked", 1)) - 0xc4;  // of a length of 1, 2 or 4 bytes
    const std::string asked = content.take(kind < 3 ? big_endian(content.take(size_t{1} << kind)) : plain.size());
    const std::string next = content.behind("\xa4next\xc4\x20", key_bytes);
    if (!content.good || !content.rest.empty() || asked.size() < sizeof(Asked)) return nullptr;

    Asked said;
    std::memcpy(&said, asked.data(), sizeof said);
    Reader rest{std::string_view(asked).substr(sizeof said)};
    const std::string lengths = rest.take(sizeof(uint32_t) * size_t{said.parts});
    const std::string model = rest.take(said.model_bytes), sampling = rest.take(said.sampling_bytes);
    std::unique_ptr<Session> session(new Session{
        SealedAnswer(secret, body, said.most != 0 ? 1 << 10 : 1 << 14), digest(asked), taken<Salt>(std::string(sealed.token)),
        said.shape, said.most, said.start == 1, model, sampling, rest.take(said.told_bytes), taken<Id>(std::string(view(whose)))});
    session->owner.back() |= 0x80;
    for (size_t place = 0; rest.good && place < lengths.size(); place += sizeof(uint32_t)) {
        session->parts.push_back(rest.take(little_endian(lengths.substr(place, sizeof(uint32_t)))));
    }
    if (!rest.good || !rest.rest.empty() || asked.compare(0, 4, "FXR1") != 0 || model != sealed.model) return nullptr;
    return admit(id, time, next) ? std::move(session) : nullptr;
}
