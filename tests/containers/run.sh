#!/usr/bin/env bash
# Build docker/Dockerfile on a Debian base made by mmdebstrap, and use the image as docs/containers.md says: read-only
# root, no capabilities, not root. EDGE_CI_CONTAINERS=1 .ci/run calls it. Needs root, mmdebstrap, podman and runc; takes one to three minutes.
set -euo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)"
work="$(mktemp -d /var/tmp/edge-containers.XXXXXX)"

say() { printf '%s\n' "containers: $*"; }

fail() {
  printf 'containers: error: %s\n' "$*" >&2
  exit 1
}

# A store of its own: nothing of this machine's images is touched.
engine() {
  podman --root "$work/store" --runroot "$work/run" --storage-driver overlay --events-backend none \
    --cgroup-manager cgroupfs --runtime runc "$@"
}

clean_up() {
  engine rmi --all --force >/dev/null 2>&1 || true
  umount "$work/store/overlay" 2>/dev/null || true
  rm -rf --one-file-system -- "$work"
}
trap clean_up EXIT

for program in mmdebstrap podman runc; do
  command -v "$program" >/dev/null || fail "$program is missing: apt install mmdebstrap podman runc"
done

say "making a Debian base"
mmdebstrap --quiet --variant=apt --include=ca-certificates,python3,python3-venv bookworm "$work/base.tar"
engine import --quiet "$work/base.tar" localhost/base >/dev/null
rm -- "$work/base.tar"

say "building docker/Dockerfile"
# A network may have a certificate authority of its own, and pip settings.
mounts=(--volume "$(readlink -f /etc/ssl/certs/ca-certificates.crt):/etc/ssl/certs/ca-certificates.crt:ro")
engine build --quiet --network=host "${mounts[@]}" --build-arg BASE=localhost/base \
  --ulimit nofile=1024:1024 --ulimit nproc=4096:4096 -f "$here/docker/Dockerfile" -t localhost/edge "$here" >"$work/build.log" 2>&1 ||
  fail "the image does not build: $(tail -n 5 "$work/build.log")"
say "image: $(engine image inspect localhost/edge --format '{{.Size}}' | awk '{ printf "%.0f MB", $1 / 1e6 }')"

mkdir -p "$work/data" "$work/tree"
chown 1000 "$work/data"
printf 'nvidia,p3767-0005-super\0nvidia,tegra234\0' >"$work/tree/compatible"
flags=(--rm --network=none --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges
  --ulimit nofile=1024:1024 --ulimit nproc=4096:4096 --volume "$work/data:/data")

in_image() { engine run "${flags[@]}" "$@"; }

in_image --entrypoint id localhost/edge | grep -q 'uid=1000(edge)' || fail "the image runs as another user"
in_image localhost/edge doctor >"$work/doctor" || fail "edge doctor: $(cat "$work/doctor")"
grep -q 'this is a container' "$work/doctor" || fail "edge doctor does not see the container: $(cat "$work/doctor")"
in_image --volume "$work/tree:/run/host/device-tree:ro" localhost/edge doctor | grep -q p3767-0005 ||
  fail "the module is not seen in a device tree at /run/host/device-tree"
in_image localhost/edge build --profile host
in_image localhost/edge run --profile host --images samples: --record runs/first.json | tee "$work/labels"
grep -q 'giant panda' "$work/labels" || fail "the panda is not a giant panda"
[ -s "$work/data/runs/first.json" ] || fail "the record is not in /data"
say "passed: the image builds and runs without root, without capabilities and with a read-only root"
