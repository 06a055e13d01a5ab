"""Figures of shipping, over a real sshd on loopback (each device has its own server, keys and port).

    python benchmarks/ship.py [interrupt|service|unchanged|changed|hosts|simulated|lies|fuzz …]

interrupt   200 ships are interrupted at random moments: client killed, the server's session killed, line cut, disk full
            (a tmpfs; needs root, left out otherwise). After each, `current` is read from outside and compared with its
            digests, and the same ship is run again without any cleaning.
service     ships with trials, by a real edge on the device, are killed at random moments (client, device's script, or
            both), while a loop starts `edge run --profile current` all the time: no start may fail, `current` must
            be a bundle that passed, and what the next ship says must be what the device shows.
unchanged   a second ship of the same bundle (100 MB): time, in turns with ssh and sha256sum alone; bytes on the line.
changed     a table of 10 kB changed next to a model of 100 MB: bytes on the line.
hosts       50 devices, 50 servers, 8 at a time.
simulated   500 devices that are folders, in one run.
lies        500 devices behind a program in the place of ssh, and 50 behind sshd, of which a third lie, hang, stream or
            die; and the good ones alone, for comparison.
fuzz        random answers into the parser of a device's answers: only edge's own errors may come out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edge.deploy.bundle.reader import Bundle, open_bundle  # noqa: E402
from edge.deploy.push import ship  # noqa: E402
from edge.deploy.transport.address import DeviceAddress  # noqa: E402
from tests.support import fuzzing, interrupts, loopback, lying_ssh  # noqa: E402
from tests.support.devices import QUICK, current, tar_of  # noqa: E402
from tests.support.service_loop import KilledShips  # noqa: E402

EDGE = [sys.executable, "-m", "edge"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
PARTS = ("interrupt", "service", "unchanged", "changed", "hosts", "simulated", "lies", "fuzz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when none is given")
    parser.add_argument("--interruptions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hosts", type=int, default=50)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=500)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    options = parser.parse_args()
    if why := loopback.why_not():
        raise SystemExit(why)
    for part in options.parts or PARTS:
        if part not in PARTS:
            raise SystemExit(f"there is no part {part!r}")
        with tempfile.TemporaryDirectory(prefix="edge-ship-benchmark-") as name:
            {
                "interrupt": lambda folder: interrupt(folder, options.interruptions, options.seed),
                "unchanged": unchanged,
                "changed": changed,
                "hosts": lambda folder: hosts(folder, options.hosts),
                "simulated": lambda folder: simulated(folder, 500),
                "service": lambda folder: service(folder, options.kills, options.seed),
                "lies": lambda folder: lies(folder, options.devices, options.hosts),
                "fuzz": lambda _folder: fuzz(options.inputs, options.seed),
            }[part](Path(name))


def interrupt(folder: Path, count: int, seed: int) -> None:
    shared = os.urandom(4_000_000)
    bundles = [
        make(folder / f"b{n}.edge", {"model/shared": shared, "own/a": os.urandom(6_000_000), "own/b": b"%d" % n})
        for n in range(4)
    ]
    with interrupts.device(folder / "device") as device:
        storm = interrupts.Storm(device, bundles, seed=seed)
        say("an uninterrupted ship of 10 MB", f"{storm.length_s:.2f} s (moments are drawn from it, seed {seed})")
        storm.run(count)
    for kind, tally in storm.tallies.items():
        found = f"current old {tally.found['old']}, new {tally.found['new']}, neither {tally.found['none']}"
        say(kind, f"{tally.interrupted} interruptions ({tally.ended_before} after the end): {found}")
        again = f"succeeded {tally.recovered} of {tally.interrupted}, {tally.resumed} of them went on from a part"
        say("", f"next ship {again}; longest {tally.longest_recovery_s:.1f} s")
    say("moments at which current was not whole", f"{len(storm.problems)}")
    for problem in storm.problems:
        say("", problem)


def unchanged(folder: Path) -> None:
    bundle = make(folder / "a.edge", {"model/large.onnx": os.urandom(100_000_000), "tables/t.table": b"t" * 10_000})
    with device(folder) as (place, line, config):
        ship(bundle, place, settings=QUICK)
        times, bytes_sent, contents, compared = [], [], set(), []
        reads = f"cat '{place.path}/bundles/{bundle.digest}/model/large.onnx' | sha256sum"
        for _ in range(7):
            start = time.monotonic()
            subprocess.run(["ssh", "-F", str(config), "dev", reads], check=True, capture_output=True)
            compared.append(time.monotonic() - start)
            before, start = line.to_device, time.monotonic()
            outcome = ship(bundle, place, settings=QUICK)
            times.append(time.monotonic() - start)
            bytes_sent.append(line.to_device - before)
            contents.add(outcome.sent_bytes)
        command = [
            *EDGE,
            "ship",
            f"dev:{place.path}",
            "-F",
            str(config),
            "--bundle",
            str(folder / "a.edge"),
            "--no-canary",
        ]
        whole = []
        for _ in range(5):
            start = time.monotonic()
            subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
            whole.append(time.monotonic() - start)
    spread = f"n {len(times)}, {min(times):.2f} to {max(times):.2f}"
    say("second ship of 100 MB, unchanged", f"{statistics.median(times):.2f} s (median; {spread})")
    spread = f"n {len(compared)}, {min(compared):.2f} to {max(compared):.2f}"
    say("in turns: ssh and sha256sum of the same 100 MB", f"{statistics.median(compared):.2f} s (median; {spread})")
    say("ship / ssh and sha256sum, of the medians", f"{statistics.median(times) / statistics.median(compared):.2f}")
    spread = f"n {len(whole)}, {min(whole):.2f} to {max(whole):.2f}"
    say("as the command `edge ship`, with its start", f"{statistics.median(whole):.2f} s (median; {spread})")
    say("file content sent", f"{max(contents)} bytes")
    say("on the line to the device, ssh included", f"{max(bytes_sent) / 1e3:.1f} kB")


def changed(folder: Path) -> None:
    model = os.urandom(100_000_000)
    first = make(folder / "a.edge", {"model/large.onnx": model, "tables/t.table": os.urandom(10_000)})
    second = make(folder / "b.edge", {"model/large.onnx": model, "tables/t.table": os.urandom(10_000)})
    with device(folder) as (place, line, _config):
        start = time.monotonic()
        ship(first, place, settings=QUICK)
        say("first ship of 100 MB", f"{time.monotonic() - start:.2f} s, {line.to_device / 1e6:.1f} MB on the line")
        before, start = line.to_device, time.monotonic()
        outcome = ship(second, place, settings=QUICK)
        say("a table of 10 kB changed", f"{(line.to_device - before) / 1e3:.1f} kB on the line, ssh included")
        say("", f"{outcome.sent_files} files, {outcome.sent_bytes} bytes of content, {time.monotonic() - start:.2f} s")
        edited = model[:50_000_000] + b"edited" + model[50_000_000:]
        third = make(folder / "c.edge", {"model/large.onnx": edited, "tables/t.table": b"t" * 10_000})
        before, start = line.to_device, time.monotonic()
        ship(third, place, settings=QUICK)
        say("6 bytes put into the model, with rsync", f"{(line.to_device - before) / 1e3:.1f} kB on the line")
        say("", f"{time.monotonic() - start:.2f} s")
        assert current(place) == third.digest


def hosts(folder: Path, count: int) -> None:
    bundle = make(folder / "a.edge", {"model/model.onnx": os.urandom(2_000_000)})
    servers = [loopback.Server(folder / f"server{index}", keys=folder / "keys").start() for index in range(count)]
    try:
        lines = ["defaults: {bundle: a.edge}", "hosts:"]
        configs = []
        for index, server in enumerate(servers):
            configs.append(server.client_config(f"d{index}", server.port).read_text())
            lines.append(f"  d{index}: {{path: '{folder}/device{index}'}}")
        (folder / "all.config").write_text("\n".join(configs))
        (folder / "fleet.yaml").write_text("\n".join(lines) + "\n")
        for attempt in ("first", "second"):
            found, seconds = fleet(folder, "-F", "all.config", "--parallel", "8")
            say(f"{count} devices over ssh, 8 at a time, {attempt} ship", f"{found} in {seconds:.1f} s")
        whole = sum(
            current(DeviceAddress(name="d", folder=folder / f"device{index}")) == bundle.digest
            for index in range(count)
        )
        say("devices that hold the whole bundle", f"{whole} of {count}")
    finally:
        for server in servers:
            server.stop()


def simulated(folder: Path, count: int) -> None:
    bundle = make(folder / "a.edge", {"model/model.onnx": b"weights " * 1000})
    lines = ["defaults: {bundle: a.edge}", "hosts:", *(f"  d{i}: {{folder: devices/{i}}}" for i in range(count))]
    (folder / "fleet.yaml").write_text("\n".join(lines) + "\n")
    for attempt in ("first", "second"):
        found, seconds = fleet(folder, "--parallel", "16")
        say(f"{count} folders, 16 at a time, {attempt} ship", f"{found} in {seconds:.1f} s")
    whole = sum(current(DeviceAddress(name="d", folder=folder / f"devices/{i}")) == bundle.digest for i in range(count))
    say("folders that hold the whole bundle", f"{whole} of {count}")


def service(folder: Path, count: int, seed: int) -> None:
    with KilledShips(folder, seed=seed) as ships:
        say("an uninterrupted ship with its trial", f"{ships.length_s:.2f} s (moments are drawn from it, seed {seed})")
        start = time.monotonic()
        ships.run(count, progress=tell)
        say(f"{ships.kills} kills", f"{dict(ships.kinds)} in {time.monotonic() - start:.0f} s")
        say("starts of edge run --profile current meanwhile", f"{ships.starts}, failed {len(ships.failed_starts)}")
        say("in use after a kill", f"{dict(ships.found)}")
        say("statements of the next ship", f"{ships.statements}, untrue {len(ships.untrue)}")
        say("in use at the end", ships.verdict_at_the_end())
        for problem in [*ships.failed_starts, *ships.untrue][:10]:
            say("", problem[-300:])


def tell(ships: KilledShips) -> None:
    """Print a line now and then: a run that is cut off has figures, too."""
    if ships.kills % 10 == 0:
        counts = f"{ships.starts} starts, {len(ships.failed_starts)} failed; untrue {len(ships.untrue)}"
        say(f"after {ships.kills} kills", f"{counts}; in use {dict(ships.found)}")


def lies(folder: Path, count: int, hosts: int) -> None:
    make(folder / "a.edge", {"model/model.onnx": b"weights " * 1000})
    told = [*lying_ssh.LIES, *lying_ssh.ENDLESS, *lying_ssh.SILENT]
    program = folder / "bin" / "ssh"
    program.parent.mkdir()
    for number, lie in enumerate(told):
        lying_ssh.write_lying_ssh(folder / f"lie{number}", lie)
    # The host is the last word but one: a good one is a folder of this machine, a bad one tells its lie.
    program.write_text(
        "#!/bin/sh\nfor word; do host=$last last=$word; done\ncase $host in\n"
        f"  bad*) exec '{folder}'/lie${{host##*-}}/ssh ;;\n  *) exec sh -c \"$last\" ;;\nesac\n"
    )
    program.chmod(0o755)
    bad = {n: n // 3 % len(told) for n in range(count) if n % 3 == 0}
    everyone = {f"bad{n}-{bad[n]}" if n in bad else f"good{n}": f"{folder}/devices/{n}" for n in range(count)}
    compare(folder, "simulated", everyone, parallel=16, path=program.parent)
    servers = []
    try:
        lines = {}
        for n in range(hosts):
            lie = {"ForceCommand": f"{folder}/lie{n // 3 % len(told)}/ssh"} if n % 3 == 0 else {}
            server = loopback.Server(folder / f"server{n}", keys=folder / "keys", **lie).start()
            servers.append(server)
            name = f"bad{n}" if lie else f"good{n}"
            lines[name] = server.client_config(name, server.port).read_text()
        (folder / "all.config").write_text("\n".join(lines.values()))
        devices = {name: f"{folder}/sshd/{name}" for name in lines}
        compare(folder, "sshd", devices, parallel=8, config=folder / "all.config")
    finally:
        for server in servers:
            server.stop()


def compare(
    folder: Path, kind: str, everyone: dict[str, str], *, parallel: int, path: Path | None = None,
    config: Path | None = None,
) -> None:  # fmt: skip
    """Ship to the good devices alone, then to everyone; when the last good one had ended, and what was lost."""
    good = {name: place for name, place in everyone.items() if name.startswith("good")}
    seconds: dict[str, float] = {}
    each: dict[str, dict[str, float]] = {}
    for attempt, devices in (("alone", good), ("with the others", everyone)):
        for place in good.values():
            shutil.rmtree(place, ignore_errors=True)
        entries = "".join(f"  {name}: {{path: '{place}'}}\n" for name, place in devices.items())
        (folder / "fleet.yaml").write_text(f"defaults: {{bundle: a.edge}}\nhosts:\n{entries}")
        options = ["--parallel", str(parallel), "--no-rsync", *(["-F", str(config)] if config else [])]
        environment = {**ENVIRONMENT, "PATH": f"{path}:{ENVIRONMENT['PATH']}"} if path else ENVIRONMENT
        start, last = time.monotonic(), 0.0
        with (folder / "result.json").open("w+") as result, subprocess.Popen(
            [*EDGE, "ship", "all", "--no-canary", "--json", *options], cwd=folder, env=environment,
            stdout=result, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stderr is not None
            said, peak_kib = [], 0
            for line in process.stderr:
                said.append(line)
                if "] good" in line:
                    last = time.monotonic() - start
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak_kib = max(
                    [peak_kib, *(int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM"))]
                )
            process.wait()
        content = json.loads((folder / "result.json").read_text())
        seconds[attempt] = last
        each[attempt] = {one["target"]: one["seconds"] for one in content["targets"] if one["target"] in good}
        ok = sum(one["work"] == "ok" for one in content["targets"] if one["target"].startswith("good"))
        found = f"{ok} of {len(good)} good ones ok, the last after {last:.1f} s; all {len(devices)} {content['counts']}"
        say(f"{kind}, {attempt}", f"{found} in {time.monotonic() - start:.1f} s, peak {peak_kib / 1024:.0f} MB")
        if "Traceback" in "".join(said):
            say("", "TRACEBACK")
    say(f"{kind}: last good one, with the others / alone", f"{seconds['with the others'] / seconds['alone']:.2f}")
    ratios = [each["with the others"][name] / own for name, own in each["alone"].items() if own]
    spread = f"n {len(ratios)}, {min(ratios):.2f} to {max(ratios):.2f}"
    say(f"{kind}: time of each good one, likewise", f"{statistics.median(ratios):.2f} (median; {spread})")


def fuzz(count: int, seed: int) -> None:
    draw = random.Random(seed)
    refused, start = 0, time.monotonic()
    for _ in range(count):
        refused += fuzzing.is_refused(draw)
    say(f"{count} random answers (seed {seed})", f"{refused} refused, {count - refused} read, nothing else was raised")
    say("", f"{time.monotonic() - start:.0f} s")


def fleet(folder: Path, *options: str) -> tuple[dict[str, int], float]:
    start = time.monotonic()
    done = subprocess.run(
        [*EDGE, "ship", "all", "--no-canary", "--json", *options],
        check=False, capture_output=True, text=True, cwd=folder, env=ENVIRONMENT,
    )  # fmt: skip
    if done.returncode:
        print(done.stderr[-2000:])
    return json.loads(done.stdout)["counts"], time.monotonic() - start


@contextmanager
def device(folder: Path) -> Iterator[tuple[DeviceAddress, loopback.Wire, Path]]:
    with loopback.Server(folder / "server") as server, loopback.wire(server.port) as line:
        config = server.client_config("dev", line.port)
        yield DeviceAddress(name="dev", host="dev", path=str(folder / "device"), ssh_config=config), line, config


def make(path: Path, files: dict[str, bytes]) -> Bundle:
    path.write_bytes(tar_of({"profile.yaml": b"name: x\n", **files}))
    return open_bundle(path)


def say(what: str, value: str) -> None:
    print(f"{what:46} {value}", flush=True)


if __name__ == "__main__":
    main()
