// What the trusted application does when it is told to: one answer to each request.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "channel.h"
#include "engine.h"
#include "flexmem.h"
#include "generation.h"
#include "image.h"
#include "messages.h"
#include "sealed_kv.h"

class Service {
   public:
    using Bytes = std::vector<std::byte>;

    explicit Service(Channel &channel);

    // Answer requests until there are none any more.
    void serve();

   private:
    struct Open {
        std::unique_ptr<Image> image;
        std::unique_ptr<Model> model;
        std::unique_ptr<Generations> generations;  // these go before their model
        std::unique_ptr<SealedKv> kv;
    };
    struct Call {
        const Request &request;
        Bytes &payload;  // ours: what is sealed is decrypted in it
        Bytes &said;
        uint64_t (&values)[5];
        uint64_t argument(size_t number) const { return request.arguments[number]; }
    };

    // Receive a request and answer it. Each number and length of it is checked here, once, in our own copy. False: there is
    // none any more.
    bool answer_next(Bytes &payload);

    Status carry_out(Call call);
    Status hello(Call call);
    Status grant(Call call);
    Status secret(Call call);
    Status open(Call call);
    Status of_model(Open &open, Call call);
    Status write(Open &open, Call call);
    Status seal(Image &image, Call call);
    Status use(Image &image, Call call);
    Status load_pages(Image &image, Call call);
    Status evict(Open &open, Call call);
    Status resident(const Model &model, Call call);
    Status tokenise(const Model &model, Call call);
    Status detokenise(const Model &model, Call call);
    Status begin(Open &open, Call call);
    Status step(Open &open, Call call);
    static Status computed(int status, const Model &model, Call call);
    Status embed(Open &open, Call call);
    Status sampling(Open &open, Call call);
    Status said(Open &open, Call call);
    Status end(Open &open, Call call);
    Status keep(Open &open, Call call);
    Status resume(Open &open, Call call);
    static Generation *running(Open &open, Call call);  // that of the request's sequence; null: it says nothing
    bool is_idle(Open &open, uint64_t sequence) const;
    Status refused(size_t chunks, Call call) const;

    Channel &channel_;
    FlexMem flexmem_;
    Engine engine_;
    std::map<uint64_t, Open> models_;
    bool greeted_ = false, stepping_ = false, alone_ = false;
    std::optional<Key> root_;
};
