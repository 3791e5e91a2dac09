#!/usr/bin/env bash
# A Chromium for the browser suite: the one on PATH, or Debian's where it may be installed.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
if command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ]; then
  apt-get update -q && apt-get install -y -q --no-install-recommends chromium
else
  echo "the browser suite needs Chromium: none is on PATH, and it may not be installed from here" >&2
  exit 1
fi
