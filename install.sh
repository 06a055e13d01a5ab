#!/usr/bin/env bash
# Sets up edge in .venv next to this file. Needs no root and may be run again at any time; see ./install.sh --help.
# With --into it copies edge into a virtual environment elsewhere, which does not need this folder afterwards.
# In the folder wheels/ of a bundle it installs edge from what is next to it, for this user and without a network.
#
# Tried on x86-64 Linux with Python 3.10 to 3.13. Never run on a Jetson: there, the detection and the choice of packages
# were tried against a copied file tree on x86-64, the pinned set (constraints/jetson.txt) was resolved for aarch64, and
# nothing was tried of NVIDIA's own packages, of the build of PyCUDA with JetPack's nvcc, and of the times it takes.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

here="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
need_mib=1500  # .venv takes 590 MiB, 720 with the development tools; the rest is for downloads, engines and records

mode=install
extras=host
offline=""
root=""
ticker=""
mypy=""
# Where and from what: of a checkout, .venv and the checkout; see find_source for wheels.
venv="$here/.venv"
shown=.venv
home=""
edge_wheel=""
more=""
editable=(-e)

usage() {
  cat <<'TEXT'
Usage: ./install.sh [MODE] [--offline DIR] [--into DIR]

  (no mode)   set up .venv in this folder, and print the next command
  demo        set up, then build the sample model's INT8 engine for this host and classify the images in samples/
  test        set up with the development tools, then run ruff, mypy and pytest
  check       say what this machine has and what would be done; change nothing
  uninstall   remove .venv

  --offline DIR   take wheels from DIR, and nothing from the network
  --into DIR      make the virtual environment DIR instead of .venv, with a copy of edge that does not need this folder
  --home DIR      with the wheels of a bundle: install below DIR instead of ~/.local/share/edge
  --root DIR      look for the files of a Jetson under DIR instead of / (for tests)
  -h, --help      show this

Environment: EDGE_PYTHON=/path/to/python chooses the Python (3.10 to 3.13); the settings of pip hold. EDGE_MACHINE=jetson
or host says what this machine is, where a build of a container image cannot see it.
Beside the wheels of a bundle (edge bundle create --with-wheels) this script needs no network and no copy of the
repository: it sets up DIR/venvs/<digest>, points DIR/venv to it when it works, and links ~/.local/bin/edge. The one
before stays until the next time. Modes: check, uninstall, and none.
A folder for --offline is filled on a machine of the same kind, with the same Python and a network:
  .venv/bin/python -m pip wheel --wheel-dir DIR '.[dev]' editables
TEXT
}

say() { printf '%s\n' "install.sh: $*"; }

fail() {  # message [exit code]
  printf 'install.sh: error: %s\n' "$1" >&2
  exit "${2:-1}"
}

# bash itself may have a word to say about a process that is gone already.
on_exit() { { [ -z "$ticker$mypy" ] || kill $ticker $mypy || true; } 2>/dev/null; }
trap on_exit EXIT
trap 'fail "interrupted; run the same command again, a half-made .venv is made again" 130' INT
trap 'fail "stopped; run the same command again, a half-made .venv is made again" 143' TERM HUP

