"""Draw the images of docs/: the live view and the web page from samples/, the report from a folder of distinct images.

    python docs/screens.py DIR [report]

DIR has a few hundred distinct images; with ``report`` only the report is drawn. Needs ./install.sh test, edge build in
int8 and fp32, chromium and chromedriver. The samples are soon classified, so they are recorded over and over and played
again at the rate of a camera. What this machine does not measure, power for example, the images do not show.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))

from rich.console import Console
from rich.text import Text

from tests.support.browser import Browser, browser

EDGE = [sys.executable, "-m", "edge"]
RATE_HZ = 12.0
COLUMNS, ROWS = 92, 24


def main() -> None:
    """Everything into docs/."""
    with tempfile.TemporaryDirectory(prefix="edge-screens-") as name:
        folder = Path(name)
        if sys.argv[2:] == ["report"]:
            report(folder, Path(sys.argv[1]))
            return
        recording = recorded(folder / "recording", frames=int(60 * RATE_HZ))
        terminal(recording)
        with watched(recording) as address, browser(size=(1180, 980)) as window:
            window.open(address)
            window.wait("return document.querySelector('img') && document.querySelector('img').naturalWidth > 0")
            time.sleep(25)
            picture(window, "web.png", width=1180, height=980)
            picture(window, "web_phone.png", width=390, height=1180, dark=True)
        report(folder, Path(sys.argv[1]))


def recorded(folder: Path, *, frames: int) -> Path:
    """A recording as edge run --save-frames makes it: the samples over and over, at the rate of a camera."""
    pictures = sorted((ROOT / "samples").glob("*.jpg"))
    many = folder.with_name("many")
    many.mkdir()
    for number in range(frames):
        # Each for a second, as somebody in front of a camera would hold it.
        shutil.copy(pictures[int(number / RATE_HZ) % len(pictures)], many / f"{number:04}.jpg")
    run("run", "--images", many, "--save-frames", folder)
    index = next(folder.glob("*.jsonl"))
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    kept = sorted((line["frame"] for line in lines if "frame" in line), key=lambda frame: frame["seq"])
    for number, frame in enumerate(kept):
        frame["t_s"] = number / RATE_HZ
    index.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def terminal(recording: Path) -> None:
    """The live view, as a terminal of 92 columns shows it in the middle of a run."""
    script = shutil.which("script")
    if script is None:
        print("no script(1): docs/run.svg stays as it is")
        return
    command = f"stty cols {COLUMNS} rows {ROWS}; exec {' '.join(EDGE)} run --replay {recording.name}"
    line = ["timeout", "-s", "INT", "20", script, "-qec", command, "/dev/null"]
    done = subprocess.run(line, capture_output=True, cwd=recording.parent, env=environment(), check=False)
    panels = re.findall(r"╭.*?╯", done.stdout.decode(errors="replace"), re.DOTALL)
    if not panels:
        raise SystemExit("the run drew no live view")
    console = Console(record=True, width=COLUMNS, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115, PTH123
    console.print(Text.from_ansi(panels[-2 if len(panels) > 1 else -1].replace("\r", "")))
    console.save_svg(str(DOCS / "run.svg"), title="edge run --replay recording")


@contextlib.contextmanager
def watched(recording: Path) -> Iterator[str]:
    """A run with a page; its address."""
    command = [*EDGE, "run", "--replay", recording.name, "--web", "127.0.0.1:0"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=recording.parent, env=environment()
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            found = re.search(r"http://\S+", line)
            if found:
                yield found[0].rstrip(".,")
                break
    finally:
        process.terminate()
        process.communicate()


def report(folder: Path, images: Path) -> None:
    """The report of an INT8 and an FP32 run over the same images."""
    for precision in ("int8", "fp32"):
        run(
            "run", "--profile", "host", "--images", images.resolve(), "--precision", precision,
            "--record", folder / f"{precision}.json",
        )  # fmt: skip
    run("report", folder / "int8.json", folder / "fp32.json", "-o", folder / "report.html")
    with browser(size=(1180, 1900)) as window:
        window.open((folder / "report.html").as_uri())
        picture(window, "report.png", width=1180, height=1560)


def picture(window: Browser, name: str, *, width: int, height: int, dark: bool = False) -> None:
    """One screenshot."""
    window.looks_like(width=width, height=height, dark=dark)
    time.sleep(1.5)
    (DOCS / name).write_bytes(window.screenshot())
    print(DOCS / name)


def environment() -> dict[str, str]:
    """Ours, for a command that runs in another folder: names are shorter there."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: object) -> None:
    """One command of edge."""
    subprocess.run([*EDGE, *map(str, arguments)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
