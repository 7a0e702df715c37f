// Numbers and bytes as others write them: CBOR (RFC 8949, in its shortest form: tokens, receipts), MessagePack (messages to
// clients), hexadecimal digits.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

// A byte, and a number of so many bytes behind it, big-endian.
inline std::string coded(unsigned kind, uint64_t value, unsigned bytes) {
    std::string said(1, static_cast<char>(kind));
    while (bytes-- != 0) said.push_back(static_cast<char>(value >> (8 * bytes)));
    return said;
}

inline uint64_t big_endian(std::string_view data) {
    uint64_t value = 0;
    for (const char each : data) value = value << 8 | static_cast<uint8_t>(each);
    return value;
}

inline uint64_t little_endian(std::string data) { return big_endian(std::string(data.rbegin(), data.rend())); }

inline std::string hex(std::string_view data) {
    std::string said;
    for (const char each : data) said += {"0123456789abcdef"[each >> 4 & 15], "0123456789abcdef"[each & 15]};
    return said;
}

inline std::string unhex(const std::string &digits) {
    std::string said;
    for (size_t place = 0; place < digits.size(); place += 2) {
        said += static_cast<char>(std::stoul(digits.substr(place, 2), nullptr, 16));
    }
    return said;
}

// Bytes in the one order in which they are expected.
struct Reader {
    std::string_view rest;
    bool good = true;

    std::string take(size_t bytes) {
        good = good && bytes <= rest.size();
        std::string found(rest.substr(0, good ? bytes : 0));
        rest.remove_prefix(found.size());
        return found;
    }
    std::string behind(std::string_view literal, size_t bytes) {
        good = take(literal.size()) == literal && good;
        return take(bytes);
    }
};

// The text of a field of JSON that we have written.
inline std::string field(std::string_view json, const std::string &name) {
    const size_t place = json.find('"' + name + "\":\"") + name.size() + 4;
    return std::string(json.substr(place, json.find('"', place) - place));
}

namespace cbor {

inline std::string head(unsigned major, uint64_t value) {
    const unsigned power = value <= UINT8_MAX ? 0 : value <= UINT16_MAX ? 1 : value <= UINT32_MAX ? 2 : 3;
    if (value < 24) return coded(major << 5 | static_cast<unsigned>(value), 0, 0);
    return coded(major << 5 | (24 + power), value, 1U << power);
}
inline std::string number(uint64_t value) { return head(0, value); }
inline std::string negative(uint64_t below) { return head(1, below - 1); }
inline std::string bytes(std::string_view value) { return head(2, value.size()) + std::string(value); }
inline std::string text(std::string_view value) { return head(3, value.size()) + std::string(value); }
inline std::string list(uint64_t items) { return head(4, items); }
inline std::string map(uint64_t pairs) { return head(5, pairs); }

}  // namespace cbor

namespace msgpack {

inline std::string text(std::string_view value) { return coded(0xdb, value.size(), 4) + std::string(value); }
inline std::string bytes(std::string_view value) { return coded(0xc6, value.size(), 4) + std::string(value); }
inline std::string list(uint64_t items) { return coded(0xdd, items, 4); }
inline std::string map(uint64_t pairs) { return coded(0xdf, pairs, 4); }
inline std::string field(std::string_view name, uint64_t value) { return text(name) + coded(0xcf, value, 8); }
inline std::string message(std::string_view type, uint64_t fields) {
    return map(2 + fields) + text("type") + text(type) + field("request", 0);
}

}  // namespace msgpack
