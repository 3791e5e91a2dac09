#!/usr/bin/env bash
# An environment of its own for the FinOps Foundation's focus-validator: it needs an old numpy and pandera.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -x .cache/focus-venv/bin/focus-validator ] && [ -f .cache/focus-venv/.ready ] && exit 0
.venv/bin/uv venv -q --clear -p 3.11 .cache/focus-venv
# pandera 0.17 imports a name that multimethod 2 no longer has.
.venv/bin/uv pip install -q -p .cache/focus-venv/bin/python 'focus-validator==1.0.0' 'multimethod<2' 'setuptools<80'
touch .cache/focus-venv/.ready
