"""TensorRT's log in words."""

from __future__ import annotations

import pytest

from edge.backends.tensorrt import log_diagnosis
from edge.backends.tensorrt.log_watch import LogLine
from edge.errors import ArtifactError, DeviceError, EdgeError, ModelError


@pytest.mark.parametrize(
    ("text", "kind", "words", "hint"),
    [
        pytest.param(
            "CUDA initialization failure with error: 35. Please check your CUDA installation.",
            DeviceError, "the NVIDIA driver is missing, or older", "JetPack", id="old driver",
        ),
        pytest.param(
            "IRuntime::x: Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)",
            DeviceError, "older than this TensorRT needs", "edge doctor", id="old driver, as RTX says it",
        ),
        pytest.param(
            "CUDA initialization failure with error: 100", DeviceError, "no NVIDIA GPU", "container", id="no GPU"
        ),
        pytest.param(
            "CUDA initialization failure with error: 803", DeviceError, "error 803", "edge doctor", id="another number"
        ),
        pytest.param(
            "Error Code 9: API Usage Error (Target GPU SM 87 is not supported by this TensorRT release.)",
            DeviceError, "no kernels for this GPU (SM 87)", "PyPI", id="the wheel from PyPI on a Jetson",
        ),
        pytest.param(
            "Calibration table does not match calibrator algorithm type.",
            ArtifactError, "refuses the calibration table", "edge table check", id="table of another version",
        ),
        pytest.param(
            "Error Code 1: Cuda Runtime (out of memory)", DeviceError, "ran out of GPU memory", "swap", id="memory"
        ),
        pytest.param(
            "NvMapMemAllocInternalTagged: 1075072515 error 12", DeviceError, "of GPU memory", "reboot", id="fragments",
        ),
        pytest.param(
            "10: [optimizer.cpp::computeCosts::2011] Error Code 10: Internal Error "
            "(Could not find any implementation for node /layer1/Conv + /layer1/Relu.)",
            DeviceError, "no kernel for /layer1/Conv + /layer1/Relu", "workspace", id="no kernel",
        ),
        pytest.param("Layer /softmax is not supported on DLA.", DeviceError, "DLA", "gpu_fallback", id="DLA"),
        pytest.param(
            "4: Network has dynamic or shape inputs, but no optimization profile has been defined.",
            ModelError, "batch range", "input.batch", id="batch range",
        ),
        pytest.param("something new went wrong", DeviceError, "TensorRT: something new went wrong", "doctor", id="new"),
    ],
)  # fmt: skip
def test_an_error_in_words(text: str, kind: type[EdgeError], words: str, hint: str) -> None:
    found = log_diagnosis.as_error([LogLine("ERROR", text)], where="model.onnx")
    assert type(found) is kind
    assert words in found.what
    assert hint in (found.hint or "")
    assert found.where == "model.onnx"


def test_the_cause_counts_and_not_the_order() -> None:
    lines = [LogLine("ERROR", "Could not find any implementation for node Conv_1."), LogLine("ERROR", "out of memory")]
    assert "ran out of GPU memory" in log_diagnosis.as_error(lines).what
    hidden = log_diagnosis.as_error(
        [LogLine("ERROR", "failed")], [LogLine("INFO", "NvMapMemAllocInternalTagged error 12")]
    )
    assert "ran out of GPU memory" in hidden.what


def test_no_reason_at_all() -> None:
    assert log_diagnosis.as_error([]).what == "TensorRT returned neither an engine nor a reason"


def test_a_long_line_is_cut_and_source_positions_are_taken_out() -> None:
    text = f"[checkMacros.cpp::catchCudaError::250] Error Code 1: In f at /_src/a.cpp:250 {'x' * 400}"
    what = log_diagnosis.as_error([LogLine("ERROR", text)]).what
    assert len(what) < 320
    assert "_src" not in what


TACTIC = "Tactic Device request: {}MB Available: 2658MB. Device memory is insufficient to use tactic."
SKIPPED = "Skipping tactic 13 due to insufficient memory on requested size of 4229 detected for tactic 0x74."
SCALE = "Missing scale and zero-point for tensor {}, expect fall back to non-int8 implementation for any layer"
INT64 = "onnx2trt_utils.cpp:374: Your ONNX model has been generated with INT64 weights, while TensorRT does not"


def test_warnings_are_counted_and_said_once() -> None:
    texts = [
        *(TACTIC.format(mb) for mb in (4229, 4226)),
        *[SKIPPED] * 2,
        *(SCALE.format(name) for name in ("a: b", "c", "c")),
        INT64,
        "Using an engine plan file across different models of devices is not recommended.",
        "Detected invalid timing cache, setup a local cache instead",
        *["Converting conv scales"] * 50,
    ]
    slower = "the engine may be slower than it could be"
    assert log_diagnosis.notes([LogLine("WARNING", text) for text in texts]) == [
        f"TensorRT skipped 2 kernels for lack of memory (largest 4229 MB, 2658 MB free): {slower}",
        "2 tensors have no scale, so the layers at them stay in float: a: b, c",
        "TensorRT reads the model's INT64 constants as INT32",
        "TensorRT: Using an engine plan file across different models of devices is not recommended.",
        "TensorRT: Converting conv scales (50 times)",
    ]


def test_the_least_free_memory_of_skipped_kernels_counts() -> None:
    texts = [f"Tactic Device request: {mb}MB Available: {free}MB." for mb, free in ((900, 300), (500, 200), (600, 400))]
    (note,) = log_diagnosis.notes([LogLine("WARNING", text) for text in texts])
    assert "(largest 900 MB, 200 MB free)" in note


def test_many_kinds_of_warnings_are_cut() -> None:
    found = log_diagnosis.notes([LogLine("WARNING", f"kind {index}") for index in range(30)])
    assert len(found) == 8
    assert found[-1] == "and 23 more kinds of warnings from TensorRT"


def test_cancelled() -> None:
    assert log_diagnosis.cancelled([LogLine("ERROR", "Error Code 7: BuildCanceled (Build canceled by user In next)")])
    assert not log_diagnosis.cancelled([LogLine("ERROR", "out of memory")])
