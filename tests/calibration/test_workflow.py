"""The operation ``calibrate``: the table it leaves, when it does nothing, and what it does with what is broken."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from edge.artifacts import store
from edge.calibration import cache_keys, workflow
from edge.config import profiles
from edge.config.profiles import Profile
from edge.errors import ArtifactError, DataError, ModelError, StoreError
from edge.events import Event, Note, Progress
from edge.media.picture_sources import open_pictures
from edge.quantization import calibration_table

TENSORS = ["input", "c1", "r1", "c2", "r2", "c3", "sum", "pool", "gap", "flat", "logits"]
BROKEN = ("a truncated JPEG", "an empty file", "a text file")

Calibrate = Callable[..., Any]


class Heard(list[Event]):
    """A listener that keeps what it hears."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self if isinstance(event, Note)]

    @property
    def warnings(self) -> list[str]:
        return [event.text for event in self if isinstance(event, Note) and event.level == "warning"]

    @property
    def counted(self) -> list[int]:
        """How many pictures were done at each progress report; empty when nothing was counted."""
        return [event.done for event in self if isinstance(event, Progress) and event.stage == "calibrate"]


@pytest.fixture
def tiny(tiny_profile: Callable[..., Path], tmp_path: Path) -> Profile:
    return profiles.read_profile(tiny_profile(tmp_path))


@pytest.fixture
def run(tmp_path: Path, tiny: Profile, pictures: Callable[..., list[Path]]) -> Calibrate:
    """Calibrate the tiny profile, or a changed one, over the pictures in ``tmp_path / "p"``."""
    pictures(tmp_path / "p", 6)

    def call(chosen: Profile = tiny, source: str | Path = "p", *, cache: str = "cache", **options: Any) -> Any:
        return workflow.calibrate(
            chosen, open_pictures(tmp_path / source), cache=tmp_path / cache, **{"threads": 2, **options}
        )

    return call


def with_calibration(chosen: Profile, **changes: Any) -> Profile:
    return msgspec.structs.replace(chosen, calibration=msgspec.structs.replace(chosen.calibration, **changes))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file below ``folder``, lock files aside."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def test_the_table_is_tensorrts_text_and_holds_every_activation(run: Calibrate, tmp_path: Path) -> None:
    outcome = run()
    assert (outcome.work, outcome.pictures, outcome.tensors, outcome.changed) == ("collected", 6, len(TENSORS), [])
    assert outcome.table == tmp_path / "cache" / "model" / "entropy2.table"
    lines = outcome.table.read_text().splitlines()
    assert lines[0] == "TRT-100300-EntropyCalibration2"
    assert [line.split(": ")[0] for line in lines[1:]] == TENSORS
    assert all(len(line.split(": ")[1]) == 8 and int(line.split(": ")[1], 16) > 0 for line in lines[1:])
    assert outcome.sha256 == store.sha256_file(outcome.table)


def test_the_manifest_names_everything_that_the_table_depends_on(run: Calibrate, tiny: Profile, tmp_path: Path) -> None:
    outcome = run()
    manifest = store.load(outcome.table.with_suffix(".json"), kind=cache_keys.TABLE)
    assert manifest.key["model"] == store.sha256_file(tmp_path / "model.onnx")
    assert manifest.key["images"] == open_pictures(tmp_path / "p").digest()
    assert (manifest.key["algorithm"], manifest.key["batch"]) == ("entropy2", 8)
    assert {"preprocess", "statistics_format"} <= manifest.key.keys()
    assert manifest.info["pictures"] == 6
    assert (outcome.table.parent / manifest.info["statistics"]).is_file()
    assert cache_keys.find_table(tiny, tmp_path / "cache").sha256 == outcome.sha256


