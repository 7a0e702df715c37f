// What the trusted application does when it is told to: one answer to each request.
#pragma once

#include <cstddef>
#include <deque>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "engine.h"
#include "flexmem.h"
#include "generation.h"
#include "image.h"
#include "messages.h"
#include "ring.h"
#include "sealed_kv.h"
#include "sessions.h"

constexpr size_t most_loads = 2;  // at once: so many CPUs decrypt

class Service {
   public:
    using Bytes = std::vector<std::byte>;

    explicit Service(Ring &ring);

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
        void answer(std::initializer_list<uint64_t> numbers) { std::copy(numbers.begin(), numbers.end(), values); }
    };

    // A chunk of weights that another thread decrypts; its request is not answered yet.
    struct Load {
        uint64_t tag;
        Image *image;
        size_t chunk;
        std::future<bool> genuine;
    };

    // Answer the oldest load, if it is over, or a request that has come, unless enough is being decrypted. If there is neither:
    // wait for one; or return false.
    bool do_next(bool waits);

    // Receive a request and answer it. Each number and length of it is checked here, once, in our own copy. False: there is
    // none any more.
    bool answer_next();
    bool answer_load();  // the oldest one

    Status carry_out(Call call);
    Status hello(Call call);
    Status secret(Call call);
    Status open(Call call);
    Status of_model(Open &open, Call call);
    Status write(Open &open, Call call);
    Status seal(Image &image, Call call);
    Status use(Image &image, Call call);
    Status load(Image &image, Call call);
    Status evict(Open &open, Call call);
    Status resident(const Model &model, Call call);
    Status tokenise(const Model &model, Call call);
    Status detokenise(const Model &model, Call call);
    Status begin(Open &open, Call call);
    Status step(Open &open, Call call);
    static Status computed(int status, Model &model, Call call);
    Status embed(Open &open, Call call);
    Status sampling(Open &open, Call call);
    Status admit(Open &open, Call call);
    Status shift(Open &open, Call call);
    Status said(Open &open, Call call);
    Status end(Open &open, Call call);
    Status keep(Open &open, Call call);
    Status resume(Open &open, Call call);
    static Generation *running(Open &open, Call call);  // that of the request's sequence; null: it says nothing
    bool is_idle(Open &open, uint64_t sequence) const;
    Status about_sealed(Call call);
    Status unseal(Call call);
    Status begin_sealed(Open &open, Call call);
    Status finish(Session &session, Call call);
    // What says the answer to a request, after what it said since the last time has gone to the next frame. Null: nothing does.
    Generation *hear(Session &session);
    Status refused(size_t chunks, Call call) const;

    Ring &ring_;
    FlexMem flexmem_;
    Engine engine_;
    std::map<uint64_t, Open> models_;
    std::deque<Load> loads_;  // in the order in which they were asked for
    bool greeted_ = false, stepping_ = false, alone_ = false;
    bool spares_ = false, waits_ = false;  // a CPU, while it computes; for weights that it misses, otherwise that ends it
    std::optional<Key> root_;
    std::optional<Sessions> sessions_;
    std::map<uint64_t, std::unique_ptr<Session>> opened_;  // by number
    uint64_t last_session_ = 0;
};

// Have items go with an answer, behind others.
template <typename Items>
void put(const Items &items, Service::Bytes &target) {
    const auto *bytes = reinterpret_cast<const std::byte *>(items.data());
    target.insert(target.end(), bytes, bytes + items.size() * sizeof *items.data());
}

// The tokens of a text, behind others. `start`: with the one that begins a text, where the model has one; `control`: control
// tokens are meant by name.
bool tokens(const Model &model, std::string_view text, bool start, bool control, std::vector<llama_token> &target);