parse_arguments() {
  local chosen=""
  while [ $# -gt 0 ]; do
    case "$1" in
      demo | test | check | uninstall)
        [ -z "$chosen" ] || fail "one mode at a time: $chosen or $1?" 2
        chosen="$1" mode="$1"
        ;;
      --home)
        [ $# -ge 2 ] && [ -n "$2" ] || fail "--home needs a folder" 2
        case "$2" in /*) home="$2" ;; *) home="$PWD/$2" ;; esac
        shift
        ;;
      --into)
        [ $# -ge 2 ] && [ -n "$2" ] || fail "--into needs a folder" 2
        case "$2" in /*) venv="$2" ;; *) venv="$PWD/$2" ;; esac
        shown="$2" editable=()
        shift
        ;;
      --offline | --root)
        [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 needs a folder" 2
        [ -d "$2" ] || fail "$1 $2: there is no such folder" 2
        # Absolute, because pip runs in the repository.
        if [ "$1" = --root ]; then root="$(cd -- "$2" && pwd)"; else offline="$(cd -- "$2" && pwd)"; fi
        shift
        ;;
      -h | --help) usage && exit 0 ;;
      *) fail "unknown argument '$1' (./install.sh --help shows what there is)" 2 ;;
    esac
    shift
  done
  [ "$mode" != test ] || extras=dev
  case "$mode${editable[*]-}" in demo | test) fail "'$mode' works in .venv, without --into" 2 ;; esac
  case "${EDGE_MACHINE:-}" in
    "" | jetson | host) ;;
    *) fail "EDGE_MACHINE is jetson or host, not '$EDGE_MACHINE'" 2 ;;
  esac
}

# Beside the wheels of a bundle there is no checkout: set edge_wheel, and what follows from it.
find_source() {
  local found
  if [ -f "$here/pyproject.toml" ]; then
    [ -z "$home" ] || fail "--home is for the wheels of a bundle; a checkout has its .venv" 2
    return 0
  fi
  for found in "${offline:-$here}"/jetson_edge-*.whl; do
    [ ! -f "$found" ] || edge_wheel="$found"
  done
  [ -n "$edge_wheel" ] || return 0
  [ ${#editable[@]} -gt 0 ] || fail "--into needs a copy of the repository; with the wheels of a bundle it is --home DIR" 2
  case "$mode" in demo | test) fail "'$mode' needs a copy of the repository, and here are only wheels" 2 ;; esac
  [ -n "$offline" ] || offline="$here"
  # A device of a fleet may get its bundles from a registry.
  ! compgen -G "$offline/oras-*.whl" >/dev/null || more=",registry"
  [ -n "$home" ] || [ -n "${HOME:-}" ] || fail "HOME is not set: give --home DIR" 2
  [ -n "$home" ] || home="$HOME/.local/share/edge"
  need_mib=800
  venv="$home/venvs/$(inputs_digest | cut -d ' ' -f 1)"
  shown="$venv"
}

check_place() {
  local file
  if [ -n "$edge_wheel" ]; then
    check_wheels_place
    return
  fi
  for file in pyproject.toml hatch_build.py README.md LICENSE edge/__init__.py constraints/jetson.txt; do
    [ -f "$here/$file" ] || fail "$here/$file is missing: this is not a whole copy of the repository; clone it again"
  done
  if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
    fail "running under sudo, so .venv would belong to root: run ./install.sh as $SUDO_USER, without sudo"
  fi
  [ -w "$here" ] || fail "no permission to write in $here: change its owner, or clone the repository elsewhere"
  check_offline
}

check_wheels_place() {
  [ -f "$here/constraints/jetson.txt" ] ||
    fail "$here/constraints/jetson.txt is missing: these are not all the files of a bundle's wheels"
  if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
    fail "running under sudo, so edge would be root's: run it as $SUDO_USER, without sudo"
  fi
  mkdir -p -- "$home" 2>/dev/null && [ -w "$home" ] || fail "no permission to write in $home: give another --home DIR"
  check_offline
}

check_offline() {
  if [ -n "$offline" ] && ! compgen -G "$offline/*.whl" >/dev/null; then
    fail "--offline $offline: there are no wheels (*.whl) in it; ./install.sh --help says how to fill it"
  fi
}

# ---- which Python ----------------------------------------------------------------------------------------------------

# The version of a Python, or nothing when it does not run.
version_of_python() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true; }

# Why a Python will not do, in words; nothing when it will.
python_problem() {  # python version
  case "$2" in
    3.1[0-3].*) ;;
    3.[0-9].* | 2.* | 3.[0-9] | [01].*)
      echo "$1 is Python $2, too old: edge needs 3.10 to 3.13"
      return
      ;;
    "") echo "$1 does not run" && return ;;
    *) echo "$1 is Python $2, too new: edge needs 3.10 to 3.13" && return ;;
  esac
  # Debian has ensurepip in a package of its own; with pip's wheel at hand it is not needed.
  if ! "$1" -c "import venv$([ -n "$(pip_wheel)" ] || echo ', ensurepip')" >/dev/null 2>&1; then
    echo "$1 (Python $2) cannot make virtual environments: sudo apt install python${2%.*}-venv"
  fi
}

# The wheel of pip itself, where the wheels of a bundle have one.
pip_wheel() {
  [ -z "$edge_wheel" ] || compgen -G "$offline/pip-*.whl" | tail -n 1
}

# Set python and python_version, or fail with the first thing that is wrong.
find_python() {
  local candidates=(python3 python3.13 python3.12 python3.11 python3.10) candidate problem first=""
  if [ -n "${EDGE_PYTHON:-}" ]; then
    candidates=("$EDGE_PYTHON")
  elif is_jetson; then
    # NVIDIA's tensorrt and OpenCV are packages of the system's Python, and of no other.
    candidates=("$root/usr/bin/python3")
  fi
  for candidate in "${candidates[@]}"; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    python_version="$(version_of_python "$candidate")"
    problem="$(python_problem "$candidate" "$python_version")"
    if [ -z "$problem" ]; then
      python="$(base_python "$candidate")"
      return
    fi
    [ -n "$first" ] || first="$problem"
  done
  if [ -z "$first" ]; then
    [ -z "${EDGE_PYTHON:-}" ] || fail "EDGE_PYTHON=$EDGE_PYTHON: there is no such command"
    fail "no Python found: install Python 3.10 to 3.13 (sudo apt install python3 python3-venv), or set EDGE_PYTHON"
  fi
  case "$first" in
    *"too old"*) ! is_jetson || first="$first (JetPack 6 or 7; JetPack 5 is out of scope)" ;;
  esac
  case "$first" in
    *" apt install "*) fail "$first" ;;
    *) fail "$first; install one, or name it: EDGE_PYTHON=/path/to/python ./install.sh" ;;
  esac
}

# A Python from an activated virtual environment stands for the one below it: the former may be the .venv in the way.
base_python() {
  local path
  path="$(command -v "$1")"
  "$path" -c 'import sys; print(sys._base_executable if sys.prefix != sys.base_prefix else sys.argv[1])' "$path"
}

# ---- which machine ---------------------------------------------------------------------------------------------------

# The rule of edge.system.device.identify: the device tree, else the release file. A container sees the device tree only
# where the host's is mounted (docs/containers.md).
is_jetson() {
  local tree
  case "${EDGE_MACHINE:-}" in jetson) return 0 ;; host) return 1 ;; esac
  [ "$(uname -m)" = aarch64 ] || return 1
  for tree in "$root/proc/device-tree" "$root/run/host/device-tree"; do
    ! grep -qazE 'tegra[0-9]{3}' "$tree/compatible" 2>/dev/null || return 0
    ! grep -qaiE 'jetson|\borin\b' "$tree/model" 2>/dev/null || return 0
  done
  [ -n "$(l4t_release)" ]
}

# Release of Jetson Linux, like 36.4.7; nothing when unknown.
l4t_release() {
  local line='^# R\([0-9]*\) (release), REVISION: \([0-9.]*\).*'
  sed -n "s/$line/\1.\2/p;1q" "$root/etc/nv_tegra_release" 2>/dev/null || true
}

nvcc_path() {
  if [ -x "$root/usr/local/cuda/bin/nvcc" ]; then echo "$root/usr/local/cuda/bin/nvcc"; else command -v nvcc || true; fi
}

# Version of a module as a Python sees it, or "missing", or "broken: why". One process each: a binary that was built for
# another NumPy may take the interpreter down with it.
module_version() {  # python module
  "$1" - "$2" 2>/dev/null <<'PY' || echo "broken: the interpreter crashed"
import importlib
import importlib.util
import sys

name = sys.argv[1]
if importlib.util.find_spec(name) is None:
    print("missing")
    sys.exit()
try:
    module = importlib.import_module(name)
except Exception as exc:
    print("broken:", (str(exc).splitlines() or [type(exc).__name__])[0])
    sys.exit()
version = getattr(module, "__version__", None) or getattr(module, "VERSION_TEXT", None) or "unknown version"
if name == "cv2":
    with_gstreamer = module.videoio_registry.hasBackend(module.CAP_GSTREAMER)
    version += ", GStreamer " + ("yes" if with_gstreamer else "no")
print(version)
PY
}

show_jetson() {  # python
  local nvcc module model seen
  nvcc="$(nvcc_path)"
  model="$({ cat "$root/proc/device-tree/model" || cat "$root/run/host/device-tree/model"; } 2>/dev/null | tr -d '\0' || true)"
  say "Jetson: ${model:-unknown module}"
  say "  L4T       $(l4t_release | grep . || echo unknown)"
  if [ -n "$nvcc" ]; then
    say "  CUDA      $("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p') ($nvcc)"
  else
    say "  CUDA      no nvcc, so PyCUDA cannot be built: sudo apt install nvidia-jetpack"
  fi
  for module in tensorrt cv2 numpy pycuda; do
    seen="$(module_version "$1" "$module")"
    case "$module $seen" in
      "tensorrt missing") seen="missing: sudo apt install python3-libnvinfer" ;;
      *"GStreamer no") seen="$seen, so no CSI camera: sudo apt install libopencv-python, and no OpenCV from pip" ;;
    esac
    say "  $(printf '%-9s' "$module") $seen"
  done
}

# ---- the virtual environment -----------------------------------------------------------------------------------------

# What .venv was made from, as lines; the same lines mean that there is nothing to do.
fingerprint() {  # python version, extras
  local kind=host
  ! is_jetson || kind="jetson $(l4t_release)"
  printf '%s\n' "place $venv" "python $1" "kind $kind" "inputs $(inputs_digest)" "extras $2"
}

inputs_digest() {
  if [ -n "$edge_wheel" ]; then
    # The names of wheels tell their versions; only ours may change without one.
    {
      cat "$edge_wheel" "$here/install.sh" "$here/constraints/jetson.txt" 2>/dev/null || true
      (cd -- "$offline" && ls)
    } | cksum
    return
  fi
  cat "$here/pyproject.toml" "$here/constraints/jetson.txt" "$here/install.sh" | cksum
}

# Sets todo: nothing, update or create.
compare_with_stamp() {
  local version="" have=dev
  todo=create
  [ -f "$stamp" ] && [ -x "$venv/bin/edge" ] || return 0
  version="$(version_of_python "$venv/bin/python")"
  "$venv/bin/edge" --version >/dev/null 2>&1 || return 0
  # Without EDGE_PYTHON, a .venv that works is kept, whatever python3 is today.
  [ -z "${EDGE_PYTHON:-}" ] || [ "$version" = "$(version_of_python "$EDGE_PYTHON")" ] || return 0
  grep -qx "extras dev" "$stamp" || have=host
  if [ "$(fingerprint "$version" "$have")" = "$(cat "$stamp")" ]; then
    todo=update
    # The development tools come on top: who has them has all that the other modes need.
    if [ "$have" = dev ] || [ "$extras" = host ]; then todo=nothing; fi
  elif [ "$(fingerprint "$version" "$have" | head -n 3)" = "$(head -n 3 "$stamp")" ] && ! is_jetson; then
    todo=update
  fi
  if [ "$todo" = update ] && [ -n "$edge_wheel" ]; then todo=create; fi
  # What JetPack brings can be told from what pip brought only in a new environment.
  if [ "$todo" = update ] && is_jetson; then todo=create; fi
  if [ "$todo" = update ] && [ "$have" = dev ]; then extras=dev; fi
}

check_space() {  # MiB needed
  local free_mib used_mib=0
  # The free space is before the percentage; the names before and after them may hold spaces.
  free_mib="$(df -Pk "${home:-$here}" 2>/dev/null | awk '
    NR == 2 { for (i = 2; i <= NF; i++) if ($i ~ /%$/) { print int($(i - 1) / 1024); exit } }')"
  case "$free_mib" in "" | *[!0-9]*) return 0 ;; esac
  [ ! -d "$venv" ] || used_mib="$(du -sk "$venv" 2>/dev/null | awk '{ print int($1 / 1024) }')"
  if [ $((free_mib + used_mib)) -lt "$1" ]; then
    fail "not enough disk space: about $1 MiB are needed in ${home:-$here}, $free_mib MiB are free; free some or use another place"
  fi
}

remove_venv() {
  if [ -L "$venv" ]; then
    rm -f -- "$venv"
  elif [ -d "$venv" ] && [ -n "$(ls -A "$venv")" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ ! -d "$venv/bin" ]; then
    fail "$venv is not a virtual environment: move it away, then run ./install.sh again"
  elif [ -e "$venv" ]; then
    rm -rf -- "$venv" || fail "cannot remove $venv: remove it by hand (sudo rm -r, if root made it)"
  fi
}

create_venv() {
  local options=()
  ! is_jetson || options=(--system-site-packages)
  [ -z "$(pip_wheel)" ] || options+=(--without-pip)
  if [ -e "$venv" ]; then
    say "making $shown again: it is unfinished, or was made for another place, Python or version of edge"
    remove_venv
  fi
  say "making $shown with Python $python_version ($python)"
  mkdir -p -- "$venv"
  "$python" -m venv ${options[@]+"${options[@]}"} "$venv" >"$log" 2>&1 ||
    fail "cannot make $shown: $(tail -n 1 "$log") (details: $log)"
  if [ -n "$(pip_wheel)" ]; then
    # Packaged as a wheel, pip runs as it is.
    PYTHONPATH="$(pip_wheel)" run_pip pip || fail "$(pip_problem) (details: $log)"
  fi
}

# ---- pip -------------------------------------------------------------------------------------------------------------

run_pip() {  # arguments of pip install
  local options=(--disable-pip-version-check --no-input --progress-bar off --retries 2) status=0
  [ -z "$offline" ] || options+=(--no-index --find-links "$offline")
  # A sign of life: some wheels are large, and some lines are slow.
  (
    while sleep 20 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
      say "  … $(grep -E '^ *(Collecting|Downloading|Building|Installing)' "$log" | tail -n 1 | cut -c 1-100)"
    done
  ) 9>&- 2>/dev/null &
  ticker=$!
  (cd -- "$here" && "$venv/bin/python" -m pip install "${options[@]}" "$@") >>"$log" 2>&1 || status=$?
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  ticker=""
  return "$status"
}

pip_install() { run_pip "$@" || fail "$(pip_problem) (details: $log)"; }

# What went wrong, in one line, from the words of pip.
pip_problem() {
  local missing words line='^ *ERROR: No matching distribution found for \([^ ]*\).*'
  missing="$(sed -n "s/$line/\1/p" "$log" | tail -n 1)"
  if grep -qE 'No space left on device|Errno 28|Disk quota exceeded' "$log"; then
    echo "the disk is full: free about $need_mib MiB here and some in ${TMPDIR:-/tmp}, then run ./install.sh again"
  elif [ -n "$offline" ] && [ -n "$missing" ]; then
    echo "--offline $offline: no wheel for $missing that suits Python $python_version on $(uname -m)"
  elif grep -qE "$unreachable" "$log"; then
    echo "the package registry cannot be reached: check the network or proxy, or use --offline DIR (see --help)"
  elif [ -n "$missing" ]; then
    echo "the package registry has no $missing for Python $python_version on $(uname -m): try another EDGE_PYTHON"
  else
    words="$(grep -E '(^|[ .])[A-Za-z]*(Error|ERROR): ' "$log" | tail -n 1 | sed 's/^ *//' | cut -c 1-200)"
    echo "pip failed: ${words:-$(tail -n 1 "$log" | cut -c 1-200)}"
  fi
}

