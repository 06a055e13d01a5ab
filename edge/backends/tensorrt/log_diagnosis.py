"""Translate TensorRT's log lines: an error for a failed build, a few notes for a successful one.

The patterns are taken from lines that TensorRT 8 to 11 and TensorRT for RTX 1.7 wrote, here or in public reports
(NVIDIA/TensorRT issues 1413, 3355, 3566, 4621; mmdeploy 1059; a table of TensorRT 8 given to 10.3). A line that no
pattern matches is passed on unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from edge.backends.tensorrt.environment import Caps
from edge.backends.tensorrt.log_watch import LogLine, one_line
from edge.errors import ArtifactError, DeviceError, EdgeError, ModelError

_MEMORY = (
    "close other programs (a desktop session uses 1 GB), lower build.workspace_mib, "
    "add a swap file on disk (edge doctor); on a device that ran for days, reboot"
)
_CUDA = "edge doctor; the driver, CUDA and TensorRT must be of one release (on a Jetson: of one JetPack)"


class Rule(msgspec.Struct, frozen=True):
    """A pattern, its meaning (``{0}`` is its first group), a hint, and the class of the error."""

    pattern: str
    what: str
    hint: str
    kind: type[EdgeError] = DeviceError

    def fits(self, text: str) -> bool:
        """Return True if the pattern matches a line of the log."""
        return re.search(self.pattern, text) is not None


# CUDA cannot be initialized: no other line of the log is meaningful then.
CUDA_RULES: tuple[Rule, ...] = (
    Rule(
        r"cudaError 35\b|initialization failure with error:? 35\b|driver version is insufficient",
        "the NVIDIA driver is missing, or older than this TensorRT needs",
        _CUDA,
    ),
    Rule(
        r"cudaError 100\b|initialization failure with error:? 100\b|no CUDA-capable device",
        "there is no NVIDIA GPU, or this process has no access to it",
        "edge doctor; in a container: --runtime nvidia",
    ),
    Rule(
        r"initialization failure with error:? (\d+)|createInfer(?:Builder|Runtime): Error Code 6",
        "CUDA cannot be initialized (error {0})",
        _CUDA,
    ),
)
# The first rule that fits any line decides, so the cause is before its consequences.
RULES: tuple[Rule, ...] = (
    *CUDA_RULES,
    Rule(
        r"(?:Target GPU SM|SM) ?(\d+) is not supported by this TensorRT|Unsupported SM",
        "this TensorRT has no kernels for this GPU (SM {0})",
        "a wheel from PyPI has no kernels for a Jetson: use JetPack's TensorRT (sudo apt install python3-libnvinfer)",
    ),
    Rule(
        r"does not match calibrator algorithm type|invalid calibration cache|calibration (?:cache|table) .*corrupt",
        "TensorRT refuses the calibration table",
        "edge table check",
        ArtifactError,
    ),
    Rule(r"(?i)Calibration failure|no scaling factors detected", "TensorRT's calibration failed", "edge table check"),
    Rule(
        r"(?i)ERROR_ON_TIMING_CACHE_MISS|timing cache (?:miss|has no entry)|not found in (?:the )?timing cache",
        "the timing cache lacks a kernel of this build",
        "build once without --error-on-miss to add the missing kernels",
    ),
    Rule(
        r"(?i)out ?of ?memory|cudaError 2\b|NvMapMemAlloc\w*|failed to allocate|bad_alloc|ran out of",
        "the build ran out of GPU memory",
        _MEMORY,
    ),
    Rule(
        r"(\S+) is not supported on DLA|DLA does not support|not supported on DLA",
        "a layer cannot run on the DLA",
        "set build.gpu_fallback: true, or leave build.dla_core out",
    ),
    Rule(
        r"Could not find any implementation for node (.+?)\.?\)?$",
        "TensorRT found no kernel for {0}",
        f"usually there was too little memory for any of them: {_MEMORY}",
    ),
    Rule(
        r"(?i)no optimization profile|profile dimensions|profile .*is (?:not valid|invalid)|violates",
        "the network does not support the batch range",
        "check input.batch in the profile",
        ModelError,
    ),
)

_TACTIC = re.compile(r"Tactic Device request: (\d+) ?MB Available: (\d+) ?MB")
_SCALE = re.compile(r"Missing scale and zero-point for tensor (.+?), expect fall back")
_INT64 = re.compile(r"generated with INT64 weights|Attempting to cast down to INT32|cast down.*clamped")
# Lines without information: the second line of a skipped tactic, and TensorRT's routine messages.
_NOISE = re.compile(
    r"Skipping tactic|setup a local cache instead|differs from one already registered"
    r"|Calibration Profile is not defined|Try decreasing the workspace size|One or more weights outside the range"
)
_MOST_NOTES = 8


def as_error(errors: Sequence[LogLine], recent: Sequence[LogLine] = (), *, where: str | None = None) -> EdgeError:
    """Make the error for TensorRT's log; ``recent`` are lines of lower severity that may contain the cause."""
    for rule in RULES:
        for line in (*errors, *recent):
            if found := re.search(rule.pattern, line.text):
                groups = [group or "?" for group in found.groups()] or ["?"]
                reported = "" if not errors else f" ({one_line(errors[0].text)})"
                return rule.kind(rule.what.format(*groups) + reported, where=where, hint=rule.hint)
    if errors:
        return DeviceError(f"TensorRT: {one_line(errors[0].text)}", where=where, hint="edge doctor")
    return DeviceError("TensorRT returned neither an engine nor a reason", where=where, hint="edge doctor")


