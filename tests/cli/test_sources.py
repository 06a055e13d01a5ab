"""``edge run`` from videos, recordings and a network camera that a thread of the test plays."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.artifacts import run_record
from edge.cli import observers
from edge.config import read_profile
from edge.errors import UsageError
from tests.support.network_camera import Server

Edge = Callable[..., Any]
Place = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]
RUN = ("run", "--profile", "tiny", "--json")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def video(path: Path, count: int = 30) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    rng = np.random.default_rng(0)
    for _ in range(count):
        writer.write(cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (64, 48)))
    writer.release()
    return path


def test_every_frame_of_a_video(edge: Edge, built: Place) -> None:
    folder = built()
    video(folder / "v.avi")
    *each, last = lines(edge(*RUN, "--video", "v.avi", "--record", "r.json").out)
    assert [one["name"] for one in each] == [f"frame {number}" for number in range(30)]
    source = last["summary"]["source"]
    assert (source["kind"], source["live"], source["width"], source["total"]) == ("video", False, 64, 30)
    assert (last["summary"]["dropped"], run_record.load(folder / "r.json").pictures) == (None, 30)


def test_a_replayed_run_says_so(edge: Edge, built: Place) -> None:
    for speed, live in (("real", True), ("fast", False)):
        folder = built(run={"replay_speed": speed})
        video(folder / "v.avi")
        ended = edge(*RUN, "--replay", "v.avi", "--record", f"{speed}.json")
        assert ended.code == 0
        kept = run_record.load(folder / f"{speed}.json")
        assert (kept.replayed, kept.source["kind"], kept.source["live"]) == ("v.avi", "replay", live)
        assert kept.pictures + (kept.dropped or 0) == 30


def test_the_same_pictures_one_by_one_in_batches_and_by_several_workers(edge: Edge, built: Place) -> None:
    found = []
    for run in ({}, {"batch": 4}, {"workers": 3}, {"workers": 2, "batch": 8}):
        built(11, run=run)
        *each, last = lines(edge(*RUN, "--images", "pictures").out)
        found.append([(one["seq"], one["name"], one["guesses"][0]["label"]) for one in each])
        assert last["summary"]["pictures"] == 11
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--images", "pictures", "--camera", "0"), "--images and --camera exclude each other"),
        (("--camera", "nothing"), "is not a camera address"),
        ((), "no source"),
        (("--images", "pictures", "--wait-for-camera"), "--wait-for-camera has no effect without --camera"),
        (("--images", "pictures", "--batch", "4"), "try: use run.batch in the profile"),
        (("--images", "pictures", "--topk=3"), "edge run has no option --topk any more"),
        (("--images", "pictures", "--engine-dir", "x"), "EDGE_ENGINE_DIR"),
        (("--camera", "a=0", "--camera", "a=1"), "two cameras have the name a"),
        (("--camera", "a=0", "--camera", "b=/dev/video0"), "the cameras a and b are the same device"),
        (("--camera", "rtsp://x/s", "--camera", "rtsp://x/s"), "the cameras camera1 and camera2 are the same device"),
        (("--camera", "front="), "no address after the ="),
        (("--images", "pictures", "--notify", "ftp://x"), "is not a valid notification target"),
        (("--images", "pictures", "--csv", "o.mkv", "--save-video", "./o.mkv"), "name the same file"),
        (("--images", "pictures", "--csv", "r.json", "--record", "r.json"), "--csv and --record name the same file"),
        (("--images", "pictures", "--duration", "soon"), "invalid duration 'soon' for --duration"),
    ],
)
def test_what_does_not_go_together(options: tuple[str, ...], words: str, edge: Edge, built: Place) -> None:
    built()
    ended = edge("run", "--profile", "tiny", *options)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err


@pytest.mark.parametrize(
    ("overrides", "options", "code", "words"),
    [
        ({"run": {"batch": 99}}, (), 2, "the engine supports at most 8 images, not 99"),
        ({"record": {"every_frame": True}}, ("--record", "r.json"), 2, "needs a .jsonl record"),
        ({"record": {"flush_s": 0}}, (), 3, "record.flush_s"),
        ({"notify": [{"to": "http://127.0.0.1:9/", "labels": ["clas 1"]}]}, (), 2, "did you mean 'class 1'?"),
        ({"notify": [{"to": "http://127.0.0.1:9/", "for": "soon"}]}, (), 3, "invalid duration 'soon'"),
        ({"decision": {"min_confidence": 1.5}}, (), 3, "decision.min_confidence"),
        ({"decision": {"min_confidence": float("nan")}}, (), 3, "decision.min_confidence"),
        ({"cameras": {"front door": "0"}}, (), 3, "a name may only have letters, digits, - and _"),
        ({"cameras": {"front": {"source": 0, "widht": 3}}}, (), 3, "did you mean 'width'?"),
        ({"cameras": {"front": {"width": 3}}}, (), 3, "is missing"),
    ],
)
def test_a_profile_that_cannot_be_run(
    overrides: dict[str, Any], options: tuple[str, ...], code: int, words: str, edge: Edge, place: Place,
    built: Place, tiny_profile: Callable[..., Path],
) -> None:  # fmt: skip
    built()
    tiny_profile("profiles", **overrides)
    ended = edge("run", "--profile", "tiny", "--images", "pictures", *options)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err


def test_a_camera_that_is_not_there(edge: Edge, built: Place) -> None:
    built()
    ended = edge("run", "--profile", "tiny", "--camera", "/dev/video97")
    assert (ended.code, ended.out) == (8, "")
    assert "/dev/video97: there is no camera here" in ended.err


def test_csi_needs_gstreamer(edge: Edge, built: Place) -> None:
    if cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        pytest.skip("this OpenCV has GStreamer")
    built()
    ended = edge("run", "--profile", "tiny", "--camera", "csi://0")
    assert (ended.code, ended.out) == (4, "")
    assert "built without GStreamer" in ended.err
    assert "sudo apt install libopencv-python" in ended.err


def test_a_network_camera_for_a_while(edge: Edge, built: Place, server: Server) -> None:
    folder = built(record={"every_frame": True})
    ended = edge(*RUN, "--camera", server.url, "--duration", "1s", "--record", "r.jsonl")
    assert ended.code == 0, ended.err
    assert "other users can see the password of --camera" in ended.err
    kept = run_record.load(folder / "r.jsonl")
    assert (kept.status, kept.source["kind"], kept.source["live"]) == ("complete", "network", True)
    assert kept.pictures > 3
    assert kept.dropped is not None
    assert kept.latency["age"].p50_ms > 0
    assert 1.0 <= kept.measured_s < 60.0
    assert "secret" not in (folder / "r.jsonl").read_text() + ended.out + ended.err


def test_a_server_that_hangs_up_and_comes_back_is_a_gap(start: Start, built: Place, server: Server) -> None:
    folder = built(camera={"timeout_s": 2.0, "reconnect": {"first_s": 0.1, "max_s": 0.2}}, record={"flush_s": 0.2})
    process = start(*RUN, "--camera", server.url, "--record", "r.jsonl")
    out = process.stdout
    assert out is not None
    said = iter(lambda: json.loads(out.readline()), None)
    next(said)
    server.refuse = True
    server.hang_up.set()
    began = next(one["gap"] for one in said if "gap" in one)
    assert began["end_s"] is None
    assert "ffprobe" in began["hint"]
    server.hang_up.clear()
    server.refuse = False
    ended = next(one["gap"] for one in said if "gap" in one)
    assert ended["end_s"] > began["start_s"]
    assert ended["attempts"] >= 1
    next(said)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    kept = run_record.load(folder / "r.jsonl")
    assert (kept.status, len(kept.gaps)) == ("interrupted", 1)
    assert kept.gaps[0].reopened_as == "http://***@" + server.url.split("@")[1]


def test_killed_the_record_up_to_the_last_flush_is_readable(start: Start, built: Place, server: Server) -> None:
    folder = built(record={"flush_s": 0.2, "every_frame": True})
    process = start(*RUN, "--camera", server.url, "--record", "r.jsonl")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        time.sleep(0.1)
        if (folder / "r.jsonl").exists() and run_record.load(folder / "r.jsonl").pictures > 3:
            break
    process.kill()
    process.communicate(timeout=60)
    kept = run_record.load(folder / "r.jsonl")
    assert (kept.status, kept.failure) == ("interrupted", run_record.KILLED)
    assert kept.pictures > 3
    assert len(kept.results) == kept.pictures


def test_a_run_whose_backend_fails_has_a_record_too(edge: Edge, place: Place, tiny_model: Callable[..., Path]) -> None:
    """The model takes a logarithm of its input: NaN from the first dark pixel on."""
    folder = place(model="nan.onnx")
    tiny_model(folder / "profiles" / "nan.onnx", nan=True)
    assert edge("build", "--profile", "tiny", "--precision", "fp32").code == 0
    ended = edge("run", "--profile", "tiny", "--precision", "fp32", "--images", "pictures", "--record", "r.json")
    assert ended.code == 8
    assert "NaN or infinity" in ended.err
    kept = run_record.load(folder / "r.json")
    assert kept.status == "failed"
    assert kept.failure is not None
    assert "NaN or infinity" in kept.failure


@pytest.mark.parametrize("scheme", ["exec", "EXEC"])
def test_a_command_of_a_shipped_bundle_needs_the_permission_of_the_device(
    scheme: str, tmp_path: Path, tiny_profile: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle is data from elsewhere: what it may run is decided on the device."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    state = tmp_path / "home/.local/share/edge"
    ran = tmp_path / "ran"
    own = tiny_profile("own", notify=[{"to": f"{scheme}:touch {ran}"}])
    shipped = state / "bundles" / ("0" * 64) / "profile.yaml"
    shipped.parent.mkdir(parents=True)
    shipped.write_text(own.read_text())
    profile, names, warnings = read_profile(own), ["hen"], []

    def opened(path: Path) -> None:
        notifications = observers.open_notifications((), profile, path, names=names, warn=warnings.append)
        assert notifications is not None
        notifications.close()

    opened(own)
    with pytest.raises(UsageError, match="this device does not allow this command") as caught:
        opened(shipped)
    assert str(state / "allowed-commands") in str(caught.value.hint)
    (state / "allowed-commands").write_text(f"touch {ran} && rm -r x\n  touch {ran}x\n")
    with pytest.raises(UsageError, match="does not allow this command"):
        opened(shipped)
    (state / "allowed-commands").write_text(f"# labels\ntouch {ran}\n")
    opened(shipped)
    # What the user of the device types needs no list.
    assert observers.open_notifications((f"exec:touch {ran}",), profile, own, names=names, warn=print) is not None


def test_a_region_of_interest_is_what_the_network_sees_and_a_table_without_it_is_refused(
    edge: Edge, built: Place, tiny_profile: Callable[..., Path]
) -> None:
    built(6)
    region = {"roi": [0.25, 0.25, 0.5, 0.5]}
    tiny_profile("profiles", preprocess=region)
    refused = edge("build", "--profile", "tiny")
    assert (refused.code, "roi None -> [0.25,0.25,0.5,0.5]" in refused.err) == (7, True), refused.err
    built(6, preprocess=region)
    each = lines(edge(*RUN, "--images", "pictures").out)[:-1]
    assert len(each) == 6
    assert all("guesses" in one for one in each)


def test_the_region_of_one_camera(edge: Edge, built: Place, server: Server) -> None:
    folder = built(cameras={"front": {"source": server.url, "roi": [0, 0, 32, 24]}, "gate": f"{server.url}?2"})
    ended = edge(*RUN, "--duration", "1s", "--save-frames", "rec", "--record", "r.json")
    assert ended.code == 0, ended.err
    shapes = {name: cv2.imread(str(next((folder / "rec" / name).glob("*.jpg")))).shape for name in ("front", "gate")}
    assert shapes == {"front": (24, 32, 3), "gate": (48, 64, 3)}


def test_a_region_that_is_larger_than_the_pictures_is_said(edge: Edge, built: Place, server: Server) -> None:
    built(3, preprocess={"roi": [0, 0, 40, 40]}, camera={})
    ended = edge(*RUN, "--camera", server.url, "--limit", "3")
    assert ended.code == 0, ended.err
    server.size_of = lambda _number: (30, 30)
    ended = edge(*RUN, "--camera", server.url, "--limit", "3")
    assert "the roi [0, 0, 40, 40] reaches beyond the image of 30×30" in ended.err
    assert ended.code == 6
