#!/usr/bin/env bash
# Makes a CUDA 13.0 compiler available without a GPU, a driver or root, from NVIDIA's wheels on the Python registry,
# and prints the folder that holds it. Compiles device code to PTX; it does not link host programs.
#
#   kernels/toolchain.sh [DIR]                  default DIR: ${XDG_CACHE_HOME:-$HOME/.cache}/mla-run/cuda-13.0
#   "$(kernels/toolchain.sh)/bin/nvcc" -ptx …
#
# A second call finds what the first one installed. The folder appears whole or not at all.
set -euo pipefail

dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/mla-run/cuda-13.0}
wheels=(
  nvidia-cuda-nvcc==13.0.88     # the driver program
  nvidia-nvvm==13.0.88          # the device compiler behind it
  nvidia-cuda-crt==13.0.88      # headers that nvcc includes by itself
  nvidia-cuda-runtime==13.0.96  # cuda_runtime.h, cuda_bf16.h, cuda_fp8.h
  nvidia-cuda-cccl==13.0.85     # libcu++ and CUB, which those headers need
)

if [ ! -x "$dir/bin/nvcc" ]; then
  command -v python3 >/dev/null || { echo "toolchain.sh: python3 with pip is needed" >&2; exit 1; }
  mkdir -p "$(dirname "$dir")"
  new=$(mktemp -d "$(dirname "$dir")/.cuda-XXXXXX")
  trap 'rm -rf "$new"' EXIT
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --no-deps --target "$new/site" "${wheels[@]}" >&2
  mkdir "$new/kit"
  mv "$new"/site/nvidia/cu13/* "$new/kit/"
  chmod -R u+x "$new/kit/bin" "$new/kit/nvvm/bin"
  rm -rf "$dir"
  mv -T "$new/kit" "$dir"
fi
"$dir/bin/nvcc" --version >/dev/null
echo "$dir"
