"""Runs in a process of its own with a real binding: our subclasses, called through NVIDIA's C++ objects.

pybind11 keeps the pointer to the C++ object right behind the Python object's header, and a C++ object begins with the
pointer to its table of virtual functions. Calling those with ctypes is what libnvinfer does: it goes through NVIDIA's
trampolines into our methods. Slots are counted from NvInferRuntime.h (8.6; since 10, IVersionedInterface comes first).
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32


def main(site: str, model: str, table_path: str) -> None:
    sys.path.insert(0, site)
    import tensorrt_bindings

    sys.modules["tensorrt"] = tensorrt_bindings
    import numpy as np

    from edge.backends.tensorrt.environment import load

    caps = load(rtx=False)
    major = int(caps.version.split(".")[0])
    first = 0 if major < 10 else 4
    out: dict[str, Any] = {"caps": json.loads(_encode(caps)), "logged": _logged(tensorrt_bindings, major)}
    out["builder"] = _builder(caps, Path(model), Path(table_path))
    if caps.progress_monitor:
        out["monitor"] = _monitor(tensorrt_bindings, first)
    batches = [np.full((2, 3, 4, 4), value, np.float32) for value in (1, 2, 3)]
    out["calibrators"] = {name: _calibrator(caps, name, batches, first) for name in caps.calibrators}
    if caps.implicit_int8:
        out["serving"] = _serving(caps, Path(table_path), first)
    print(json.dumps(out))


def _encode(caps: Any) -> bytes:
    import msgspec

    return msgspec.json.encode(caps)


class Virtual:
    """The virtual functions of the C++ object behind a Python one."""

    def __init__(self, item: Any) -> None:
        self.this = ctypes.cast(id(item) + 16, ctypes.POINTER(POINTER))[0]
        self.table = ctypes.cast(ctypes.cast(self.this, ctypes.POINTER(POINTER))[0], ctypes.POINTER(POINTER))

    def call(self, slot: int, result: Any, *arguments: tuple[Any, Any]) -> Any:
        kinds = [kind for kind, _ in arguments]
        function = ctypes.CFUNCTYPE(result, POINTER, *kinds)(self.table[slot])
        return function(self.this, *(value for _, value in arguments))


def _logged(binding: Any, major: int) -> list[list[str]]:
    from edge.backends.tensorrt import log_watch
    from tests.support.tensorrt.real import logger_slot

    watch = log_watch.BuildWatch()
    with log_watch.watching(binding, watch) as logger:
        for severity, text in ((1, b"an error"), (2, b"a warning"), (4, b"chatter")):
            Virtual(logger).call(logger_slot(major), None, (INT, severity), (ctypes.c_char_p, text))
        binding.ILogger.log(logger, binding.ILogger.INTERNAL_ERROR, "by the binding")
    return [[line.severity, line.text] for line in (*watch.errors, *watch.warnings)]


def _builder(caps: Any, model: Path, table_path: Path) -> dict[str, Any]:
    """The whole build, up to where CUDA would be needed."""
    from edge.backends.interface import BuildRequest
    from edge.backends.tensorrt import builder
    from edge.config import profiles
    from edge.errors import EdgeError
    from edge.quantization import calibration_table

    chosen = profiles.read_profile(model.parent / "tiny.yaml")
    table = calibration_table.parse(table_path.read_bytes())
    try:
        builder.build(BuildRequest(profile=chosen, model=model, precision="int8", table=table), caps)
    except EdgeError as exc:
        return {"error": type(exc).__name__, "what": exc.what, "hint": exc.hint}
    return {"error": None}


def _monitor(binding: Any, first: int) -> dict[str, Any]:
    from edge.backends.tensorrt import log_watch
    from edge.events import Progress

    heard: list[Any] = []
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    def listen(event: Any) -> None:
        heard.append(event)

    watch = log_watch.BuildWatch(listen=listen, should_stop=should_stop)
    made = log_watch.progress_monitor(binding, watch)
    virtual = Virtual(made)
    word = ctypes.c_char_p
    virtual.call(first, None, (word, b"Building"), (word, None), (INT, 4))
    answers = [virtual.call(first + 1, ctypes.c_bool, (word, b"Building"), (INT, step)) for step in range(3)]
    virtual.call(first + 2, None, (word, b"Building"))
    # Through the binding's own functions as well.
    fresh = log_watch.progress_monitor(binding, log_watch.BuildWatch(listen=_raising))
    binding.IProgressMonitor.phase_start(fresh, "Building", None, 2)
    refused = binding.IProgressMonitor.step_complete(fresh, "Building", 0)
    percents = [event.done for event in heard if isinstance(event, Progress)]
    return {"answers": answers, "percents": percents, "stopped": watch.stopped, "after_an_exception": refused}


def _raising(_event: Any) -> None:
    raise ValueError("the listener broke")


class Memory:
    """Addresses of host memory: only the number matters here."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.kept: Any = None

    def upload(self, batch: Any) -> int:
        self.kept = batch
        self.seen.append(float(batch.flat[0]))
        return int(batch.ctypes.data)


