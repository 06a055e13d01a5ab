"""The states of docs/shipping.md as a model: ships, rollbacks and clearing up in any order, each killed after any step.

The device's script is ended with SIGKILL after the n-th command that changes something, as a power cut would end it.
The device is a folder, and an account behind sshd.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge.deploy import rollback
from edge.deploy.bundle.reader import Bundle, open_bundle
from edge.deploy.push import ShipSettings, ship
from edge.deploy.transport.address import DeviceAddress
from edge.errors import DeviceError, EdgeError, UsageError
from tests.support import loopback
from tests.support.devices import Program, current, root_of, tar_of

KILLED = st.none() | st.integers(1, 30)
WHICH = st.integers(0, 2)
# Commands of the script that change something.
TOOLS = ("mv", "rm", "ln", "sync", "mkdir", "chmod", "cp")
FILES = {"profile.yaml": b"name: tiny\n", "model/tiny.onnx": b"weights " * 100}


class Kills:
    """Tools that end the device's script after the n-th of them."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self._count = folder.with_name("count")
        folder.mkdir()
        for tool in TOOLS:
            path = folder / tool
            path.write_text(
                f'#!/bin/sh\n{shutil.which(tool)} "$@"\ncode=$?\n'
                f"if read -r left <'{self._count}' && [ \"$left\" -gt 0 ]; then\n"
                f"  left=$((left - 1)); echo $left >'{self._count}'\n"
                # The script is one of our own parents, or it has not taken the lock yet: nobody else is killed.
                f"  [ $left -ne 0 ] || script=$(sed -n \"s/.*(process \\([0-9]*\\)).*/\\1/p\" '{root}/lock')\n"
                "  parent=$PPID\n"
                '  while [ $left -eq 0 ] && [ "${parent:-0}" -gt 1 ]; do\n'
                '    if [ "$parent" = "$script" ]; then kill -9 "$script"; break; fi\n'
                "    parent=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$parent/status 2>/dev/null)\n"
                "  done\nfi\nexit $code\n"
            )
            path.chmod(0o755)
        self.after(None)

    def after(self, count: int | None) -> None:
        self._count.write_text(f"{count or 0}\n")


