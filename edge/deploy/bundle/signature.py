"""Sign bundles and check detached signatures with ``ssh-keygen -Y``, which hosts and devices already have.

The signature is for ``bundle.json``, which covers every byte of the bundle. A device requires a signature if it has a
list of allowed signers [ssh-keygen(1), ALLOWED SIGNERS]: ``allowed_signers`` in edge's own folder, or
``/etc/edge/allowed_signers``, which only root can change. Every existing list must accept the bundle; an empty or
broken list accepts nothing. ``CHECK_SCRIPT`` does the same in POSIX sh, for devices without edge.

Needs OpenSSH 8.2; JetPack 6 has 8.9, JetPack 7 has 9.6.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge.artifacts import store, temporary_folder
from edge.deploy.bundle.reader import Bundle, BundleSource
from edge.errors import ArtifactError, MissingDependencyError, UsageError, os_error

NAMESPACE = "edge-bundle"
LIST = "allowed_signers"
SYSTEM_LIST = Path("/etc/edge") / LIST
_TIMEOUT_S = 60
_HINT = "get it from a trusted source, or have it signed: edge bundle sign --key KEY BUNDLE"

CHECK_SCRIPT = r"""# Check the signature of a bundle with ssh-keygen alone.
# $1: folder with bundle.json and bundle.json.sig; $2: edge's folder on this device; $3: its root, where that is not /.
# Exit code: 0 accepted, or no list of allowed signers is there; 65 refused; 69 ssh-keygen is missing.
set -u
for list in "$2/allowed_signers" "${3:-}/etc/edge/allowed_signers"; do
  [ -e "$list" ] || [ -L "$list" ] || continue
  if ! command -v ssh-keygen >/dev/null 2>&1; then
    echo "$list asks for a signature, and ssh-keygen is missing: apt install openssh-client" >&2
    exit 69
  fi
  if [ ! -f "$1/bundle.json.sig" ]; then
    echo "the bundle is not signed, and $list asks for a signature" >&2
    exit 65
  fi
  signer=
  names=$(ssh-keygen -Y find-principals -s "$1/bundle.json.sig" -f "$list" 2>/dev/null | tr ',' '\n')
  while IFS= read -r name; do
    [ -n "$name" ] || continue
    if ssh-keygen -Y verify -f "$list" -I "$name" -n edge-bundle -s "$1/bundle.json.sig" \
        <"$1/bundle.json" >/dev/null 2>&1; then
      signer=$name
      break
    fi
  done <<EOF
$names
EOF
  if [ -z "$signer" ]; then
    echo "the signature is not good for this bundle, or not by anybody in $list" >&2
    ! grep -q 'valid-[ab]' "$list" || echo "its keys are valid for a time, and the clock here says $(date -u +%F)" >&2
    exit 65
  fi
  echo "signed by $signer"
