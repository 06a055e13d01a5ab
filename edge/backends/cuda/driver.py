"""Use a GPU through PyCUDA. Only this module imports it.

The primary context is retained once per process and device, until the process ends: PyCUDA's ``detach`` leaves
a context that is not on its stack current after releasing it, and CUDA's runtime never releases it either.

Kernels are compiled by nvcc through ``pycuda.compiler``, which keeps the result in the user's cache folder
(``~/.cache/pycuda``, or ``PYCUDA_CACHE_DIR``) by source, options and nvcc version. nvcc comes with JetPack's CUDA
toolkit and needs the host's g++; it is searched on PATH and in ``/usr/local/cuda/bin``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from edge.backends.cuda import cuda_graph
from edge.errors import DeviceError, MissingDependencyError, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.backends.cuda.protocols import DeviceMemory, Graph, HostMemory, Kernels


# CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, _COMPUTE_CAPABILITY_MAJOR and _MINOR
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76


class GpuProperties(msgspec.Struct, frozen=True):
    """The compute capability of a GPU, such as ``8.9``, the number of its enabled multiprocessors, and its name."""

    compute_capability: str
    multiprocessors: int
    name: str


@functools.cache
def gpu_properties(library: str = "libcuda.so.1") -> GpuProperties | None:
    """Read the properties of the first GPU from the driver only: no context, no PyCUDA, no memory on the device.

    It is CUDA's first GPU, which :func:`open_device` opens, too: the fastest, or the first of CUDA_VISIBLE_DEVICES. On
    a partitioned GPU (MIG) they are those of the visible partition. Functions and attribute numbers are from
    ``cuda.h``. Returns None without a driver or GPU, or if the driver cannot be initialized.
    """
    try:
        cuda = ctypes.CDLL(library)
        init, get, attribute, get_name = (
            cuda.cuInit, cuda.cuDeviceGet, cuda.cuDeviceGetAttribute, cuda.cuDeviceGetName,
        )  # fmt: skip
    except (OSError, AttributeError):
        return None
    device = ctypes.c_int()
    if init(0) or get(ctypes.byref(device), 0):
        return None
    values = []
    for number in (_MAJOR, _MINOR, _MULTIPROCESSORS):
        value = ctypes.c_int()
        if attribute(ctypes.byref(value), number, device):
            return None
        values.append(value.value)
    major, minor, multiprocessors = values
    name = ctypes.create_string_buffer(256)
    if get_name(name, len(name), device):
        return None
    return GpuProperties(f"{major}.{minor}", multiprocessors, name.value.decode("utf-8", "replace"))


# Work of another library on the default stream neither waits for ours nor spoils a capture (CU_STREAM_NON_BLOCKING).
_NON_BLOCKING = 1
_CUDA_BIN = "/usr/local/cuda/bin"
_MATCH = "the driver, CUDA and PyCUDA must be compatible (on a Jetson: from one JetPack); edge doctor"
_MEMORY = "close other programs on this device, or lower input.batch.max"


def open_device(ordinal: int = 0) -> CudaDevice:
    """Open the GPU with that number.

    Raises:
        MissingDependencyError: PyCUDA is not installed.
        DeviceError: the driver is missing or too old, a CUDA library is missing, or there is no such GPU.
    """
    driver = _pycuda()
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as exc:
        raise DeviceError(f"CUDA cannot be initialized: {exc}", hint=_MATCH) from exc
    if not 0 <= ordinal < count:
        raise DeviceError(
            f"there is no GPU {ordinal}: {count} found", hint="run edge doctor; in a container, use --gpus all"
        )
    return CudaDevice(driver, ordinal)


class CudaDevice:
    """One GPU, its primary context and one stream: :class:`edge.backends.cuda.protocols.GpuDevice`."""

    def __init__(self, driver: Any, ordinal: int) -> None:  # noqa: ANN401
        self._driver = driver
        device = driver.Device(ordinal)
        self.name = str(device.name())
        self.sm = ".".join(str(part) for part in device.compute_capability())
        self.integrated = bool(device.get_attribute(driver.device_attribute.INTEGRATED))
        try:
            self._active = _Active(driver, _primary(ordinal))
            with self._active:
                self._first: Any = driver.Stream(_NON_BLOCKING)
                self._second: Any = driver.Stream(_NON_BLOCKING)
        except driver.Error as exc:
            raise _error(driver, exc) from exc
        self._stream = self._first
        self.stream = int(self._first.handle)

    def active(self) -> _Active:
        """Make the context current."""
        return self._active

    def pinned(self, nbytes: int, *, mapped: bool = False) -> HostMemory:
        """Allocate zeroed page-locked memory."""
        flags = self._driver.host_alloc_flags.DEVICEMAP if mapped else 0
        try:
            return _Pinned(self._driver.pagelocked_zeros(max(nbytes, 1), "uint8", mem_flags=flags), mapped=mapped)
        except self._driver.Error as exc:
            raise _error(self._driver, exc, wanted=nbytes) from exc

    def memory(self, nbytes: int) -> DeviceMemory:
        """Allocate device memory."""
        try:
            return _Memory(self._driver.mem_alloc(max(nbytes, 1)))
        except self._driver.Error as exc:
            raise _error(self._driver, exc, wanted=nbytes) from exc

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy to the device."""
        try:
            self._driver.memcpy_htod_async(address, array, self._stream)
        except self._driver.Error as exc:
            raise _error(self._driver, exc) from exc

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy to the host."""
        try:
            self._driver.memcpy_dtoh_async(array, address, self._stream)
        except self._driver.Error as exc:
            raise _error(self._driver, exc) from exc

    def event(self) -> Any:  # noqa: ANN401
        """Create a CUDA event."""
        return self._driver.Event()

    def record(self, event: Any) -> None:  # noqa: ANN401
        """Record ``event`` on the stream."""
        event.record(self._stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:  # noqa: ANN401
        """Return the milliseconds between two events, to about half a microsecond."""
        return float(start.time_till(end))

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Enqueue work on the second stream."""
        self._stream = self._second
        try:
            yield
        finally:
            self._stream = self._first

    def follow(self, event: Any) -> None:  # noqa: ANN401
        """Make the first stream wait for ``event``."""
        self._first.wait_for_event(event)

    def wait(self, event: Any) -> None:  # noqa: ANN401
        """Wait until the stream has reached ``event``."""
        try:
            event.synchronize()
        except self._driver.Error as exc:
            raise _error(self._driver, exc) from exc

    def synchronize(self) -> None:
        """Wait until both streams are empty."""
        try:
            self._second.synchronize()
            self._first.synchronize()
        except self._driver.Error as exc:
            raise _error(self._driver, exc) from exc

    def capture(self, work: Callable[[], None]) -> Graph:
        """Capture the work that ``work`` enqueues on the stream."""
        return cuda_graph.capture(self.stream, work)

    def kernels(self, source: str) -> Kernels:
        """Compile CUDA source, or load it from PyCUDA's cache."""
        binary = _compiled(self._driver, source)
        try:
            return _Module(self._driver, self._driver.module_from_buffer(binary), lambda: self._stream)
        except self._driver.Error as exc:
            raise _error(self._driver, exc) from exc

    def free_bytes(self) -> int:
        """Return the free device memory in bytes."""
        free, _total = self._driver.mem_get_info()
        return int(free)

    def close(self) -> None:
        """Release the stream."""
        with self._active:
            self._stream = self._first = self._second = None


