"""Dask workers, on this machine or others: the only module that knows ``distributed``.

Scheduling, moving results and surviving a worker's death are Dask's; here shares go out and statistics come back. What
Dask has no word for is said here: a scheduler that is not there or goes away, a cluster without workers, and workers
with another edge or other versions of what the statistics depend on.
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
# How long a cluster may be without any worker: one that is started needs some seconds to come, on a busy machine more.
_NO_WORKER_S = 30.0
_ANSWER_S = 30.0
_GATHER_S = 60.0
_ADDRESS = "--dask tcp://HOST:8786"
_SAME_PATHS = "every Dask worker needs the model and the pictures under the same paths as here"
_GOES_ON = "what was counted is kept: the same command goes on from there"


class Machine(msgspec.Struct, frozen=True):
    """A machine that collected statistics, with the package versions that they depend on."""

    host: str
    versions: dict[str, str | None]


class _Answer(msgspec.Struct, frozen=True):
    packed: PackedStatistics
    machine: Machine


class _RemoteCall:
    """A call that happens where its pickle is loaded: sent as bytes, it needs edge on the workers only.

    Dask unpickles what is submitted on the scheduler as well, which often has no more than Dask.
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
        """One: Dask gives each worker as many shares at once as it has threads."""
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
        """As :meth:`.collection.Executor.count`; Dask counts the share of a worker that dies with another one."""
        shares = WorkQueue(chunks)
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        running: dict[str, tuple[Any, WorkItem]] = {}
        name = f"edge-calibrate-{uuid.uuid4().hex[:8]}"
        self._seen_worker = time.monotonic()
        try:
            while not should_stop():
                self._look()
                # Two for each thread: one in hand, and one waiting there.
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
        """The result of a future that is done; TimeoutError when it does not arrive."""
        distributed = require("distributed")
        try:
            answer: _Answer = future.result(timeout=_GATHER_S)
        except EdgeError:
            raise
        except distributed.KilledWorker as exc:
            raise DeviceError(
                f"several Dask workers died while they counted the same {len(share.pictures)} pictures",
                where=f"{share.pictures[0].where} … {share.pictures[-1].where}",
                hint="out of memory? the workers' logs say so; fewer threads per worker (dask worker --nthreads 1)",
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
        """See now and then how many threads there are.

        Raises:
            DeviceError: no worker for too long, or no scheduler.
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
        return DeviceError("the Dask scheduler went away", where=self._address, hint=_GOES_ON)

    def _compare(self, there: Machine, listen: Listener) -> None:
        """Say once per machine where its statistics may differ from the ones that would be made here."""
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
    """The executor of all workers of the Dask scheduler at ``address`` (``tcp://HOST:PORT``).

    Raises:
        MissingDependencyError: ``distributed`` is not installed.
        UsageError: ``address`` is not one.
        DeviceError: no scheduler answers there within ``timeout_s``, or there is no worker for ``worker_timeout_s``.
    """
    distributed = require("distributed")
    if "://" not in address:
        raise UsageError(f"not the address of a Dask scheduler: {address!r}", hint=_ADDRESS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", distributed.versions.VersionMismatchWarning)
        try:
            asyncio.run(_knock(address, timeout_s))
            client = distributed.Client(address, timeout=timeout_s, set_as_default=False, name="edge")
        except ValueError as exc:
            raise UsageError(f"not the address of a Dask scheduler: {exc}", hint=_ADDRESS) from exc
        # Two classes before Python 3.11.
        except (OSError, asyncio.TimeoutError) as exc:
            why = str(exc) or f"nothing within {timeout_s:g} s"
            hint = (
                "is it running, and is this its port (8786 as a rule), not the dashboard's? dask scheduler starts one"
            )
            raise DeviceError(f"no Dask scheduler answers: {why}", where=address, hint=hint) from exc
        except ImportError as exc:
            raise DeviceError(f"the Dask scheduler does not fit: {exc}", where=address) from exc
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
        # One that cannot be told does not matter, and must not hide why this ends.
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            client.close()


async def _knock(address: str, timeout_s: float) -> None:
    """Shake hands and leave: a Client waits for ever where something accepts the connection and then says nothing."""
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
    """Count, and say where that was.

    Raises:
        EdgeError: what :func:`.collection.count` raises, with this host in it; or another version of edge is here.
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
        raise RuntimeError("counting stopped before the end, and nobody asked")
    return _Answer(pack(statistics), here)
