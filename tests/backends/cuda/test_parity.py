"""The kernel as plain C++ against the CPU path, under AddressSanitizer: parity, every pixel written, no stray read."""

from __future__ import annotations

import functools
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.support.cuda.host_device import LAUNCH
from tests.support.cuda.parity import Case, case, cases, check, differences

# struct Case of kernel_on_cpu.cpp behind its Launch
CASE = struct.Struct("=4q")

Run = Callable[[Sequence[Case]], list[np.ndarray]]


def packed(item: Case, job: bytes) -> bytes:
    """One case of a file: addresses are offsets, and the program adds where it has put things."""
    grid = item.plan.grid(len(item.pictures))
    launch = LAUNCH.pack(item.kernel.encode(), job, *grid, 0, item.plan.tile.shared)
    sizes = CASE.pack(item.shift, item.memory.size, item.plan.table.nbytes, item.output_bytes)
    return launch + sizes + bytes(item.memory.tobytes()) + bytes(item.plan.table.tobytes())


def results(program: Path, items: Sequence[Case], folder: Path) -> list[np.ndarray]:
    """Run cases in one process; their results."""
    given, got = folder / "cases", folder / "results"
    with given.open("wb") as file:
        for item in items:
            file.write(packed(item, item.job(address=0, table=0, target=0)))
    done = subprocess.run([program, given, got], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    content, found = got.read_bytes(), []
    for item in items:
        found.append(np.frombuffer(content[: item.output_bytes], item.dtype).reshape(item.output_shape))
        content = content[item.output_bytes :]
    assert content == b""
    return found


@pytest.fixture
def run(checked_program: Path, tmp_path: Path) -> Run:
    """Run cases with the tile that edge launches."""
    return lambda items: results(checked_program, items, tmp_path)


@functools.cache
def random_cases(seed: int) -> list[Case]:
    return list(cases(seed, 100))


@pytest.mark.parametrize("seed", range(2))
def test_random_pictures(run: Run, seed: int) -> None:
    items = random_cases(seed)
    for item, result in zip(items, run(items), strict=True):
        check(item, result)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("fit", ["crop", "letterbox", "squash"])
def test_every_size_up_to_the_second_tile(run: Run, fit: str, interpolation: str) -> None:
    """One pixel, odd sizes, the last pixel of a tile and the first of the next, up and down."""
    rng = np.random.default_rng(5)
    sides = [(1, 1), (1, 7), (3, 1), (31, 32), (33, 65), (66, 130)]
    items = [
        case(rng, size=size, target=target, fit=fit, interpolation=interpolation) for size in sides for target in sides
    ]
    for item, result in zip(items, run(items), strict=True):
        check(item, result)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 7, 8, 13, 60])
def test_factors(run: Run, factor: int) -> None:
    """Filters of every width modulo four taps, and tiles of every height."""
    rng = np.random.default_rng(factor)
    items = [
        case(
            rng,
            size=((40 if factor < 20 else 5) * down + int(rng.integers(down)), 37 * factor + int(rng.integers(factor))),
            target=(31, 30),
            fit="squash",
            interpolation=kind,
        )
        for down in (1, 2, factor)
        for kind in ("bilinear", "bicubic")
    ]
    for item, result in zip(items, run(items), strict=True):
        check(item, result)


def test_all_kernels_are_among_the_cases() -> None:
    seen = {item.kernel for seed in range(2) for item in random_cases(seed)}
    assert seen == {f"edge_{name}_{kind}" for name in ("filter", "nearest") for kind in ("f32", "f16")}


def test_nearest_and_a_plain_copy_are_exact(run: Run) -> None:
    rng = np.random.default_rng(9)
    items = [
        case(rng, size=(70, 51), target=(33, 64), fit="squash", interpolation="nearest"),
        case(rng, size=(70, 51), target=(70, 51), fit="squash", interpolation="bilinear"),
        case(rng, size=(70, 51), target=(70, 51), fit="squash", interpolation="bicubic"),
        case(rng, size=(140, 102), target=(70, 51), fit="squash", interpolation="bilinear"),
    ]
    for item, result in zip(items, run(items), strict=True):
        assert differences(item, result)[0] < 1e-3, item.title()


def test_a_camera_picture(run: Run) -> None:
    """What the benchmark runs, 1280×720 to 224, smooth and noise."""
    rng = np.random.default_rng(11)
    items = [case(rng, size=(720, 1280), target=(224, 224), noise=noise) for noise in (True, False)]
    for item, result in zip(items, run(items), strict=True):
        check(item, result)


def test_a_read_outside_of_the_frame_is_noticed(checked_program: Path, tmp_path: Path) -> None:
    """The check itself: a job that says that the frame begins further on than it does."""
    item = case(np.random.default_rng(3), size=(64, 64), target=(40, 40), fit="squash")
    job = bytearray(item.job(address=0, table=0, target=0))
    (source,) = struct.unpack_from("=Q", job)
    struct.pack_into("=Q", job, 0, source + 64)
    given = tmp_path / "cases"
    given.write_bytes(packed(item, bytes(job)))
    done = subprocess.run([checked_program, given, tmp_path / "results"], capture_output=True, check=False, timeout=60)
    assert done.returncode != 0
    assert b"outside of the frame" in done.stderr or b"AddressSanitizer" in done.stderr