done
exit 0
"""


def check_script() -> str:
    """Return ``CHECK_SCRIPT`` as one line, for the script on a device."""
    return base64.b64encode(CHECK_SCRIPT.encode()).decode()


class Signer(msgspec.Struct, frozen=True):
    """The signer: the name from the list of allowed signers, and the key, such as ``ED25519 SHA256:…``."""

    name: str
    key: str
    list: str

    def __str__(self) -> str:
        return f"{self.name} ({self.key})"


def sign(bundle: Bundle, key: Path) -> Path:
    """Sign ``bundle`` with the SSH key ``key``, write the signature, and return its path.

    ``key`` is a private key, or a public key whose private key is in an SSH agent. ssh-keygen asks for a passphrase on
    the terminal.

    Raises:
        UsageError: the key does not exist, or ssh-keygen cannot sign with it.
        MissingDependencyError: ssh-keygen is missing.
    """
    if not key.is_file():
        raise UsageError("this key does not exist", where=key, hint="ssh-keygen -t ed25519 -f edge_key")
    done = _run(["-Y", "sign", "-f", str(key), "-n", NAMESPACE], bundle.manifest)
    if done.returncode != 0 or b"BEGIN SSH SIGNATURE" not in done.stdout:
        raise UsageError(f"ssh-keygen did not sign: {_last_line(done.stderr)}", where=key)
    store.write_bytes(bundle.signature_path, done.stdout)
    return bundle.signature_path


def check(bundle: BundleSource, allowed_signers: Path) -> Signer:
    """Check the signature of ``bundle`` and return its signer from ``allowed_signers``.

    Raises:
        ArtifactError: the bundle is not signed, was changed after signing, or its signer is not in the list.
        MissingDependencyError: ssh-keygen is missing.
    """
    signature = bundle.signature()
    if signature is None:
        raise ArtifactError(
            f"the bundle is not signed, but {allowed_signers} requires a signature", where=bundle.where, hint=_HINT
        )
    if not allowed_signers.is_file():
        raise UsageError("this list of allowed signers does not exist", where=allowed_signers)
    try:
        # Make a copy, so that the checked data is the data that was read.
        with temporary_folder("sign") as folder:
            path = Path(folder) / "bundle.json.sig"
            path.write_bytes(signature)
            signer = _signer(bundle.manifest, path, allowed_signers)
    except OSError as exc:
        raise os_error(exc, exc.filename or tempfile.gettempdir()) from exc
    if signer is None:
        raise ArtifactError(
            f"the signature is invalid for this bundle, or its signer is not in {allowed_signers}"
            f"{_dates(allowed_signers)}",
            where=bundle.where,
            hint=_HINT,
        )
    return signer


def _dates(allowed: Path) -> str:
    """Mention the clock if a list limits its keys in time: a board without a battery starts in 1970."""
    if not re.search(rb"valid-(after|before)", allowed.read_bytes()):
        return ""
    return f"; its keys have a validity period, and the clock of this machine says {time.strftime('%F', time.gmtime())}"


def lists(home: Path, *, system: Path = SYSTEM_LIST) -> list[Path]:
    """Return the lists of allowed signers that this device has; ``home`` is edge's own folder on it.

    A broken link is a list, too, which accepts no signer.
    """
    return [path for path in (home / LIST, system) if os.path.lexists(path)]


def check_policy(bundle: BundleSource, policy: Sequence[Path]) -> list[Signer]:
    """Check ``bundle`` against every list of ``policy`` (see :func:`lists`); without a list nothing is checked.

    Raises:
        ArtifactError: a list does not accept the bundle.
    """
    return [_strictly(bundle, path) for path in policy]


def _strictly(bundle: BundleSource, path: Path) -> Signer:
    if not path.is_file():
        raise ArtifactError(
            f"{path} requires a signature but cannot be read, so no signer is accepted", where=bundle.where
        )
    return check(bundle, path)


def _signer(manifest: bytes, signature: Path, allowed: Path) -> Signer | None:
    found = _run(["-Y", "find-principals", "-s", str(signature), "-f", str(allowed)], b"")
    # A line may list several names, but -I accepts only one.
    names = [name for line in found.stdout.decode(errors="replace").splitlines() for name in line.split(",")]
    for name in dict.fromkeys(name.strip() for name in names if name.strip()):
        done = _run(["-Y", "verify", "-f", str(allowed), "-I", name, "-n", NAMESPACE, "-s", str(signature)], manifest)
        if done.returncode == 0:
            key = re.search(r" with (\S+) key (SHA256:\S+)", done.stdout.decode(errors="replace"))
            return Signer(name, f"{key[1]} {key[2]}" if key else "unknown key", str(allowed))
    return None


def _run(arguments: list[str], given: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["ssh-keygen", *arguments],
            input=given,
            capture_output=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
            # Signing may wait for a passphrase, or for a finger on a security key.
            timeout=None if "sign" in arguments else _TIMEOUT_S,
        )
    except FileNotFoundError as exc:
        raise MissingDependencyError("ssh-keygen is not installed", hint="sudo apt install openssh-client") from exc
    except subprocess.TimeoutExpired as exc:
        raise MissingDependencyError(f"ssh-keygen did not answer within {_TIMEOUT_S} s") from exc


def _last_line(text: bytes) -> str:
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    wanted = [line for line in lines if not line.startswith("Signing data")]
    return (wanted or lines or ["no reason given"])[-1]
