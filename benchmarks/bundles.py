"""What bundles cost, and what becomes of damaged and interrupted ones.

    python benchmarks/bundles.py              # files, damage, kills, registry (needs docker-registry for the last)
    python benchmarks/bundles.py --wheels     # also wheels for JetPack 6 and 7, installed offline (needs a network)

The bundle has a model of 100 MB of noise and a table of 10 kB. Bytes at the registry are counted by a proxy in front of
it, on the wire, with HTTP's own. Damage: a random piece of a tar is deleted, repeated, zeroed, flipped or overwritten;
what is opened and verified all the same, and is not the original, would be "accepted". Kills: SIGKILL to `edge bundle
unpack` and `pull` at random moments; the folder must then be a whole bundle or none, and the next try must succeed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge.deploy.bundle import wheels
from edge.deploy.bundle.reader import Bundle, open_bundle, verify_bundle
from edge.deploy.bundle.unpacking import unpack_bundle
from edge.deploy.registry.artifact import pull, push
from edge.deploy.registry.client import parse_reference
from edge.errors import EdgeError
from tests.support.bundles import FILES, tar_of
from tests.support.registries import Counting, reserved, wait_for

ROOT = Path(__file__).resolve().parents[1]
MODEL_BYTES, TABLE_BYTES = 100_000_000, 10_000
DAMAGES, KILLS = 5000, 40


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--wheels", action="store_true", help="fetch wheels, and install offline")
    options = arguments.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    with tempfile.TemporaryDirectory(prefix="edge-bundles-") as name:
        folder = Path(name)
        bundle = files(folder)
        damage(folder)
        kills("unpack", folder, ["unpack", str(bundle.path)])
        if shutil.which("docker-registry") is None:
            print("registry: docker-registry is not on this machine")
        else:
            registry(folder, bundle)
        if options.wheels:
            bootstrap(folder)


def made(path: Path, *, table: bytes) -> Bundle:
    rng = random.Random(0)
    path.write_bytes(
        tar_of({"model/m.onnx": rng.randbytes(MODEL_BYTES), "tables/m/entropy2.table": table * TABLE_BYTES})
    )
    return open_bundle(path)


def timed(what: str, action: Callable[[], object], *, repeat: int = 3) -> None:
    best = min(_seconds(action) for _ in range(repeat))
    print(f"{what:<52}{best * 1e3:>9.1f} ms   (best of {repeat})")


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def files(folder: Path) -> Bundle:
    bundle = made(folder / "a.edge", table=b"a")
    timed("open a bundle of 100 MB (all but the contents)", lambda: open_bundle(bundle.path))
    timed("verify it", lambda: verify_bundle(bundle))

    def unpack_anew() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        unpack_bundle(bundle, folder / "out")

    timed("unpack it, verified and synced", unpack_anew)
    shutil.rmtree(folder / "out")
    return bundle


def damage(folder: Path) -> None:
    rng = random.Random(1)
    good = tar_of(FILES)
    path, accepted, tried = folder / "damaged.edge", 0, 0
    while tried < DAMAGES:
        at, to = sorted(rng.randrange(len(good)) for _ in range(2))
        piece = good[at : min(to, at + rng.choice([1, 8, 512, 2048]))]
        end = at + len(piece)
        bad = rng.choice([
            good[:at] + good[end:], good[:end] + piece + good[end:], good[:at] + bytes(len(piece)) + good[end:],
            good[:at] + bytes(b ^ (1 << rng.randrange(8)) for b in piece) + good[end:],
            good[:at] + rng.randbytes(len(piece)) + good[end:],
        ])  # fmt: skip
        if bad == good:
            continue
        tried += 1
        path.write_bytes(bad)
        with contextlib.suppress(EdgeError):
            verify_bundle(open_bundle(path))
            accepted += 1
    print(f"damaged bundles accepted: {accepted} of {tried}")


def kills(what: str, folder: Path, command: list[str], options: tuple[str, ...] = ()) -> None:
    """SIGKILL at moments spread over the time that the command takes."""
    rng = random.Random(2)
    out = folder / "killed"
    target = [str(out)] if what == "unpack" else ["-o", str(out)]
    line = [sys.executable, "-m", "edge", "bundle", *command, *target, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    whole = _seconds(lambda: subprocess.run(line, check=True, capture_output=True, env=environment))
    shutil.rmtree(out)
    states = {"nothing": 0, "no bundle": 0, "whole": 0}
    for _ in range(KILLS):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        time.sleep(rng.uniform(0.1, 1.05) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = _state(out)
        states[state] += 1
        # What was begun is for the next one to go on with.
        if state == "whole":
            shutil.rmtree(out)
    subprocess.run(line, check=True, capture_output=True, env=environment)
    verify_bundle(open_bundle(out))
    shutil.rmtree(out)
    print(f"{what} killed {KILLS} times, left behind: {states}; the next one succeeded")


def _state(out: Path) -> str:
    if not out.exists() or not any(out.iterdir()):
        return "nothing"
    if not (out / "bundle.json").exists():
        return "no bundle"
    verify_bundle(open_bundle(out))  # half a bundle would end the benchmark here
    return "whole"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    with reserved() as host, (folder / "registry.log").open("wb") as log:
        (folder / "registry.yml").write_text(
            f"version: 0.1\nlog: {{accesslog: {{disabled: true}}, level: error}}\nhttp: {{addr: '{host}'}}\n"
            f"storage: {{filesystem: {{rootdirectory: '{folder}/registry'}}}}\n"
        )
        process = subprocess.Popen(["docker-registry", "serve", folder / "registry.yml"], stdout=log, stderr=log)
        try:
            wait_for(host, process, log=folder / "registry.log")
            yield host
        finally:
            process.kill()
            process.wait()


def registry(folder: Path, first: Bundle) -> None:
    with running(folder) as host, contextlib.closing(Counting(host)) as proxy:
        changed = made(folder / "b.edge", table=b"b")

        def moved(what: str, action: Callable[[], object]) -> None:
            proxy.reset()
            seconds = _seconds(action)
            print(f"{what:<52}{seconds:>9.2f} s   {proxy.up:>11,} bytes up  {proxy.down:>11,} down")

        def pulled(tag: str, out: Path, reuse: Bundle | None = None) -> None:
            with pull(parse_reference(f"oci://{proxy.host}/m:{tag}"), reuse=reuse) as remote:
                unpack_bundle(remote, out)

        moved("push 100 MB", lambda: push(first, parse_reference(f"oci://{proxy.host}/m:1")))
        moved("push the same again", lambda: push(first, parse_reference(f"oci://{proxy.host}/m:2")))
        moved("push with another table of 10 kB", lambda: push(changed, parse_reference(f"oci://{proxy.host}/m:3")))
        moved("pull 100 MB into a folder", lambda: pulled("1", folder / "pulled"))
        moved("pull with another table, with --reuse", lambda: pulled("3", folder / "reused", first))
        for name in ("pulled", "reused"):
            verify_bundle(open_bundle(folder / name))
        kills("pull", folder, ["pull", f"oci://{host}/m:1"])


def bootstrap(folder: Path) -> None:
    for release in ("6.2", "7.2"):
        where = folder / f"wheels-{release}"
        where.mkdir()
        wanted = wheels.targets("agx-orin", [release])
        start = time.perf_counter()
        found = wheels.gather(where, wanted)
        size = sum(path.stat().st_size for path in found.values())
        count = sum(name.endswith((".whl", ".tar.gz")) for name in found)
        seconds = time.perf_counter() - start
        print(
            f"JetPack {release}: {count} wheels and sources for Python {wanted[0].python}, "
            f"{size / 1e6:.0f} MB, {seconds:.0f} s"
        )
        shutil.rmtree(where)
    here = folder / "wheels"
    here.mkdir()
    device = folder / "device"
    for name, path in wheels.gather(here, wheels.targets("host", [])).items():
        (device / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, device / name)
    cut_off = ["unshare", "-rn"] if subprocess.run(["unshare", "-rn", "true"], check=False).returncode == 0 else []
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder / "home"), "EDGE_PYTHON": sys.executable}
    line = [*cut_off, "bash", str(device / "wheels/install.sh"), "--offline", str(device / "wheels")]
    (folder / "home").mkdir()
    how = "in a name space without a network" if cut_off else "with --no-index"
    for what in ("installed offline", "again, nothing to do"):
        seconds = _seconds(lambda: subprocess.run(line, check=True, env=environment, capture_output=True, cwd="/"))
        print(f"{what} ({how}, Python {platform.python_version()}): {seconds:.1f} s")


if __name__ == "__main__":
    main()
