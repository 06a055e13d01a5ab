"""A registry that gives out something else than it should is refused, and nothing of it is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.deploy.bundle.reader import open_bundle
from edge.deploy.bundle.unpacking import pack_bundle, unpack_bundle
from edge.deploy.registry.artifact import Pushed, pull, push
from edge.deploy.registry.client import parse_reference
from edge.errors import ArtifactError, DeviceError, EdgeError
from tests.support.bundles import FILES, tar_of, tree
from tests.support.registries import Answer, Lying, Running, with_manifest


@pytest.fixture
def pushed(registry: Running, tmp_path: Path) -> Pushed:
    """A bundle in the registry."""
    path = tmp_path / "good.edge"
    path.write_bytes(tar_of(FILES))
    return push(open_bundle(path), parse_reference(f"oci://{registry.host}/tiny:1"))


def refused(place: str, tmp_path: Path, match: str, kind: type[EdgeError] = ArtifactError) -> None:
    """Pulling raises, into a file and into a folder, and leaves neither a bundle nor a wrong file."""
    with pytest.raises(kind, match=match), pull(parse_reference(place)) as remote:
        pack_bundle(remote, tmp_path / "out.edge")
    with pytest.raises(kind, match=match), pull(parse_reference(place)) as remote:
        unpack_bundle(remote, tmp_path / "out")
    assert not list(tmp_path.glob("out.edge*"))
    assert all(FILES[name] == data for name, data in tree(tmp_path / "out").items())


@pytest.mark.parametrize("change", ["flipped", "shorter", "longer", "empty"])
def test_tampered_storage(registry: Running, pushed: Pushed, tmp_path: Path, change: str) -> None:
    entry = open_bundle(tmp_path / "good.edge").files["model/tiny.onnx"]
    blob = registry.blob(entry.sha256)
    good = blob.read_bytes()
    blob.write_bytes({"flipped": b"W" + good[1:], "shorter": good[:-1], "longer": good + b"x", "empty": b""}[change])
    refused(pushed.reference, tmp_path, "data for model/tiny.onnx")


def test_a_blob_that_is_gone(registry: Running, pushed: Pushed, tmp_path: Path) -> None:
    registry.blob(open_bundle(tmp_path / "good.edge").files["model/tiny.onnx"].sha256).unlink()
    refused(pushed.reference, tmp_path, "the registry lacks sha256:")


def test_another_manifest_for_a_pinned_digest(lying: Lying, pushed: Pushed, tmp_path: Path) -> None:
    place = f"oci://{lying.host}/tiny:1@{pushed.digest}"

    def lie(_method: str, path: str, answer: Answer) -> Answer | None:
        return with_manifest(answer, lambda m: m.update(x=1)) if "/manifests/" in path else None

    lying.lie = lie
    refused(place, tmp_path, "the registry returned a manifest with")


def test_a_header_that_says_another_digest(lying: Lying, pushed: Pushed, tmp_path: Path) -> None:
    def lie(_method: str, path: str, answer: Answer) -> Answer | None:
        return answer._replace(
            headers={**answer.headers, "Docker-Content-Digest": pushed.digest}, body=answer.body + b" "
        )

    lying.lie = lambda method, path, answer: lie(method, path, answer) if "/manifests/" in path else None
    refused(f"oci://{lying.host}/tiny:1", tmp_path, "the registry returned a manifest with")


def _swap(manifest: dict[str, Any]) -> None:
    first, second = manifest["layers"][:2]
    first["annotations"], second["annotations"] = second["annotations"], first["annotations"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_swap, "the layers do not match bundle.json"),
        (lambda m: m["layers"].pop(), "the layers do not match bundle.json"),
        (lambda m: m["layers"].append(m["layers"][0]), "twice"),
        (lambda m: m["layers"][0].update(annotations=None), "has no title"),
        (lambda m: m["layers"][0]["annotations"].update({"org.opencontainers.image.title": "../../x"}), "do not match"),
        (lambda m: m["layers"][0].update(size=1), "do not match bundle.json"),
        (lambda m: m["layers"][0].update(size="1"), "malformed descriptor"),
        (lambda m: m["layers"][0].update(digest="md5:1"), "malformed descriptor"),
        (lambda m: m["config"].update(size=1 << 40), "not a bundle"),
        (lambda m: m["config"].update(m["layers"][0]), "not the manifest of a bundle|data for bundle.json"),
        (lambda m: m.update(artifactType="application/vnd.oci.image"), "not a bundle of edge"),
        (lambda m: m.pop("artifactType"), "not a bundle of edge"),
        (lambda m: m.update(layers={}), "not a bundle of edge"),
        (lambda m: m.update(layers=[7]), "malformed descriptor"),
    ],
)
def test_another_artifact_under_the_tag(
    lying: Lying, pushed: Pushed, tmp_path: Path, change: Callable[[dict[str, Any]], Any], match: str
) -> None:
    lying.lie = lambda _method, path, answer: with_manifest(answer, change) if "/manifests/" in path else None
    refused(f"oci://{lying.host}/tiny:1", tmp_path, match)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"<html>", "did not return JSON"),
        (b"[]", "not a bundle"),
        (b"[" * 100_000, "did not return JSON"),
        (b"\xff\xfe", "did not return JSON"),
        (b" " * ((4 << 20) + 1), "too large"),
    ],
)
def test_no_manifest_at_all(lying: Lying, pushed: Pushed, tmp_path: Path, body: bytes, match: str) -> None:
    lying.lie = lambda _m, path, _a: Answer(200, {}, body) if "/manifests/" in path else None
    refused(f"oci://{lying.host}/tiny:1", tmp_path, match)


def test_more_than_was_asked_for(lying: Lying, pushed: Pushed, tmp_path: Path) -> None:
    """A blob of a hundred times its size: reading stops."""
    lying.lie = lambda _m, path, answer: answer._replace(body=answer.body * 100) if "/blobs/" in path else None
    refused(f"oci://{lying.host}/tiny:1", tmp_path, r"data for bundle\.json")


@pytest.mark.parametrize("target", ["http://registry.invalid/x", "http://192.0.2.1/x"])
def test_sent_elsewhere_in_plain_http(lying: Lying, pushed: Pushed, tmp_path: Path, target: str) -> None:
    lying.lie = lambda _m, path, _a: Answer(307, {"Location": target}, b"") if "/blobs/" in path else None
    refused(f"oci://{lying.host}/tiny:1", tmp_path, "over plain HTTP", DeviceError)


def test_an_upload_sent_elsewhere_in_plain_http(lying: Lying, pushed: Pushed, tmp_path: Path) -> None:
    lying.lie = lambda method, _p, answer: (
        answer._replace(headers={"Location": "http://registry.invalid/up"}) if method == "POST" else None
    )
    with pytest.raises(DeviceError, match="over plain HTTP"):
        push(open_bundle(tmp_path / "good.edge"), parse_reference(f"oci://{lying.host}/other:1"))


@pytest.mark.parametrize("status", [400, 404, 418, 500, 503])
def test_a_registry_in_trouble(lying: Lying, pushed: Pushed, tmp_path: Path, status: int) -> None:
    said = b'{"errors": [{"code": "X", "message": "out of \\u001b[31mcheese"}]}'
    lying.lie = lambda method, _p, _a: Answer(status, {}, said) if method in {"POST", "PUT"} else None
    with pytest.raises(DeviceError, match=rf"answered {status}.*: out of \[31mcheese"):
        push(open_bundle(tmp_path / "good.edge"), parse_reference(f"oci://{lying.host}/other:1"))


def test_it_takes_something_else_than_was_sent(lying: Lying, pushed: Pushed, tmp_path: Path) -> None:
    wrong = {"Docker-Content-Digest": f"sha256:{'0' * 64}"}
    lying.lie = lambda method, path, answer: (
        answer._replace(headers=wrong) if method == "PUT" and "/manifests/" in path else None
    )
    with pytest.raises(ArtifactError, match="but reports"):
        push(open_bundle(tmp_path / "good.edge"), parse_reference(f"oci://{lying.host}/tiny:2"))


def test_no_registry_there(lying: Lying, pushed: Pushed) -> None:
    lying.lie = lambda _m, _p, _a: Answer(404, {}, b"")
    with (
        pytest.raises(DeviceError, match="this is not a registry"),
        pull(parse_reference(f"oci://{lying.host}/tiny:1")),
    ):
        pass