unreachable='NewConnectionError|ConnectTimeout|NameResolutionError|name resolution|Network is unreachable'
unreachable+='|Read timed out|ProxyError|SSLError|CERTIFICATE_VERIFY_FAILED|Max retries exceeded|IncompleteRead'
unreachable+='|Connection refused|Connection reset|[45][0-9][0-9] (Client|Server) Error'

install_host() {
  if [ "$todo" = update ]; then
    say "bringing edge[$extras] in $shown up to date"
  elif [ -n "$offline" ]; then
    say "installing edge[$extras] from $offline (about a minute)"
  else
    say "installing edge[$extras] (about 200 MB to download, one to three minutes)"
  fi
  if [ -n "$edge_wheel" ]; then
    pip_install "$edge_wheel[$extras$more]"
  else
    pip_install ${editable[@]+"${editable[@]}"} ".[$extras]"
  fi
}

# On a Jetson, NumPy, OpenCV and TensorRT stay those of JetPack: others break or hide them.
install_jetson() {
  local numpy_pin="$venv/edge-numpy.txt" requirements="$venv/edge-requirements.txt"
  choose_numpy >"$numpy_pin"
  say "installing edge beside JetPack's packages, with $(cat "$numpy_pin")"
  if [ -n "$edge_wheel" ]; then
    pip_install --no-deps "$edge_wheel"
  else
    pip_install --no-deps ${editable[@]+"${editable[@]}"} .
  fi
  # Before anybody asks whether OpenCV imports: JetPack's does not beside a NumPy that it was not built for.
  grep -q == "$numpy_pin" || pip_install -c constraints/jetson.txt -c "$numpy_pin" numpy
  list_requirements >"$requirements" || fail "cannot read what edge needs (details: $log)"
  pip_install -c constraints/jetson.txt -c "$numpy_pin" -r "$requirements"
  install_pycuda "$numpy_pin"
  show_jetson "$venv/bin/python"
}

