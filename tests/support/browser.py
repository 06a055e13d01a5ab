"""Headless Chromium by the W3C WebDriver protocol, which is JSON over HTTP: enough to open a page and look at it."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--force-device-scale-factor=1",
)  # fmt: skip


def missing() -> str | None:
    """Why no browser can be driven here, or None."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        return "chromium is not on this machine"
    return None if shutil.which("chromedriver") else "chromedriver is not on this machine"


class Browser:
    """One window."""

    def __init__(self, base: str, size: tuple[int, int], flags: Sequence[str]) -> None:
        self._base = base
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        options = {"binary": chromium, "args": [*_FLAGS, f"--window-size={size[0]},{size[1]}", *flags]}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._session = self._call("POST", "/session", {"capabilities": wanted})["sessionId"]

    def open(self, url: str) -> None:
        """Load a page."""
        self._do("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """Run JavaScript in the page; ``return`` gives its value."""
        return self._do("POST", "/execute/sync", {"script": script, "args": []})

    def wait(self, script: str, *, seconds: float = 60.0) -> Any:
        """Run JavaScript until its value is true."""
        until = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > until:
                raise TimeoutError(f"never true: {script}\n{self.run('return document.body.innerText')}")
            time.sleep(0.05)
        return value

    def devtools(self, method: str, **parameters: Any) -> Any:
        """A command of the Chrome DevTools Protocol."""
        return self._do("POST", "/goog/cdp/execute", {"cmd": method, "params": parameters})

    def looks_like(self, *, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Be a screen of this size, of a phone for example, light or dark."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
                      mobile=width < 600)  # fmt: skip
        self.devtools("Emulation.setEmulatedMedia",
                      features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])  # fmt: skip

    def screenshot(self, *, whole: bool = False) -> bytes:
        """PNG of the window, or of the whole page."""
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])

    def complaints(self) -> list[str]:
        """What the page wrote to the console since the last call: errors, refused resources."""
        log = self._do("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] in {"SEVERE", "WARNING"}]

    def close(self) -> None:
        """Close the window."""
        self._do("DELETE", "", None)

    def _do(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        return self._call(method, f"/session/{self._session}{path}", body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self._base}{path}", data, {"content-type": "application/json"}, method=method
        )
        # Whatever proxy the environment names is not for this machine's own driver.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as exc:
            with exc:
                raise RuntimeError(json.load(exc)["value"]["message"]) from None


@contextlib.contextmanager
def browser(*, size: tuple[int, int] = (1280, 900), flags: Sequence[str] = ()) -> Iterator[Browser]:
    """A browser of its own, with a profile that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        try:
            port = _port(driver)
            window = _connected(f"http://127.0.0.1:{port}", size, [f"--user-data-dir={folder}", *flags], driver)
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.terminate()
            driver.communicate()


def _port(driver: subprocess.Popen[str]) -> int:
    """The port that the driver has found free and listens on."""
    assert driver.stdout is not None
    for line in driver.stdout:
        found = re.search(r"started successfully on port (\d+)", line)
        if found is not None:
            return int(found[1])
    raise RuntimeError("chromedriver ended before it listened")


def _connected(base: str, size: tuple[int, int], flags: list[str], driver: subprocess.Popen[str]) -> Browser:
    until = time.monotonic() + 30
    while True:
        try:
            return Browser(base, size, flags)
        except urllib.error.URLError:
            if driver.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.1)
