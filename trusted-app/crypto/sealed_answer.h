// The answer to a sealed request: messages leave in frames of one size, which only its sender can open
// (protocol/sealed_answer.py).
#pragma once

#include <string>

#include "sealed_request.h"

class SealedAnswer {
   public:
    // `body`: the whole request. `frame`: bytes of each frame.
    SealedAnswer(const Key &secret, std::string_view body, size_t frame);

    std::string_view nonce() const { return view(nonce_); }  // goes before the first frame
    void add(std::string_view message);                      // MessagePack, to go with the next frames
    void add_all(std::string_view messages) { waiting_ += messages; }  // each with its length before it
    std::string frame() { return sealed('\0'); }             // one, with as much of what waits as it holds
    std::string end();                                       // the last ones, with all that waits

   private:
    size_t room() const { return frame_ - 19; }  // without mark, tag and length
    std::string sealed(char mark);

    Salt nonce_;
    size_t frame_;
    Derived derived_;
    uint32_t number_ = 0;
    std::string waiting_;
};
