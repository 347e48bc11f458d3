#!/bin/sh
# Packed training on a GPU: right? the same twice? how fast? One command, no network.
#
#   bash bench/gpu.sh            on the GPU; results in $OUT (default bench/results), about eight minutes on an H100
#   bash bench/gpu.sh --smoke    tiny shapes, on a CPU where there is no GPU
#
# Needs Python 3.11 or 3.12 with torch 2.11 or newer, transformers, peft, safetensors, numpy and pyarrow, and nothing else.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export OUT="${OUT:-$here/results}" PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export CUBLAS_WORKSPACE_CONFIG=:4096:8
mkdir -p "$OUT"
exec "${PYTHON:-python3}" "$here/gpu.py" "$@"
