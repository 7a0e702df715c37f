// Functions of ours in llama.cpp's tables: they put its memory into Flex-Mem, and its computing under our eyes.
#pragma once

#include "engine.h"

struct Hooks {
    // Put them in place. Once in a process.
    static void install(Engine &engine);

    // Give weights back the elements, and their buffers the functions, that they lack while llama.cpp loads a model.
    static void settle(Model &model);

    // Attribute what llama.cpp does in a scope to a model.
    class Owner {
       public:
        Owner(Engine &engine, Model *model) : engine_(engine), previous_(engine.current_) { engine.current_ = model; }
        ~Owner() { engine_.current_ = previous_; }
        Owner(const Owner &) = delete;

       private:
        Engine &engine_;
        Model *previous_;
    };

   private:
    static ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t bytes);
    static ggml_backend_buffer_t allocate_extra(ggml_backend_buffer_type_t type, size_t bytes);
    static void free_buffer(ggml_backend_buffer_t buffer);
    static void clear(ggml_backend_buffer_t buffer, uint8_t value);
    static ggml_status place(ggml_backend_buffer_t buffer, ggml_tensor *tensor);
    static void skip(ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t) {}
    static ggml_backend_t make_backend(ggml_backend_dev_t device, const char *parameters);
    static ggml_status compute(ggml_backend_t backend, ggml_cgraph *graph);
    static void divert(Buffer &buffer);
};
