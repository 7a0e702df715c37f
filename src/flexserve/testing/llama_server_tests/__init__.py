"""llama.cpp's own server tests, run against FlexServe: python -m flexserve.testing.llama_server_tests."""
