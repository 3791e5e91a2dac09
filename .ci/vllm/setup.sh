#!/usr/bin/env bash
# Makes what the vLLM suite runs on, in .cache: an environment of its own with vLLM for CPUs, and tiny models.
# The requirements are locked with hashes; `.ci/vllm/setup.sh lock` resolves them again.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=.venv/bin/uv
environment=.cache/vllm-venv
models=.cache/vllm-models
# vLLM imports thousands of files: without compiled bytecode a start takes three times as long.
unset PYTHONDONTWRITEBYTECODE

if [ "${1:-}" = lock ]; then
  exec $uv pip compile -q --python-version 3.11 --extra inference --overrides .ci/vllm/overrides.txt --generate-hashes \
    --no-header .ci/vllm/requirements.in pyproject.toml -o .ci/vllm/requirements.txt
fi

wanted=$(cat .ci/vllm/requirements.txt .ci/vllm/tiny_models.py "$0" | sha256sum | cut -d' ' -f1)
if [ "$(cat $environment/.ready 2>/dev/null || true)" = "$wanted" ]; then
  exit 0
fi
rm -f $environment/.ready
[ -x $environment/bin/python ] || $uv venv -q --python 3.11 $environment
$uv pip sync -q --python $environment/bin/python --require-hashes --compile-bytecode .ci/vllm/requirements.txt
# Taximeter itself, as it lies here.
$uv pip install -q --python $environment/bin/python --no-deps -e .
rm -rf $models
$environment/bin/python .ci/vllm/tiny_models.py $models 2>/dev/null
echo "$wanted" > $environment/.ready
