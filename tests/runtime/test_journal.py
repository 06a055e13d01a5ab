"""The record on disk while a run goes: killed, rotated, on a full disk, and read again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts import run_record, store
from edge.artifacts.run_record import FrameResult, Gap, Guess, RunRecord, Skip, Stages, Tick
from edge.errors import ArtifactError, StoreError
from edge.runtime.journal import Journal, Rotation
from tests.support.run_records import made

STAGES = Stages(decode_ms=1.0, preprocess_ms=0.5, infer_ms=4.0, postprocess_ms=0.1, total_ms=5.6, age_ms=7.0)


def result(number: int) -> FrameResult:
    return FrameResult(
        seq=number, name=f"frame {number}", guesses=[Guess(1, "newt", 0.5)], stages=STAGES, t_s=number / 10
    )


def tick(t_s: float) -> Tick:
    return Tick(t_s=t_s, frames=10, dropped=0, total_p50_ms=5.0, total_max_ms=6.0, age_p50_ms=7.0, age_max_ms=8.0)


@pytest.fixture
def state() -> RunRecord:
    return msgspec.structs.replace(made(60), results=[], timeline=[], pictures=0)


def settled(journal: Journal) -> None:
    """Everything that was handed over is on the disk."""
    journal._queue.put(None)
    journal._thread.join(30)
    journal._lines.close()


def written(path: Path, state: RunRecord, **options: Any) -> Journal:
    """A journal of three frames, a skip, a gap and a tick, flushed once and then killed."""
    journal = Journal(path, **options)
    journal.begin(state)
    for number in range(3):
        journal.record(result(number))
    journal.record(Skip(3, "frame 3", "cut off"))
    journal.record(Gap(start_s=0.4, end_s=None, reason="unplugged"))
    journal.add_ticks([tick(1.0)])
    journal.flush(1.0, msgspec.structs.replace(state, pictures=3, timeline=[tick(1.0)]))
    return journal


def test_killed_it_is_what_was_flushed(tmp_path: Path, state: RunRecord) -> None:
    path = tmp_path / "r.jsonl"
    journal = written(path, state, every_frame=True)
    journal.record(result(4))
    settled(journal)
    found = run_record.load(path)
    assert (found.status, found.failure, found.pictures) == ("interrupted", run_record.KILLED, 3)
    assert [one.seq for one in found.results] == [0, 1, 2]
    assert found.results_kept == "all"
    assert found.timeline == [tick(1.0)]


def test_cut_off_anywhere_it_is_what_was_before(tmp_path: Path, state: RunRecord) -> None:
    path = tmp_path / "r.jsonl"
    settled(written(path, state, every_frame=True))
    data = path.read_bytes()
    head = data.index(b"\n") + 1
    for size in range(head, len(data), 7):
        path.write_bytes(data[:size] + b"\0" * 100)
        assert run_record.load(path).status == "interrupted"
    path.write_bytes(data[: head // 2])
    with pytest.raises(ArtifactError, match="the first line is truncated"):
        run_record.load(path)


def test_damage_in_the_middle_is_refused_by_line(tmp_path: Path, state: RunRecord) -> None:
    path = tmp_path / "r.jsonl"
    settled(written(path, state, every_frame=True))
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:20]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ArtifactError, match="not a run record: line 3: "):
        run_record.load(path)


def test_another_format_is_refused(tmp_path: Path, state: RunRecord) -> None:
    path = tmp_path / "r.jsonl"
    settled(written(path, state))
    path.write_bytes(path.read_bytes().replace(b'"format":2', b'"format":9', 1))
    with pytest.raises(ArtifactError, match="record with format 9; this edge reads format 2"):
        run_record.load(path)


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
@pytest.mark.parametrize("every_frame", [False, True])
def test_finished_it_is_the_record(name: str, every_frame: bool, tmp_path: Path, state: RunRecord) -> None:
    path = tmp_path / name
    journal = written(path, state, every_frame=every_frame)
    finished = msgspec.structs.replace(
        state, pictures=3, status="complete", failure=None, results=[result(n) for n in range(3)],
        timeline=[tick(1.0), tick(2.0)], results_kept="all",
    )  # fmt: skip
    journal.end(finished)
    assert run_record.load(path) == finished


def test_every_frame_is_a_line_only_where_asked_for(tmp_path: Path, state: RunRecord) -> None:
    settled(written(tmp_path / "some.jsonl", state))
    settled(written(tmp_path / "all.jsonl", state, every_frame=True))
    counts = [
        sum("result" in json.loads(line) for line in (tmp_path / name).read_text().splitlines())
        for name in ("some.jsonl", "all.jsonl")
    ]
    assert counts == [0, 3]


def test_json_is_readable_at_any_moment(tmp_path: Path, state: RunRecord) -> None:
    settled(written(tmp_path / "r.json", state))
    found = run_record.load(tmp_path / "r.json")
    assert (found.status, found.failure, found.pictures, found.results) == ("interrupted", run_record.KILLED, 3, [])
    assert found.timeline == [tick(1.0)]


def test_rotated_by_size_each_file_can_be_read_alone_and_their_number_is_bounded(
    tmp_path: Path, state: RunRecord
) -> None:
    path = tmp_path / "r.jsonl"
    journal = Journal(path, every_frame=True, rotation=Rotation(limit=20_000, files=3))
    journal.begin(state)
    for number in range(400):
        journal.record(result(number))
        if number % 10 == 9:
            journal.flush(number, msgspec.structs.replace(state, pictures=number + 1))
    journal.end(msgspec.structs.replace(state, pictures=400, status="complete", failure=None))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["r.1.jsonl", "r.2.jsonl", "r.jsonl"]
    assert all((tmp_path / name).stat().st_size <= 20_000 for name in names)
    newest, older = run_record.load(path), run_record.load(tmp_path / "r.1.jsonl")
    assert (newest.status, newest.pictures, newest.results_kept) == ("complete", 400, "newest")
    # The files follow one another without a hole.
    assert older.results[-1].seq + 1 == newest.results[0].seq
    assert newest.results[-1].seq == 399


def test_a_record_that_is_there_is_moved_on_not_lost(tmp_path: Path, state: RunRecord) -> None:
    path = tmp_path / "r.jsonl"
    for pictures in (1, 2):
        journal = Journal(path)
        journal.begin(state)
        journal.end(msgspec.structs.replace(state, pictures=pictures))
    assert (run_record.load(path).pictures, run_record.load(tmp_path / "r.1.jsonl").pictures) == (2, 1)


class Full:
    """A disk that is full until it is not: a folder where a file stands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.write_text("a file is here")

    def free(self) -> None:
        self._folder.unlink()


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_a_disk_that_refuses_is_said_once_and_tried_again(name: str, tmp_path: Path, state: RunRecord) -> None:
    disk = Full(tmp_path / "runs")
    said: list[str] = []
    journal = Journal(tmp_path / "runs" / name, warn=said.append)
    journal.begin(state)
    for t_s in range(1, 4):
        wait_for_queue(journal)
        journal.flush(t_s, state)
    wait_for_queue(journal)
    disk.free()
    journal.flush(4, state)
    wait_for_queue(journal)
    journal.flush(5, state)
    assert [text.split(":")[0] for text in said] == [
        "the record is not being written", "the record is being written again",
    ]  # fmt: skip
    journal.end(msgspec.structs.replace(state, status="complete"))
    found = run_record.load(tmp_path / "runs" / name)
    assert found.status == "complete"
    assert any("could not be written" in warning for warning in found.warnings)


