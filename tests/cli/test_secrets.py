"""One string is in every secret; nothing that edge writes, prints, serves or sends holds it."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.network_camera import Server

Edge = Callable[..., Any]
Place = Callable[..., Path]
CANARY = "c4nary-9"
TOKEN = f"{CANARY}-token-of-this-page"
PASSWORD = f"{CANARY}-password"


def with_canary(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://ada:{PASSWORD}@{rest.rpartition('@')[2]}?token={CANARY}"


def secret_file(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(f"{text}\n")
    return path


def found_in(texts: dict[str, str]) -> list[str]:
    """Where the string is, with what stands around it."""
    return [
        f"{name}: {text[max(text.index(CANARY) - 80, 0) :][:160]}" for name, text in texts.items() if CANARY in text
    ]


def files_below(folder: Path) -> dict[str, str]:
    """Every file that edge wrote: all but those that this test named after a secret."""
    return {
        str(path): path.read_text(errors="replace")
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in {".secret", ".yaml"}
    }


@pytest.fixture
def camera() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def received() -> Iterator[tuple[str, list[str]]]:
    """An HTTP server for notifications, and the bodies that it received."""
    bodies: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", bodies
    server.shutdown()
    server.server_close()


class Visitor(threading.Thread):
    """Somebody with the token, who reads every page while the run goes."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.pages: dict[str, str] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.1):
            for path in ("/", "/about", "/state", "/metrics", "/edge.js"):
                request = urllib.request.Request(
                    f"http://127.0.0.1:{self.port}{path}", headers={"authorization": f"Bearer {TOKEN}"}
                )
                with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
                    self.pages[path] = str(answer.headers) + answer.read().decode()


def test_a_run_leaves_no_secret_anywhere(
    edge: Edge, built: Place, camera: Server, received: tuple[str, list[str]]
) -> None:
    """Neither those of cameras, of notifications and of the page: not in output, record, report, pages and messages."""
    url, bodies = received
    away = Server()
    away.refuse = True
    secret_file(Path("token.secret"), TOKEN)
    secret_file(Path("hook.secret"), with_canary(url))
    secret_file(Path("gate.secret"), with_canary(away.url))
    folder = built(
        cameras={"front": with_canary(camera.url), "gate": {"source": "@gate.secret"}},
        notify=[
            {"to": "@hook.secret", "on_change": False, "every": "0.2s"},
            {"to": f"http://ada:{PASSWORD}@127.0.0.1:9/x?key={CANARY}", "on_change": False, "every": "0.2s"},
        ],
        web={"token_file": "../token.secret"}, record={"every_frame": True},
        camera={"timeout_s": 1.0, "reconnect": {"first_s": 0.1, "max_s": 0.2}},
    )  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    visitor = Visitor(port)
    visitor.start()
    ended = edge(
        "run", "--profile", "tiny", "--json", "--duration", "1s", "--record", "r.jsonl", "--save-frames", "rec",
        "--web", f"127.0.0.1:{port}", "--metrics", f"127.0.0.1:{port}",
    )  # fmt: skip
    visitor.ended.set()
    visitor.join()
    away.close()
    assert ended.code == 0, ended.err
    assert edge("report", "r.jsonl", "-o", "r.html").code == 0
    assert bodies
    assert {"/about", "/state", "/metrics"} <= visitor.pages.keys()
    assert "127.0.0.1" in visitor.pages["/about"]
    written = files_below(folder)
    assert {"r.jsonl", "r.html"} <= {Path(name).name for name in written}
    assert '"last_error"' in (folder / "r.jsonl").read_text()
    shown = {"stdout": ended.out, "stderr": ended.err, "sent": json.dumps(bodies)}
    assert found_in({**shown, **visitor.pages, **written}) == []