# A line for pip that keeps the NumPy that is there, unless JetPack's packages do not import beside it.
choose_numpy() {
  local seen cv2
  seen="$(module_version "$venv/bin/python" numpy)"
  cv2="$(module_version "$venv/bin/python" cv2)"
  # A NumPy 2 that came by pip, for all users or for this one. JetPack 6 is the JetPack of Python 3.10.
  case "$seen $python_version $cv2" in
    [2-9].*" 3.10."* | [2-9].*" broken:"*)
      echo "numpy>=1.26,<2"
      return
      ;;
  esac
  case "$seen" in
    1.26.* | [2-9].*) echo "numpy==$seen" ;;
    # Missing, or Ubuntu 22.04's 1.21, which ONNX Runtime does not take. JetPack's binaries are built for NumPy 1, and
    # run with any later 1.x; it goes into .venv and leaves the system's alone.
    *) echo "numpy>=1.26,<2" ;;
  esac
}

# What pyproject.toml asks for, less what JetPack has.
list_requirements() {
  local cv2
  cv2="$(module_version "$venv/bin/python" cv2)"
  "$venv/bin/python" - "$extras$more" "${cv2%%:*}" 2>>"$log" <<'PY'
import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

extras = {"host", *sys.argv[1].split(",")}
for line in requires("jetson-edge") or []:
    requirement = Requirement(line)
    wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    is_seen = requirement.name.startswith("opencv") and sys.argv[2] not in {"missing", "broken"}
    if wanted and not is_seen and requirement.name != "jetson-edge":
        print(f"{requirement.name}{requirement.specifier}")
PY
}

