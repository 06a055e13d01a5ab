"""The checkpoint of unfinished statistics: what it holds, what it survives, and what is not gone on with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.artifacts import store
from edge.calibration.checkpoint import CHUNK, PARTIAL, Checkpoint
from edge.errors import StoreError
from edge.events import Event, Note
from edge.media.picture_sources import open_pictures
from edge.media.pictures import Picture
from edge.quantization.statistics import BINS, Statistics, TensorStatistics

KEY = {"model": "m", "images": "i"}
N = 3 * CHUNK - 1


def part(pictures: int, seed: int) -> Statistics:
    rng = np.random.default_rng(seed)
    tensors = {}
    for name in ("a", "b"):
        counts = rng.integers(0, 3, 2 * BINS)
        tensors[name] = TensorStatistics(-1.5, 1.75, int(counts.sum()), 1, counts)
    return Statistics(tensors, pictures)


@pytest.fixture
def listed(pictures: Callable[..., list[Path]], tmp_path: Path) -> list[Picture]:
    pictures(tmp_path / "p", N, (8, 8))
    return list(open_pictures(tmp_path / "p"))


@pytest.fixture
def fresh(listed: list[Picture], tmp_path: Path) -> Callable[..., Checkpoint]:
    def make(key: Mapping[str, store.Scalar] = KEY) -> Checkpoint:
        empty = Statistics.empty(["a", "b"], with_histogram=True)
        return Checkpoint(empty, listed, manifest=tmp_path / "cache" / "0123.partial.json", key=key)

    return make


def left(tally: Checkpoint) -> dict[int, int]:
    return {number: len(pictures) for number, pictures in tally.left.items()}


def heard(tally: Checkpoint) -> list[str]:
    notes: list[Event] = []
    tally.resume(notes.append)
    return [note.text for note in notes if isinstance(note, Note)]


def test_chunks_come_in_any_order_and_a_checkpoint_knows_which(
    fresh: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    first = fresh()
    assert left(first) == {0: CHUNK, 1: CHUNK, 2: CHUNK - 1}
    first.add([2], part(CHUNK - 1, seed=2))
    first.save()
    then = fresh()
    assert heard(then) == [f"continuing after {CHUNK - 1} of {N} images"]
    assert left(then) == {0: CHUNK, 1: CHUNK}
    assert not then.complete
    then.add([1, 0], part(2 * CHUNK, seed=1))
    assert then.complete
    then.save()
    then.forget()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_crash_between_file_and_manifest_leaves_the_checkpoint_before_it(
    fresh: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    tally = fresh()
    tally.add([0], part(CHUNK, seed=0))
    tally.save()
    manifest = tmp_path / "cache" / "0123.partial.json"
    before = manifest.read_bytes()
    (kept,) = (tmp_path / "cache").glob("*.npz")
    data = kept.read_bytes()
    tally.add([1], part(CHUNK, seed=1))
    tally.save()
    assert not kept.exists()
    # The moment before the new manifest came: both files, and the old manifest.
    kept.write_bytes(data)
    manifest.write_bytes(before)
    then = fresh()
    assert heard(then) == [f"continuing after {CHUNK} of {N} images"]
    assert left(then) == {1: CHUNK, 2: CHUNK - 1}
    then.add([1], part(CHUNK, seed=1))
    then.save()
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 1


class _Interrupted(dict[str, Any]):
    """Tensors of which the second one never comes: Ctrl-C in the middle of a sum."""

    def items(self) -> Iterator[Any]:  # type: ignore[override]
        yield next(iter(super().items()))
        raise KeyboardInterrupt


def test_half_a_sum_is_not_saved(fresh: Callable[..., Checkpoint]) -> None:
    tally = fresh()
    tally.add([0], part(CHUNK, seed=0))
    whole = part(CHUNK, seed=1)
    with pytest.raises(KeyboardInterrupt):
        tally.add([1], Statistics(_Interrupted(whole.tensors), whole.pictures))
    tally.save()
    assert heard(fresh()) == []


def test_a_disk_that_refuses_leaves_the_checkpoint_before_it(fresh: Callable[..., Checkpoint], tmp_path: Path) -> None:
    tally = fresh()
    tally.add([0], part(CHUNK, seed=0))
    tally.save()
    tally.add([1], part(CHUNK, seed=1))
    blocked = tmp_path / "cache" / f"0123-{2 * CHUNK}.partial.npz"
    blocked.mkdir()
    with pytest.raises(StoreError):
        tally.save()
    then = fresh()
    assert heard(then) == [f"continuing after {CHUNK} of {N} images"]
    blocked.rmdir()
    tally.save()
    assert heard(fresh()) == [f"continuing after {2 * CHUNK} of {N} images"]


@pytest.mark.parametrize(
    "info",
    [
        pytest.param({}, id="of an edge that counted in one row"),
        pytest.param({"chunk": CHUNK // 2, "done": [0, 1]}, id="other chunks"),
        pytest.param({"chunk": CHUNK, "done": [0, 1]}, id="too few images"),
        pytest.param({"chunk": CHUNK, "done": []}, id="too many images"),
        pytest.param({"chunk": CHUNK, "done": [3]}, id="no such chunk"),
        pytest.param({"chunk": CHUNK, "done": [-1]}, id="a negative chunk"),
        pytest.param({"chunk": CHUNK, "done": "all"}, id="no list"),
    ],
)
def test_what_does_not_say_which_pictures_it_holds(
    info: dict[str, object], fresh: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    store.save(
        tmp_path / "cache" / "0123.partial.json",
        kind=PARTIAL,
        files={"0123.partial.npz": part(CHUNK, seed=0).to_bytes()},
        key=KEY,
        info=info,
    )
    tally = fresh()
    (note,) = heard(tally)
    assert "do not name the images that they include" in note
    assert len(left(tally)) == 3
    assert tally.total.pictures == 0


def test_a_checkpoint_of_something_else(fresh: Callable[..., Checkpoint]) -> None:
    tally = fresh()
    tally.add([0], part(CHUNK, seed=0))
    tally.save()
    (note,) = heard(fresh({**KEY, "model": "other"}))
    assert "were made with other inputs" in note
