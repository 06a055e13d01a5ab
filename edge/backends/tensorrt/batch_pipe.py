"""Send batches for the device's own calibrators from the process with the images to the one with TensorRT.

Each batch is a length of eight bytes and that many bytes of float32, N×3×H×W; a length of zero ends the stream.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

import msgspec

from edge.backends.tensorrt.calibrator import Feed
from edge.config import Profile
from edge.errors import DeviceError, require
from edge.quantization import AlgorithmName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.backends.cuda import GpuDevice

_LENGTH = struct.Struct("<Q")


class FeedSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Describes a feed to the receiving process; ``shape`` is the shape of one batch."""

    algorithm: AlgorithmName
    planned: int
    shape: tuple[int, int, int, int]
    quantile: float
    cutoff: float


def feed_spec(feed: Feed, profile: Profile) -> FeedSpec:
    """Return the header that is sent before ``feed``'s batches."""
    return FeedSpec(
        algorithm=feed.algorithm,
        planned=feed.planned,
        shape=(feed.batch, 3, profile.input.height, profile.input.width),
        quantile=feed.quantile,
        cutoff=feed.cutoff,
    )


def send(pipe: IO[bytes], batch: NDArray[np.float32] | None) -> None:
    """Write one batch, or the end marker."""
    content = b"" if batch is None else batch.tobytes()
    pipe.write(_LENGTH.pack(len(content)))
    pipe.write(content)
    pipe.flush()


@contextlib.contextmanager
def served(spec: FeedSpec, pipe: IO[bytes], ask: Callable[[], None]) -> Iterator[Feed]:
    """Make a feed from the batches in ``pipe``, each requested with ``ask``, through GPU memory freed at the end.

    Raises:
        MissingDependencyError: PyCUDA is not installed. DeviceError: no GPU, or no memory.
    """
    from edge.backends.cuda import open_device

    device = open_device()
    memory = DeviceBatch(device, spec.shape)
    try:
        yield Feed(
            algorithm=spec.algorithm,
            batches=_received(spec, pipe, ask),
            planned=spec.planned,
            batch=spec.shape[0],
            memory=memory,
            quantile=spec.quantile,
            cutoff=spec.cutoff,
        )
    finally:
        memory.free()
        device.close()


def _received(spec: FeedSpec, pipe: IO[bytes], ask: Callable[[], None]) -> Iterator[NDArray[np.float32]]:
    np = require("numpy")
    while True:
        ask()
        (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
        if length == 0:
            return
        yield np.frombuffer(_exactly(pipe, length), np.float32).reshape(-1, *spec.shape[1:])


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    content = pipe.read(size)
    if len(content) != size:
        raise DeviceError("the process with the images has ended")
    return content


class DeviceBatch:
    """Memory for one batch on a GPU, filled through page-locked memory: a :class:`.calibrator.CalibrationBuffer`."""

    def __init__(self, device: GpuDevice, shape: tuple[int, int, int, int]) -> None:
        nbytes = 4 * shape[0] * shape[1] * shape[2] * shape[3]
        self._device = device
        self._held: list[Any] = []
        with device.active():
            self._host = device.pinned(nbytes)
            self._held.append(self._host)
            self._memory = device.memory(nbytes)
            self._held.append(self._memory)
        self._array: NDArray[Any] = self._host.array[:nbytes].view("float32").reshape(shape)

    def upload(self, batch: NDArray[np.float32]) -> int:
        """Copy a batch and return its address, which is valid until the next call.

        Raises:
            DeviceError: the copy failed.
        """
        self._array[...] = batch
        with self._device.active():
            self._device.upload(self._memory.address, self._array)
            self._device.synchronize()
        return self._memory.address

    def free(self) -> None:
        """Release it."""
        self._array = self._array[:0]
        with self._device.active():
            while self._held:
                self._held.pop().free()
