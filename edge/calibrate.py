"""The verb ``calibrate``: pictures -> statistics (:mod:`edge.observe`) -> ranges -> calibration table."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from edge import identity, observe, store
from edge import model as models
from edge.calibration import algorithms, network
from edge.calibration import table as tables
from edge.errors import ArtifactError, EdgeError
from edge.events import Listener, Note, Progress, silence
from edge.frames import Pictures
from edge.profile import Profile

# TensorRT 10.3 is what JetPack 6.1 and 6.2 hold; every 10.x reads it, and other versions take it retargeted.
HEADER_VERSION = tables.TrtVersion(10, 3, 0)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What calibrate did. ``changed`` names the fields in which the table that was there differed.

    ``zero_tensors`` were zero for every picture: their range is 0, and the layers that read them stay in float.
    """

    table: Path
    sha256: str
    work: Literal["unchanged", "from statistics", "collected"]
    changed: list[str]
    pictures: int
    tensors: int
    zero_tensors: list[str]
    seconds: float


def calibrate(
    profile: Profile,
    pictures: Pictures,
    *,
    cache: Path,
    force: bool = False,
    threads: int | None = None,
    crew: observe.Crew | None = None,
    listen: Listener = silence,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome | None:
    """Make the table that ``profile`` asks for, or find that it is there already.

    ``crew`` counts, or else this process alone; ``threads`` is per process. None when ``should_stop`` ended it early;
    what was counted is kept, and the next call goes on from there, whoever counts then.

    Raises:
        DataError: a picture is unreadable, broken, or changed meanwhile: never a silently shorter calibration.
        ModelError: the model is not usable, or overflows on a picture.
        DeviceError: the workers of a crew died too often, or cannot be reached.
        StoreError: the cache folder cannot be written.
    """
    start = time.monotonic()
    chosen, parameters = algorithms.find(profile.calibration.algorithm, profile.calibration.parameters)
    model = models.load(Path(profile.model))
    models.check_fits(model, profile)
    if not _hashed(pictures, listen=listen, should_stop=should_stop):
        return None
    key = {**identity.table_key(profile), "images": pictures.digest(), "batch": profile.calibration.batch}
    path = identity.table_path(profile, cache)
    current, changed = _compare(path, key, listen)
    if current is not None and not changed and not force:
        return _outcome(path, current, "unchanged", [], start)
    for difference in changed:
        listen(Note(f"the table that is there differs in {difference}"))

    graph = models.read(model.path).graph
    plan = network.plan(graph, model.activations)
    with store.lock(path):
        observed = observe.observe(
            profile, model, plan, pictures,
            needs=chosen.needs, cache=path.parent, key=key, force=force, threads=threads, crew=crew,
            listen=listen, should_stop=should_stop,
        )  # fmt: skip
        if observed is None:
            return None
        statistics = plan.complete(observed.statistics)
        ranges = network.shared_ranges(graph, algorithms.ranges(statistics, chosen, parameters))
        table = tables.from_ranges(ranges, algorithm=chosen.table_name, trt_version=HEADER_VERSION)
        manifest = store.save(
            identity.manifest_path(path),
            kind=identity.TABLE,
            files={path.name: tables.write(table)},
            key=key,
            info={
                "pictures": statistics.pictures,
                "tensors": len(ranges),
                "zero_tensors": [tensor for tensor, value in ranges.items() if value == 0.0],
                "parameters": parameters,
                "header": table.header.text,
                "machine": platform.machine(),
                "statistics": observed.path.name,
            },
        )
    return _outcome(path, manifest, "from statistics" if observed.reused else "collected", changed, start)


def _hashed(pictures: Pictures, *, listen: Listener, should_stop: Callable[[], bool]) -> bool:
    """Read every picture once for its digest, which the picture keeps; whether it came to the end."""
    for done, picture in enumerate(pictures, start=1):
        if should_stop():
            return False
        _ = picture.sha256
        listen(Progress("hash", done, len(pictures)))
    return True


def _compare(path: Path, key: store.Key, listen: Listener) -> tuple[store.Manifest | None, list[str]]:
    """The manifest of the table that is there, if it is whole, and the fields in which it differs from ``key``.

    Each algorithm has a table of its own; where this one has none yet, the model's nearest other table is compared.
    """
    where = identity.manifest_path(path)
    if not where.is_file():
        return None, _nearest(where.parent, key)
    try:
        manifest = _manifest_of(path)
    except ArtifactError as exc:
        listen(Note(f"the table that is there cannot be used and is made again: {exc.what} ({exc.where})", "warning"))
        return None, []
    return manifest, [str(difference) for difference in store.differences(manifest.key, key)]


def _manifest_of(path: Path) -> store.Manifest:
    manifest = store.load(identity.manifest_path(path), kind=identity.TABLE)
    if path.name not in manifest.files:
        raise ArtifactError(f"its manifest is that of {', '.join(manifest.files)}", where=path)
    return manifest


def _nearest(folder: Path, key: store.Key) -> list[str]:
    """The fields in which the most similar table in ``folder`` differs from ``key``; empty when there is no table."""
    found = []
    for where in sorted(folder.glob("*.json")):
        # Statistics and their manifests lie here as well, and a damaged neighbour is not what was asked about.
        with contextlib.suppress(EdgeError):
            manifest = store.load(where, kind=identity.TABLE, check_files=False)
            found.append([str(difference) for difference in store.differences(manifest.key, key)])
    return min(found, key=len, default=[])


def _outcome(path: Path, manifest: store.Manifest, work: str, changed: list[str], start: float) -> Outcome:
    content = {
        "table": path,
        "sha256": manifest.files[path.name].sha256,
        "work": work,
        "changed": changed,
        "pictures": manifest.info["pictures"],
        "tensors": manifest.info["tensors"],
        "zero_tensors": manifest.info["zero_tensors"],
        "seconds": time.monotonic() - start,
    }
    return msgspec.convert(content, Outcome)