class _Active:
    """Pushes the context and pops it again; reusable, and faster than a generator."""

    def __init__(self, driver: Any, context: Any) -> None:  # noqa: ANN401
        self._push = context.push
        self._pop = driver.Context.pop

    def __enter__(self) -> None:
        self._push()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pop()


class _Pinned:
    def __init__(self, array: NDArray[np.uint8], *, mapped: bool) -> None:
        self.array = array
        self.address = int(array.base.get_device_pointer()) if mapped else None  # type: ignore[union-attr]

    def free(self) -> None:
        self.array = self.array[:0].copy()
        self.address = None


class _Memory:
    def __init__(self, allocation: Any) -> None:  # noqa: ANN401
        self._allocation = allocation
        self.address = int(allocation)

    def free(self) -> None:
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            allocation.free()


class _Module:
    def __init__(self, driver: Any, module: Any, stream: Callable[[], Any]) -> None:  # noqa: ANN401
        self._driver = driver
        self._module = module
        self._stream = stream
        self._functions: dict[str, Any] = {}

    def launch(self, name: str, parameters: bytes, *, grid: tuple[int, int, int], threads: int, shared: int) -> None:
        try:
            function = self._functions.get(name)
            if function is None:
                function = self._functions[name] = self._module.get_function(name).prepare([f"{len(parameters)}s"])
            function.prepared_async_call(grid, (threads, 1, 1), self._stream(), parameters, shared_size=shared)
        except self._driver.Error as exc:
            raise _error(self._driver, exc) from exc


