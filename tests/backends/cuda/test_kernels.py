"""The kernel's source, its tables, its parameters and its launch geometry."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.backends.cuda import kernels
from edge.backends.cuda.kernels import FrameLayout
from edge.config.profiles import InputConfig, PreprocessConfig
from edge.errors import DataError
from edge.model.preprocessing import Box, tables

FULL = {"address": 1 << 40, "row_stride": 3840, "frame_stride": 3840 * 720}


@pytest.mark.parametrize("architecture", ["sm_87", "sm_110"], ids=["Orin", "Thor"])
def test_nvcc_compiles_the_kernel(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("no nvcc here")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if architecture not in known:
        pytest.skip(f"this nvcc knows no {architecture}")
    (tmp_path / "kernel.cu").write_text(kernels.source())
    command = [nvcc, "-cubin", f"-arch={architecture}", "-Werror=all-warnings", "-Xptxas=-v"]
    done = subprocess.run([*command, "kernel.cu"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kernel.cubin").stat().st_size > 10_000
    # One line per kernel; memory that spilled out of registers would be slow on a Jetson above all.
    lines = [line for line in done.stderr.splitlines() if "spill" in line]
    assert len(lines) == 4
    assert all("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in line for line in lines)


def test_the_source_is_one_text_that_pycuda_can_cache() -> None:
    """PyCUDA runs nvcc's preprocessor over any text with this directive before it looks into its cache."""
    text = kernels.source()
    assert "#include" not in text
    assert f"kThreads = {kernels.THREADS};" in text
    assert "edge_filter_" in text