def test_minmax_is_the_largest_value_of_each_tensor(run: Calibrate, tiny: Profile, tmp_path: Path) -> None:
    """Ranges from the network run outside of edge, through onnxruntime with all tensors as outputs."""
    import onnxruntime as ort

    from edge.calibration import collection
    from edge.media.pictures import decode
    from edge.model import onnx_model, preprocessing

    outcome = run(with_calibration(tiny, algorithm="minmax"))
    session = ort.InferenceSession(collection.with_outputs(onnx_model.read(tmp_path / "model.onnx"), TENSORS))
    largest = dict.fromkeys(TENSORS, 0.0)
    for path in sorted((tmp_path / "p").glob("*.jpg")):
        one = preprocessing.Preprocessor(tiny.preprocess, tiny.input)(decode(path.read_bytes(), name=path.name))[None]
        for name, value in zip(TENSORS, [one, *session.run(None, {"input": one})], strict=True):
            largest[name] = max(largest[name], float(np.abs(value).max()))
    # MaxPool and Flatten keep values: their inputs get the range of their outputs, so that no scale changes in between.
    largest["sum"] = largest["pool"]
    largest["gap"] = largest["flat"]
    table = calibration_table.parse(outcome.table.read_bytes())
    assert {name: table.range(name) for name in TENSORS} == pytest.approx(largest, rel=1e-5)


def test_a_model_that_needs_more_memory_than_is_free_is_refused_before_any_work(tmp_path: Path) -> None:
    model = tmp_path / "big.onnx"
    with model.open("wb") as file:
        file.truncate(400 << 20)
    free = "MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable:    4000000 kB\n"
    with pytest.raises(ModelError, match=r"0\.4 GB of weights for INT8 needs about 9 GB .* 4\.1 GB are free") as caught:
        workflow.check_memory(model, "auto", meminfo=free)
    assert "recipe: none" in (caught.value.hint or "")
    workflow.check_memory(model, "none", meminfo=free)
    workflow.check_memory(model, "auto", meminfo=free.replace("4000000", "40000000"))
    workflow.check_memory(model, "auto", meminfo=None)


def test_a_second_call_does_nothing(run: Calibrate, tmp_path: Path) -> None:
    first = run()
    before, heard = snapshot(tmp_path / "cache"), Heard()
    again = run(listen=heard)
    assert (again.work, again.sha256, again.changed) == ("unchanged", first.sha256, [])
    assert heard.counted == []
    assert snapshot(tmp_path / "cache") == before


def change_model(tmp_path: Path, chosen: Profile, tiny_model: Callable[..., Path]) -> Profile:
    tiny_model("model.onnx", seed=5)
    return chosen


def change_preprocessing(tmp_path: Path, chosen: Profile, tiny_model: Callable[..., Path]) -> Profile:
    return msgspec.structs.replace(chosen, preprocess=msgspec.structs.replace(chosen.preprocess, resize=44))


def change_pictures(tmp_path: Path, chosen: Profile, tiny_model: Callable[..., Path]) -> Profile:
    (tmp_path / "p" / "000.jpg").unlink()
    return chosen


def change_batch(tmp_path: Path, chosen: Profile, tiny_model: Callable[..., Path]) -> Profile:
    return with_calibration(chosen, batch=3)


def change_algorithm(tmp_path: Path, chosen: Profile, tiny_model: Callable[..., Path]) -> Profile:
    return with_calibration(chosen, algorithm="minmax")


@pytest.mark.parametrize("change", [change_model, change_preprocessing])
def test_another_model_or_preprocessing_gets_a_table_of_its_own(
    change: Callable[..., Profile], run: Calibrate, tiny: Profile, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    first = run()
    before = first.table.read_bytes()
    second = run(change(tmp_path, tiny, tiny_model))
    assert second.work == "collected"
    assert second.table.parent.name.startswith("model-")
    assert first.table.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "field", "work"),
    [
        pytest.param(change_pictures, "images", "collected", id="pictures"),
        pytest.param(change_batch, "batch", "from statistics", id="batch"),
        pytest.param(change_algorithm, "algorithm", "from statistics", id="algorithm"),
    ],
)
def test_a_change_is_named(
    change: Callable[..., Profile],
    field: str,
    work: str,
    run: Calibrate,
    tiny: Profile,
    tmp_path: Path,
    tiny_model: Callable[..., Path],
) -> None:
    run()
    heard = Heard()
    outcome = run(change(tmp_path, tiny, tiny_model), listen=heard)
    assert [text.split(":")[0] for text in outcome.changed if not text.startswith("algorithm.")] == [field]
    assert any(f"differs in {field}: " in text for text in heard.notes)
    # What the counting does not depend on costs no second look at the pictures.
    assert outcome.work == work
    assert (heard.counted == []) == (work == "from statistics")


