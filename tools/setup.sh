#!/usr/bin/env bash
# Makes .venv: Python, every locked package with its hash checked, llama.cpp built for this CPU, FlexServe itself.
# `make` calls it once; the stamp it is given is written last, so an interrupted run simply starts again.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=$1
lock=requirements-dev.lock
venv=.venv
work=
builder=
build_options=

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$@" >&2; exit 1; }
clean_up() {
    [ -z "$builder" ] || kill "$builder" 2>/dev/null || true
    [ -z "$work" ] || rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import ensurepip, venv' 2>/dev/null && { echo "$candidate"; return; }
            die "$candidate cannot make virtual environments." "On Debian and Ubuntu: sudo apt install python3-venv"
        fi
    done
    die "FlexServe needs Python 3.11 or later, and none was found." \
        "On Debian 12 or later and Ubuntu 24.04 or later: sudo apt install python3 python3-venv" \
        "If it is somewhere else: make setup PYTHON=/path/to/python3"
}

require_compiler() {
    local compiler
    for compiler in "${CC:-cc}" "${CXX:-c++}"; do
        command -v "${compiler%% *}" >/dev/null || die "No C/C++ compiler ($compiler), which llama.cpp is built with." \
            "On Debian and Ubuntu: sudo apt install build-essential"
    done
}

# The locked lines of one package; or, with -v, of all the others.
lock_of() {
    awk -v name="$1" -v others="${2:-}" '
        /^[a-z0-9]/ { inside = index($0, name "==") == 1 }
        /^[a-z0-9]|^ +--hash/ { if (others ? !inside : inside) print }' "$lock"
}

# llama.cpp is compiled for the CPU it is built on, so a wheel serves only the same source, Python and CPU.
# pip's own cache knows nothing of CPUs, and a home directory may be shared between machines: hence our own.
wheel_key() {
    {
        cat "$work/llama.lock"
        "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_platform())'
        echo "$build_options ${CMAKE_ARGS:-} $left_out"
        cat tools/llama.cmake
        uname -m
        grep -m1 -E '^(flags|Features)' /proc/cpuinfo || true
    } | sha256sum | cut -c1-16
}

# GCC before 13 forgets that `ldtilecfg` reads all of its operand and drops the stores to it, so that ggml's
# AMX kernels fault on the CPUs that have AMX (seen with GCC 12.2 at -O3). Those kernels are left out there.
compiler_workarounds() {
    local macros
    macros=$(${CXX:-c++} -march=native -dM -E -x c++ /dev/null 2>/dev/null || true)
    if grep -q __AMX_TILE__ <<<"$macros" && ! grep -q __clang__ <<<"$macros" &&
        [ "$(awk '$2 == "__GNUC__" { print $3 }' <<<"$macros")" -lt 13 ]; then
        echo "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    fi
}

# llama.cpp parses files and holds secrets: a smashed stack or a write past an object that the compiler knows
# ends the process, and its tables of functions are read-only (it costs no speed that can be measured).
hardening="-fstack-protector-strong -fstack-clash-protection -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2"
linking="-Wl,-z,relro,-z,now"

# Of what the build makes: copies under other names that nothing loads, headers, and an HTTP server.
left_out="/lib/;/include/;/llama_cpp/server/;/llama_cpp/lib/libllama.so.*;/llama_cpp/lib/libggml-*.so;*.so.*.*.*"

options_of_build() {
    local flags
    flags="$hardening $(compiler_workarounds)"
    echo "-DLLAVA_BUILD=OFF -DCMAKE_C_FLAGS='$flags' -DCMAKE_CXX_FLAGS='$flags'" \
        "-DCMAKE_SHARED_LINKER_FLAGS='$linking'"
}

build_llama() {
    local log=$work/build.log started=$SECONDS shown=0 step
    CMAKE_ARGS="$build_options -DCMAKE_PROJECT_llama.cpp_INCLUDE='$PWD/tools/llama.cmake' ${CMAKE_ARGS:-}" \
        SKBUILD_WHEEL_EXCLUDE="$left_out" PATH="$PWD/$venv/bin:$PATH" \
        "$venv/bin/python" -m pip wheel -v --no-cache-dir --no-deps --no-build-isolation --require-hashes \
        -r "$work/llama.lock" -w "$work/wheel" >"$log" 2>&1 &
    builder=$!
    while kill -0 "$builder" 2>/dev/null; do
        sleep 1
        step=$(tail -c 4000 "$log" | grep -aoE '\[[0-9]+/[0-9]+\]' | tail -n 1 || true)
        if [ -t 2 ]; then
            printf '\r    %3d s  %s  ' $((SECONDS - started)) "${step:-preparing}" >&2
        elif [ $((SECONDS - started)) -ge $((shown + 30)) ]; then
            shown=$((SECONDS - started))
            printf '    %3d s  %s\n' "$shown" "${step:-preparing}" >&2
        fi
    done
    [ -t 2 ] && echo >&2
    if ! wait "$builder"; then
        builder=
        tail -n 40 "$log" >&2
        die "llama.cpp did not build; the end of its log is above."
    fi
    builder=
}

install_llama() {
    build_options=$(options_of_build)
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/flexserve/wheels key
    lock_of llama-cpp-python >"$work/llama.lock"
    key=$(wheel_key)
    if ! compgen -G "$cache/$key/*.whl" >/dev/null; then
        say "Building llama.cpp for this CPU: some minutes, once per machine"
        build_llama
        mkdir -p "$cache/$key"
        mv "$work"/wheel/*.whl "$cache/$key/"
    else
        say "Using llama.cpp as built before ($cache/$key)"
    fi
    "$venv/bin/python" -m pip install --quiet --no-deps --force-reinstall "$cache/$key"/*.whl
    ln -sfn "$cache/$key" "$venv/llama" # for `make wheel`
}

python=$(find_python)
require_compiler
work=$(mktemp -d)

if ! "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "Making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=

say "Installing the locked packages"
lock_of llama-cpp-python others >"$work/others.lock"
# Python compiles a module when it is first imported; most of them never are.
"$venv/bin/python" -m pip install --no-compile --progress-bar off --no-deps --require-hashes --only-binary :all: \
    -r "$work/others.lock" | sed -nE 's/^(Collecting|Processing) ([^ ]*\/)?([^ \/]+).*/    \3/p; s/^Installing .*/    unpacking/p' >&2
install_llama

say "Installing FlexServe itself (editable)"
"$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable .
"$venv/bin/python" -m pip check >&2

rm -f "$venv"/.setup-*
touch "$stamp"
say "Set-up done"