@functools.lru_cache(maxsize=16)
def _primary(ordinal: int) -> Any:  # noqa: ANN401
    return _pycuda().Device(ordinal).retain_primary_context()


def _pycuda() -> Any:  # noqa: ANN401
    try:
        return require("pycuda.driver")
    except MissingDependencyError as exc:
        reported = str(exc.__cause__)
        library = re.search(r"(lib(?:cu|nv)\w*\.so[.\d]*): cannot open", reported)
        if library is not None and library[1].startswith("libcuda.so"):
            raise DeviceError("there is no NVIDIA driver on this machine (libcuda.so.1)", hint=_MATCH) from exc
        if library is not None:
            raise DeviceError(
                f"CUDA's {library[1]} was not found", hint="install CUDA's libraries, then run edge doctor"
            ) from exc
        if "undefined symbol: cu" in reported:
            raise DeviceError(
                "the NVIDIA driver is older than the CUDA that PyCUDA was built with", hint=_MATCH
            ) from exc
        raise


def _compiled(driver: Any, source: str) -> bytes:  # noqa: ANN401
    compiler = require("pycuda.compiler")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=_CUDA_BIN)
    if nvcc is None:
        raise DeviceError(
            f"nvcc is neither on PATH nor in {_CUDA_BIN}: a kernel cannot be compiled",
            hint="install CUDA's compiler (sudo apt install cuda-nvcc-12-6, by version), or preprocess on the CPU",
        )
    given: dict[str, Any] = {"nvcc": nvcc, "options": ["-O3"], "no_extern_c": True}
    try:
        with warnings.catch_warnings():
            # PyCUDA warns of whatever a successful nvcc prints.
            warnings.simplefilter("ignore")
            try:
                return bytes(compiler.compile(source, **given))
            except OSError:
                # The cache folder cannot be written: go without.
                return bytes(compiler.compile(source, cache_dir=False, **given))
    except driver.CompileError as exc:
        lines = [line for line in str(exc).splitlines() if "error" in line] or [str(exc)]
        raise DeviceError(f"nvcc cannot compile the kernel: {lines[0].strip()}", where=nvcc, hint=_MATCH) from exc


def _error(driver: Any, exc: Exception, *, wanted: int | None = None) -> DeviceError:  # noqa: ANN401
    """Translate an exception of PyCUDA into an EdgeError."""
    if isinstance(exc, driver.MemoryError):
        size = "" if wanted is None else f" ({wanted / 2**20:.0f} MiB requested)"
        return DeviceError(f"out of GPU memory{size}", hint=_MEMORY)
    if isinstance(exc, driver.LaunchError):
        return DeviceError(f"a kernel failed on the GPU: {exc}", hint="the session is lost: restart the command")
    return DeviceError(f"CUDA: {exc}", hint=_MATCH)
