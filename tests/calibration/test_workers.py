"""Several workers: the same bytes as one process, whoever dies, whoever goes on, and no process left behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from edge import __file__, __version__
from edge.calibration import collection, dask_workers, workflow
from edge.calibration.worker_processes import Processes, WorkQueue, pack, unpack
from edge.config import profiles
from edge.config.profiles import Profile
from edge.errors import DEPENDENCIES, DataError, DeviceError, EdgeError, MissingDependencyError, ModelError, UsageError
from edge.events import Event, Note, Progress
from edge.media.picture_sources import open_pictures
from edge.quantization.statistics import BINS, Statistics

N = 110
# For workers that start again on a busy machine.
PATIENT_S = 120.0

# Both are made by the first test that needs them.
PICTURES: dict[str, bytes] = {}
ALONE: dict[str, bytes] = {}


class Heard(list[Event]):
    """A listener that keeps what it hears, and does something once ``at`` pictures have been counted."""

    def __init__(self, at: int = 1, then: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self._at = at
        self._then: Callable[[], object] | None = then

    def __call__(self, event: Event) -> None:
        self.append(event)
        if self._then is not None and self.counted and self.counted[-1] >= self._at:
            then, self._then = self._then, None
            then()

    @property
    def counted(self) -> list[int]:
        return [event.done for event in self if isinstance(event, Progress) and event.stage == "calibrate"]

    @property
    def warnings(self) -> list[str]:
        return [event.text for event in self if isinstance(event, Note) and event.level == "warning"]


@pytest.fixture
def tiny(tiny_profile: Callable[..., Path], tmp_path: Path) -> Profile:
    return profiles.read_profile(tiny_profile(tmp_path))


@pytest.fixture
def run(tmp_path: Path, tiny: Profile, pictures: Callable[..., list[Path]]) -> Callable[..., Any]:
    """Calibrate the tiny profile over N pictures in ``tmp_path / "p"``."""
    # Large enough that a share takes a worker some time: it is killed in the middle of one.
    if not PICTURES:
        pictures(tmp_path / "p", N, (300, 400))
        PICTURES.update({path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()})
    (tmp_path / "p").mkdir(exist_ok=True)
    for name, data in PICTURES.items():
        (tmp_path / "p" / name).write_bytes(data)

    def call(*, cache: str = "cache", **options: Any) -> Any:
        return workflow.calibrate(tiny, open_pictures(tmp_path / "p"), cache=tmp_path / cache, **options)

    return call


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    """A cluster of two workers, each a process with one thread and a nanny that starts it again."""
    distributed = pytest.importorskip("distributed")
    with local_cluster(distributed) as started:
        yield started


@contextmanager
def local_cluster(distributed: Any) -> Iterator[Any]:
    before = os.environ.get("PYTHONPATH")
    # The workers must find edge where it is not installed; the fixture that sees to it is for one test only.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    try:
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", protocol="tcp"
        ) as started:
            yield started
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def files(folder: Path) -> dict[str, bytes]:
    """Tables and statistics; the manifests hold the time."""
    kept = [path for path in folder.rglob("*") if path.suffix in {".table", ".npz"}]
    return {path.name: path.read_bytes() for path in kept}


@pytest.fixture
def alone(run: Callable[..., Any], tmp_path: Path) -> dict[str, bytes]:
    """Tables and statistics that one thread of one process makes of the same pictures."""
    if not ALONE:
        run(cache="alone", threads=1)
        ALONE.update(files(tmp_path / "alone"))
    return ALONE


def workers() -> list[multiprocessing.process.BaseProcess]:
    """Processes that count for us and still run."""
    return [child for child in multiprocessing.active_children() if child.name == "edge-calibrate"]


def kill_one() -> None:
    workers()[0].kill()


def test_processes_give_the_same_bytes(run: Callable[..., Any], alone: dict[str, bytes], tmp_path: Path) -> None:
    heard = Heard()
    outcome = run(cache="two", executor=Processes(2), listen=heard)
    assert outcome.pictures == N
    assert files(tmp_path / "two") == alone
    assert heard.counted == sorted(heard.counted)
    assert (heard.counted[0], heard.counted[-1]) == (0, N)
    assert len(heard.counted) > 4
    assert heard.warnings == []
    assert workers() == []


def test_a_process_that_is_killed_is_replaced(run: Callable[..., Any], alone: dict[str, bytes], tmp_path: Path) -> None:
    heard = Heard(at=16, then=kill_one)
    run(cache="two", executor=Processes(2), listen=heard)
    assert files(tmp_path / "two") == alone
    assert [text.split(";")[0] for text in heard.warnings] == ["a worker process died (SIGKILL)"]
    assert heard.counted[-1] == N


def test_dask_workers_give_the_same_bytes(
    run: Callable[..., Any], alone: dict[str, bytes], tmp_path: Path, dask: Any
) -> None:
    heard = Heard()
    with dask_workers.connect(dask.scheduler_address, worker_timeout_s=PATIENT_S) as crew:
        assert run(cache="two", executor=crew, listen=heard).pictures == N
    assert files(tmp_path / "two") == alone
    assert (heard.counted[0], heard.counted[-1]) == (0, N)
    assert heard.counted == sorted(heard.counted)
    assert heard.warnings == []
    assert_idle(dask)


def test_a_dask_worker_that_is_killed_is_survived(
    run: Callable[..., Any], alone: dict[str, bytes], tmp_path: Path, dask: Any
) -> None:
    killed: list[int] = []

    def kill() -> None:
        killed.append(next(iter(dask.workers.values())).pid)
        os.kill(killed[0], signal.SIGKILL)

    heard = Heard(at=16, then=kill)
    with dask_workers.connect(dask.scheduler_address, worker_timeout_s=PATIENT_S) as crew:
        run(cache="two", executor=crew, listen=heard)
    assert len(killed) == 1
    wait_until(lambda: not psutil.pid_exists(killed[0]))
    assert files(tmp_path / "two") == alone
    assert heard.counted[-1] == N
    assert_idle(dask)


def assert_idle(dask: Any) -> None:
    """The scheduler holds no task of ours any more."""
    wait_until(lambda: dask.scheduler.tasks == {})


class Dask:
    """Schedulers and workers as an administrator starts them: processes of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def scheduler(self, **env: str) -> tuple[str, subprocess.Popen[bytes]]:
        """Its address, and its process."""
        file = self._folder / f"scheduler{len(self._started)}.json"
        process = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", file, **env)
        wait_until(lambda: file.is_file() and '"address"' in file.read_text())
        return msgspec.json.decode(file.read_bytes())["address"], process

    def worker(self, address: str, **env: str) -> subprocess.Popen[bytes]:
        return self._start("worker", address, "--nthreads", "1", "--no-nanny", cwd=self._folder, **env)

    def _start(self, *arguments: object, cwd: Path | None = None, **env: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"log{len(self._started)}").open("wb")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *map(str, arguments), "--no-dashboard"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, env={**os.environ, **env},
            )  # fmt: skip
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