install_pycuda() {  # file with the pin of NumPy
  local nvcc again="./install.sh uninstall && ./install.sh"
  [ "$(module_version "$venv/bin/python" pycuda)" = missing ] || return 0
  nvcc="$(nvcc_path)"
  if [ -z "$nvcc" ]; then
    say "no nvcc, so no PyCUDA: the backend tensorrt will not run. sudo apt install nvidia-jetpack, then $again"
    return 0
  fi
  say "building PyCUDA with $nvcc (some minutes)"
  PATH="$(dirname -- "$nvcc"):$PATH" run_pip -c constraints/jetson.txt -c "$1" pycuda ||
    say "PyCUDA did not build, so the backend tensorrt will not run (details: $log). $(pycuda_cure), then $again"
}

# What the compiler missed, from its words, and the package that has it.
pycuda_cure() {
  local missing cuda
  missing="$(sed -nE 's/.*fatal error: ([A-Za-z0-9_./-]+): No such file.*/\1/p; s/.*(command|program) .?(g\+\+|[a-z0-9_-]+g\+\+).? (failed|not found).*/g++/p
    s/.*cannot find -l([A-Za-z0-9_]+).*/lib\1.so/p' "$log" | head -n 1)"
  cuda="$(sed -nE 's/.*release ([0-9]+)\.([0-9]+).*/-\1-\2/p' <<<"$("$(nvcc_path)" --version 2>/dev/null || true)" | head -n 1)"
  case "$missing" in
    Python.h) echo "Python.h is missing: sudo apt install python3-dev" ;;
    curand*.h | libcurand.so) echo "$missing is missing: sudo apt install libcurand-dev$cuda" ;;
    cuda*.h | *cudart*) echo "$missing is missing: sudo apt install cuda-cudart-dev$cuda" ;;
    libcuda.so) echo "libcuda.so is missing: sudo apt install nvidia-l4t-cuda" ;;
    g++) echo "g++ is missing: sudo apt install g++" ;;
    "") echo "The last line of the log: $(tail -n 1 "$log" | cut -c 1-160). Read it" ;;
    *) echo "$missing is missing: sudo apt install nvidia-jetpack brings CUDA's headers" ;;
  esac
}

