"""Ship over a real sshd on loopback: what goes well, and everything that a network and an account can do wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edge.deploy import rollback
from edge.deploy.bundle.reader import Bundle
from edge.deploy.push import ship
from edge.deploy.transport.address import DeviceAddress
from edge.deploy.transport.session import DeviceSession, Timeouts
from edge.deploy.transport.ssh import connect, explain_ssh
from edge.errors import DeviceError, EdgeError, MissingDependencyError, StoreError
from edge.events import Event, Note, Progress
from tests.support import loopback
from tests.support.devices import QUICK, current, root_of

Make = Callable[..., Bundle]
Serve = Callable[..., loopback.Server]
At = Callable[..., DeviceAddress]

NO_RSYNC = msgspec.structs.replace(QUICK, rsync=False)


def forced(tmp_path: Path, script: str) -> str:
    """A ForceCommand that runs ``script``; what the client wanted is in $SSH_ORIGINAL_COMMAND."""
    path = tmp_path / "forced.sh"
    path.write_text(script)
    return f'/bin/sh "{path}"'


def test_a_bundle_arrives_and_the_same_again_sends_nothing(bundle: Make, serve: Serve, remote: At) -> None:
    place, sent = remote(serve()), bundle(files={"model/large": os.urandom(400_000)})
    assert ship(sent, place, settings=QUICK).work == "ok"
    assert current(place) == sent.digest
    outcome = ship(sent, place, settings=QUICK)
    assert (outcome.work, outcome.sent_bytes) == ("unchanged", 0)


def test_a_path_is_data(bundle: Make, serve: Serve, remote: At, tmp_path: Path) -> None:
    place = remote(serve(), path='it\'s a "device" $(touch pwned) `touch pwned`; touch pwned')
    sent = bundle(files={"tables/it's $(touch pwned).table": b"x"})
    ship(sent, place, settings=QUICK)
    assert current(place) == sent.digest
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("~/pwned").expanduser().exists()


def test_the_usual_folder_is_below_home(bundle: Make, serve: Serve, remote: At, tmp_path: Path) -> None:
    home = tmp_path / "home of ada"
    home.mkdir()
    command = forced(tmp_path, f'HOME="{home}"; export HOME; cd; exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    place = msgspec.structs.replace(remote(serve(ForceCommand=command)), path=".local/share/edge")
    sent = bundle()
    ship(sent, place, settings=QUICK)
    assert (home / ".local/share/edge/current").readlink().name == sent.digest


def test_a_shell_that_prints_a_banner(bundle: Make, serve: Serve, remote: At, tmp_path: Path) -> None:
    noise = "printf 'Welcome to JetPack\\n\\033[1mlast login: today\\nready 1\\nfail write x\\nno line end'"
    command = forced(tmp_path, f'{noise}; echo and more >&2; exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    place, sent = remote(serve(ForceCommand=command)), bundle(files={"model/large": os.urandom(2_000_000)})
    heard: list[Event] = []
    assert ship(sent, place, settings=QUICK, listen=heard.append).work == "ok"
    assert current(place) == sent.digest
    if shutil.which("rsync"):
        # rsync cannot live with a banner: the files go as a stream, and that is said.
        assert any(isinstance(event, Note) and "rsync failed" in event.text for event in heard)


@pytest.mark.parametrize("shell", ["bash", "dash", "busybox sh", "zsh", "fish", "tcsh"])
def test_login_shells(bundle: Make, serve: Serve, remote: At, tmp_path: Path, shell: str) -> None:
    """What a login shell is given is one line that all of them understand."""
    program = shutil.which(shell.split(maxsplit=1)[0])
    if program is None:
        pytest.skip(f"{shell} is not installed")
    command = forced(tmp_path, f'exec {shell} -c "$SSH_ORIGINAL_COMMAND"\n')
    place, sent = remote(serve(ForceCommand=command)), bundle()
    ship(sent, place, settings=NO_RSYNC)
    assert current(place) == sent.digest


def test_a_shell_that_is_none(serve: Serve, remote: At, tmp_path: Path) -> None:
    command = forced(tmp_path, "echo 'This account is currently not available.'; exit 1\n")
    with pytest.raises(DeviceError, match=r"did not start edge's script.*currently not available") as caught:
        rollback.status(remote(serve(ForceCommand=command)))
    assert "login shell" in str(caught.value.hint)


def test_a_shell_that_asks_something() -> None:
    """Without ssh, whose own start takes as long as it takes."""
    command = ["sh", "-c", "echo 'You are required to change your password.'; exec sleep 60"]
    with (
        pytest.raises(DeviceError, match=r"no answer within 5 s; it printed 'You are required to change"),
        DeviceSession(command, where="dev", explain=explain, timeouts=Timeouts(start_s=5)),
    ):
        pass


def test_an_answer_that_makes_no_sense() -> None:
    script = 'read n; dd bs=1 count=$n >/dev/null 2>&1; read w; echo "$w ready 1"; echo "$w data -5"; cat >/dev/null'
    with (
        pytest.raises(DeviceError, match="an invalid answer to get: 'data -5'"),
        DeviceSession(["sh", "-c", script], where="dev", explain=explain) as session,
    ):
        session.until("data", request="get")


def explain(code: int | None, errors: str, noise: str) -> EdgeError:
    return DeviceError(f"it ended with {code}: {errors}{noise}")


def test_a_host_key_that_changed(serve: Serve, remote: At) -> None:
    server = serve()
    other = loopback.make_key(server.folder / "other_key").with_suffix(".pub").read_text().split()[:2]
    server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {' '.join(other)}\n")
    with pytest.raises(DeviceError, match="host key has changed") as caught:
        rollback.status(remote(server))
    assert "ssh-keygen -R dev" in str(caught.value.hint)


def test_a_host_key_that_is_not_known(serve: Serve, remote: At) -> None:
    server = serve()
    server.known_hosts.write_text("")
    with pytest.raises(DeviceError, match="host key is unknown") as caught:
        rollback.status(remote(server))
    assert "ssh dev once" in str(caught.value.hint)


def test_a_key_that_is_refused(serve: Serve, remote: At) -> None:
    server = serve()
    stranger = loopback.make_key(server.folder / "stranger")
    config = server.client_config("dev", server.port, user_key=stranger)
    with pytest.raises(DeviceError, match=r"refuses the login: .*Permission denied") as caught:
        rollback.status(remote(server, ssh_config=config))
    assert "ssh-copy-id dev" in str(caught.value.hint)


def test_nobody_there(serve: Serve, remote: At) -> None:
    server = serve()
    server.stop()
    with pytest.raises(DeviceError, match="Connection refused") as caught:
        rollback.status(remote(server))
    assert "sshd runs" in str(caught.value.hint)


def test_a_name_that_nobody_has(serve: Serve, remote: At) -> None:
    with pytest.raises(DeviceError, match="Could not resolve hostname"):
        rollback.status(remote(serve(), host="no-such-host.invalid"))


def test_a_configuration_that_is_wrong(serve: Serve, remote: At, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("NoSuchOption yes\n")
    for name, words in (("config", "Bad configuration option"), ("absent", "Can't open user config file")):
        with pytest.raises(DeviceError, match=words) as caught:
            rollback.status(remote(serve(), ssh_config=tmp_path / name))
        assert "ssh configuration" in str(caught.value.hint)


def test_through_a_jump_host(bundle: Make, serve: Serve, remote: At, tmp_path: Path) -> None:
    device, bastion = serve(), serve()
    both = tmp_path / "both.config"
    both.write_text(device.config.read_text() + bastion.client_config("bastion", bastion.port).read_text())
    place = remote(device, ssh_config=both, jump="bastion")
    sent = bundle()
    ship(sent, place, settings=QUICK)
    assert current(place) == sent.digest


def test_a_clock_that_is_wrong_is_said_and_does_not_matter(
    bundle: Make, serve: Serve, remote: At, tmp_path: Path
) -> None:
    """A Jetson without a battery starts in 1970."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "date").write_text("#!/bin/sh\necho 86400\n")
    (tools / "date").chmod(0o755)
    command = forced(tmp_path, f'PATH="{tools}:$PATH"; export PATH; exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    place, sent = remote(serve(ForceCommand=command)), bundle()
    outcome = ship(sent, place, settings=QUICK)
    assert (outcome.work, current(place)) == ("ok", sent.digest)
    assert "years behind this machine's" in outcome.warnings[0]


@pytest.mark.parametrize(
    ("tool", "words"),
    [("mkdir", "Read-only file system"), ("ln", "Operation not permitted"), ("sync", "Input/output error")],
)
def test_a_disk_that_refuses(bundle: Make, serve: Serve, remote: At, tmp_path: Path, tool: str, words: str) -> None:
    """A tool that fails in the way that it does on such a disk."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / tool).write_text(f"#!/bin/sh\necho \"{tool}: '/x': {words}\" >&2\nexit 1\n")
    (tools / tool).chmod(0o755)
    command = forced(tmp_path, f'PATH="{tools}:$PATH"; export PATH; exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    place = remote(serve(ForceCommand=command))
    with pytest.raises(StoreError, match=words):
        ship(bundle(), place, settings=QUICK)
    assert current(place) is None


def test_a_device_without_a_tool(serve: Serve, remote: At, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dd", "base64", "cmp", "comm", "cp", "cut", "find"):
        (tools / name).symlink_to(str(shutil.which(name)))
    command = forced(tmp_path, f'PATH="{tools}"; export PATH; exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    with pytest.raises(DeviceError, match=r"missing on the device: cat, chmod, date, flock, .*; nothing was sent"):
        rollback.status(remote(serve(ForceCommand=command)))


def test_a_line_that_is_cut_and_then_goes_on(bundle: Make, serve: Serve, remote: At) -> None:
    server, first = serve(), bundle("a")
    sent = bundle("b", {"model/large": os.urandom(12_000_000)})
    with loopback.wire(server.port) as line:
        place = remote(server, ssh_config=server.client_config("dev", line.port))
        ship(first, place, settings=NO_RSYNC)
        line.cut_after = line.to_device + 7_000_000
        with pytest.raises(DeviceError, match="the connection was lost") as caught:
            ship(sent, place, settings=NO_RSYNC)
        assert "run the command again" in str(caught.value.hint)
        assert current(place) == first.digest
        line.cut_after = None
        outcome = ship(sent, place, settings=NO_RSYNC)
    assert current(place) == sent.digest
    assert outcome.resumed_bytes >= 4_000_000
    assert outcome.sent_bytes + outcome.resumed_bytes == 12_000_000 + len(sent.manifest)


def test_a_session_that_is_killed_on_the_device(bundle: Make, serve: Serve, remote: At) -> None:
    server = serve()
    place, sent = remote(server), bundle(files={"model/large": os.urandom(30_000_000)})
    killed: list[int] = []

    def kill(event: Event) -> None:
        """In the thread that sends, after the first piece: the others cannot have gone yet."""
        if isinstance(event, Progress) and event.done and not killed:
            killed.append(server.kill_sessions())

    with pytest.raises(DeviceError, match=r"the connection was lost|the connection ended"):
        ship(sent, place, settings=NO_RSYNC, listen=kill)
    assert killed[0] > 0
    assert current(place) is None
    assert ship(sent, place, settings=NO_RSYNC).work == "ok"


def test_a_client_that_is_killed(bundle: Make, serve: Serve, remote: At, tmp_path: Path) -> None:
    server = serve()
    place, sent = remote(server), bundle(files={"model/large": os.urandom(30_000_000)})
    with loopback.wire(server.port) as line:
        # So that it is in the middle, however fast it is.
        line.silent_after = 7_000_000
        config = server.client_config("line", line.port)
        command = [sys.executable, "-m", "edge", "ship", f"line:{place.path}", "-F", str(config), "--no-rsync"]
        process = subprocess.Popen([*command, "--bundle", str(tmp_path / "a.edge")], stderr=subprocess.DEVNULL)
        assert line.is_silent.wait(timeout=120)
        process.kill()
        process.wait()
    assert current(place) is None
    # The device notices by itself, and lets the next one in.
    assert ship(sent, place, settings=NO_RSYNC).work == "ok"
    assert current(place) == sent.digest


def test_two_at_once_to_one_device(bundle: Make, serve: Serve, remote: At) -> None:
    from concurrent.futures import ThreadPoolExecutor

    place = remote(serve())
    sent = [bundle(f"b{index}", {"x": f"{index}".encode() * 200_000}) for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        works = [outcome.work for outcome in pool.map(lambda one: ship(one, place, settings=NO_RSYNC), sent)]
    assert works == ["ok"] * 4
    assert current(place) in {one.digest for one in sent}


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync_sends_the_difference_of_a_large_file(bundle: Make, serve: Serve, remote: At) -> None:
    server, large = serve(), os.urandom(6_000_000)
    first = bundle("a", {"model/it's a large $(x).onnx": large})
    second = bundle("b", {"model/it's a large $(x).onnx": large[:3_000_000] + b"new" + large[3_000_000:]})
    with loopback.wire(server.port) as line:
        place = remote(server, path="a 'device'", ssh_config=server.client_config("dev", line.port))
        ship(first, place, settings=QUICK)
        before = line.to_device
        assert ship(second, place, settings=QUICK).work == "ok"
        assert line.to_device - before < 200_000
    assert current(place) == second.digest
    assert list((root_of(place) / "incoming").iterdir()) == []


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync_that_is_cut_goes_on(bundle: Make, serve: Serve, remote: At) -> None:
    server, sent = serve(), bundle(files={"model/large": os.urandom(12_000_000)})
    with loopback.wire(server.port) as line:
        place = remote(server, ssh_config=server.client_config("dev", line.port))
        line.cut_after = 7_000_000
        with pytest.raises(DeviceError):
            ship(sent, place, settings=QUICK)
        line.cut_after = None
        before = line.to_device
        assert ship(sent, place, settings=QUICK).work == "ok"
        assert line.to_device - before < 9_000_000
    assert current(place) == sent.digest


@pytest.mark.parametrize(
    "said",
    [
        "Connection to 127.0.0.1 closed by remote host.",
        "Connection closed by 10.0.0.7 port 22",
        "Connection reset by 10.0.0.7 port 22",
        "client_loop: send disconnect: Broken pipe",
        "Timeout, server jetson-3 not responding.",
    ],
)
def test_every_way_a_line_ends(said: str) -> None:
    """Which of them ssh prints depends on who noticed first."""
    error = explain_ssh(DeviceAddress(name="x", host="jetson-3"), 255, f"Warning: a banner\n{said}\n", "")
    assert isinstance(error, DeviceError)
    assert f"the connection was lost: {said.splitlines()[0]}" in str(error)
    assert "run the command again" in str(error.hint)


@pytest.mark.parametrize(
    "said",
    [
        "kex_exchange_identification: Connection closed by remote host\nConnection closed by 10.0.0.7 port 22",
        "kex_exchange_identification: read: Connection reset by peer\nConnection reset by 10.0.0.7 port 22",
    ],
)
def test_an_sshd_that_does_not_begin(said: str) -> None:
    """Nothing was under way that could go on."""
    error = explain_ssh(DeviceAddress(name="x", host="jetson-3"), 255, f"{said}\n", "")
    assert f"closed the connection at once: {said.splitlines()[0]}" in str(error)
    assert "--parallel" in str(error.hint)


def test_a_jump_host_that_does_not_let_through(serve: Serve, remote: At, tmp_path: Path) -> None:
    device, bastion = serve(), serve(AllowTcpForwarding="no")
    both = tmp_path / "both.config"
    both.write_text(device.config.read_text() + bastion.client_config("bastion", bastion.port).read_text())
    with pytest.raises(DeviceError, match=r"the jump host refuses to forward the connection: .*prohibited") as caught:
        rollback.status(remote(device, ssh_config=both, jump="bastion"))
    assert "AllowTcpForwarding" in str(caught.value.hint)


def test_without_an_ssh_client(tmp_path: Path) -> None:
    error = explain_ssh(DeviceAddress(name="x", host="x"), None, "ssh: No such file or directory", "")
    assert isinstance(error, MissingDependencyError)
    assert "openssh-client" in str(error.hint)


def test_a_client_that_went_silent_does_not_keep_the_device(
    bundle: Make, serve: Serve, remote: At, tmp_path: Path
) -> None:
    """A line that is cut without a word: nobody closes it. Naps of the device's watch are short here."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.05\n")
    (tools / "sleep").chmod(0o755)
    command = forced(tmp_path, f'PATH="{tools}:$PATH"; export PATH; exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    # The same device by two ways: whoever ships may be as slow as this machine.
    hasty, place, sent = remote(serve(ForceCommand=command)), remote(serve()), bundle()
    with connect(hasty) as silent:
        silent.ask("hello", place.path, "", "", "yes")
        silent.ask("begin", "5", "somebody on a train")
        assert ship(sent, place, settings=QUICK).work == "ok"
        with pytest.raises(DeviceError):
            silent.ask("status")
    assert current(place) == sent.digest