def unscaled(warnings: Sequence[LogLine]) -> list[str]:
    """Return the tensors for which TensorRT missed a scale, in the order of its log."""
    return list(dict.fromkeys(match[1] for line in warnings if (match := _SCALE.search(line.text))))


def notes(warnings: Sequence[LogLine], *, expected: Collection[str] = ()) -> list[str]:
    """Return TensorRT's relevant warnings as one sentence each, with equal ones counted.

    ``expected`` names tensors that have no scale on purpose.
    """
    found = []
    tactics = [match for line in warnings if (match := _TACTIC.search(line.text))]
    if tactics:
        most = max(int(match[1]) for match in tactics)
        least = min(int(match[2]) for match in tactics)
        text = f"TensorRT skipped {len(tactics)} kernels for lack of memory (largest {most} MB, {least} MB free)"
        found.append(f"{text}: the engine may be slower than it could be")
    lost = [name for name in unscaled(warnings) if name not in expected]
    if lost:
        some = ", ".join(lost[:3])
        found.append(f"{len(lost)} tensors have no scale, so the layers at them stay in float: {some}")
    if any(_INT64.search(line.text) for line in warnings):
        found.append("TensorRT reads the model's INT64 constants as INT32")
    rest: dict[str, int] = {}
    for line in warnings:
        if not any(known.search(line.text) for known in (_TACTIC, _SCALE, _INT64, _NOISE)):
            text = one_line(line.text)
            rest[text] = rest.get(text, 0) + 1
    found += [f"TensorRT: {text}{f' ({count} times)' if count > 1 else ''}" for text, count in rest.items()]
    if len(found) > _MOST_NOTES:
        found[_MOST_NOTES - 1 :] = [f"and {len(found) - _MOST_NOTES + 1} more kinds of warnings from TensorRT"]
    return found


def cancelled(errors: Sequence[LogLine]) -> bool:
    """Return True if TensorRT reports that the progress monitor ended the build."""
    return any("BuildCanceled" in line.text or "Build canceled by user" in line.text for line in errors)


