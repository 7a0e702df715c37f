#!/usr/bin/env bash
# Installs what the emulated TrustZone machine and the monitor's tests are made with. All else works without it, so
# this never fails. It asks first where somebody can answer; APT=yes and APT=no are answers, too.
set -euo pipefail

packages="qemu-system-arm gcc-aarch64-linux-gnu libc6-dev-arm64-cross device-tree-compiler cpio make
    g++-aarch64-linux-gnu qemu-user clang libclang-rt-dev llvm"

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

leave_out() {
    say "The emulated TrustZone machine is left out, and its tests are skipped; it wants (as root):"
    printf '    apt-get install --no-install-recommends %s\n' "${missing[*]}" >&2
    exit 0
}

# apt-get, saying which packages came and which are ready.
apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::http::Timeout=30 -o DPkg::Lock::Timeout=120 "$@" 2>&1 |
        sed -unE 's/^Get:[0-9]+ [^ ]+ [^ ]+ [^ ]+ ([^ ]+) [^ ]+ [^ ]+ \[.*/    fetched \1/p; s/^Setting up ([^ :]+).*/    \1 is ready/p; s/^E: /    apt: /p' >&2
}

command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || exit 0
missing=()
for name in $packages; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

answer=${APT:-}
if [ "$(id -u)" != 0 ] || [ "$answer" = no ]; then
    leave_out
fi
if [ -z "$answer" ] && [ -t 0 ] && [ -t 2 ]; then
    say "The emulated TrustZone machine is made with packages of Debian; nothing else needs them:"
    printf '    %s\n' "${missing[*]}" >&2
    read -r -p "    Install them now? [y/N] " answer
    case $answer in [yY]*) ;; *) leave_out ;; esac
fi
say "Installing what the emulated TrustZone machine is made with (leave it out: APT=no)"
apt update && apt install --yes --no-install-recommends "${missing[@]}" ||
    say "apt could not install: ${missing[*]}. The tests of the emulated machine are skipped."
