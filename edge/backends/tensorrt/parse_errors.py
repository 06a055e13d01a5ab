"""Explain a model that TensorRT's ONNX parser refuses: node, operator, reason, and what to try, for each of its errors.

Reasons come as C++ assertions. The words here are for those of NVIDIA's parser (onnx-tensorrt: onnxOpCheckers.cpp,
onnxOpImporters.cpp); others are shown as they are. TensorRT 8.6 gives only a node's number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from edge.backends.tensorrt.caps import Caps
from edge.errors import ModelError

_MOST = 12
_REPLACE = "replace it in the exporter by operators that TensorRT has, or cut it off and compute it outside"
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
    """One thing that the parser cannot do. ``node`` and ``operator`` are None where the whole file is meant."""

    node: str | None
    operator: str | None
    reason: str
    attempt: str

    def __str__(self) -> str:
        at = "" if self.operator is None else f"{self.operator}{f' ({self.node})' if self.node else ''}: "
        return f"{at}{self.reason}"


def problems(parser: Any, caps: Caps, nodes: Callable[[], Sequence[tuple[str, str]]]) -> list[Problem]:  # noqa: ANN401
    """All errors of a parser, in its order.

    Args:
        parser: the OnnxParser whose ``parse`` returned False.
        caps: what the binding offers.
        nodes: gives name and operator of the model's nodes; asked only where the binding has just a number.
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


def as_error(found: Sequence[Problem], *, where: str) -> ModelError:
    """One error that lists the problems: each with what to try, or all with the one thing that helps them all."""
    if not found:
        return ModelError("TensorRT cannot parse the model and does not say why", where=where, hint="export it again")
    together = len({problem.attempt for problem in found}) == 1
    lines = [f"{problem}" if together else f"{problem}; try: {problem.attempt}" for problem in found[:_MOST]]
    if len(found) > _MOST:
        lines.append(f"and {len(found) - _MOST} more")
    what = "TensorRT cannot take this model:" + "".join(f"\n  {line}" for line in lines)
    return ModelError(what, where=where, hint=found[0].attempt if together else None)


def _problem(description: str, code: str, node: str | None, operator: str | None) -> Problem:
    reason, attempt = _words(description, code)
    return Problem(node=node, operator=operator, reason=reason, attempt=attempt)


def _words(description: str, code: str) -> tuple[str, str]:
    """Reason and what to try."""
    text = re.sub(r"\s+", " ", description).strip()
    if "Plugin not found" in text or "No importer registered" in text:
        return "TensorRT has no such operator, and no plugin brings it", _REPLACE
    if code == "UNSUPPORTED_NODE" and text in {"false", ""}:
        return "TensorRT has no such operator", _REPLACE
    if "Failed to parse the ONNX model" in text or code == "MODEL_DESERIALIZE_FAILED":
        return "the file cannot be read as ONNX: it is cut off, changed, or above 2 GB in one piece", "export it again"
    if weights := re.search(r"Failed to import initializer: (?!In node)(\S+)", text):
        return f"the weights {weights[1]} cannot be read", "copy the model's weight files next to it"
    reason = _message(text)
    for pattern, attempt in _HINTS:
        if re.search(pattern, text):
            return reason, attempt
    return reason, _CONSTANT_FOLDED


def _message(text: str) -> str:
    """The text after the asserted expression, or the whole text: ``Assertion failed: (expression): message``."""
    if not text.startswith("Assertion failed: "):
        return text
    rest = text.removeprefix("Assertion failed: ")
    # The expression may hold colons of its own ("std::"), so the last ": " is the one that counts.
    expression, separator, message = rest.rpartition(": ")
    return message if separator and message else (expression or rest)