_MOST = 12
_REPLACE = "replace it in the exporter by operators that TensorRT supports, or remove it and compute it outside"
_HINTS: tuple[tuple[str, str], ...] = (
    (r"(?i)external|Failed to open file|convertOnnxWeights", "copy the model's weight files next to it"),
    (r"(?i)INT64|out of range|INT32", "export with indices that fit INT32"),
    (r"(?i)double|FLOAT64", "export in float32"),
    (r"(?i)dynamic|shape tensor|build-time constant", "export with fixed sizes; only the batch may be dynamic"),
    (r"(?i)opset|version", "export with opset 17"),
    (r"(?i)UINT8|zero.?point|asymmetric", "quantize symmetrically: int8, zero point 0"),
)
_CONSTANT_FOLDED = "simplify the model (onnxsim folds what is constant), then try again"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One unsupported part of a model. ``node`` and ``operator`` are None if the whole file is meant."""

    node: str | None
    operator: str | None
    reason: str
    attempt: str

    def __str__(self) -> str:
        at = "" if self.operator is None else f"{self.operator}{f' ({self.node})' if self.node else ''}: "
        return f"{at}{self.reason}"


def problems(parser: Any, caps: Caps, nodes: Callable[[], Sequence[tuple[str, str]]]) -> list[Problem]:  # noqa: ANN401
    """Return all errors of a parser, in its order.

    Args:
        parser: the OnnxParser whose ``parse`` returned False.
        caps: capabilities of the binding.
        nodes: returns name and operator of the model's nodes; called only if the binding has just a number.
    """
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        number = error.node()
        node: str | None = None
        operator: str | None = None
        if caps.parser_names:
            node, operator = error.node_name() or None, error.node_operator() or None
        elif number >= 0:
            known = nodes()
            node, operator = known[number] if number < len(known) else (f"node {number}", None)
        if operator is not None and not node:
            node = f"node {number}"
        found.append(_problem(str(error.desc()), error.code().name, node, operator))
    return found


def parser_error(found: Sequence[Problem], *, where: str) -> ModelError:
    """Make one error that lists the problems, each with its hint, or all with a common hint."""
    if not found:
        return ModelError("TensorRT cannot parse the model and does not say why", where=where, hint="export it again")
    together = len({problem.attempt for problem in found}) == 1
    lines = [f"{problem}" if together else f"{problem}; try: {problem.attempt}" for problem in found[:_MOST]]
    if len(found) > _MOST:
        lines.append(f"and {len(found) - _MOST} more")
    what = "TensorRT cannot parse this model:" + "".join(f"\n  {line}" for line in lines)
    return ModelError(what, where=where, hint=found[0].attempt if together else None)


def _problem(description: str, code: str, node: str | None, operator: str | None) -> Problem:
    reason, attempt = _words(description, code)
    return Problem(node=node, operator=operator, reason=reason, attempt=attempt)


def _words(description: str, code: str) -> tuple[str, str]:
    """Return the reason and a hint."""
    text = re.sub(r"\s+", " ", description).strip()
    if "Plugin not found" in text or "No importer registered" in text:
        return "TensorRT has no such operator, and no plugin provides it", _REPLACE
    if code == "UNSUPPORTED_NODE" and text in {"false", ""}:
        return "TensorRT has no such operator", _REPLACE
    if "Failed to parse the ONNX model" in text or code == "MODEL_DESERIALIZE_FAILED":
        return (
            "the file cannot be read as ONNX: it is truncated, changed, or a single file above 2 GB",
            "export it again",
        )
    if weights := re.search(r"Failed to import initializer: (?!In node)(\S+)", text):
        return f"the weights {weights[1]} cannot be read", "copy the model's weight files next to it"
    reason = _message(text)
    for pattern, attempt in _HINTS:
        if re.search(pattern, text):
            return reason, attempt
    return reason, _CONSTANT_FOLDED


def _message(text: str) -> str:
    """Return the text after the asserted expression, or the whole text: ``Assertion failed: (expression): message``."""
    if not text.startswith("Assertion failed: "):
        return text
    rest = text.removeprefix("Assertion failed: ")
    # The expression may contain colons itself ("std::"), so the last ": " is the separator.
    expression, separator, message = rest.rpartition(": ")
    return message if separator and message else (expression or rest)
