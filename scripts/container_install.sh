#!/usr/bin/env bash
# Installs this source, with the server, into a virtual environment of its own: what the Dockerfile
# does, in the versions of requirements.lock. The environment needs nothing of the source afterwards.
#   scripts/container_install.sh FOLDER
# CUDA=1 compiles llama.cpp for NVIDIA GPUs (CUDA_ARCH as in `make install`); WHEELS names a folder
# with wheels that are taken before anything is downloaded or compiled.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$target"
"${PYTHON:-python3}" -m venv "$work/build"
pip() { "$1/bin/python" -m pip --disable-pip-version-check --quiet "${@:2}"; }

# versions without hashes: a constraint file with hashes would ask for the hashes of this source, too
sed -n 's/^\([a-z0-9-]*==[^ \\]*\).*/\1/p' requirements.lock >"$work/versions.txt"
pip "$work/build" install --require-hashes --only-binary :all: -r requirements-build.lock

flags="-DGGML_RPC=on -DLLAVA_BUILD=off"
if [ "${CUDA:-}" = 1 ]; then
  flags="$flags $("$work/build/bin/python" scripts/cuda_flags.py)"
else
  flags="$flags -DGGML_NATIVE=off"
fi
export PATH="$work/build/bin:$PATH" CMAKE_ARGS="$flags"
llama=$(sed -n '/^llama-cpp-python==/p' "$work/versions.txt")
pip "$work/build" wheel --no-deps --no-build-isolation ${WHEELS:+--find-links "$WHEELS" --prefer-binary} \
  --wheel-dir "$work/wheels" "$llama"
pip "$work/build" wheel --no-deps --no-build-isolation --wheel-dir "$work/wheels" .
pip "$target" install --constraint "$work/versions.txt" ${WHEELS:+--find-links "$WHEELS"} \
  "$work"/wheels/llama_cpp_python-*.whl "$(echo "$work"/wheels/minitron-*.whl)[serve]"
"$target/bin/minitron" --version
