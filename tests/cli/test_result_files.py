"""``edge run --csv`` and ``--save-video``: what other programs and people get beside the record."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.artifacts import FrameResult, Guess, Stages
from edge.runtime.result_files import COLUMNS, CsvFile, cell
from tests.support.network_camera import Server

Edge = Callable[..., Any]
Place = Callable[..., Path]
RUN = ("run", "--profile", "tiny")


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_a_row_per_picture_beside_the_json(edge: Edge, built: Place) -> None:
    folder = built(5, decision={"min_confidence": 0.99})
    (folder / "pictures/zz.jpg").write_bytes(b"\xff\xd8\xff")
    ended = edge(*RUN, "--images", "pictures", "--csv", "r.csv", "--json")
    assert ended.code == 0, ended.err
    found = rows(folder / "r.csv")
    assert tuple(found[0]) == COLUMNS
    each = [json.loads(line) for line in ended.out.splitlines()][:-1]
    labels = [one["guesses"][0]["label"] for one in each if "guesses" in one]
    assert [row["label"] for row in found] == [*labels, ""]
    assert {row["decision"] for row in found[:-1]} <= {"unknown", *labels}
    assert all(float(row["total_ms"]) > 0 for row in found[:-1])
    assert "JPEG" in found[-1]["skipped"]


def test_a_csv_on_standard_output(edge: Edge, edge_process: Edge, built: Place) -> None:
    built(3)
    alone = edge_process(*RUN, "--images", "pictures", "--csv", "-")
    assert (alone.code, len(list(csv.DictReader(io.StringIO(alone.out))))) == (0, 3)
    assert len(alone.out.splitlines()) == 4
    ended = edge(*RUN, "--images", "pictures", "--csv", "-", "--json")
    assert (ended.code, "both write to standard output" in ended.err) == (2, True)


def test_a_result_on_standard_output_is_alone_there(edge_process: Edge, edge: Edge, built: Place) -> None:
    built(3)
    alone = edge_process(*RUN, "--images", "pictures", "--record", "/dev/stdout")
    assert (alone.code, json.loads(alone.out)["pictures"]) == (0, 3)
    for options in (("--csv", "/dev/stdout", "--record", "-"), ("--record", "-", "--json")):
        ended = edge(*RUN, "--images", "pictures", *options)
        assert (ended.code, "both write to standard output" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("text", "written"),
    [("a, b", '"a, b"'), ('say "x"', '"say ""x"""'), ("a\nb\x1b[2J", r"a\nb\x1b[2J"), ("=1+1", "'=1+1"), ("Ä", "Ä")],
)
def test_labels_as_cells(text: str, written: str) -> None:
    assert cell(text) == written
    assert len(next(csv.reader([cell(text)]))) == 1


def test_a_full_disk_is_said_and_the_end_is_an_error(edge_process: Callable[..., Any], built: Place) -> None:
    from tests.cli.conftest import _FULL_DISK

    built(40)
    ended = edge_process(*RUN, "--images", "pictures", "--csv", "r.csv", limit=_FULL_DISK)
    assert ended.code == 9, ended.err
    assert "rows of the CSV are lost" in ended.err
    assert "image" in ended.out


def test_a_full_disk_under_a_video_is_said_and_the_run_goes_on(edge_process: Callable[..., Any], built: Place) -> None:
    from tests.cli.conftest import _FULL_DISK

    built(12)
    ended = edge_process(*RUN, "--images", "pictures", "--save-video", "out.mkv", limit=_FULL_DISK)
    assert ended.code == 9, ended.err
    assert "the video is incomplete" in ended.err
    assert "12 images" in ended.out


def test_a_thousand_rows_cost_little(tmp_path: Path) -> None:
    file = CsvFile(tmp_path / "r.csv", warn=print)
    stages = Stages(decode_ms=1, preprocess_ms=1, infer_ms=1, postprocess_ms=1, total_ms=4)
    for seq in range(1000):
        file.on_event(FrameResult(seq=seq, name=f"frame {seq}", guesses=[Guess(1, "hen", 0.9)], stages=stages, t_s=1.0))
    file.close()
    assert [row["seq"] for row in rows(tmp_path / "r.csv")] == [str(seq) for seq in range(1000)]


def test_a_video_of_pictures_has_them_all(edge: Edge, built: Place) -> None:
    folder = built(5)
    ended = edge(*RUN, "--images", "pictures", "--save-video", "out.mp4")
    assert ended.code == 0, ended.err
    capture = cv2.VideoCapture(str(folder / "out.mp4"))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    assert len(frames) == 5
    # White letters in the lower left corner.
    assert all(frame[frame.shape[0] // 2 :].max() > 200 for frame in frames)


def test_a_video_of_a_camera_and_of_several(edge: Edge, built: Place, server: Server) -> None:
    folder = built()
    ended = edge(*RUN, "--camera", f"front={server.url}", "--camera", f"gate={server.url}?2", "--duration", "1s",
                 "--save-video", "out.mkv")  # fmt: skip
    assert ended.code == 0, ended.err
    for name in ("front", "gate"):
        capture = cv2.VideoCapture(str(folder / f"out-{name}.mkv"))
        assert capture.read()[0]
        assert isinstance(capture.read()[1], np.ndarray)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [("out.txt", 2, "is not the extension of a video file"), ("missing/out.mp4", 9, "cannot be written here")],
)
def test_a_video_that_cannot_be_written_is_said_first(
    name: str, code: int, words: str, edge: Edge, built: Place
) -> None:
    built()
    ended = edge(*RUN, "--images", "pictures", "--save-video", name)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err
