// What the trusted application does when it is told to: one answer to each request.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "engine.h"
#include "flexmem.h"
#include "generation.h"
#include "image.h"
#include "messages.h"

class Service {
   public:
    using Bytes = std::vector<std::byte>;

    Service() : engine_(flexmem_) {}

    // Carry a request out. What it answers is checked by nobody else, so each number and length of the request is
    // checked here, once, from our own copy of it.
    Answer answer(const Request &request, Bytes &payload, Bytes &said);

   private:
    struct Open {
        std::unique_ptr<Image> image;
        std::unique_ptr<Model> model;
        std::unique_ptr<Generations> generations;  // goes before its model
    };
    struct Call {
        const Request &request;
        Bytes &payload;  // ours: what is sealed is decrypted in it
        Bytes &said;
        uint64_t (&values)[6];
        uint64_t argument(size_t number) const { return request.arguments[number]; }
    };

    Status carry_out(Call call);
    Status hello(Call call);
    Status give_back(Call call);
    Status secret(Call call);
    Status open(Call call);
    Status of_model(Open &open, Call call);
    Status write(Open &open, Call call);
    Status seal(Image &image, Call call);
    Status use(Image &image, Call call);
    Status evict(Open &open, Call call);
    Status resident(const Model &model, Call call);
    Status tokenise(const Model &model, Call call);
    Status detokenise(const Model &model, Call call);
    Status begin(Open &open, Call call);
    Status step(Open &open, Call call);
    Status said(Open &open, Call call);
    Status end(Open &open, Call call);
    Status refused(size_t chunks, Call call) const;

    FlexMem flexmem_;
    Engine engine_;
    std::map<uint64_t, Open> models_;
    bool greeted_ = false;
    std::optional<Key> root_;
};