@pytest.fixture
def own_dask(tmp_path: Path) -> Iterator[Dask]:
    pytest.importorskip("distributed")
    (tmp_path / "dask").mkdir()
    dask = Dask(tmp_path / "dask")
    yield dask
    dask.end()


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Much longer than it takes: it ends a test that hangs, on the busiest machine."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


# bad input


@contextmanager
def crew_of_processes(_dask: object) -> Iterator[collection.Executor]:
    yield Processes(2)


@contextmanager
def crew_of_dask(dask: Any) -> Iterator[collection.Executor]:
    with dask_workers.connect(dask.scheduler_address, worker_timeout_s=PATIENT_S) as crew:
        yield crew


CREWS = [pytest.param(crew_of_processes, id="processes"), pytest.param(crew_of_dask, id="dask")]
Hire = Callable[[Any], Any]


@pytest.mark.parametrize("hire", CREWS)
def test_a_bad_picture_in_the_middle(hire: Hire, run: Callable[..., Any], tmp_path: Path, dask: Any) -> None:
    """The same error as in one process."""
    bad = tmp_path / "p" / "075.jpg"
    bad.write_bytes(bad.read_bytes()[:-200])
    with pytest.raises(DataError) as alone:
        run(cache="alone", threads=1)
    with pytest.raises(DataError) as caught, hire(dask) as crew:
        run(executor=crew)
    assert str(caught.value) == str(alone.value)
    assert caught.value.where == str(bad)
    assert not list((tmp_path / "cache").rglob("*.table"))
    assert workers() == []


