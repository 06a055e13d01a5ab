"""Nothing that a bundle names is outside it, whoever made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge.config import profiles
from edge.deploy.bundle import creation, deployed
from edge.deploy.bundle.closed import check_models
from edge.deploy.bundle.reader import open_bundle
from edge.deploy.bundle.unpacking import unpack_bundle
from edge.errors import ArtifactError, EdgeError, ProfileError
from edge.events import Event, Note
from tests.support.bundles import folder_of, tar_of

PROFILE = "name: x\nmodel: model/m.onnx\nlabels: labels/l.txt\n"
FILES = {"model/m.onnx": b"weights", "labels/l.txt": b"one\n"}


def bomb() -> str:
    lines = ["a0: &a0 [l,l,l,l,l,l,l,l,l]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return PROFILE + "\n".join(lines)


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ("extends: base\n" + PROFILE, "not allowed in the profile of a bundle"),
        (PROFILE.replace("model/m.onnx", "/etc/passwd"), "model: '/etc/passwd' is not a file of the bundle"),
        (PROFILE.replace("model/m.onnx", "../model/m.onnx"), "is not a file of the bundle"),
        (PROFILE.replace("model/m.onnx", "model/./m.onnx"), "is not a file of the bundle"),
        (PROFILE.replace("model/m.onnx", "model/other.onnx"), "is not a file of the bundle"),
        (PROFILE.replace("labels/l.txt", "~/secret.txt"), "labels: '~/secret.txt' is not a file of the bundle"),
        (PROFILE + "calibration: {images: /home/ada/pictures}\n", "calibration.images"),
        (PROFILE + "pipelines: [{name: a, model: ../other.onnx}]\n", "pipelines.model"),
        (PROFILE + "camera: {pipeline: filesrc location=/etc/passwd ! fakesink}\n", "may read or write files"),
        (PROFILE + "camera: {pipeline: 'playbin uri=file:///etc/passwd'}\n", "may read or write files"),
        (PROFILE + "camera: {pipeline: 'v4l2src ! nvinfer config-file-path=/x ! a'}\n", "may read or write files"),
        (PROFILE + "notify: [{to: 'exec:rm -rf /'}]\n", "is a command or a file of the device"),
        (PROFILE + "notify: [{to: ['@/etc/shadow']}]\n", "is a command or a file of the device"),
        (PROFILE + "cameras: {front: '@/etc/shadow'}\n", "cameras.front: '@/etc/shadow' is a file of the device"),
        (PROFILE + "cameras: {front: {source: '@x'}}\n", "cameras.front.source: '@x' is a file of the device"),
        (PROFILE + "web: {token_file: /etc/shadow}\n", "web.token_file: '/etc/shadow' is a file of the device"),
        (PROFILE + "web: {token_file: model/m.onnx}\n", "web.token_file"),
        (PROFILE + "telemetry: {log: /etc/cron.d/x}\n", "telemetry.log: '/etc/cron.d/x' is a file of the device"),
        (PROFILE + "telemetry: {log: model/m.onnx}\n", "telemetry.log"),
        (PROFILE + "telemetry: {source: 'replay:/etc/shadow'}\n", "telemetry.source"),
        (PROFILE + "quantization: {recipe: ../x.json}\n", "quantization.recipe: '../x.json' is not a file of the"),
        (PROFILE + "camera: {pipeline: 'uridecodebin uri=f\\ile:///etc/passwd ! appsink'}\n", "may read or write"),
        (PROFILE + "camera: {pipeline: 'v4l2src ! tee name=t t. ! multifilesink ! appsink'}\n", "may read or write"),
        (PROFILE + "camera: {pipeline: 'giosrc location = /etc/passwd ! appsink'}\n", "may read or write"),
        (PROFILE + "camera: {pipeline: 'souphttpsrc ssl-ca-file=/etc/shadow ! appsink'}\n", "may read or write"),
        (PROFILE + "camera: {pipeline: 'rtspsrc location=/etc/passwd ! appsink'}\n", "may read or write"),
        (PROFILE + "cameras: {a: {source: 0, pipeline: 'bin.( filesrc ) ! appsink'}}\n", "may read or write"),
        (PROFILE + "x: !!python/object/apply:os.system ['touch pwned']\n", "aliases and tags"),
        (bomb(), "aliases and tags"),
        ("[1, 2]", "not a mapping"),
        (PROFILE + "\tx: 1", "cannot parse YAML"),
        ("x: " + "[" * 100_000, "nested too deeply"),
        ("x: " + "{a: " * 30_000, "nested too deeply"),
        ("x:\n  " + "- " * 60_000, "nested too deeply"),
        ("x: " + "a" * 2_000_000, "the profile has more than"),
    ],
)  # fmt: skip
def test_a_profile_that_names_something_outside_is_refused(tmp_path: Path, profile: str, says: str) -> None:
    files = {**FILES, "profile.yaml": profile.encode()}
    (tmp_path / "a.edge").write_bytes(tar_of(files))
    folder_of(tmp_path / "folder", files)
    for path in (tmp_path / "a.edge", tmp_path / "folder"):
        with pytest.raises(ArtifactError, match=says.replace("'", ".")):
            open_bundle(path)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    "pipeline",
    [
        "v4l2src device={device} ! videoconvert ! appsink",
        "nvarguscamerasrc sensor-id={device} ! video/x-raw(memory:NVMM), width=1280,height=720 ! appsink",
        "nvv4l2camerasrc ! nvvidconv flip-method=2 ! video/x-raw,format=(string)BGRx ! videoconvert ! appsink",
        "rtspsrc location={device} latency=0 ! rtph264depay ! h264parse ! nvv4l2decoder ! tee name=t t. ! appsink",
        "uridecodebin uri=rtsp://cam.local:554/a/b?c=1 ! videoconvert ! appsink drop=true max-buffers=1 sync=false",
    ],
)
def test_a_closed_one_is_opened(tmp_path: Path, pipeline: str) -> None:
    camera = f"camera: {{pipeline: '{pipeline}'}}\nquantization: {{recipe: auto}}\n"
    (tmp_path / "a.edge").write_bytes(tar_of({**FILES, "profile.yaml": (PROFILE + camera).encode()}))
    check_models(open_bundle(tmp_path / "a.edge"))


@pytest.fixture
def with_weights(tmp_path: Path) -> Callable[..., Path]:
    """``with_weights(location)``: a bundle whose model, the file ``name``, has its weights in that file."""
    onnx = pytest.importorskip("onnx")

    def make(location: str, *, name: str = "model/m.onnx", sparse: bool = False) -> Path:
        weights = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
        weights.ClearField("float_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_graph([], "g", [value], [value], [] if sparse else [weights])
        if sparse:
            node = graph.node.add(op_type="Constant", output=["c"])
            node.attribute.add(name="sparse_value").sparse_tensor.values.CopyFrom(weights)
        files = {**FILES, name: onnx.helper.make_model(graph).SerializeToString(), "model/w.bin": b"0000"}
        path = tmp_path / "w.edge"
        path.write_bytes(tar_of({**files, "profile.yaml": PROFILE.replace("model/m.onnx", name).encode()}))
        return path

    return make


@pytest.mark.parametrize("location", ["../labels/l.txt", "/etc/passwd", "other.bin", "./w.bin", ""])
def test_weights_outside_are_refused(with_weights: Callable[..., Path], tmp_path: Path, location: str) -> None:
    found = open_bundle(with_weights(location))
    with pytest.raises(ArtifactError, match="is not in the bundle"):
        check_models(found)
    with pytest.raises(ArtifactError, match="is not in the bundle"):
        unpack_bundle(found, tmp_path / "out")
    assert not (tmp_path / "out" / "bundle.json").exists()


def test_a_model_by_another_name_is_looked_at_as_well(with_weights: Callable[..., Path]) -> None:
    for found in (with_weights("/etc/passwd", name="model/m.bin"), with_weights("/etc/passwd", sparse=True)):
        with pytest.raises(ArtifactError, match="is not in the bundle"):
            check_models(open_bundle(found))


def test_weights_inside_are_taken(with_weights: Callable[..., Path], tmp_path: Path) -> None:
    found = open_bundle(with_weights("w.bin"))
    check_models(found)
    unpack_bundle(found, tmp_path / "out")


@pytest.mark.parametrize(
    "section",
    [
        {"cameras": {"front": "rtsp://ada:c4nary@cam/s"}},
        {"cameras": {"front": {"source": "rtsp://cam/s?token=c4nary"}}},
        {"camera": {"pipeline": "rtspsrc location=rtsp://ada:c4nary@cam/s ! appsink"}},
        {"notify": [{"to": "https://ada:c4nary@hook/s"}]},
    ],
)
def test_a_password_does_not_get_into_a_bundle(
    tmp_path: Path, tiny_profile: Callable[..., Path], section: dict[str, object]
) -> None:
    path = tiny_profile(tmp_path / "profiles", precision="fp32", **section)
    with pytest.raises(ProfileError, match="contains a password or a token") as refused:
        creation.create(profiles.read_profile(path), cache=tmp_path, out=tmp_path / "a.edge")
    assert "c4nary" not in str(refused.value)
    assert not (tmp_path / "a.edge").exists()


def test_files_of_this_machine_stay_behind(tmp_path: Path, tiny_profile: Callable[..., Path]) -> None:
    own = {"web": {"token_file": "../token"}, "telemetry": {"log": "../power.jsonl"}}
    path = tiny_profile(tmp_path / "profiles", precision="fp32", **own)
    notes: list[Event] = []
    made = creation.create(profiles.read_profile(path), cache=tmp_path, out=tmp_path / "a.edge", listen=notes.append)
    assert str(tmp_path).encode() not in made.read("profile.yaml")
    assert [note.text.split()[0] for note in notes if isinstance(note, Note)] == ["web.token_file", "telemetry.log"]


def test_a_bundle_is_made_closed_or_not_at_all(tmp_path: Path, tiny_profile: Callable[..., Path]) -> None:
    path = tiny_profile(tmp_path / "profiles", precision="fp32", notify=[{"to": "exec:ls"}])
    with pytest.raises(EdgeError, match="is a command or a file of the device"):
        creation.create(profiles.read_profile(path), cache=tmp_path, out=tmp_path / "a.edge")
    assert not (tmp_path / "a.edge").exists()


def test_a_build_writes_into_no_folder_of_a_bundle(tmp_path: Path) -> None:
    """Timing caches are this device's own, also where a bundle has tables in a folder of that name."""
    folder_of(tmp_path / "bundles" / ("0" * 64), {**FILES, "tables/timing/x.json": b"{}", "tables/m/t.table": b"t"})
    shipped = deployed.Deployed(folder=tmp_path / "bundles" / ("0" * 64), digest="0" * 64, state=tmp_path)
    cache = shipped.build_cache()
    assert (cache / "timing").resolve() == tmp_path / "timing"
    assert (cache / "m").resolve() == shipped.folder / "tables" / "m"