def test_names_order_and_place_of_the_pictures_do_not_matter(run: Calibrate, tmp_path: Path) -> None:
    run()
    shutil.copytree(tmp_path / "p", tmp_path / "elsewhere")
    names = sorted((tmp_path / "elsewhere").glob("*.jpg"), reverse=True)
    names[0].rename(names[0].with_name("renamed.jpg"))
    (tmp_path / "list.txt").write_text("".join(f"elsewhere/{name.name}\n" for name in names[1:]))
    with (tmp_path / "list.txt").open("a") as file:
        file.write("elsewhere/renamed.jpg\n")
    assert run(source="elsewhere").work == "unchanged"
    assert run(source="list.txt").work == "unchanged"


def test_batch_threads_and_machine_do_not_change_a_byte(run: Calibrate, tiny: Profile) -> None:
    tables_of = {
        run(with_calibration(tiny, batch=batch), cache=f"cache{batch}{threads}", threads=threads).sha256
        for batch, threads in ((1, 1), (3, 2), (8, 3), (64, 2))
    }
    assert len(tables_of) == 1


def test_a_model_with_a_fixed_batch_gives_the_same_ranges(
    run: Calibrate, tiny: Profile, tmp_path: Path, tiny_profile: Callable[..., Path], tiny_model: Callable[..., Path]
) -> None:
    """Six pictures through batches of four: the last batch is padded, and the padding is not counted."""
    tiny_model("fixed/model.onnx", batch=4)
    fixed = profiles.read_profile(tiny_profile(tmp_path / "fixed", input={"batch": {"min": 4, "opt": 4, "max": 4}}))
    minmax = [
        run(with_calibration(chosen, algorithm="minmax"), cache=f"cache{index}")
        for index, chosen in enumerate((tiny, fixed))
    ]
    ours, theirs = (calibration_table.parse(outcome.table.read_bytes()) for outcome in minmax)
    assert {n: ours.range(n) for n in TENSORS} == pytest.approx({n: theirs.range(n) for n in TENSORS}, rel=1e-6)
    assert [outcome.pictures for outcome in minmax] == [6, 6]


def test_force_counts_again_and_finds_the_same(run: Calibrate) -> None:
    first, heard = run(), Heard()
    again = run(force=True, listen=heard)
    assert (again.work, again.sha256) == ("collected", first.sha256)
    assert heard.counted[-1] == 6


def test_ranges_come_from_kept_histograms_but_not_the_other_way(run: Calibrate, tiny: Profile) -> None:
    assert run(with_calibration(tiny, algorithm="minmax")).work == "collected"
    assert run().work == "collected"
    assert run(with_calibration(tiny, algorithm="minmax", batch=2)).work == "from statistics"