@pytest.mark.parametrize(
    ("size", "spec", "kernel", "area", "groups", "tile"),
    [
        ((720, 1280), PreprocessConfig(), "edge_filter", Box(44, 324, 633, 634), (3, 3), (16, 16)),
        ((256, 256), PreprocessConfig(), "edge_filter", Box(16, 16, 224, 224), (1, 1), (16, 16)),
        ((1080, 1920), PreprocessConfig(fit="squash"), "edge_filter", Box(0, 0, 1080, 1920), (4, 6), (16, 16)),
        ((4000, 6000), PreprocessConfig(fit="squash"), "edge_filter", Box(0, 0, 4000, 6000), (10, 15), (4, 4)),
        (
            (720, 1280),
            PreprocessConfig(interpolation="bicubic"),
            "edge_filter",
            Box(41, 320, 639, 641),
            (4, 4),
            (16, 16),
        ),
        (
            (720, 1280),
            PreprocessConfig(interpolation="nearest"),
            "edge_nearest",
            Box(46, 324, 628, 632),
            (0, 0),
            (32, 32),
        ),
        ((1, 1), PreprocessConfig(), "edge_filter", Box(0, 0, 1, 1), (1, 1), (16, 16)),
    ],
    ids=["720p", "as it is", "squash", "large", "bicubic", "nearest", "one pixel"],
)
def test_plan(
    size: tuple[int, int],
    spec: PreprocessConfig,
    kernel: str,
    area: Box,
    groups: tuple[int, int],
    tile: tuple[int, int],
) -> None:
    plan = kernels.plan(*size, spec, InputConfig())
    assert (plan.kernel, plan.area, plan.groups, (plan.tile.width, plan.tile.height)) == (kernel, area, groups, tile)
    assert plan.grid(5) == (-(-224 // tile[0]), -(-224 // tile[1]), 5)


def test_bytes_moved_are_what_is_read_and_written_once() -> None:
    plan = kernels.plan(720, 1280, PreprocessConfig(), InputConfig())
    assert plan.bytes_moved(itemsize=4) == 3 * plan.area.height * plan.area.width + 3 * 224 * 224 * 4
    nearest = kernels.plan(720, 1280, PreprocessConfig(interpolation="nearest"), InputConfig())
    assert nearest.bytes_moved(itemsize=2) == 3 * 224 * 224 + 3 * 224 * 224 * 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_no_tile_needs_more_shared_memory_than_every_gpu_has(interpolation: str) -> None:
    """48 KiB per block without asking."""
    rng = np.random.default_rng(1)
    most = 0
    for _ in range(200):
        height, width = (int(side) for side in rng.integers(1, 9000, 2))
        target = InputConfig(height=int(rng.integers(100, 700)), width=int(rng.integers(100, 700)))
        spec = PreprocessConfig(fit="squash", interpolation=interpolation)  # type: ignore[arg-type]
        tile = kernels.plan(height, width, spec, target).tile
        most = max(most, tile.shared)
        assert tile.bytes_from % 4 == 0
        assert tile.pitch % 8 == 4, "columns would lie in the same banks"
    assert 12 * 1024 <= most <= 48 * 1024


def test_job_of_a_whole_frame() -> None:
    spec = PreprocessConfig(color="bgr", mean=(1.0, 2.0, 4.0), std=(2.0, 4.0, 8.0))
    plan = kernels.plan(720, 1280, spec, InputConfig())
    job = kernels.job(plan, FrameLayout(**FULL), spec, table=1 << 30, target=77)
    source, target, apart, stride, first = struct.unpack_from("=QQqqQ", job)
    assert len(job) == 160
    assert source == (1 << 40) + plan.area.top * 3840 + 3 * plan.area.left
    assert (target, apart, stride, first) == (77, 3840 * 720, 3840, 1 << 30)
    assert struct.unpack_from("=6f", job, 128) == (0.5, 0.25, 0.125, -0.5, -0.5, -0.5)


def test_job_of_rows_that_run_upwards() -> None:
    spec = PreprocessConfig()
    plan = kernels.plan(720, 1280, spec, InputConfig())
    last = (1 << 40) + 719 * 3840
    job = kernels.job(plan, FrameLayout(**{**FULL, "address": last, "row_stride": -3840}), spec, table=0, target=0)
    assert struct.unpack_from("=Q", job)[0] == last - plan.area.top * 3840 + 3 * plan.area.left


def test_job_of_an_uploaded_part() -> None:
    spec = PreprocessConfig()
    plan = kernels.plan(720, 1280, spec, InputConfig())
    part = FrameLayout(
        address=1 << 40, row_stride=3 * plan.area.width, frame_stride=1 << 21, top=plan.area.top, left=plan.area.left
    )
    assert struct.unpack_from("=Q", kernels.job(plan, part, spec, table=0, target=0))[0] == 1 << 40


@pytest.mark.parametrize("roi", [None, (0.25, 0.1, 0.5, 0.6), (9, 30, 60, 70)])
def test_the_tables_are_those_of_the_cpu(roi: Any) -> None:
    spec, target = PreprocessConfig(fit="squash", roi=roi), InputConfig(height=40, width=50)
    plan = kernels.plan(123, 77, spec, target)
    down, across = tables(123, 77, spec, target)
    first_x, weights_x, first_y, weights_y = plan.offsets
    for axis, first_at, weights_at, groups, start in (
        (down, first_y, weights_y, plan.groups[0], plan.area.top),
        (across, first_x, weights_x, plan.groups[1], plan.area.left),
    ):
        count, taps = axis.weights.shape
        first = plan.table[first_at : first_at + 4 * count].view(np.int32)
        weights = plan.table[weights_at : weights_at + 8 * groups * count].view(np.int16).reshape(groups, count, 4)
        by_pixel = weights.transpose(1, 0, 2).reshape(count, -1)
        assert (by_pixel.sum(axis=1) == 1 << 14).all()
        for output in range(count):
            at = int(axis.first[output] - start - 4 * first[output])
            assert np.array_equal(by_pixel[output, at : at + taps], axis.weights[output])


def test_only_the_region_of_interest_is_uploaded() -> None:
    spec = PreprocessConfig(fit="squash", roi=(640, 200, 320, 240))
    plan = kernels.plan(720, 1280, spec, InputConfig(height=64, width=64))
    assert plan.area == Box(200, 640, 240, 320)
    with pytest.raises(DataError, match="reaches beyond the image of 640×480"):
        kernels.plan(480, 640, spec, InputConfig(height=64, width=64))


def test_a_picture_that_shrinks_too_much_for_the_kernel() -> None:
    spec = PreprocessConfig(fit="squash")
    with pytest.raises(DataError, match="GPU preprocessing") as caught:
        kernels.plan(32_000, 32_000, spec, InputConfig(height=1, width=1))
    assert caught.value.hint == "preprocess on the CPU"
    nearest = PreprocessConfig(fit="squash", interpolation="nearest")
    assert kernels.plan(32_000, 32_000, nearest, InputConfig(height=1, width=1)).kernel == "edge_nearest"
