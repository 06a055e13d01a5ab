"""Calibrate with Dask workers on this machine or others. Only this module imports ``distributed``.

Dask does the scheduling, the transfer of results and the recovery from a dead worker. This module submits the work and
checks what Dask does not: a scheduler that is missing or disappears, a cluster without workers, and workers with other
versions of edge or of packages that affect the statistics.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pickle
import platform
import queue
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge import __version__
from edge.calibration.collection import Chunks, PartialStatistics, StatisticsJob, count
from edge.calibration.worker_processes import PackedStatistics, WorkItem, WorkQueue, pack, unpack
from edge.errors import DEPENDENCIES, DeviceError, EdgeError, MissingDependencyError, ModelError, UsageError, require
from edge.events import Listener, Note, ignore_events
from edge.media import Picture
from edge.system import python_env

_POLL_S = 0.2
_LOOK_S = 2.0
# Maximum time without any worker: a new one needs some seconds to start, and more on a busy machine.
_NO_WORKER_S = 30.0
_ANSWER_S = 30.0
_GATHER_S = 60.0
_ADDRESS = "--dask tcp://HOST:8786"
_SAME_PATHS = "every Dask worker needs the model and the images under the same paths as here"
_GOES_ON = "the statistics so far are saved: the same command continues from there"


class Machine(msgspec.Struct, frozen=True):
    """A machine that collected statistics, with the package versions that they depend on."""

    host: str
    versions: dict[str, str | None]


class _Answer(msgspec.Struct, frozen=True):
    packed: PackedStatistics
    machine: Machine


class _RemoteCall:
    """A call that is unpickled and run on a worker: as it is sent as bytes, only the workers need edge.

    Dask also unpickles submitted objects on the scheduler, which often has only Dask installed.
    """

    def __init__(self, task: StatisticsJob, pictures: Sequence[Picture]) -> None:
        self._arguments = (task, pictures, __version__, socket.gethostname())

    def __reduce__(self) -> tuple[Callable[..., _Answer], tuple[Any, ...]]:
        return _count_there, self._arguments


class Cluster:
    """An executor of Dask workers; see :func:`connect`."""

    def __init__(self, client: Any, address: str, *, worker_timeout_s: float) -> None:  # noqa: ANN401
        self._worker_timeout_s = worker_timeout_s
        self._client = client
        self._address = address
        self._here = _machine()
        self._strange: set[str] = set()
        self._looked = 0.0
        self._seen_worker = time.monotonic()
        self._slots = 1

    @property
    def threads(self) -> int:
        """Return 1: Dask gives each worker as many work items at once as it has threads."""
        return 1

    def count(
        self,
        task: StatisticsJob,
        chunks: Chunks,
        *,
        advance: Callable[[int], None],
        listen: Listener,
        should_stop: Callable[[], bool],
    ) -> Generator[PartialStatistics, None, None]:
        """Work like :meth:`.collection.Executor.count`; Dask gives the work of a dead worker to another one."""
        shares = WorkQueue(chunks)
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        running: dict[str, tuple[Any, WorkItem]] = {}
        name = f"edge-calibrate-{uuid.uuid4().hex[:8]}"
        self._seen_worker = time.monotonic()
        try:
            while not should_stop():
                self._look()
                # Two for each thread: one in progress, and one queued.
                while len(running) < 2 * self._slots and (share := shares.take(self._slots)) is not None:
                    remote_call = pickle.dumps(_RemoteCall(task, share.pictures))
                    future = self._client.submit(pickle.loads, remote_call, key=f"{name}-{share.chunks[0]}", pure=False)
                    running[future.key] = future, share
                    future.add_done_callback(done.put)
                if not running:
                    return
                try:
                    future = done.get(timeout=_POLL_S)
                    answer = self._result(future, running[future.key][1])
                except queue.Empty:
                    continue
                except TimeoutError:
                    done.put(future)
                    continue
                _, share = running.pop(future.key)
                self._compare(answer.machine, listen)
                advance(len(share.pictures))
                yield PartialStatistics(share.chunks, unpack(answer.packed))
        finally:
            if self._client.status == "running":
                self._client.cancel([future for future, _ in running.values()])

    def _result(self, future: Any, share: WorkItem) -> _Answer:  # noqa: ANN401
        """Return the result of a finished future; raise TimeoutError if it does not arrive."""
        distributed = require("distributed")
        try:
            answer: _Answer = future.result(timeout=_GATHER_S)
        except EdgeError:
            raise
        except distributed.KilledWorker as exc:
            raise DeviceError(
                f"several Dask workers died while processing the same {len(share.pictures)} images",
                where=f"{share.pictures[0].where} … {share.pictures[-1].where}",
                hint="check the workers' logs; if they ran out of memory, use fewer threads: dask worker --nthreads 1",
            ) from exc
        except ImportError as exc:
            raise MissingDependencyError(
                f"a Dask worker cannot import what it needs: {exc}",
                where=self._address,
                hint=f"install the same edge with its extra dask on every worker: {DEPENDENCIES['distributed']}",
            ) from exc
        except (distributed.CancelledError, distributed.TimeoutError, OSError) as exc:
            if future.status == "error":
                raise
            if isinstance(exc, distributed.TimeoutError):
                raise TimeoutError from exc
            raise self._gone() from exc
        return answer

    def _look(self) -> None:
        """Check the number of threads from time to time.

        Raises:
            DeviceError: there was no worker for too long, or the scheduler disappeared.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        if self._client.status != "running":
            raise self._gone()
        try:
            threads = self._client.sync(self._client.scheduler.ncores, callback_timeout=_ANSWER_S)
        except (OSError, asyncio.TimeoutError) as exc:
            raise self._gone() from exc
        self._slots = max(sum(threads.values()), 1)
        if threads:
            self._seen_worker = now
        elif now - self._seen_worker > self._worker_timeout_s:
            raise _no_workers(self._address, self._worker_timeout_s)

    def _gone(self) -> DeviceError:
        return DeviceError("the connection to the Dask scheduler was lost", where=self._address, hint=_GOES_ON)

    def _compare(self, there: Machine, listen: Listener) -> None:
        """Warn once per machine whose statistics may differ from those of this machine."""
        if there.host in self._strange or there.versions == self._here.versions:
            return
        self._strange.add(there.host)
        ours, theirs = self._here.versions, there.versions
        which = ", ".join(
            f"{name} {theirs.get(name)} (here {ours[name]})" for name in ours if ours[name] != theirs.get(name)
        )
        listen(
            Note(f"the Dask worker on {there.host} has {which}: its statistics may differ in the last bit", "warning")
        )


