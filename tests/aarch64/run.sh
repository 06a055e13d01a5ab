#!/usr/bin/env bash
# Run ./install.sh demo on an emulated aarch64 Debian, and compare its labels with those of this machine.
#
# On demand, not in CI: it downloads about 400 MB and takes 10 to 30 minutes. Needs root, mmdebstrap and qemu-user-static.
# qemu emulates the instructions, not a Jetson: there is no GPU, no TensorRT and no device tree in it.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)"
suite=bookworm
mirror=http://deb.debian.org/debian
root=""
keep=""
tests=""
registered=""
work=""
format=/proc/sys/fs/binfmt_misc

usage() {
  cat <<'TEXT'
Usage: tests/aarch64/run.sh [--root DIR] [--keep] [--tests] [--suite NAME] [--mirror URL]

  --root DIR     an arm64 Debian: used if DIR has one, else made there (without it: a temporary folder)
  --keep         leave the root in place when done (implied by --root)
  --tests        run the quick tests, too: install the development tools, then pytest -m "not slow" without the
                 command line, servers and devices; takes about an hour
  --suite NAME   Debian suite (bookworm: Python 3.11; trixie: Python 3.13)
  --mirror URL   Debian mirror
TEXT
}

say() { printf '%s\n' "aarch64: $*"; }

fail() {
  printf 'aarch64: error: %s\n' "$1" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case "$1" in
    --root | --suite | --mirror)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case "$1" in --root) root="$2" keep=1 ;; --suite) suite="$2" ;; --mirror) mirror="$2" ;; esac
      shift
      ;;
    --keep) keep=1 ;;
    --tests) tests=1 ;;
    -h | --help) usage && exit 0 ;;
    *) fail "unknown argument '$1' (--help shows what there is)" ;;
  esac
  shift
done

[ "$(id -u)" = 0 ] || fail "needs root, for chroot and binfmt_misc: sudo tests/aarch64/run.sh"
for program in mmdebstrap qemu-aarch64-static git; do
  command -v "$program" >/dev/null || fail "$program is missing: apt install mmdebstrap qemu-user-static git"
done
edge="$here/.venv/bin/edge"
[ -x "$edge" ] || fail "$edge is missing: ./install.sh first; its labels are the ones to compare with"

clean_up() {
  [ -z "$registered" ] || echo -1 >"$format/edge-aarch64" || true
  [ -z "$work" ] || rm -rf -- "$work"
  [ -n "$keep" ] || [ -z "$root" ] || rm -rf --one-file-system -- "$root"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Let the kernel run aarch64 programs with qemu. The flag F opens qemu now, so it need not be inside the root.
[ -e "$format/register" ] || mount -t binfmt_misc none "$format"
if [ "$(uname -m)" != aarch64 ] && [ ! -e "$format/qemu-aarch64" ] && [ ! -e "$format/edge-aarch64" ]; then
  magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  printf '%s' ":edge-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):F" >"$format/register"
  registered=1
fi

[ -n "$root" ] || root="$(mktemp -d /var/tmp/edge-aarch64.XXXXXX)"
if [ ! -x "$root/usr/bin/python3" ]; then
  say "making an arm64 Debian $suite in $root"
  mmdebstrap --quiet --arch=arm64 --variant=apt --include=python3,python3-venv "$suite" "$root" "$mirror"
fi

say "copying the committed files of this checkout"
rm -rf -- "$root/edge" && mkdir "$root/edge"
git -c safe.directory="$here" -C "$here" archive HEAD | tar -x -C "$root/edge"
cp -L -- /etc/resolv.conf "$root/etc/resolv.conf"
# A network may have a certificate authority of its own.
mkdir -p -- "$root/etc/ssl/certs"
cp -L -- /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"

# The settings of pip in the environment hold inside, too, but for folders that only this machine has.
inside() {
  unshare --mount --pid --fork --kill-child sh -c '
    mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"' "$root" \
    env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL -u EDGE_PYTHON HOME=/root LANG=C.UTF-8 sh -c "cd /edge && $1"
}

say "python: $(inside 'python3 -c "import platform as p; print(p.machine(), p.python_version())"')"
started=$SECONDS
inside './install.sh demo'
say "./install.sh demo took $((SECONDS - started)) seconds under qemu-user"

work="$(mktemp -d)"
export EDGE_ENGINE_DIR="$work/engines"
(
  cd -- "$here"
  "$edge" build --profile host
  "$edge" run --profile host --images samples --record "$work/here.json"
) >"$work/log" 2>&1 || fail "the demo fails on this machine: $(tail -n 1 "$work/log")"
status=0
python3 - "$work/here.json" "$root/edge/runs/demo.json" <<'PY' || status=1
import json
import sys

here, there = ({r["name"]: r["guesses"][0] for r in json.load(open(path))["results"]} for path in sys.argv[1:])
for picture, guess in here.items():
    other = there.get(picture)
    verdict = "same" if other and other["label"] == guess["label"] else "DIFFERENT"
    shown = f"{other['label']} {other['confidence']:.1%}" if other else "missing"
    print(f"aarch64: {verdict:9} {picture:28} {guess['label']} {guess['confidence']:.1%} -> {shown}")
sys.exit(here.keys() != there.keys() or any(there[name]["label"] != here[name]["label"] for name in here))
PY

if [ -n "$tests" ]; then
  started=$SECONDS
  inside '.venv/bin/python -m pip install -q -e ".[host,dev]" &&
    .venv/bin/python -m pytest -q -p no:cacheprovider -m "not slow and not gpu" \
      tests/artifacts tests/config tests/media tests/model tests/quantization tests/system tests/telemetry' || status=1
  say "the quick tests took $((SECONDS - started)) seconds under qemu-user"
fi
[ "$status" = 0 ] || { say "FAILED" && exit 1; }
say "passed"