def _calibrator(caps: Any, algorithm: Any, batches: list[Any], first: int) -> dict[str, Any]:
    from edge.backends.tensorrt import calibrator

    memory = Memory()
    feed = calibrator.Feed(
        algorithm=algorithm, batches=iter(batches), planned=3, batch=2, memory=memory, quantile=0.75, cutoff=0.5
    )
    source = calibrator.Feeding(feed, caps)
    made = calibrator.make(source, algorithm, caps)
    virtual = Virtual(made)
    asked = [_get_batch(virtual, first) for _ in range(4)]
    length = SIZE()
    nothing = virtual.call(first + 2, POINTER, (ctypes.POINTER(SIZE), ctypes.byref(length)))
    content = b"TRT-8601-EntropyCalibration2\ninput: 3f800000\n"
    virtual.call(first + 3, None, (ctypes.c_char_p, content), (SIZE, len(content)))
    source.raise_kept()
    result = {
        "batch": virtual.call(first, INT),
        "algorithm": virtual.call(first + 4, INT),
        "asked": asked,
        "same_address": asked[2][1] == batches[2].ctypes.data,
        "seen": memory.seen,
        "cache": nothing,
        "table": source.table().names,
        "raises": _after_an_exception(caps, algorithm, first),
    }
    if algorithm == "legacy":
        # Behind the base's functions; in 8.6 its two destructors are there, in 10 before them.
        at = first + 7 if first == 0 else first + 5
        result["quantile"] = virtual.call(at, ctypes.c_double)
        result["cutoff"] = virtual.call(at + 1, ctypes.c_double)
    return result


def _get_batch(virtual: Virtual, first: int) -> tuple[bool, int | None]:
    bindings = (POINTER * 1)()
    names = (ctypes.c_char_p * 1)(b"input")
    got = virtual.call(
        first + 1, ctypes.c_bool, (POINTER, ctypes.addressof(bindings)), (POINTER, ctypes.addressof(names)), (INT, 1)
    )
    return bool(got), bindings[0]


def _after_an_exception(caps: Any, algorithm: Any, first: int) -> list[Any]:
    from edge.backends.tensorrt import calibrator

    def broken() -> Any:
        raise OSError("the image is gone")
        yield

    feed = calibrator.Feed(algorithm=algorithm, batches=broken(), planned=1, batch=2, memory=Memory())
    source = calibrator.Feeding(feed, caps)
    made = calibrator.make(source, algorithm, caps)
    got, _ = _get_batch(Virtual(made), first)
    try:
        source.raise_kept()
    except OSError as exc:
        return [got, str(exc)]
    return [got, None]


def _serving(caps: Any, path: Path, first: int) -> dict[str, Any]:
    from edge.backends.tensorrt import calibrator
    from edge.errors import ArtifactError
    from edge.quantization import calibration_table

    table = calibrator.served(calibration_table.parse(path.read_bytes()), caps, dla=False)
    source = calibrator.Serving(table, caps, batch=1)
    virtual = Virtual(made := calibrator.make(source, table.header.algorithm, caps))
    contents = []
    for _ in range(2):
        length = SIZE()
        address = virtual.call(first + 2, POINTER, (ctypes.POINTER(SIZE), ctypes.byref(length)))
        contents.append(ctypes.string_at(address, length.value))
    virtual.call(first + 3, None, (ctypes.c_char_p, b"shorter"), (SIZE, 7))
    got, _ = _get_batch(virtual, first)
    try:
        source.raise_kept()
        refused = None
    except ArtifactError as exc:
        refused = exc.what
    del made
    return {
        "contents": [item.decode() for item in contents],
        "expected": calibration_table.write(table).decode(),
        "got": got,
        "refused": refused,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