def test_a_token_that_was_made_is_in_no_log(edge: Edge, built: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stderr is no terminal it is a log: the token is in a file then, for as long as the run goes."""
    folder = built()
    (folder / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "temporary"))
    ended = edge("run", "--profile", "tiny", "--images", "pictures", "--web", "0.0.0.0:0", "--metrics", "0.0.0.0:0")
    assert ended.code == 0, ended.err
    assert "#token=" not in ended.err
    assert "bearer token" not in ended.err
    assert f"token: in {folder}/temporary/edge-web-" in ended.err
    assert list((folder / "temporary").iterdir()) == []


URL = f"rtsp://ada:{PASSWORD}@127.0.0.1:9/s?token={CANARY}"


@pytest.mark.parametrize(
    "words",
    [
        ("profile", "show", "tiny"),
        ("profile", "show", "tiny", "--json"),
        ("profile", "check", "tiny"),
        ("bundle", "create", "-p", "tiny", "-o", "a.edge"),
        ("service", "print", "-p", "tiny", "--", "--images", "pictures"),
        ("service", "print", "-p", "tiny", "--", "--camera", URL),
        ("service", "install", "-p", "tiny", "--unit-dir", "units", "--", "--notify", f"mqtt://a:{PASSWORD}@h/t"),
        ("run", "-p", "tiny", "--camera", URL, "--duration", "1s"),
        ("run", "-p", "tiny", "--camera", f"front={URL}", "--camera", f"front={URL}"),
        ("run", "-p", "tiny", "--camera", URL, "--camera", URL),
        ("run", "-p", "tiny", "--camera", f"nonsense://ada:{PASSWORD}@h/s"),
        ("run", "-p", "tiny", "--camera", "@file.secret"),
        ("run", "-p", "tiny", "--camera", "front", URL),
        ("bench", "-p", "tiny", "--camera", URL),
        ("run", "-p", "tiny", "--images", URL),
        ("run", "-p", "tiny", "--video", URL),
        ("run", "-p", "tiny", "--replay", URL),
        ("run", "-p", URL, "--images", "pictures"),
        ("init", f"https://ada:{PASSWORD}@host/model.onnx"),
        ("bundle", "show", f"https://ada:{PASSWORD}@host/a.edge"),
        ("report", f"https://ada:{PASSWORD}@host/r.json", "-o", "r.html"),
        ("eval", "-p", "tiny", "--images", URL),
        ("run", "-p", "tiny", "--images", "pictures", "--notify", f"ftp://ada:{PASSWORD}@h/s"),
        ("run", "-p", "tiny", "--images", "pictures", "--notify", f"http://ada:{PASSWORD}@h:port/s"),
        ("run", "-p", "wrong", "--images", "pictures"),
        ("run", "-p", "misplaced", "--images", "pictures"),
        ("bundle", "push", "a.edge", f"oci://ada:{PASSWORD}@registry.example/team/x:1"),
        ("bundle", "push", "a.edge", f"oci://ada:{CANARY}/{CANARY}@registry.example/team/x:1"),
        ("bundle", "pull", f"https://ada:{PASSWORD}@registry.example/team/x:1", "-o", "b.edge"),
        ("ship", f"ada:{PASSWORD}@orin-1", "--bundle", "a.edge"),
        ("ship", f"ssh://ada:{PASSWORD}@orin-1/opt", "--bundle", "a.edge"),
        ("ship", "all", "--fleet", "fleet.yaml", "--bundle", "a.edge"),
    ],
    ids=lambda words: " ".join(words).replace(CANARY, "C")[:60],
)
def test_no_command_prints_a_secret(
    words: tuple[str, ...], edge: Edge, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place(
        cameras={"front": URL, "gate": {"source": f"http://h/v?pwd={PASSWORD}"}}, notify=[{"to": URL}],
        camera={"pipeline": f"rtspsrc location={{device}} user-id=ada user-pw={PASSWORD} ! appsink"},
    )  # fmt: skip
    Path("profiles/wrong.yaml").write_text(f"extends: tiny\ncameras: {{front: {{'{URL}': 1}}}}\n")
    Path("profiles/misplaced.yaml").write_text(f"extends: tiny\ncamera: {{format: '{URL}'}}\n")
    Path("fleet.yaml").write_text(f"hosts: {{orin: {{host: 'ada:{PASSWORD}@orin-1'}}}}\n")
    secret_file(Path("file.secret"), f"root:{PASSWORD}")
    monkeypatch.setenv("EDGE_CAMERA_URL", URL)
    monkeypatch.setenv("EDGE_REGISTRY_USER", "ada")
    monkeypatch.setenv("EDGE_REGISTRY_PASSWORD", PASSWORD)
    monkeypatch.setenv("EDGE_SOMETHING", PASSWORD)
    ended = edge(*words)
    assert ended.out + ended.err
    assert found_in({"stdout": ended.out, "stderr": ended.err, **files_below(folder)}) == []
