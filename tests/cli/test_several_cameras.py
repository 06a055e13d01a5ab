"""``edge run`` with several cameras, with smoothing, with notifications: from the command line to the record."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.artifacts import run_record
from tests.support.network_camera import Server

Edge = Callable[..., Any]
Place = Callable[..., Path]
RUN = ("run", "--profile", "tiny", "--json")
CANARY = "secret"


@pytest.fixture
def cameras() -> Iterator[Callable[..., list[Server]]]:
    servers: list[Server] = []

    def make(n: int = 2) -> list[Server]:
        servers.extend(Server() for _ in range(n))
        return servers

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An HTTP server that keeps what it is told."""
    told: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://hook:{CANARY}@127.0.0.1:{server.server_port}/told", told
    server.shutdown()
    server.server_close()


def lines(out: str) -> list[Any]:
    return [json.loads(line) for line in out.splitlines()]


def test_several_cameras_in_one_run(edge: Edge, built: Place, cameras: Callable[..., list[Server]]) -> None:
    folder = built(record={"every_frame": True})
    front, gate = cameras(2)
    Path("gate.url").write_text(f"{gate.url}\n")
    ended = edge(
        *RUN, "--camera", f"front={front.url}", "--camera", "gate=@gate.url", "--duration", "2s", "--record", "r.jsonl"
    )
    assert ended.code == 0, ended.err
    *each, last = lines(ended.out)
    seen = [one for one in each if "guesses" in one]
    assert {one["camera"] for one in seen} == {"front", "gate"}
    assert all(one["name"].startswith(f"{one['camera']}: frame ") for one in seen)
    kept = run_record.load(folder / "r.jsonl")
    assert {camera.name: camera.pictures > 3 for camera in kept.cameras} == {"front": True, "gate": True}
    assert sum(camera.pictures for camera in kept.cameras) == kept.pictures == last["summary"]["pictures"]
    assert sum(camera.dropped or 0 for camera in kept.cameras) == kept.dropped
    assert all(camera.latency["age"].n == camera.pictures for camera in kept.cameras)
    assert set(kept.source["cameras"]) == {"front", "gate"}
    # Two addresses with a password: one of them was typed, and none is shown.
    assert ended.err.count("other users can see the password") == 1
    assert CANARY not in ended.out + ended.err + (folder / "r.jsonl").read_text()


def test_a_camera_that_is_away_is_a_gap_and_the_other_goes_on(
    edge: Edge, built: Place, cameras: Callable[..., list[Server]]
) -> None:
    folder = built(camera={"timeout_s": 1.0, "reconnect": {"first_s": 0.1, "max_s": 0.2}})
    front, gate = cameras(2)
    gate.refuse = True
    both = ("--camera", f"front={front.url}", "--camera", f"gate={gate.url}")
    ended = edge(*RUN, *both, "--duration", "3s", "--record", "r.json")
    assert ended.code == 0, ended.err
    kept = run_record.load(folder / "r.json")
    by_name = {camera.name: camera for camera in kept.cameras}
    assert (by_name["gate"].pictures, by_name["gate"].gaps_count, by_name["gate"].reconnects) == (0, 1, 0)
    assert by_name["front"].pictures > 3
    assert [(gap.camera, gap.end_s) for gap in kept.gaps] == [("gate", None)]


def test_no_camera_at_all_ends_with_the_error_of_the_first(
    edge: Edge, built: Place, cameras: Callable[..., list[Server]]
) -> None:
    built(camera={"timeout_s": 1.0})
    front, gate = cameras(2)
    front.refuse = gate.refuse = True
    ended = edge(*RUN, "--camera", f"front={front.url}", "--camera", f"gate={gate.url}")
    assert (ended.code, ended.out) == (8, "")
    assert "ffprobe" in ended.err


