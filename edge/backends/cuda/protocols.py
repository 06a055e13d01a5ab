"""The interface of a GPU for the rest of edge: memory, one stream, events, graphs, kernels.

Every call but ``active`` and ``close`` is made inside ``with device.active()``, from any thread. One thread puts work
on the stream while another may wait for an event. All copies and launches go to the device's stream, in order, and
return before they are done; inside :meth:`GpuDevice.beside` they go to its second stream.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class HostMemory(Protocol):
    """Page-locked host memory, which the device can copy directly."""

    @property
    def array(self) -> NDArray[np.uint8]:
        """The bytes as a host array; empty after ``free``."""

    @property
    def address(self) -> int | None:
        """The device address of the same bytes if mapped, otherwise None."""

    def free(self) -> None:
        """Release the memory. It is freed with the last view of the array, so that no view becomes invalid."""


class DeviceMemory(Protocol):
    """Allocate device memory."""

    @property
    def address(self) -> int:
        """The device address."""

    def free(self) -> None:
        """Release it; a second call does nothing."""


class Graph(Protocol):
    """Work captured from the stream; launching it again costs one launch."""

    def launch(self) -> None:
        """Launch the graph on the stream.

        Raises:
            DeviceError: CUDA failed.
        """

    def free(self) -> None:
        """Release it; a second call does nothing."""


class Kernels(Protocol):
    """A compiled CUDA module."""

    def launch(self, name: str, parameters: bytes, *, grid: tuple[int, int, int], threads: int, shared: int) -> None:
        """Enqueue kernel ``name``: its one struct parameter, blocks, threads and shared bytes per block.

        Raises:
            DeviceError: CUDA failed, or there is no such kernel.
        """


class GpuDevice(Protocol):
    """One GPU, its primary context, one stream, and a second one beside it."""

    @property
    def name(self) -> str:
        """The driver's name of the GPU."""

    @property
    def sm(self) -> str:
        """Compute capability, such as ``8.7``."""

    @property
    def integrated(self) -> bool:
        """True if CPU and GPU share one memory, as on a Jetson: then mapped host memory needs no copy."""

    @property
    def stream(self) -> int:
        """Handle of the stream, a ``CUstream``."""

    def active(self) -> AbstractContextManager[None]:
        """Make the context current for the calling thread during the block. Must not be nested."""

    def pinned(self, nbytes: int, *, mapped: bool = False) -> HostMemory:
        """Allocate zeroed page-locked memory; with ``mapped`` the device can read it in place.

        Raises:
            DeviceError: there is not enough memory.
        """

    def memory(self, nbytes: int) -> DeviceMemory:
        """Allocate device memory with undefined content.

        Raises:
            DeviceError: there is not enough memory.
        """

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy page-locked, C-contiguous host memory to the device.

        Raises:
            DeviceError: CUDA failed, perhaps in an earlier kernel.
        """

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy device memory to page-locked, C-contiguous host memory.

        Raises:
            DeviceError: CUDA failed, perhaps in an earlier kernel.
        """

    def event(self) -> Any:  # noqa: ANN401
        """Create an event, a reusable time mark on the stream."""

    def record(self, event: Any) -> None:  # noqa: ANN401
        """Record ``event`` on the stream."""

    def elapsed_ms(self, start: Any, end: Any) -> float:  # noqa: ANN401
        """Milliseconds on the device between two events, once both have been waited for."""

    def beside(self) -> AbstractContextManager[None]:
        """Inside the block, copies, launches and events of this thread go to a second stream, beside the first."""

    def follow(self, event: Any) -> None:  # noqa: ANN401
        """Make the first stream wait for ``event``, which was recorded on the second."""

    def wait(self, event: Any) -> None:  # noqa: ANN401
        """Wait until the stream has reached ``event``.

        Raises:
            DeviceError: something before it failed.
        """

    def synchronize(self) -> None:
        """Wait until both streams are empty.

        Raises:
            DeviceError: something on the stream failed.
        """

    def capture(self, work: Callable[[], None]) -> Graph:
        """Capture the work that ``work`` enqueues on the stream, without running it.

        Raises:
            DeviceError: a part of it cannot be captured; the stream is unchanged.
        """

    def kernels(self, source: str) -> Kernels:
        """Compile CUDA source for this GPU.

        Raises:
            DeviceError: there is no compiler, or the source does not compile.
        """

    def free_bytes(self) -> int:
        """Return the free device memory in bytes; on a Jetson, the board's memory."""

    def close(self) -> None:
        """Release the stream; further calls do nothing. Memory and graphs must be freed before."""