class DeviceModel(RuleBasedStateMachine):
    """What must be in use, and what every verdict must be, after each step."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(prefix="edge-test-"))
        (self._folder / "device").mkdir()
        self.place = self.address(self._folder / "device")
        self.program = Program(self._folder / "edge")
        self.kills = Kills(self._folder / "bin", root_of(self.place))
        self._path = os.environ["PATH"]
        os.environ["PATH"] = f"{self.kills.folder}:{self._path}"
        self.bundles = [self._bundle(index) for index in range(3)]
        self.current: str | None = None
        self.verdicts: dict[str, str] = {}
        self.cut_off: dict[str, int] = {}

    def address(self, root: Path) -> DeviceAddress:
        """Where the device is."""
        return DeviceAddress(name="device", folder=root)

    def _bundle(self, index: int) -> Bundle:
        path = self._folder / f"{index}.edge"
        path.write_bytes(tar_of({**FILES, "own": b"%d" % index}))
        return open_bundle(path)

    def teardown(self) -> None:
        os.environ["PATH"] = self._path
        shutil.rmtree(self._folder, ignore_errors=True)

    @rule(which=WHICH, does=st.sampled_from(["pass", "fail", "code 9", "reset"]), canary=st.booleans(), killed=KILLED)
    def ship(self, which: int, does: str, *, canary: bool, killed: int | None) -> None:
        sent, before, was = self.bundles[which], self.current, dict(self.verdicts)
        self.program.does(does)
        place = self.program.on(self.place) if canary else self.place
        self.kills.after(killed)
        try:
            outcome = ship(sent, place, settings=ShipSettings(canary=canary, rsync=False))
        except DeviceError:
            self._after_a_kill(sent, may_use=does == "pass" or not canary)
            return
        finally:
            self.kills.after(None)
        self._read()
        # Whatever the client says, the device shows.
        assert outcome.current == self.current
        verdict = self.verdicts.get(sent.digest, "not tried")
        if outcome.work in {"ok", "unchanged"}:
            assert self.current == sent.digest
            assert verdict == "passed" or not canary or outcome.canary is None
        else:
            assert outcome.exit_code == 1
            if outcome.work == "rolled back":
                assert (before, verdict) == (sent.digest, "failed")
                assert self.current is None or was.get(self.current) == "passed"
            else:
                assert self.current == before
                # A trial that was not made leaves the verdict as it was.
                assert verdict == ("failed" if outcome.work == "trial failed" else was.get(sent.digest, "not tried"))

    @precondition(lambda self: self.current is not None)
    @rule(killed=KILLED)
    def rollback(self, killed: int | None) -> None:
        before, was = self.current, dict(self.verdicts)
        self.kills.after(killed)
        try:
            step = rollback.rollback(self.place)
        except UsageError:
            self._read()
            assert self.current == before
            assert not [digest for digest, verdict in self.verdicts.items() if verdict == "passed" and digest != before]
            return
        except DeviceError:
            self._read()
            assert self.current == before or was.get(str(self.current)) == "passed"
            return
        finally:
            self.kills.after(None)
        self._read()
        assert step.current == self.current != before
        assert self.verdicts[str(self.current)] == "passed"

    @rule(killed=KILLED)
    def clear(self, killed: int | None) -> None:
        before, passed = self.current, {d for d, verdict in self.verdicts.items() if verdict == "passed"}
        self.kills.after(killed)
        try:
            rollback.clear(self.place)
        except DeviceError:
            pass
        finally:
            self.kills.after(None)
        self._read()
        assert self.current == before
        left = {digest for digest, verdict in self.verdicts.items() if verdict == "passed"}
        # What could be gone back to still can.
        assert not passed - {before} or left - {before}

    def _after_a_kill(self, sent: Bundle, *, may_use: bool) -> None:
        before, was = self.current, dict(self.verdicts)
        self._read()
        if self.current != before:
            assert (self.current == sent.digest and may_use) or self.current is None or (
                was.get(self.current) == "passed"
            )  # fmt: skip
        if self.verdicts.get(sent.digest) == "passed":
            assert was.get(sent.digest) == "passed" or may_use

    def _read(self) -> None:
        status = rollback.status(self.place)
        self.current = status.current
        self.verdicts = {info.digest: info.trial for info in status.bundles}

    @invariant()
    def current_is_whole(self) -> None:
        try:
            assert current(self.place) == self.current
        except EdgeError as exc:
            raise AssertionError(f"current is not a whole bundle: {exc}") from exc


class SshdModel(DeviceModel):
    """The same device behind an OpenSSH server."""

    server: loopback.Server
    tools: Path

    def address(self, root: Path) -> DeviceAddress:
        # The PATH of the server's sessions is fixed when it starts.
        self.tools.unlink(missing_ok=True)
        self.tools.symlink_to(root.with_name("bin"))
        return DeviceAddress(name="dev", host="dev", path=str(root), ssh_config=self.server.config)


def _settings(examples: int, steps: int) -> settings:
    return settings(
        max_examples=int(os.environ.get("EDGE_MODEL_EXAMPLES", examples)), stateful_step_count=steps, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


DeviceModel.TestCase.settings = _settings(3, 8)
SshdModel.TestCase.settings = _settings(1, 6)
TestDeviceModel = DeviceModel.TestCase


@pytest.mark.skipif(loopback.why_not() is not None, reason=str(loopback.why_not()))
class TestSshdModel(SshdModel.TestCase):  # type: ignore[misc]
    """One server for all runs of the model."""

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        folder = tmp_path_factory.mktemp("sshd")
        SshdModel.tools = folder / "tools"
        with loopback.Server(folder, SetEnv=f'"PATH={folder}/tools:/usr/bin:/bin"') as SshdModel.server:
            yield
