"""The kernel's source, its parameters and its launch geometry."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edge.backends.cuda import kernels
from edge.backends.cuda.kernels import Frames, Tile
from edge.config.profiles import InputConfig, PreprocessConfig
from edge.errors import DataError
from edge.model.preprocessing import Box

FULL = {"address": 1 << 40, "row_stride": 3840, "frame_stride": 3840 * 720, "height": 720, "width": 1280}


@pytest.mark.parametrize("architecture", ["sm_87", "sm_110"], ids=["Orin", "Thor"])
def test_nvcc_compiles_the_kernel(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("no nvcc here")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if architecture not in known:
        pytest.skip(f"this nvcc knows no {architecture}")
    (tmp_path / "kernel.cu").write_text(kernels.source())
    command = [nvcc, "-cubin", f"-arch={architecture}", "-Werror=all-warnings", "-Xptxas=-v", *kernels.TILE.options]
    done = subprocess.run([*command, "kernel.cu"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kernel.cubin").stat().st_size > 10_000
    # One line per kernel; memory that spilled out of registers would be slow on a Jetson above all.
    lines = [line for line in done.stderr.splitlines() if "spill" in line]
    assert len(lines) == 10
    assert all("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in line for line in lines)


def test_the_source_is_one_text_that_pycuda_can_cache() -> None:
    """PyCUDA runs nvcc's preprocessor over any text with this directive before it looks into its cache."""
    text = kernels.source()
    assert "#include" not in text
    assert "edge_bilinear_2_" in text
    assert "EDGE_PREPROCESS_PIXEL_H" in text


@pytest.mark.parametrize(
    ("size", "spec", "kernel", "area", "boxes"),
    [
        ((720, 1280), PreprocessConfig(), "edge_bilinear_2", Box(45, 325, 630, 630), (2, 2)),
        ((256, 256), PreprocessConfig(), "edge_bilinear_1", Box(16, 16, 224, 224), (1, 1)),
        ((1080, 1920), PreprocessConfig(), "edge_bilinear_n", Box(67, 487, 944, 944), (4, 4)),
        ((1080, 1920), PreprocessConfig(fit="squash"), "edge_bilinear_n", Box(0, 0, 1080, 1920), (4, 8)),
        ((449, 451), PreprocessConfig(fit="squash"), "edge_bilinear_2", Box(0, 0, 448, 450), (2, 2)),
        ((720, 1280), PreprocessConfig(interpolation="bicubic"), "edge_bicubic_n", Box(45, 325, 630, 630), (2, 2)),
        ((720, 1280), PreprocessConfig(interpolation="nearest"), "edge_nearest", Box(45, 325, 630, 630), (1, 1)),
        ((1, 1), PreprocessConfig(), "edge_bilinear_1", Box(0, 0, 1, 1), (1, 1)),
    ],
    ids=["720p", "no box", "1080p", "squash", "a rest is left out", "bicubic", "nearest", "one pixel"],
)
def test_plan(size: tuple[int, int], spec: PreprocessConfig, kernel: str, area: Box, boxes: tuple[int, int]) -> None:
    plan = kernels.plan(*size, spec, InputConfig())
    assert (plan.kernel, plan.area, (plan.down, plan.right)) == (kernel, area, boxes)
    assert plan.grid(5) == (7, 7, 5)


def test_bytes_moved_are_what_is_read_and_written_once() -> None:
    plan = kernels.plan(720, 1280, PreprocessConfig(), InputConfig())
    assert plan.bytes_moved(itemsize=4) == 3 * 630 * 630 + 3 * 224 * 224 * 4
    nearest = kernels.plan(720, 1280, PreprocessConfig(interpolation="nearest"), InputConfig())
    assert nearest.bytes_moved(itemsize=2) == 3 * 224 * 224 + 3 * 224 * 224 * 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_no_window_needs_more_shared_memory_than_every_gpu_has(interpolation: str) -> None:
    """48 KiB per block without asking; the scale left to interpolation is below 2, whatever the picture."""
    rng = np.random.default_rng(1)
    most = 0
    for _ in range(300):
        height, width = (int(side) for side in rng.integers(1, 3000, 2))
        target = InputConfig(height=int(rng.integers(1, 700)), width=int(rng.integers(1, 700)))
        spec = PreprocessConfig(fit="squash", interpolation=interpolation)  # type: ignore[arg-type]
        most = max(most, kernels.plan(height, width, spec, target).shared_bytes)
    assert most <= 20 * 1024