# Of a bundle's wheels, which anybody with the right to log in may install: one at a time.
wait_for_others() {
  [ -n "$edge_wheel" ] && command -v flock >/dev/null 2>&1 || return 0
  exec 9>"$home/install.lock"
  flock -w 900 9 || fail "another installation has been running for 15 minutes in $home"
}

# ---- modes -----------------------------------------------------------------------------------------------------------

set_up() {
  compare_with_stamp
  if [ "$todo" = nothing ]; then
    activate
    say "up to date: $shown (Python $(version_of_python "$venv/bin/python"))"
    return
  fi
  if [ "$todo" = create ]; then
    find_python
    check_space "$need_mib"
    create_venv
  else
    python_version="$(version_of_python "$venv/bin/python")"
    check_space "$((need_mib / 3))"
    rm -f -- "$stamp"
    : >"$log"
  fi
  if is_jetson; then install_jetson; else install_host; fi
  "$venv/bin/edge" --version >>"$log" 2>&1 || fail "edge is installed and does not start: $(tail -n 1 "$log")"
  # Last, and in one step: without it, .venv counts as unfinished.
  fingerprint "$(version_of_python "$venv/bin/python")" "$extras" >"$stamp.tmp"
  mv -f -- "$stamp.tmp" "$stamp"
  activate
  say "ready: $("$venv/bin/edge" --version) in $shown (Python $python_version)"
}

