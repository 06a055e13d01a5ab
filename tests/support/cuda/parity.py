"""Random cases for the preprocessing kernel, laid out in memory as hard as they come, and the CPU path next to it.

A case has one to three frames of one size in one block of memory: rows any distance apart, rows upwards or downwards,
any alignment. Sizes go from one pixel to several hundred, targets from one pixel to more than two tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from edge.backends.cuda import kernels
from edge.backends.cuda.kernels import GUARD, FrameLayout, LaunchPlan
from edge.config.profiles import InputConfig, PreprocessConfig

# Both paths give the same 8-bit pixels; normalization rounds, and float16 adds its own rounding.
MAX_STEPS, MEAN_STEPS = 0.01, 0.01


class Case(msgspec.Struct, frozen=True, kw_only=True):
    spec: PreprocessConfig
    target: InputConfig
    memory: Any  # uint8, all frames and GUARD bytes behind them, nothing else
    shift: int  # bytes before it, for its alignment
    pictures: list[Any]  # the same frames as arrays
    plan: LaunchPlan
    frames: FrameLayout  # with address relative to the memory
    half: bool

    @property
    def kernel(self) -> str:
        return self.plan.kernel + ("_f16" if self.half else "_f32")

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return (len(self.pictures), 3, self.target.height, self.target.width)

    @property
    def dtype(self) -> Any:
        return np.dtype(np.float16 if self.half else np.float32)

    @property
    def output_bytes(self) -> int:
        return int(np.prod(self.output_shape)) * self.dtype.itemsize

    def job(self, *, address: int, table: int, target: int) -> bytes:
        """Parameters of the launch, with the memory at ``address``."""
        placed = msgspec.structs.replace(self.frames, address=self.frames.address + address)
        return kernels.job(self.plan, placed, self.spec, table=table, target=target)

    def title(self) -> str:
        height, width = self.pictures[0].shape[:2]
        size = f"{height}x{width} -> {self.target.height}x{self.target.width}"
        return f"{self.kernel} {self.spec.fit} {size} stride {self.frames.row_stride} shift {self.shift}"


def cases(seed: int, count: int, *, largest: int = 420) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for number in range(count):
        height, width = (int(size) for size in rng.integers(1, largest if rng.random() < 0.2 else 90, 2))
        height, width = (1 if rng.random() < 0.05 else height), (1 if rng.random() < 0.05 else width)
        target = tuple(int(size) for size in rng.integers(1, 80, 2))
        if rng.random() < 0.05:
            target = (height, width)
        yield case(
            rng,
            size=(height, width),
            target=target,
            fit=("crop", "squash", "letterbox")[number % 3],
            interpolation=("bilinear", "bicubic", "nearest", "bilinear")[int(rng.integers(4))],
            half=bool(rng.random() < 0.25),
            noise=bool(rng.random() < 0.5),
        )


def case(
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    target: tuple[int, int],
    fit: Any = "crop",
    interpolation: Any = "bilinear",
    half: bool = False,
    noise: bool = True,
) -> Case:
    """One case with random layout, colours and normalization."""
    height, width = size
    spec = PreprocessConfig(
        fit=fit,
        resize=max(target) + int(rng.integers(0, max(target) // 2 + 1)),
        interpolation=interpolation,
        color=("rgb", "bgr")[int(rng.integers(2))],
        mean=tuple(float(value) for value in rng.uniform(0, 200, 3)),
        std=tuple(float(value) for value in rng.uniform(20, 100, 3)),
        pad=int(rng.integers(256)),
    )
    wanted = InputConfig(height=target[0], width=target[1])
    count = int(rng.integers(1, 4))
    stride = -(-3 * width // 4) * 4 + 4 * int(rng.integers(0, 3))
    apart = stride * height + 4 * int(rng.integers(0, 3))
    memory = rng.integers(0, 256, GUARD + apart * (count - 1) + stride * (height - 1) + 3 * width, np.uint8)
    pictures = [
        np.lib.stride_tricks.as_strided(memory[number * apart :], (height, width, 3), (stride, 3, 1))
        for number in range(count)
    ]
    if not noise:
        for picture in pictures:
            picture[...] = _smooth(rng, height, width)
    address = 0
    if rng.integers(2):
        address, stride, pictures = (height - 1) * stride, -stride, [picture[::-1] for picture in pictures]
    frames = FrameLayout(address=address, row_stride=stride, frame_stride=apart)
    return Case(
        spec=spec,
        target=wanted,
        memory=memory,
        shift=4 * int(rng.integers(0, 3)),
        pictures=pictures,
        plan=kernels.plan(height, width, spec, wanted),
        frames=frames,
        half=half,
    )


def differences(item: Case, result: np.ndarray) -> tuple[float, float]:
    """Largest and mean difference to the CPU path, in steps of 8 bits before normalization."""
    from edge.model.preprocessing import Preprocessor

    assert not np.isnan(result).any(), f"{item.title()}: pixels were left unwritten"
    preprocess = Preprocessor(item.spec, item.target)
    expected = np.stack([preprocess(np.ascontiguousarray(picture)) for picture in item.pictures])
    steps = np.abs(result.astype(np.float64) - expected) * np.array(item.spec.std)[:, None, None]
    if item.half:
        # Half of float16's last place, which is no error of the kernel.
        steps -= 2.0**-11 * np.abs(expected) * np.array(item.spec.std)[:, None, None]
    return float(steps.max()), float(steps.mean())


def check(item: Case, result: np.ndarray) -> None:
    largest, mean = differences(item, result)
    assert largest <= MAX_STEPS, f"{item.title()}: {largest:.2f} steps"
    assert mean <= MEAN_STEPS, f"{item.title()}: {mean:.3f} steps in the mean"


def run_on(gpu: Any, module: Any, item: Case) -> np.ndarray:
    """Run a case on a device, in memory of its size, its output poisoned before. Inside ``with gpu.active()``."""
    memory, table = gpu.memory(item.shift + item.memory.size), gpu.memory(item.plan.table.nbytes)
    target = gpu.memory(item.output_bytes)
    host = gpu.pinned(max(item.shift + item.memory.size, item.output_bytes, item.plan.table.nbytes))
    host.array[:] = 0xFF
    gpu.upload(target.address, host.array[: item.output_bytes])
    gpu.synchronize()
    host.array[item.shift : item.shift + item.memory.size] = item.memory
    gpu.upload(memory.address, host.array[: item.shift + item.memory.size])
    gpu.synchronize()
    host.array[: item.plan.table.nbytes] = item.plan.table
    gpu.upload(table.address, host.array[: item.plan.table.nbytes])
    job = item.job(address=memory.address + item.shift, table=table.address, target=target.address)
    grid = item.plan.grid(len(item.pictures))
    module.launch(item.kernel, job, grid=grid, threads=kernels.THREADS, shared=item.plan.tile.shared)
    gpu.synchronize()
    gpu.download(host.array[: item.output_bytes], target.address)
    gpu.synchronize()
    result = host.array[: item.output_bytes].view(item.dtype).reshape(item.output_shape).copy()
    for each in (memory, table, target, host):
        each.free()
    return result


def _smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    rows, columns = np.linspace(0, 3, height)[:, None, None], np.linspace(0, 3, width)[None, :, None]
    waves = rng.uniform(0.3, 2.0, 3), rng.uniform(0.3, 2.0, 3), rng.uniform(0, 6, 3)
    return (127.5 + 127 * np.sin(rows * waves[0] + columns * waves[1] + waves[2])).astype(np.uint8)
