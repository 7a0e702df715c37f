# Read by llama.cpp's own CMakeLists (CMAKE_PROJECT_llama.cpp_INCLUDE), where the options of llama-cpp-python's,
# which forces this one on, can still be overruled. The library of what llama.cpp's programs share (an HTTP server
# and client, a downloader, subprocesses, another template engine) is no part of what a secure world runs.
set(LLAMA_BUILD_COMMON OFF)
