"""fleet.yaml: what it says, and file:line for what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.deploy import fleet
from edge.errors import ProfileError, UsageError

GOOD = """\
rollout: {parallel: 4, canary: [first], stop_after: 2, gates: {latency: 1.5}}
defaults: {user: ada, profile: orin, jump: bastion}
groups:
  first: [orin-1]
  line: [orin-1, orin-2, orin-1]
hosts:
  orin-1: {host: 10.0.0.11, port: 2222, path: /opt/edge, ssh_config: our.config}
  orin-2:
  orin-3: {user: bob, bundle: ~/b.edge}
  disk: {folder: mnt/disk, system_root: /mnt}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(text)
    return path


def test_what_a_fleet_says(tmp_path: Path) -> None:
    found = fleet.load_fleet(write(tmp_path, GOOD))
    one, two, three, disk = found.hosts.values()
    assert (one.place.host, one.place.user, one.place.port, one.place.path) == ("10.0.0.11", "ada", 2222, "/opt/edge")
    assert (one.place.ssh_config, one.place.jump, one.profile) == (tmp_path / "our.config", "bastion", "orin")
    assert (two.place.name, two.place.host, two.place.user) == ("orin-2", "orin-2", "ada")
    assert (three.place.user, three.bundle) == ("bob", Path("~/b.edge").expanduser())
    assert (disk.place.folder, disk.place.system_root) == (tmp_path / "mnt/disk", "/mnt")
    assert [host.place.name for host in found.find("line")] == ["orin-1", "orin-2"]
    assert len(found.find("all")) == 4
    assert found.canary == {"orin-1"}
    assert (found.rollout.parallel, found.rollout.stop_after, found.rollout.gates) == (4, 2, {"latency": 1.5})


def test_what_a_host_says_outranks_the_defaults(tmp_path: Path) -> None:
    text = "defaults: {bundle: all.edge}\nhosts:\n  a: {profile: orin}\n  b:\n"
    found = fleet.load_fleet(write(tmp_path, text))
    assert (found.hosts["a"].bundle, found.hosts["a"].profile) == (None, "orin")
    assert found.hosts["b"].bundle == tmp_path / "all.edge"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", None, "the file is empty"),
        ("hosts: {}\n", 1, "hosts: needs at least one host"),
        ("- a\n", 1, "must be a mapping"),
        ("hosts: [a]\n", 1, "hosts: needs at least one host"),
        ("hosts:\n  a: {prot: 22}\n", 2, "hosts.a.prot: unknown key (did you mean 'port'?)"),
        ("hosts:\n  a:\n    port: 0\n", 3, "hosts.a.port: expected `int` >= 1"),
        ("hosts:\n  a:\n    port: ssh\n", 3, "hosts.a.port: expected `int"),
        ("hosts:\n  a: orin\n", 2, "hosts.a: must be a mapping"),
        ("hosts:\n  a:\n  b:\n  a:\n", 4, "hosts.a: duplicate key"),
        ("hosts:\n  a/b:\n", 2, "hosts.a/b: a name is letters"),
        ("hosts:\n  status:\n", 2, "has another meaning on the command line"),
        ("hosts:\n  all:\n", 2, "has another meaning on the command line"),
        ("hosts:\n  a: {host: -oProxyCommand=x}\n", 2, "hosts.a.host: '-oProxyCommand=x' is not a valid host name"),
        ("hosts:\n  a: {user: '$(x)'}\n", 2, "hosts.a.host: '$(x)' is not a valid user name"),
        ("hosts:\n  a: {jump: 'b; x'}\n", 2, "hosts.a.jump: 'b; x' is not [user@]host[:port]"),
        ("hosts:\n  a: {folder: x, host: y}\n", 2, "hosts.a.folder: a host has either folder or host"),
        ('hosts:\n  a: {path: ""}\n', 2, "hosts.a.path: must not be empty"),
        ('hosts:\n  a: {path: "x\\ny"}\n', 2, "hosts.a.path: must not be empty or contain control characters"),
        ("hosts:\n  a:\ngroups:\n  g: [a, bb]\n", 4, "groups.g: there is no host 'bb'"),
        ("hosts:\n  abc:\ngroups:\n  g: [abd]\n", 4, "(did you mean 'abc'?)"),
        ("hosts:\n  a:\ngroups:\n  a: [a]\n", 4, "groups.a: is also the name of a host"),
        ("hosts:\n  a:\ngroups:\n  g: a\n", 4, "groups.g: must be a list"),
        ("hosts:\n  a:\nrollout: {parallel: 0}\n", 3, "rollout.parallel: expected `int` >= 1"),
        ("hosts:\n  a:\nrollout:\n  canary: [b]\n", 4, "rollout.canary: there is no host or group 'b'"),
        ("hosts:\n  a:\nrolout: {}\n", 3, "rolout: unknown key (did you mean 'rollout'?)"),
        ("hosts: {a: &x {jump: *x}}\n", None, "an alias refers to the value that contains it"),
    ],
)
def test_what_is_wrong_has_a_line(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ProfileError) as caught:
        fleet.load_fleet(path)
    assert words in str(caught.value)
    if line is not None:
        assert str(caught.value).startswith(f"{path}:{line}: ")


def test_a_fleet_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="there is no such fleet file"):
        fleet.load_fleet(tmp_path / "fleet.yaml")


def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no host or group 'orin-4' \(did you mean 'orin-") as caught:
        fleet.load_fleet(write(tmp_path, GOOD)).find("orin-4")
    assert "orin-4: with a colon" in str(caught.value.hint)
