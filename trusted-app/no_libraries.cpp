// llama.cpp asks these to load backends at run time. The trusted application has all that it needs, and loads nothing.
#include "ggml-backend-dl.h"

dl_handle *dl_load_library(const fs::path &) { return nullptr; }

void *dl_get_sym(dl_handle *, const char *) { return nullptr; }

const char *dl_error() { return "the trusted application loads no library"; }