def test_job_of_a_whole_frame() -> None:
    spec = PreprocessConfig(color="bgr", mean=(1.0, 2.0, 4.0), std=(2.0, 4.0, 8.0))
    plan = kernels.plan(720, 1280, spec, InputConfig())
    job = kernels.job(plan, Frames(**FULL), spec, target=77)
    source, target, apart, stride, low, high = struct.unpack_from("=QQqiii", job)
    assert len(job) == 120
    assert source == (1 << 40) + 45 * 3840 + 3 * 325
    assert (target, apart, stride) == (77, 3840 * 720, 3840)
    assert (source + low, source + high) == (1 << 40, (1 << 40) + 3840 * 720)
    assert struct.unpack_from("=6f", job, 92) == (0.5, 0.25, 0.125, -0.5, -0.5, -0.5)


def test_job_of_rows_that_run_upwards() -> None:
    spec = PreprocessConfig()
    plan = kernels.plan(720, 1280, spec, InputConfig())
    last = (1 << 40) + 719 * 3840
    frames = Frames(**{**FULL, "address": last, "row_stride": -3840, "guard": 8})
    job = kernels.job(plan, frames, spec, target=0)
    source, _target, _apart, _stride, low, high = struct.unpack_from("=QQqiii", job)
    assert source == last - 45 * 3840 + 3 * 325
    assert (source + low, source + high) == ((1 << 40) - 8, (1 << 40) + 3840 * 720 + 8)


def test_job_of_an_uploaded_part() -> None:
    spec = PreprocessConfig()
    plan = kernels.plan(720, 1280, spec, InputConfig())
    part = {"height": 630, "width": 630, "top": 45, "left": 325, "row_stride": 1890, "frame_stride": 1 << 21}
    job = kernels.job(plan, Frames(**{**FULL, **part}), spec, target=0)
    source, _target, _apart, _stride, low, high = struct.unpack_from("=QQqiii", job)
    assert (source, low, high) == (1 << 40, 0, 1890 * 630)


@pytest.mark.parametrize(
    ("size", "target"),
    [((40_000, 10), (224, 224)), ((10, 32_768), (224, 224)), ((10, 10), (1, 40_000)), ((32_000, 32_000), (1, 1))],
    ids=["height", "width", "output", "box"],
)
def test_too_large_for_the_kernel(size: tuple[int, int], target: tuple[int, int]) -> None:
    spec = PreprocessConfig(fit="squash")
    with pytest.raises(DataError, match="GPU preprocessing") as caught:
        kernels.plan(*size, spec, InputConfig(height=target[0], width=target[1]))
    assert caught.value.hint == "preprocess on the CPU"


def test_rows_too_far_apart_for_the_kernel() -> None:
    spec = PreprocessConfig()
    plan = kernels.plan(720, 1280, spec, InputConfig())
    with pytest.raises(DataError, match="too large for the GPU kernel"):
        kernels.job(plan, Frames(**{**FULL, "row_stride": 1 << 22}), spec, target=0)


def test_tile_options() -> None:
    assert Tile(64, 16, 256).options == ("-DEDGE_TILE_WIDTH=64", "-DEDGE_TILE_HEIGHT=16", "-DEDGE_THREADS=256")
    plan = kernels.plan(720, 1280, PreprocessConfig(), InputConfig(), tile=Tile(64, 16, 256))
    assert plan.grid(2) == (4, 14, 2)
