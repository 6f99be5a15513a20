#!/usr/bin/env bash
# Installs the Debian packages that are missing, and says which. Needs root or sudo only when some are.
#   scripts/install.sh build           what building and running takes
#   scripts/install.sh build test      … and what the tests take
#   scripts/install.sh build python    … and what the examples in Python take
set -euo pipefail
# with everything there this ends here, without network
build=(gcc libc6-dev cmake ninja-build pkg-config ca-certificates protobuf-c-compiler
       libyaml-dev libjansson-dev libssl-dev libxxhash-dev libuv1-dev libmicrohttpd-dev libcurl4-openssl-dev
       libzmq3-dev libprotobuf-c-dev libsqlite3-dev libpcre2-dev libutf8proc-dev)
test=(libcmocka-dev clang-format python3-minimal curl procps jq sqlite3)

wanted=()
for group in "${@:-build}"; do
  case $group in
    build) wanted+=("${build[@]}") ;;
    test) wanted+=("${test[@]}") ;;
    python) wanted+=("${python[@]}") ;;
    *) echo "usage: scripts/install.sh [build] [test] [python]" >&2; exit 2 ;;
  esac
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "install: no apt here; see to it yourself that there are: ${wanted[*]}" >&2
  exit 0 # cmake names what is missing
fi
missing=()
for package in "${wanted[@]}"; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [[ $status == *" installed" ]] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "install: nothing is missing"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "install: needs root (or sudo) to install: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "install: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@" \
    >"$log" 2>&1 || { cat "$log" >&2; echo "install: apt-get $1 failed" >&2; exit 1; }
}
apt update
apt install -y --no-install-recommends "${missing[@]}"
echo "install: done"