def test_cameras_of_the_profile_and_of_the_environment(
    edge: Edge, built: Place, cameras: Callable[..., list[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    front, gate = cameras(2)
    built(cameras={"front": front.url, "gate": {"source": gate.url, "timeout_s": 3}})
    summary = lines(edge(*RUN, "--limit", "40").out)[-1]["summary"]
    assert {camera["name"] for camera in summary["cameras"]} == {"front", "gate"}
    alone = lines(edge(*RUN, "--camera", "gate", "--limit", "5").out)[-1]["summary"]
    assert (alone["cameras"], alone["source"]["kind"]) == ([], "network")
    built()
    monkeypatch.setenv("EDGE_CAMERA_URL", front.url)
    ended = edge(*RUN, "--limit", "5")
    assert ended.code == 0, ended.err
    assert "password" not in ended.err
    assert CANARY not in ended.out + ended.err


def test_recordings_of_several_cameras_are_replayed_together(
    edge: Edge, built: Place, cameras: Callable[..., list[Server]]
) -> None:
    folder = built()
    front, gate = cameras(2)
    both = ("--camera", f"front={front.url}", "--camera", f"gate={gate.url}")
    assert edge(*RUN, *both, "--duration", "2s", "--save-frames", "rec").code == 0
    assert {path.parent.name for path in (folder / "rec").glob("*/frames.jsonl")} == {"front", "gate"}
    assert CANARY not in (folder / "rec" / "front" / "frames.jsonl").read_text()
    ended = edge(*RUN, "--replay", "rec", "--record", "r.json")
    assert ended.code == 0, ended.err
    kept = run_record.load(folder / "r.json")
    assert all(camera.pictures for camera in kept.cameras)
    assert kept.replayed == "rec/front, rec/gate"


def test_a_label_is_reported_and_counted(edge: Edge, built: Place, hook: tuple[str, list[dict[str, Any]]]) -> None:
    url, told = hook
    Path("hook.url").write_text(url)
    folder = built(notify=[{"to": "@hook.url", "labels": [f"class {index}" for index in range(10)]}])
    ended = edge(*RUN, "--images", "pictures", "--record", "r.json")
    assert ended.code == 0, ended.err
    labels = [one["guesses"][0]["label"] for one in lines(ended.out)[:-1]]
    changes = [label for index, label in enumerate(labels) if index == 0 or labels[index - 1] != label]
    assert [message["label"] for message in told] == changes
    assert told[0]["profile"] == "tiny"
    [counts] = run_record.load(folder / "r.json").notify
    assert (counts.sent, counts.failed, counts.waiting) == (len(changes), 0, 0)
    assert CANARY not in ended.out + ended.err + (folder / "r.json").read_text()


def test_a_command_of_the_command_line_is_run(edge: Edge, built: Place) -> None:
    built()
    Path("on-label").write_text("#!/bin/sh\ncat >> told\necho >> told\n")
    Path("on-label").chmod(0o755)
    ended = edge("run", "--profile", "tiny", "--images", "pictures", "--notify", f"exec:{Path.cwd()}/on-label")
    assert ended.code == 0, ended.err
    assert "sent" in ended.out
    messages = [json.loads(line) for line in Path("told").read_text().splitlines()]
    assert messages[0]["name"] == "000.jpg"


def test_below_the_least_confidence_a_picture_is_unknown(edge: Edge, built: Place) -> None:
    folder = built(decision={"min_confidence": 1.0})
    *each, _last = lines(edge(*RUN, "--images", "pictures", "--record", "r.json").out)
    assert {one["decision"]["label"] for one in each} == {"unknown"}
    assert all(one["guesses"][0]["label"].startswith("class") for one in each)
    kept = run_record.load(folder / "r.json")
    assert [(found.index, found.label, found.count) for found in kept.top_decisions] == [(-1, "unknown", 8)]


def test_smoothing_of_a_video(edge: Edge, built: Place) -> None:
    built(decision={"smoothing": "majority", "window_s": 0.5})
    writer = cv2.VideoWriter("v.avi", cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (64, 48))
    for number in range(30):
        writer.write(np.full((48, 64, 3), 250 if number == 20 else number, np.uint8))
    writer.release()
    *each, _last = lines(edge(*RUN, "--video", "v.avi").out)
    assert len(each) == 30
    assert all(one["decision"]["label"].startswith("class") for one in each)


def test_a_run_without_one_frame_is_no_success(edge: Edge, built: Place, cameras: Callable[..., list[Server]]) -> None:
    folder = built(camera={"timeout_s": 0.5, "reconnect": {"first_s": 0.1, "max_s": 0.2}})
    [away] = cameras(1)
    away.refuse = True
    ended = edge(*RUN, "--camera", away.url, "--wait-for-camera", "--duration", "2s", "--record", "r.json")
    assert ended.code == 8
    assert "no frame was received: " in ended.err
    kept = run_record.load(folder / "r.json")
    assert (kept.status, kept.pictures) == ("failed", 0)