# Of a bundle's wheels: let DIR/venv be the one that works, in one step, and keep the one before it.
activate() {
  local before="" other
  [ -n "$edge_wheel" ] || return 0
  before="$(readlink -- "$home/venv" || true)"
  if [ "$before" = "venvs/${venv##*/}" ]; then
    link_command
    return
  fi
  ln -sfn -- "venvs/${venv##*/}" "$home/.venv.$$" && mv -Tf -- "$home/.venv.$$" "$home/venv" ||
    fail "cannot let $home/venv point to $venv"
  for other in "$home"/venvs/*/; do
    other="${other%/}"
    if [ "$other" != "$venv" ] && [ "venvs/${other##*/}" != "$before" ]; then rm -rf -- "$other"; fi
  done
  link_command
}

# ~/.local/bin/edge, unless that is somebody else's; with another --home, nothing.
link_command() {
  local link="${HOME:-}/.local/bin/edge"
  [ "$home" = "${HOME:-}/.local/share/edge" ] || return 0
  if [ -e "$link" ] && [ ! -L "$link" ]; then
    say "$link is not ours and stays: edge is $home/venv/bin/edge"
    return
  fi
  mkdir -p -- "${link%/*}" && ln -sfn -- "$home/venv/bin/edge" "$link" || say "cannot write $link: edge is $home/venv/bin/edge"
}

