"""Draw docs/run.svg: the live view of a real run over samples/, as a terminal shows it.

python docs/terminal_picture.py   (after ./install.sh demo)
"""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from edge import backends, identity, labels, loop, profile, telemetry
from edge.frames import open_pictures
from edge.preprocess import Preprocessor
from edge.record import Subject
from edge.ui import Terminal
from edge.ui.live import LiveView

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the samples three times, and keep what the view shows at the end."""
    chosen = profile.load(ROOT / "profiles/host.yaml")
    backend = backends.get(chosen.backend)
    found = identity.find_engine(
        chosen, backend, precision="int8", cache=ROOT / "calib_cache", engines=ROOT / "engines"
    )
    session = backend.open(found.path, precision="int8")
    pictures = open_pictures(ROOT / "samples")
    power = telemetry.probe()
    line = str(power) if isinstance(power, telemetry.NoSource) else f"measured by {power.name} ({power.scope})"
    shown = line if len(line) < 50 else "not measured on this machine (edge doctor says why)"
    view = LiveView(
        Terminal(quiet=True), headline="host · efficientnet_lite0 · int8", power=shown, total=3 * len(pictures)
    )
    empty = Subject(
        profile="host", profile_digest="", model=chosen.model, model_sha256="", engine_sha256="", table_sha256=None,
        preprocess_digest="", backend={}, precision="int8", layers={}, device={}, source="samples",
    )  # fmt: skip
    for _ in range(3):
        loop.run(
            pictures, session=session, preprocessor=Preprocessor(chosen.preprocess, chosen.input),
            names=labels.load_names(Path(chosen.labels)), subject=empty, power=telemetry.NoSource(()),
            settings=loop.Settings(topk=5, warmup=5), hear=view.hear,
        )  # fmt: skip
    console = Console(record=True, width=78, file=io.StringIO(), force_terminal=True)
    console.print(view.drawn())
    console.save_svg(str(ROOT / "docs/run.svg"), title="edge run --images samples")


if __name__ == "__main__":
    main()