@pytest.mark.parametrize("hire", CREWS)
def test_a_picture_that_changes_meanwhile(
    hire: Hire, run: Callable[..., Any], alone: dict[str, bytes], tmp_path: Path, dask: Any
) -> None:
    last = max(open_pictures(tmp_path / "p"), key=lambda picture: picture.sha256)
    path = tmp_path / "p" / last.name
    good = path.read_bytes()
    heard = Heard(at=0, then=lambda: path.write_bytes((tmp_path / "p" / "000.jpg").read_bytes()))
    with pytest.raises(DataError, match="changed since") as caught, hire(dask) as crew:
        run(executor=crew, listen=heard)
    assert caught.value.where == str(path)
    kept = heard.counted[-1]
    assert kept > 0
    path.write_bytes(good)
    again = Heard()
    run(executor=Processes(2), listen=again)
    assert again.counted[0] == kept
    assert files(tmp_path / "cache") == alone


@pytest.mark.parametrize("hire", CREWS[:1])
def test_a_model_that_changes_meanwhile(
    hire: Hire, run: Callable[..., Any], tmp_path: Path, tiny_model: Callable[..., Path], dask: Any
) -> None:
    heard = Heard(at=0, then=lambda: tiny_model(seed=5))
    with (
        pytest.raises(EdgeError, match="differs from the one for which the calibration was planned"),
        hire(dask) as crew,
    ):
        run(executor=crew, listen=heard)


@pytest.mark.parametrize("hire", CREWS[:1])
def test_a_network_that_overflows(
    hire: Hire, tiny_profile: Callable[..., Path], tiny_model: Callable[..., Path],
    pictures: Callable[..., list[Path]], tmp_path: Path, dask: Any,
) -> None:  # fmt: skip
    tiny_model(nan=True)
    pictures(tmp_path / "p", 20)
    chosen = profiles.read_profile(tiny_profile(tmp_path))
    with pytest.raises(ModelError, match="NaN or infinity") as caught, hire(dask) as crew:
        workflow.calibrate(chosen, open_pictures(tmp_path / "p"), cache=tmp_path / "cache", executor=crew)
    assert caught.value.hint


def test_workers_that_die_again_and_again(run: Callable[..., Any], tmp_path: Path) -> None:
    over = threading.Event()

    def kill_all() -> None:
        while not over.wait(0.05):
            for child in workers():
                child.kill()

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(DeviceError, match="3 workers died while processing the same"):
            run(executor=Processes(2))
    finally:
        over.set()
        killer.join()
    assert run(executor=Processes(2)).pictures == N


