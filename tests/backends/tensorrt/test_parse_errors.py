"""Parser errors in words. The descriptions are those of real parsers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edge.backends.tensorrt import log_diagnosis
from edge.errors import ModelError


def parser(*errors: dict[str, Any]) -> Any:
    """What an OnnxParser shows of its errors; without names as in TensorRT 8.6 when they are left out."""
    made = []
    for error in errors:
        methods = {
            "desc": lambda e=error: e["desc"],
            "code": lambda e=error: SimpleNamespace(name=e.get("code", "UNSUPPORTED_NODE")),
            "node": lambda e=error: e.get("node", 0),
        }
        if "name" in error:
            methods |= {"node_name": lambda e=error: e["name"], "node_operator": lambda e=error: e["op"]}
        made.append(SimpleNamespace(**methods))
    return SimpleNamespace(num_errors=len(made), get_error=made.__getitem__)


CAPS: Any = SimpleNamespace(parser_names=True)
OLD: Any = SimpleNamespace(parser_names=False)


@pytest.mark.parametrize(
    ("error", "words", "attempt"),
    [
        pytest.param(
            {"desc": "false", "name": "det1", "op": "Det"}, "Det (det1): TensorRT has no such operator", "replace it",
            id="no such operator",
        ),
        pytest.param(
            {"desc": 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"',
             "code": "INVALID_NODE", "name": "my1", "op": "MyOp"},
            "MyOp (my1): TensorRT has no such operator, and no plugin", "replace it", id="a custom operator",
        ),
        pytest.param(
            {"desc": "Assertion failed: (nchan == -1 || kernelWeights.shape.d[1] * ngroup == nchan): Kernel weight "
                     "dimension failed to broadcast to input.", "code": "INVALID_NODE", "name": "conv", "op": "Conv"},
            "Conv (conv): Kernel weight dimension failed to broadcast to input.", "onnxsim", id="an assertion",
        ),
        pytest.param(
            {"desc": "Assertion failed: (std::all_of(x)): some words: and more", "name": "", "op": "Pad", "node": 7},
            "Pad (node 7): and more", "onnxsim", id="no name, colons inside",
        ),
        pytest.param(
            {"desc": "Assertion failed: model->ParseFromCodedStream(&codedInput): Failed to parse the ONNX model.",
             "code": "MODEL_DESERIALIZE_FAILED", "name": "", "op": "", "node": -1},
            "cannot be read as ONNX", "export it again", id="not ONNX",
        ),
        pytest.param(
            {"desc": "Failed to import initializer: In node -1 with name:  and operator:  (importInitializers): "
                     "UNSUPPORTED_NODE: Assertion failed: convertOnnxWeights(initializer, &weights): "
                     "Failed to import initializer: w", "code": "INVALID_GRAPH", "name": "", "op": "", "node": -1},
            "the weights w cannot be read", "copy the model's weight files", id="external weights are gone",
        ),
        pytest.param(
            {"desc": "Assertion failed: !dynamic: Dynamic axes are not supported", "name": "r", "op": "Resize"},
            "Resize (r): Dynamic axes are not supported", "only the batch may be dynamic", id="a dynamic shape",
        ),
        pytest.param(
            {"desc": "Assertion failed: isInt: INT64 out of range", "name": "g", "op": "Gather"},
            "Gather (g): INT64 out of range", "fit INT32", id="INT64",
        ),
    ],
)  # fmt: skip
def test_reasons(error: dict[str, Any], words: str, attempt: str) -> None:
    (found,) = log_diagnosis.problems(parser(error), CAPS, list)
    assert words in str(found)
    assert attempt in found.attempt


def test_8_6_gives_numbers_and_the_model_the_names() -> None:
    errors = [{"desc": "false", "node": 1}, {"desc": "false", "node": 9}, {"desc": "broken", "node": -1}]
    found = log_diagnosis.problems(parser(*errors), OLD, lambda: [("", "Relu"), ("odd", "Det")])
    assert [(item.node, item.operator) for item in found] == [("odd", "Det"), ("node 9", None), (None, None)]


def test_all_of_them_are_listed_up_to_a_limit() -> None:
    errors = [{"desc": "false", "name": f"n{index}", "op": "Det"} for index in range(20)]
    found = log_diagnosis.parser_error(log_diagnosis.problems(parser(*errors), CAPS, list), where="m.onnx")
    assert isinstance(found, ModelError)
    assert found.where == "m.onnx"
    assert found.what.count("\n") == 13
    assert "n11" in found.what
    assert "n12" not in found.what
    assert "and 8 more" in found.what


def test_what_helps_all_is_said_once_and_what_helps_one_beside_it() -> None:
    det, weights = (
        {"desc": "false", "name": "d", "op": "Det"},
        {"desc": "convertOnnxWeights(x)", "name": "c", "op": "Conv"},
    )
    same = log_diagnosis.parser_error(log_diagnosis.problems(parser(det, det), CAPS, list), where="m.onnx")
    assert "try:" not in same.what
    assert "replace it in the exporter" in str(same.hint)
    mixed = log_diagnosis.parser_error(log_diagnosis.problems(parser(det, weights), CAPS, list), where="m.onnx")
    assert "Det (d): TensorRT has no such operator; try: replace it" in mixed.what
    assert "try: copy the model's weight files next to it" in mixed.what
    assert mixed.hint is None


def test_no_reason() -> None:
    assert "does not say why" in log_diagnosis.parser_error([], where="m.onnx").what


@pytest.mark.parametrize(("number", "node"), [(1, "b"), (2, "node 2"), (3, "node 3")])
def test_a_number_that_no_node_has(number: int, node: str) -> None:
    found = log_diagnosis.problems(
        parser({"desc": "false", "node": number}), OLD, lambda: [("a", "Relu"), ("b", "Conv")]
    )
    assert [problem.node for problem in found] == [node]
