#!/usr/bin/env bash
# Writes the lock files of the image anew: every distribution that it is made of, in one
# release, with the hashes of its files.
#
#   deploy/lock.sh              keep the releases that setup.cfg still allows
#   deploy/lock.sh --upgrade    take the newest ones
#
# Needs Python with venv and a package index; no index is named in what it writes.
set -euo pipefail

cd "$(dirname "$0")/.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# For every platform and every Python that setup.cfg allows.
compile() {
    local output=$1
    shift
    "$tmp/venv/bin/uv" pip compile -q --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --no-emit-find-links \
        --custom-compile-command deploy/lock.sh -o "$output" "$@" >/dev/null
}

python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q 'uv>=0.5,<1'
compile deploy/requirements.lock "$@" setup.cfg

# What builds our own wheel, as pyproject.toml says.
python3 - <<'END' | compile deploy/build.lock "$@" -
import tomllib

with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["build-system"]["requires"], sep="\n")
END