@pytest.mark.slow
def test_dask_workers_that_die_again_and_again(run: Callable[..., Any], tmp_path: Path, dask: Any) -> None:
    over = threading.Event()

    def kill_all() -> None:
        # A new worker has work at once, and takes longer than this to import edge.
        while not over.wait(0.02):
            for worker in list(dask.scheduler.workers.values()):
                # The cluster may not know a worker yet that the scheduler knows already.
                nanny = dask.workers.get(worker.name)
                if worker.processing and nanny is not None and nanny.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(nanny.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with (
            pytest.raises(DeviceError, match="several Dask workers died while processing the same") as caught,
            dask_workers.connect(dask.scheduler_address, worker_timeout_s=PATIENT_S) as crew,
        ):
            run(executor=crew)
    finally:
        over.set()
        killer.join()
    assert str(tmp_path / "p") in (caught.value.where or "")
    with dask_workers.connect(dask.scheduler_address, worker_timeout_s=PATIENT_S) as crew:
        assert run(executor=crew).pictures == N


# stopping, and going on


class Stop:
    """Says stop once ``at`` pictures have been counted."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.heard = Heard()

    def __call__(self) -> bool:
        return bool(self.heard.counted) and self.heard.counted[-1] >= self._at


# From processes to one process, and from Dask to processes, are among the tests below.
HAND_OVERS = [
    pytest.param(None, crew_of_processes, id="alone to processes"),
    pytest.param(crew_of_processes, crew_of_dask, id="processes to dask"),
]


@pytest.mark.parametrize(("first", "then"), HAND_OVERS)
def test_another_crew_goes_on(
    first: Hire | None, then: Hire | None, run: Callable[..., Any], alone: dict[str, bytes], tmp_path: Path, dask: Any
) -> None:
    stop = Stop(at=50)
    with contextlib.nullcontext() if first is None else first(dask) as crew:
        assert run(executor=crew, listen=stop.heard, should_stop=stop) is None
    heard = Heard()
    with contextlib.nullcontext() if then is None else then(dask) as crew:
        assert run(executor=crew, listen=heard).pictures == N
    assert 16 <= heard.counted[0] < N
    assert heard.counted[-1] == N
    assert files(tmp_path / "cache") == alone


def test_a_stop_before_the_first_picture(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run(executor=Processes(2), should_stop=lambda: True) is None
    assert workers() == []
    assert not list((tmp_path / "cache").rglob("*.partial.*"))


@pytest.fixture
def edge(tmp_path: Path, run: Callable[..., Any]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``edge calibrate`` over the same pictures, in a process group of its own as a shell starts it."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "edge", "calibrate", "--profile", tmp_path / "tiny.yaml", "-i", "p"]
        process = subprocess.Popen(
            [*map(str, line), "--cache-dir", "cache", *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, cwd=tmp_path,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group(leader: int) -> list[int]:
    """Processes of the group that ``leader`` leads or led, itself aside; zombies do not count."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.pid != leader and process.status() != "zombie":
                found.append(process.pid)
    return found


class Gate:
    """A picture that its reader waits for."""

    def __init__(self, picture: Path) -> None:
        self._picture = picture
        self._data = picture.read_bytes()
        self._pipe = picture.with_name(".gate")
        os.mkfifo(self._pipe)
        picture.unlink()
        picture.symlink_to(self._pipe)

    def reader(self) -> int:
        """Wait until somebody reads; the file that feeds it."""
        found: list[int] = []

        def comes() -> bool:
            with contextlib.suppress(OSError):
                found.append(os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK))
            return bool(found)

        wait_until(comes)
        return found[0]

    def feed(self, writer: int) -> None:
        os.set_blocking(writer, True)
        with os.fdopen(writer, "wb") as file:
            file.write(self._data)

        def gone() -> bool:
            try:
                os.close(os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                return True
            return False

        wait_until(gone)

    def open(self) -> None:
        """Make it an ordinary picture again."""
        self._picture.unlink()
        self._picture.write_bytes(self._data)


@pytest.fixture
def stuck(tmp_path: Path, edge: Callable[..., subprocess.Popen[str]]) -> Iterator[Callable[..., Any]]:
    """``edge calibrate`` whose workers wait for the last picture, and the gate before that."""
    writers: list[int] = []

    def start(*arguments: object) -> tuple[subprocess.Popen[str], Gate]:
        last = max(open_pictures(tmp_path / "p"), key=lambda picture: picture.sha256)
        gate = Gate(tmp_path / "p" / last.name)
        command = edge(*arguments)
        gate.feed(gate.reader())  # to be hashed
        writers.append(gate.reader())  # a worker has come to it
        return command, gate

    yield start
    for writer in writers:
        os.close(writer)


def test_ctrl_c_reaches_the_whole_group_and_nothing_is_lost(
    stuck: Callable[..., Any], run: Callable[..., Any], alone: dict[str, bytes], tmp_path: Path
) -> None:
    command, gate = stuck("--workers", "2")
    assert len(group(command.pid)) >= 2
    os.killpg(command.pid, signal.SIGINT)
    out, err = command.communicate(timeout=120)
    assert (command.returncode, out) == (130, ""), err
    assert "the statistics so far are saved" in err
    assert "Traceback" not in err
    assert "died" not in err
    wait_until(lambda: group(command.pid) == [])
    gate.open()
    heard = Heard()
    assert run(listen=heard, threads=1).pictures == N
    assert heard.counted[0] >= 16
    assert files(tmp_path / "cache") == alone


def test_workers_end_with_a_parent_that_is_killed(stuck: Callable[..., Any]) -> None:
    command, _gate = stuck("--workers", "2")
    assert len(group(command.pid)) >= 2
    command.kill()
    command.wait()
    wait_until(lambda: group(command.pid) == [])


# a cluster that is not as it should be


def test_workers_and_dask_exclude_each_other(edge: Callable[..., subprocess.Popen[str]]) -> None:
    command = edge("--workers", "2", "--dask", "tcp://127.0.0.1:8786")
    _out, err = command.communicate()
    assert command.returncode == UsageError.exit_code
    assert "--workers and --dask exclude each other" in err


def test_dask_from_the_command_line(
    edge: Callable[..., subprocess.Popen[str]],
    run: Callable[..., Any],
    alone: dict[str, bytes],
    own_dask: Dask,
    tmp_path: Path,
) -> None:
    """The scheduler has no edge; the workers are in another folder; they come after the command."""
    address, _process = own_dask.scheduler(PYTHONPATH="")
    command = edge("--dask", address)
    own_dask.worker(address)
    out, err = command.communicate(timeout=120)
    assert command.returncode == 0, err
    assert f"{N} images" in out
    assert "Traceback" not in err
    assert files(tmp_path / "cache") == alone


@pytest.mark.parametrize("kind", ["nobody listens", "nobody answers", "no such host"])
def test_a_scheduler_that_cannot_be_reached(kind: str) -> None:
    pytest.importorskip("distributed")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if kind == "nobody listens":
            silent.close()
        host = "no-such-host.invalid" if kind == "no such host" else "127.0.0.1"
        with (
            pytest.raises(DeviceError, match="no Dask scheduler answers") as caught,
            dask_workers.connect(f"tcp://{host}:{port}", timeout_s=1.0),
        ):
            pass
    assert caught.value.where == f"tcp://{host}:{port}"
    assert "dask scheduler" in (caught.value.hint or "")


@pytest.mark.parametrize("address", ["localhost:8786", "", "post://127.0.0.1:8786"])
def test_what_is_no_address(address: str) -> None:
    pytest.importorskip("distributed")
    with (
        pytest.raises(UsageError, match="invalid address of a Dask scheduler") as caught,
        dask_workers.connect(address),
    ):
        pass
    assert "tcp://" in (caught.value.hint or "")


def test_dask_that_is_not_installed() -> None:
    code = (
        "import sys\nsys.modules['distributed'] = None\nfrom edge.calibration import dask_workers\n"
        "from edge.errors import MissingDependencyError\n"
        "try:\n    dask_workers.connect('tcp://127.0.0.1:1').__enter__()\n"
        "except MissingDependencyError as exc:\n    print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "distributed is not installed",
        f"  try: {DEPENDENCIES['distributed']}",
    ]


def test_a_scheduler_without_workers(own_dask: Dask) -> None:
    address, _process = own_dask.scheduler()
    expected = pytest.raises(DeviceError, match="has had no worker for 1 s")
    heard = Heard()
    with expected as caught, dask_workers.connect(address, listen=heard, worker_timeout_s=1.0):
        pass
    assert "no worker yet: waiting up to 1 s" in str(heard)
    assert f"dask worker {address}" in (caught.value.hint or "")


def test_a_scheduler_that_dies_midway(
    run: Callable[..., Any], alone: dict[str, bytes], own_dask: Dask, tmp_path: Path
) -> None:
    address, process = own_dask.scheduler()
    own_dask.worker(address)
    heard = Heard(at=32, then=process.kill)
    with (
        pytest.raises(DeviceError, match="the connection to the Dask scheduler was lost"),
        dask_workers.connect(address) as crew,
    ):
        run(executor=crew, listen=heard)
    again = Heard()
    assert run(executor=Processes(2), listen=again).pictures == N
    assert again.counted[0] >= 32
    assert files(tmp_path / "cache") == alone


def test_a_worker_without_edge(run: Callable[..., Any], own_dask: Dask, tmp_path: Path) -> None:
    address, _process = own_dask.scheduler()
    # Where edge is installed, an empty module of the same name hides it.
    (tmp_path / "hidden" / "edge").mkdir(parents=True)
    (tmp_path / "hidden" / "edge" / "__init__.py").write_text("")
    own_dask.worker(address, PYTHONPATH=str(tmp_path / "hidden"))
    with (
        pytest.raises(MissingDependencyError, match="cannot import what it needs: No module named 'edge") as caught,
        dask_workers.connect(address) as crew,
    ):
        run(executor=crew)
    assert DEPENDENCIES["distributed"] in (caught.value.hint or "")


def test_a_worker_with_another_edge(run: Callable[..., Any], own_dask: Dask, tmp_path: Path) -> None:
    package = Path(__file__).parent
    shutil.copytree(package, tmp_path / "old" / "edge", ignore=shutil.ignore_patterns("__pycache__"))
    own = tmp_path / "old" / "edge" / "__init__.py"
    own.write_text(own.read_text().replace(f'"{__version__}"', '"0.0.1"'))
    address, _process = own_dask.scheduler()
    own_dask.worker(address, PYTHONPATH=str(tmp_path / "old"))
    with (
        pytest.raises(DeviceError, match=r"this Dask worker has edge 0\.0\.1, not") as caught,
        dask_workers.connect(address) as crew,
    ):
        run(executor=crew)
    assert caught.value.hint == "install the same edge"


def test_a_worker_with_other_versions(run: Callable[..., Any], own_dask: Dask, tmp_path: Path) -> None:
    """It counts. What Dask has to say comes at once, what we have to say comes once."""
    for name in ("onnxruntime", "toolz"):
        about = tmp_path / "first" / f"{name}-0.0.1.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
    address, _process = own_dask.scheduler()
    own_dask.worker(address, PYTHONPATH=os.pathsep.join([str(tmp_path / "first"), os.environ["PYTHONPATH"]]))
    with dask_workers.connect(address):
        pass  # the worker is there
    heard = Heard()
    with dask_workers.connect(address, listen=heard) as crew:
        assert run(executor=crew, listen=heard).pictures == N
    of_dask, ours = heard.warnings
    assert of_dask.startswith("Dask: Mismatched versions found")
    assert "toolz" in of_dask
    assert "onnxruntime 0.0.1 (here " in ours


def test_a_worker_that_lacks_the_files(run: Callable[..., Any], own_dask: Dask, tmp_path: Path, tiny: Profile) -> None:
    address, _process = own_dask.scheduler()
    own_dask.worker(address)
    source = open_pictures(Path("p"))  # relative: the worker stands elsewhere
    with pytest.raises(DataError, match="cannot read the image") as caught, dask_workers.connect(address) as crew:
        workflow.calibrate(tiny, source, cache=tmp_path / "cache", executor=crew)
    assert "same paths as here" in (caught.value.hint or "")


# parcels


@pytest.mark.parametrize("with_histogram", [True, False])
@pytest.mark.parametrize("most", [0, 3, 2**32 - 1, 2**32], ids=["nothing", "small", "32 bits", "more"])
def test_a_parcel_holds_the_same_statistics(with_histogram: bool, most: int) -> None:
    statistics = Statistics.empty(["a", "b", "c"], with_histogram=with_histogram)
    for place, name in ((0, "a"), (2 * BINS - 1, "b"), (BINS, "c")):
        tensor = statistics.tensors[name]
        tensor.low, tensor.high, tensor.count, tensor.exponent = -0.5, 3.25, most, 2
        if tensor.counts is not None:
            tensor.counts[place] = most
            tensor.counts[BINS - 7] = most // 2
    statistics.pictures = 5
    travelled = unpack(pickle.loads(pickle.dumps(pack(statistics))))
    assert travelled.to_bytes() == statistics.to_bytes()
    assert all(tensor.counts is None or tensor.counts.dtype == np.int64 for tensor in travelled.tensors.values())


def test_a_parcel_is_small() -> None:
    statistics = Statistics.empty([str(number) for number in range(100)], with_histogram=True)
    for tensor in statistics.tensors.values():
        assert tensor.counts is not None
        tensor.counts[BINS : BINS + BINS // 2] = 7
    assert len(pickle.dumps(pack(statistics))) < len(pickle.dumps(statistics)) / 7


# sharing out


@pytest.mark.parametrize(("count", "workers"), [(1, 1), (1, 8), (25, 2), (3125, 2), (3125, 40)])
def test_shares_hold_each_chunk_once_and_get_smaller(count: int, workers: int) -> None:
    shares = WorkQueue({number: [] for number in range(count)})
    sizes, seen = [], []
    while (share := shares.take(workers)) is not None:
        sizes.append(len(share.chunks))
        seen += share.chunks
    assert seen == list(range(count))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert max(sizes) <= 16


def test_a_share_that_comes_back_is_the_next_one_to_go() -> None:
    shares = WorkQueue({number: [] for number in range(40)})
    first, _second = shares.take(1), shares.take(1)
    assert first is not None
    shares.give_back(first)
    assert shares.take(1) == first