@contextlib.contextmanager
def connect(
    address: str, *, listen: Listener = ignore_events, timeout_s: float = 5.0, worker_timeout_s: float = _NO_WORKER_S
) -> Iterator[Cluster]:
    """Return an executor that uses all workers of the Dask scheduler at ``address`` (``tcp://HOST:PORT``).

    Raises:
        MissingDependencyError: ``distributed`` is not installed.
        UsageError: ``address`` is not one.
        DeviceError: no scheduler answers there within ``timeout_s``, or there is no worker for ``worker_timeout_s``.
    """
    distributed = require("distributed")
    if "://" not in address:
        raise UsageError(f"invalid address of a Dask scheduler: {address!r}", hint=_ADDRESS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", distributed.versions.VersionMismatchWarning)
        try:
            asyncio.run(_knock(address, timeout_s))
            client = distributed.Client(address, timeout=timeout_s, set_as_default=False, name="edge")
        except ValueError as exc:
            raise UsageError(f"invalid address of a Dask scheduler: {exc}", hint=_ADDRESS) from exc
        # Two classes before Python 3.11.
        except (OSError, asyncio.TimeoutError) as exc:
            why = str(exc) or f"nothing within {timeout_s:g} s"
            hint = "start one with `dask scheduler`; use its port (usually 8786), not the dashboard's"
            raise DeviceError(f"no Dask scheduler answers: {why}", where=address, hint=hint) from exc
        except ImportError as exc:
            raise DeviceError(f"the Dask scheduler is not compatible: {exc}", where=address) from exc
    try:
        for warning in caught:
            listen(Note(f"Dask: {warning.message}", "warning"))
        try:
            if not client.ncores():
                listen(Note(f"the Dask scheduler has no worker yet: waiting up to {worker_timeout_s:g} s for one"))
            client.wait_for_workers(1, timeout=worker_timeout_s)
        except distributed.TimeoutError as exc:
            raise _no_workers(address, worker_timeout_s) from exc
        yield Cluster(client, address, worker_timeout_s=worker_timeout_s)
    finally:
        # A worker that cannot be notified does not matter, and must not hide the reason for the end.
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            client.close()


async def _knock(address: str, timeout_s: float) -> None:
    """Connect once: a Client waits for ever if the peer accepts the connection but sends nothing."""
    distributed = require("distributed")
    arguments = distributed.Security().get_connection_args("client")
    comm = await asyncio.wait_for(distributed.connect(address, timeout=timeout_s, **arguments), timeout_s)
    comm.abort()


def _no_workers(address: str, waited_s: float) -> DeviceError:
    what = f"the Dask scheduler has had no worker for {waited_s:g} s"
    return DeviceError(what, where=address, hint=f"start some with: dask worker {address} --nthreads 1")


@functools.cache
def _machine() -> Machine:
    """This machine."""
    found = {name: python_env.find_dependency(name) for name in ("onnxruntime", "cv2")}
    versions = {name: dependency.version if dependency else None for name, dependency in found.items()}
    return Machine(socket.gethostname(), {**versions, "machine": platform.machine()})


# what runs in the worker


def _count_there(task: StatisticsJob, pictures: Sequence[Picture], version: str, client: str) -> _Answer:
    """Collect statistics on the worker; return them with the worker's machine.

    Raises:
        EdgeError: an error of :func:`.collection.count` with this host's name, or the worker has another version of
        edge.
    """
    here = _machine()
    try:
        if version != __version__:
            raise DeviceError(f"this Dask worker has edge {__version__}, not {version}", hint="install the same edge")
        if not Path(task.model).is_file():
            raise ModelError("the Dask worker does not have the model", where=task.model, hint=_SAME_PATHS)
        statistics = count(task, pictures)
    except EdgeError as exc:
        missing = isinstance(exc.__cause__, FileNotFoundError)
        where = exc.where if here.host == client else " on ".join(part for part in (exc.where, here.host) if part)
        raise type(exc)(exc.what, where=where, hint=_SAME_PATHS if missing else exc.hint) from None
    if statistics is None:
        raise RuntimeError("statistics collection stopped unexpectedly")
    return _Answer(pack(statistics), here)