def test_tensors_that_are_always_zero_are_named(run: Calibrate, tiny: Profile, tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    cv2.imwrite(str(tmp_path / "grey" / "a.png"), np.full((40, 40, 3), 127, np.uint8))
    outcome = run(source="grey")
    assert outcome.zero_tensors == ["input"]
    table = calibration_table.parse(outcome.table.read_bytes())
    assert table.range("input") == 0.0
    assert table.range("c1") > 0.0


def spoil(kind: str, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(
        {"a truncated JPEG": data[: len(data) // 2], "an empty file": b"", "a text file": b"hello\n"}[kind]
    )


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_is_an_error_and_no_table(kind: str, run: Calibrate, tmp_path: Path) -> None:
    """Never a silently shorter calibration."""
    spoil(kind, tmp_path / "p" / "003.jpg")
    with pytest.raises(DataError) as caught:
        run()
    assert caught.value.where == str(tmp_path / "p" / "003.jpg")
    # What was counted before it may be kept as a checkpoint.
    assert [
        path
        for path in (tmp_path / "cache").rglob("*")
        if path.suffix in {".json", ".table"} and ".partial." not in path.name
    ] == []


@pytest.mark.parametrize("kind", BROKEN)
def test_the_table_from_before_survives_a_broken_picture(kind: str, run: Calibrate, tmp_path: Path) -> None:
    run()
    before = snapshot(tmp_path / "cache")
    spoil(kind, tmp_path / "p" / "003.jpg")
    with pytest.raises(DataError):
        run()
    for checkpoint in (tmp_path / "cache").rglob("*.partial*"):
        checkpoint.unlink()
    assert snapshot(tmp_path / "cache") == before


@pytest.mark.parametrize(
    ("meddle", "words"),
    [
        pytest.param(lambda path: path.write_bytes(path.read_bytes() + b"\0"), "changed", id="changed"),
        pytest.param(lambda path: path.unlink(), "cannot read the image", id="deleted"),
    ],
)
def test_a_picture_that_changes_meanwhile_is_an_error(
    meddle: Callable[[Path], object], words: str, run: Calibrate, tmp_path: Path
) -> None:
    def listen(event: Event) -> None:
        # Between naming the set of pictures and counting them.
        if event == Progress("hash", 6, 6):
            meddle(tmp_path / "p" / "005.jpg")

    with pytest.raises(DataError, match=words) as caught:
        run(listen=listen)
    assert caught.value.where == str(tmp_path / "p" / "005.jpg")
    assert list((tmp_path / "cache").rglob("*.table")) == []


def test_a_network_that_overflows_names_tensor_and_picture(
    run: Calibrate, tiny: Profile, tiny_model: Callable[..., Path]
) -> None:
    tiny_model("model.onnx", nan=True)
    with pytest.raises(ModelError, match=r"tensor 'front' contains NaN or infinity for .*\.jpg"):
        run()


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        pytest.param({"inputs": 2}, "has 2", id="two inputs"),
        pytest.param({"batch": 1}, "exactly 1", id="a fixed batch of 1"),
        pytest.param({"layout": "chw"}, "batch axis", id="no batch axis"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_any_picture(
    variant: dict[str, Any], words: str, run: Calibrate, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    tiny_model("model.onnx", **variant)
    heard = Heard()
    with pytest.raises(ModelError, match=words) as caught:
        run(listen=heard)
    assert caught.value.where == str(tmp_path / "model.onnx")
    assert caught.value.hint
    assert heard == []


@pytest.mark.parametrize(
    "content", [b"", b"not an ONNX file\n", b"\x08\x08\x12"], ids=["empty", "text", "a few bytes of one"]
)
def test_a_file_that_is_no_model(content: bytes, run: Calibrate, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        run()
    assert caught.value.where == str(tmp_path / "model.onnx")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = [
    pytest.param(cut, id="truncated"),
    pytest.param(flip, id="one bit changed"),
    pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    pytest.param(Path.unlink, id="gone"),
]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", [".table", ".json"])
def test_a_damaged_table_is_made_again_from_the_statistics(
    suffix: str, damage: Callable[[Path], object], run: Calibrate, tiny: Profile, tmp_path: Path
) -> None:
    first, heard = run(), Heard()
    damage(first.table.with_suffix(suffix))
    again = run(listen=heard)
    assert (again.work, again.sha256) == ("from statistics", first.sha256)
    assert cache_keys.find_table(tiny, tmp_path / "cache").sha256 == first.sha256
    if not (suffix == ".json" and damage is Path.unlink):
        assert any("cannot be used and is made again" in text for text in heard.warnings)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", [".stats.npz", ".stats.json"])
def test_damaged_statistics_are_collected_again(suffix: str, damage: Callable[[Path], object], run: Calibrate) -> None:
    first, heard = run(), Heard()
    damage(next(path for path in first.table.parent.iterdir() if path.name.endswith(suffix)))
    first.table.unlink()
    again = run(listen=heard)
    assert (again.work, again.sha256) == ("collected", first.sha256)


def test_a_table_copied_under_another_name_is_not_taken_for_it(run: Calibrate, tiny: Profile, tmp_path: Path) -> None:
    first = run()
    shutil.copy(first.table.with_suffix(".json"), first.table.with_name("minmax.json"))
    shutil.copy(first.table, first.table.with_name("minmax.table"))
    chosen = with_calibration(tiny, algorithm="minmax")
    with pytest.raises(ArtifactError, match=r"entropy2\.table"):
        cache_keys.find_table(chosen, tmp_path / "cache")
    heard = Heard()
    assert run(chosen, listen=heard).table.read_bytes() != first.table.read_bytes()
    assert any(r"entropy2.table" in text for text in heard.warnings)


def test_statistics_copied_under_another_name_are_not_used(run: Calibrate, tmp_path: Path) -> None:
    first = run()
    folder = first.table.parent
    old = next(folder.glob("*.stats.npz"))
    run(cache="other")
    (tmp_path / "p" / "000.jpg").unlink()
    fresh = run(cache="other")
    new = next(path for path in fresh.table.parent.glob("*.stats.npz") if path.name != old.name)
    for suffix in (".npz", ".json"):
        shutil.copy(old.with_suffix(suffix), folder / new.with_suffix(suffix).name)
    heard = Heard()
    outcome = run(listen=heard)
    assert (outcome.work, outcome.sha256) == ("collected", fresh.sha256)
    assert (outcome.pictures, first.pictures) == (5, 6)
    assert any("were made with other inputs" in text for text in heard.warnings)


class Stop:
    """Says stop once ``at`` pictures have been counted."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.done = 0

    def hear(self, event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "calibrate":
            self.done = event.done

    def __call__(self) -> bool:
        return self.done >= self.at


@pytest.mark.parametrize("algorithm", ["entropy2", "minmax"])
def test_what_was_counted_before_a_stop_is_used_and_the_table_is_the_same(
    algorithm: str, run: Calibrate, tiny: Profile, tmp_path: Path, pictures: Callable[..., list[Path]]
) -> None:
    pictures(tmp_path / "p", 150, (40, 40))
    chosen = with_calibration(tiny, algorithm=algorithm)
    expected = run(chosen, cache="undisturbed").sha256
    stop = Stop(at=70)
    assert run(chosen, listen=stop.hear, should_stop=stop) is None
    folder = tmp_path / "cache" / "model"
    assert [path.name for path in folder.glob("*.npz") if ".partial." not in path.name] == []
    assert list(folder.glob("*.table")) == []
    assert not cache_keys.manifest_path(folder / f"{algorithm}.table").exists()

    heard = Heard()
    outcome = run(chosen, listen=heard)
    kept = heard.counted[0]
    assert 0 < kept < 150
    assert f"continuing after {kept} of 150 images" in heard.notes
    assert (outcome.sha256, outcome.pictures) == (expected, 150)
    assert list(folder.glob("*.partial.*")) == []


def test_a_stop_before_the_first_picture(run: Calibrate, tmp_path: Path) -> None:
    assert run(should_stop=lambda: True) is None
    assert list((tmp_path / "cache").rglob("*.*able")) == []
    assert run().work == "collected"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_unfinished_count_is_started_again(
    damage: Callable[[Path], object], run: Calibrate, tmp_path: Path, pictures: Callable[..., list[Path]]
) -> None:
    pictures(tmp_path / "p", 80, (40, 40))
    stop = Stop(at=70)
    assert run(listen=stop.hear, should_stop=stop) is None
    damage(next((tmp_path / "cache" / "model").glob("*.partial.npz")))
    heard = Heard()
    outcome = run(listen=heard)
    assert heard.counted[0] == 0
    assert any("collected again" in text for text in heard.warnings)
    assert outcome.sha256 == run(cache="undisturbed").sha256


def test_an_unfinished_count_of_other_pictures_is_not_used(
    run: Calibrate, tmp_path: Path, pictures: Callable[..., list[Path]]
) -> None:
    pictures(tmp_path / "p", 80, (40, 40))
    stop = Stop(at=70)
    assert run(listen=stop.hear, should_stop=stop) is None
    (tmp_path / "p" / "079.jpg").unlink()
    heard = Heard()
    run(listen=heard)
    assert heard.counted[0] == 0


def test_a_cache_that_cannot_be_written_is_said_before_counting(run: Calibrate, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    heard = Heard()
    with pytest.raises(StoreError, match="Not a directory"):
        run(cache="file/below", listen=heard)
    assert heard.counted == []


def test_two_calibrations_at_once_do_not_mix(run: Calibrate, tiny: Profile, tmp_path: Path) -> None:
    """Whoever comes second while the first one writes waits, and then finds the work done or does it over."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        outcomes = [future.result() for future in [pool.submit(run, threads=1) for _ in range(2)]]
    assert len({outcome.sha256 for outcome in outcomes}) == 1
    assert cache_keys.find_table(tiny, tmp_path / "cache").sha256 == outcomes[0].sha256


_PEAK = r"""
import re, sys
from pathlib import Path
from edge.calibration import workflow
from edge.config.profiles import read_profile
from edge.media.picture_sources import open_pictures
chosen = read_profile(Path("tiny.yaml"))
workflow.calibrate(chosen, open_pictures(Path(sys.argv[1])), cache=Path(sys.argv[2]), threads=2)
# Not getrusage: its peak may be that of the process that started this one.
print(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_number_of_pictures(
    tiny: Profile, tmp_path: Path, pictures: Callable[..., list[Path]]
) -> None:
    """400 pictures more, each 480 KiB decoded: keeping them would take 190 MiB."""
    made = pictures(tmp_path / "large", 4, (400, 400))
    peaks_kib = []
    for count in (16, 416):
        names = [f"large/{made[index % len(made)].name}" for index in range(count)]
        (tmp_path / f"{count}.txt").write_text("\n".join(names))
        line = [sys.executable, "-c", _PEAK, f"{count}.txt", f"cache{count}"]
        peaks_kib.append(int(subprocess.run(line, capture_output=True, check=True, cwd=tmp_path).stdout))
    assert peaks_kib[1] - peaks_kib[0] < 24 * 1024, peaks_kib


def test_who_waits_for_another_calibration_is_told(run: Calibrate, tmp_path: Path) -> None:
    other = contextlib.ExitStack()
    other.enter_context(store.lock(tmp_path / "cache" / "model" / "entropy2.table"))
    said: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Note):
            said.append(event.text)
            # The other one is through.
            other.close()

    assert run(listen=listen).work == "collected"
    assert said == ["another process is writing entropy2.table: waiting for it"]


def test_statistics_do_not_depend_on_the_profiles_batch(run: Calibrate, tiny: Profile, tmp_path: Path) -> None:
    run()
    run(with_calibration(tiny, batch=2), cache="other")
    first, second = (
        next((tmp_path / cache / "model").glob("*.stats.npz")).read_bytes() for cache in ("cache", "other")
    )
    assert first == second


def test_the_saved_format_is_refused_when_it_is_another(run: Calibrate, tmp_path: Path) -> None:
    """Statistics of another format have another name and another key, so they are never read as ours."""
    folder = run().table.parent
    manifest_path = next(folder.glob("*.stats.json"))
    kind = json.loads(manifest_path.read_bytes())["kind"]
    manifest = store.load(manifest_path, kind=kind)
    data = manifest_path.with_suffix(".npz").read_bytes()
    assert math.isfinite(float(manifest.key["format"]))  # type: ignore[arg-type]
    store.save(
        manifest_path,
        kind=kind,
        files={manifest_path.with_suffix(".npz").name: data},
        key={**manifest.key, "format": 999},
        info=manifest.info,
    )
    (folder / "entropy2.table").unlink()
    heard = Heard()
    assert run(listen=heard).work == "collected"
    assert any("were made with other inputs" in text for text in heard.warnings)
