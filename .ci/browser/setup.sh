#!/usr/bin/env bash
# A Chromium for the browser suite: the one on PATH, or Debian's; without root it is unpacked into .cache/browser.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache="$PWD/.cache/browser"
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
[ -x "$cache/chromium" ] && exit 0
command -v apt-get >/dev/null || { echo "the browser suite needs Chromium: none is on PATH, and there is no apt-get" >&2; exit 1; }

if [ "$(id -u)" -eq 0 ]; then
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium
  exit 0
fi

# Lists and archives of our own; what the system has installed already is not fetched again.
rm -rf "$cache" && mkdir -p "$cache/lists/partial" "$cache/archives/partial"
apt() {
  apt-get -q -y -o Debug::NoLocking=1 -o Dir::State::Lists="$cache/lists" -o Dir::Cache="$cache" \
    -o Dir::Cache::Archives="$cache/archives" -o Dir::State::Status="${DPKG_STATUS:-/var/lib/dpkg/status}" "$@"
}
apt update
apt install --no-install-recommends --download-only chromium
for package in "$cache"/archives/*.deb; do dpkg -x "$package" "$cache/root"; done
rm -rf "$cache/archives" "$cache/lists"
cat >"$cache/chromium" <<'RUN'
#!/usr/bin/env bash
root="$(dirname "$(realpath "$0")")/root"
libraries="$(find "$root/lib" "$root/usr/lib" -maxdepth 2 -type d -printf '%p:' 2>/dev/null)"
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:-}"
[ -d /etc/fonts ] || export FONTCONFIG_PATH="$root/etc/fonts"
exec "$root/usr/lib/chromium/chromium" "$@"
RUN
chmod +x "$cache/chromium"