def wait_for_queue(journal: Journal) -> None:
    """The thread has taken everything, and is done with it."""
    done = threading.Event()
    write = journal._write

    def once(data: bytes) -> StoreError | None:
        if not data:
            done.set()
            return journal._failure
        return write(data)

    journal._write = once  # type: ignore[method-assign]
    journal._queue.put(b"")
    assert done.wait(30)
    journal._write = write  # type: ignore[method-assign]


def test_a_disk_that_refuses_to_the_end_is_an_error(tmp_path: Path, state: RunRecord) -> None:
    Full(tmp_path / "runs")
    journal = Journal(tmp_path / "runs" / "r.jsonl")
    journal.begin(state)
    with pytest.raises(StoreError, match="cannot write"):
        journal.end(state)


def test_lines_are_whole_on_a_disk_that_becomes_full(tmp_path: Path) -> None:
    """A file system of a few pages is full in the middle of a line; here a limit on the size of files stands for it."""
    import subprocess
    import sys

    code = (
        "import resource, sys; from pathlib import Path; sys.dont_write_bytecode = True\n"
        "from edge.artifacts import store; from edge.errors import StoreError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "lines = store.Lines(Path(sys.argv[1]), head=lambda: b'head\\n')\n"
        "refused = 0\n"
        "for number in range(100):\n"
        "    try: lines.append(b'%098d\\n' % number)\n"
        "    except StoreError: refused += 1\n"
        "print(refused)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, check=True)
    lines = (tmp_path / "x").read_bytes().split(b"\n")
    assert (lines[0], lines[-1], {len(line) for line in lines[1:-1]}) == (b"head", b"", {98})
    assert int(done.stdout) == 100 - len(lines[1:-1]) > 0


def test_a_failed_rotation_moves_files_once(tmp_path: Path) -> None:
    refuse: list[Callable[[], bytes]] = []

    def head() -> bytes:
        if refuse:
            raise OSError(28, "No space left on device")
        return b"h\n"

    lines = store.Lines(tmp_path / "x.jsonl", head=head, limit=10, files=3)
    lines.append(b"a" * 7 + b"\n")
    refuse.append(head)
    for _ in range(4):
        with pytest.raises(StoreError):
            lines.append(b"b" * 7 + b"\n")
    refuse.clear()
    lines.append(b"c" * 7 + b"\n")
    assert (tmp_path / "x.1.jsonl").read_bytes() == b"h\naaaaaaa\n"
    assert (tmp_path / "x.jsonl").read_bytes() == b"h\nccccccc\n"
    lines.close()