run_demo() {
  cd -- "$here"
  say "edge build --profile host"
  "$venv/bin/edge" build --profile host
  say "edge run --profile host --images samples --record runs/demo.json"
  "$venv/bin/edge" run --profile host --images samples --record runs/demo.json
}

run_tests() {
  local failed="" workers mypy_log="$venv/mypy.log"
  cd -- "$here"
  # mypy uses one core for some 20 seconds: it runs beside everything else.
  "$venv/bin/python" -m mypy >"$mypy_log" 2>&1 &
  mypy=$!
  [ -z "${EDGE_FETCH_TENSORRT:-}" ] || tests/support/tensorrt/fetch.sh "$venv/bin/python"
  run_check ruff check .
  run_check ruff format --check .
  [ -z "$failed" ] || printf 'install.sh: error: failed:%s (pytest follows)\n' "$failed" >&2
  workers="$("$venv/bin/python" -c 'import os; print(min(len(os.sched_getaffinity(0)), 8))')"
  say "pytest, $workers at a time, and mypy"
  "$venv/bin/python" -m pytest -n "$workers" --dist worksteal || failed="$failed pytest"
  if ! wait "$mypy"; then
    failed="$failed mypy"
    cat -- "$mypy_log" >&2
    printf 'install.sh: error: failed: mypy\n' >&2
  fi
  mypy=""
  [ -z "$failed" ] || exit 1
}

run_check() {  # module arguments…
  say "$*"
  "$venv/bin/python" -m "$@" || failed="$failed '$*'"
}

run_uninstall() {
  if [ -n "$edge_wheel" ]; then
    [ "$(readlink -- "${HOME:-}/.local/bin/edge" || true)" != "$home/venv/bin/edge" ] || rm -f -- "$HOME/.local/bin/edge"
    rm -rf -- "$home/venv" "$home/venvs" || fail "cannot remove $home/venvs: remove it by hand"
    say "removed $home/venv and $home/venvs; bundles and what edge measured stay"
    return
  fi
  if [ ! -e "$venv" ] && [ ! -L "$venv" ]; then
    say "there is no .venv here: nothing to remove"
    return
  fi
  remove_venv
  say "removed $venv"
}

run_report() {
  compare_with_stamp
  find_python
  say "Python $python_version ($python)"
  if is_jetson; then show_jetson "$python"; else say "not a Jetson: ONNX Runtime on the CPU"; fi
  case "$todo" in
    nothing) say "$shown is up to date (Python $(version_of_python "$venv/bin/python"))" ;;
    update) say "$shown would be brought up to date" ;;
    create) check_space "$need_mib" && say "$shown would be made, about $need_mib MiB with the downloads" ;;
  esac
}

main() {
  parse_arguments "$@"
  find_source
  stamp="$venv/edge-install.stamp"
  log="$venv/edge-install.log"
  # Settings that send packages elsewhere than into .venv, or bring others in.
  unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT
  export PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0
  if [ -n "$offline" ]; then
    unset PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS
    export PIP_CONFIG_FILE=/dev/null
  fi
  if [ "$mode" = uninstall ]; then
    run_uninstall
    return
  fi
  check_place
  if [ "$mode" = check ]; then
    run_report
    return
  fi
  wait_for_others
  set_up
  [ -z "$edge_wheel" ] || return 0
  case "$mode" in
    demo) run_demo ;;
    test) run_tests ;;
    *)
      if [ ${#editable[@]} = 0 ]; then
        say "next: $shown/bin/edge --help"
      else
        say "next: ./install.sh demo    (or: source .venv/bin/activate && edge --help)"
      fi
      ;;
  esac
}

main "$@"
