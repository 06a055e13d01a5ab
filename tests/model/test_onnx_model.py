"""ONNX files: what is taken, what is refused and with which words, and when two models are the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.config import profiles
from edge.errors import ModelError
from edge.model import onnx_model

TENSORS = ["input", "c1", "r1", "c2", "r2", "c3", "sum", "pool", "gap", "flat", "logits"]

Make = Callable[..., Path]


def refused(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        onnx_model.load(path)
    assert caught.value.where == str(path)
    assert caught.value.hint or "needed" in caught.value.what or "must be" in caught.value.what
    return caught.value


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], *constants: Any, opset: int = 17) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def floats(name: str, *shape: int | str | None) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def edited(path: Path, change: Callable[[Any], Any]) -> Path:
    proto = onnx.load(path)
    change(proto)
    onnx.save(proto, path)
    return path


# what is taken


def test_a_classifier(tiny_model: Make) -> None:
    path = tiny_model()
    found = onnx_model.load(path)
    assert (found.path, found.opset, found.classes, found.fixed_batch) == (path, 17, 10, None)
    assert str(found.input) == "input float32 [n, 3, 32, 32]"
    assert str(found.output) == "logits float32 [n, 10]"
    assert found.activations == TENSORS
    assert found.sha256 == onnx_model.fingerprint(path)


@pytest.mark.parametrize(
    ("variant", "tensors"),
    [
        ({"opset": 11}, TENSORS),
        ({"named": False}, TENSORS),
        ({"concat": True}, [*TENSORS[:7], "cat", *TENSORS[7:]]),
        ({"downsample": True}, [*TENSORS[:6], "c4", *TENSORS[6:]]),
        ({"nan": True}, ["input", "front", *TENSORS[1:]]),
        ({"external": True}, TENSORS),
        ({"batch": 4}, TENSORS),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_variants_that_are_taken(tiny_model: Make, variant: dict[str, Any], tensors: list[str]) -> None:
    found = onnx_model.load(tiny_model(**variant))
    assert found.activations == tensors
    assert found.opset == variant.get("opset", 17)
    assert found.fixed_batch == variant.get("batch")


def test_constants_that_are_listed_as_inputs_are_no_inputs(tiny_model: Make) -> None:
    """Exporters before IR version 4 list every initializer among the inputs."""
    path = edited(tiny_model(), lambda proto: proto.graph.input.append(floats("b1", 8)))
    assert onnx_model.load(path).input.name == "input"


def test_height_and_width_may_be_open(tiny_model: Make) -> None:
    def change(proto: Any) -> None:
        for axis in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
            axis.Clear()

    assert onnx_model.load(edited(tiny_model(), change)).input.shape == ("n", 3, None, None)


def test_the_opset_of_another_domain_does_not_count(tiny_model: Make) -> None:
    path = edited(tiny_model(), lambda proto: proto.opset_import.insert(0, helper.make_opsetid("ai.onnx.ml", 3)))
    assert onnx_model.load(path).opset == 17


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
def test_activations_are_the_floats_that_depend_on_the_input(tmp_path: Path, opset: int) -> None:
    """PyTorch's ``x.view(x.size(0), -1)``: integers that depend on the input, and, before opset 13, operators whose
    axes are attributes. A constant that is computed from constants is none either."""
    axes = {"axes": [0]} if opset < 13 else {}
    nodes = [
        helper.make_node("Identity", ["w"], ["w2"]),
        helper.make_node("Conv", ["x", "w2"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Shape", ["p"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n"] if axes else ["n", "first"], ["u"], **axes),
        helper.make_node("Concat", ["u", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["p", "shape"], ["f"]),
        helper.make_node("Greater", ["f", "w3"], ["mask"]),
        helper.make_node("Where", ["mask", "f", "w3"], ["out"]),
    ]
    constants = {
        "w": np.ones((4, 3, 3, 3), np.float32), "w3": np.float32(0.5), "zero": np.array(0), "rest": np.array([-1]),
        "first": np.array([0]),
    }  # fmt: skip
    used = {name for node in nodes for name in node.input}
    path = save(
        tmp_path / "m.onnx", nodes, [floats("x", "n", 3, 8, 8)], [floats("out", "n", 4)],
        *(numpy_helper.from_array(value, name) for name, value in constants.items() if name in used), opset=opset,
    )  # fmt: skip
    assert onnx_model.load(path).activations == ["x", "c", "p", "f", "out"]


# what is refused


@pytest.mark.parametrize(
    ("variant", "what"),
    [
        ({"inputs": 2}, "a classifier must have one input, but this model has 2 (input, other)"),
        ({"layout": "chw"}, "the input input 3×32×32 has no batch axis"),
    ],
    ids=["two-inputs", "no-batch"],
)
def test_networks_that_are_no_classifier_of_pictures(tiny_model: Make, variant: dict[str, Any], what: str) -> None:
    assert refused(tiny_model(**variant)).what == what


@pytest.mark.parametrize(
    ("kind", "shape", "word"),
    [
        (TensorProto.FLOAT, ["n", 5, 32, 32], "is n×5×32×32, but images have 3 channels or 1"),
        (TensorProto.FLOAT, ["n", 3, 8, 8, 8], "is not a batch of images"),
        (TensorProto.FLOAT, ["n", "c", 8, 8], "is n×c×8×8, but images have 3 channels or 1"),
        (TensorProto.FLOAT, [], "of unknown shape is not a batch of images"),
        (TensorProto.INT8, ["n", 3, 32, 32], "the input x is int8"),
        (TensorProto.STRING, ["n"], "the input x is string"),
    ],
    ids=["five-channels", "video", "open-channels", "scalar", "int8", "text"],
)
def test_inputs_that_are_no_pictures(tmp_path: Path, kind: int, shape: list[Any], word: str) -> None:
    value = helper.make_tensor_value_info("x", kind, shape)
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT)]
    exc = refused(save(tmp_path / "m.onnx", nodes, [value], [floats("y", None)]))
    assert word in exc.what


@pytest.mark.parametrize(
    ("nodes", "output"),
    [
        ([helper.make_node("ArgMax", ["x"], ["y"], axis=1)],
         helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 1, 8, 8])),
        ([helper.make_node("Relu", ["x"], ["y"])], floats("y", "n", 3, 8, 8)),
        ([helper.make_node("SequenceConstruct", ["x"], ["y"])],
         helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)),
    ],
    ids=["argmax", "segmentation", "sequence"],
)  # fmt: skip
def test_outputs_that_are_no_logits(tmp_path: Path, nodes: list[Any], output: Any) -> None:
    exc = refused(save(tmp_path / "m.onnx", nodes, [floats("x", "n", 3, 8, 8)], [output]))
    assert exc.what.startswith("the output must be float32 N×classes, but it is y")


@pytest.mark.parametrize("classes", [0, 1, 100_000])
def test_no_class_is_refused_and_any_other_number_taken(tmp_path: Path, classes: int) -> None:
    weight = numpy_helper.from_array(np.zeros((12, classes), np.float32), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, [floats("x", "n", 3, 2, 2)], [floats("y", "n", classes)], weight)
    if classes:
        assert onnx_model.load(path).classes == classes
    else:
        assert "has no classes" in refused(path).what


def test_two_outputs_are_named(tiny_model: Make) -> None:
    path = edited(tiny_model(), lambda proto: proto.graph.output.append(floats("flat", "n", 8)))
    exc = refused(path)
    assert exc.what == "the model has 2 outputs: logits, flat"
    assert exc.hint == "output_name: logits in the profile, or edge init --output-name logits"


# what is no model


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"\0" * 100,
        b"{}",
        b"PK\x03\x04" + b"\0" * 60,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 18547464\n",
        b"<html><body>404: Not Found</body></html>",
        b"\xff" * 1000,
    ],
    ids=["byte", "zeros", "json", "zip", "lfs-pointer", "html", "ones"],
)
def test_files_that_are_no_model(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert refused(path).what.startswith("not a valid ONNX model: ")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    assert refused(tmp_path / "m.onnx").what == "the file is empty"


@pytest.mark.parametrize(
    "act", [onnx_model.load, onnx_model.read, onnx_model.fingerprint], ids=lambda act: act.__name__
)
@pytest.mark.parametrize("kind", ["missing", "folder", "dangling-link"])
def test_no_such_file(tmp_path: Path, kind: str, act: Callable[[Path], Any]) -> None:
    path = tmp_path / "m.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling-link":
        path.symlink_to("nowhere")
    with pytest.raises(ModelError, match="the model file does not exist") as caught:
        act(path)
    assert caught.value.where == str(path)


def test_a_model_cut_off_anywhere_is_refused(tiny_model: Make) -> None:
    path = tiny_model()
    data = path.read_bytes()
    for size in range(1, len(data), 131):
        path.write_bytes(data[:size])
        refused(path)


def test_a_flipped_bit_never_gives_a_traceback(tiny_model: Make) -> None:
    """Most flips are in weights and make another model, which is fine; the rest must be refused in our own words."""
    path = tiny_model()
    data = path.read_bytes()
    chosen = random.Random(5)
    refusals = 0
    for _ in range(300):
        flipped = bytearray(data)
        flipped[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        path.write_bytes(flipped)
        try:
            onnx_model.load(path)
        except ModelError:
            refusals += 1
    assert 10 < refusals < 290


def test_a_model_that_onnx_finds_wrong(tiny_model: Make) -> None:
    path = edited(tiny_model(), lambda proto: proto.graph.node.pop(3))
    assert "Nodes in a graph must be topologically sorted" in refused(path).what


def test_an_operator_that_does_not_exist(tiny_model: Make) -> None:
    def change(proto: Any) -> None:
        proto.graph.node[3].op_type = "Relux"

    assert "Relux" in refused(edited(tiny_model(), change)).what


def test_shapes_that_contradict_each_other_never_give_a_traceback(tiny_model: Make) -> None:
    def change(proto: Any) -> None:
        del proto.graph.node[0].input[1:]

    refused(edited(tiny_model(), change))


# the same model


def test_the_fingerprint_is_the_digest_of_the_file(tiny_model: Make, tmp_path: Path) -> None:
    import hashlib

    path = tiny_model()
    assert onnx_model.fingerprint(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "sub").mkdir()
    copied = tmp_path / "sub" / "other-name.onnx"
    copied.write_bytes(path.read_bytes())
    assert onnx_model.fingerprint(copied) == onnx_model.fingerprint(path)
    assert onnx_model.fingerprint(tiny_model("b.onnx", seed=1)) != onnx_model.fingerprint(path)


def test_the_fingerprint_covers_external_weights(tiny_model: Make, tmp_path: Path) -> None:
    path = tiny_model(external=True)
    weights = tmp_path / "model.onnx.weights"
    before = onnx_model.fingerprint(path)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert onnx_model.fingerprint(path) != before
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert onnx_model.fingerprint(path) == before


def test_the_fingerprint_covers_external_weights_in_attributes(tiny_model: Make, tmp_path: Path) -> None:
    def change(proto: Any) -> None:
        weights = {item.name: item for item in proto.graph.initializer}
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], value=weights["w1"], name="constant"))
        kept = [item for item in proto.graph.initializer if item.name != "w1"]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)

    proto = onnx.load(edited(tiny_model(), change))
    path = tmp_path / "attributes.onnx"
    onnx.save(
        proto, path, save_as_external_data=True, location="a.weights", size_threshold=0, convert_attribute=True
    )  # fmt: skip
    del onnx.load(path, load_external_data=False).graph.initializer[:]
    only_attributes = onnx.load(path, load_external_data=False)
    before = onnx_model.fingerprint(path)
    assert any(item.external_data for node in only_attributes.graph.node for item in [a.t for a in node.attribute])
    data = bytearray((tmp_path / "a.weights").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a.weights").write_bytes(data)
    assert onnx_model.fingerprint(path) != before


def test_weights_that_are_missing_are_named(tiny_model: Make, tmp_path: Path) -> None:
    path = tiny_model(external=True)
    (tmp_path / "model.onnx.weights").unlink()
    with pytest.raises(ModelError) as caught:
        onnx_model.fingerprint(path)
    assert caught.value.what == "its weight file model.onnx.weights is missing"
    refused(path)


def test_weights_that_are_too_short_are_refused(tiny_model: Make, tmp_path: Path) -> None:
    path = tiny_model(external=True)
    weights = tmp_path / "model.onnx.weights"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(path)


@pytest.mark.parametrize("shift", range(-9, 2))
def test_external_weights_are_noticed_wherever_the_word_stands(tiny_model: Make, tmp_path: Path, shift: int) -> None:
    """The file is searched in pieces of 4 MiB: the word may lie across the border of two."""
    piece = 1 << 22
    plain = tiny_model(external=True)
    proto = onnx.load(plain, load_external_data=False)
    proto.doc_string = ""
    proto.doc_string = "x" * (piece + shift - proto.SerializeToString().index(b"location") - 5)
    path = tmp_path / "padded.onnx"
    data = proto.SerializeToString()
    path.write_bytes(data)
    assert abs(data.index(b"location") - piece) < 20
    before = onnx_model.fingerprint(path)
    (tmp_path / "model.onnx.weights").write_bytes(b"other")
    assert onnx_model.fingerprint(path) != before


def test_a_name_that_sounds_like_external_weights_is_none(tiny_model: Make) -> None:
    def change(proto: Any) -> None:
        proto.graph.node[0].name = "location"

    assert onnx_model.load(edited(tiny_model(), change)).classes == 10


def test_a_file_that_changed_is_read_again(tiny_model: Make) -> None:
    path = tiny_model()
    first = onnx_model.load(path)
    tiny_model(seed=1, concat=True)
    second = onnx_model.load(path)
    assert first.sha256 != second.sha256
    assert "cat" in second.activations


# does it fit


BATCH = {"min": 1, "opt": 1, "max": 8}


@pytest.mark.parametrize(
    ("variant", "override", "what"),
    [
        ({}, {}, None),
        ({"batch": 4}, {"batch": {"min": 4, "opt": 4, "max": 4}}, None),
        ({}, {"height": 36}, "takes images of height 32, but the profile says 36"),
        ({}, {"width": 24}, "takes images of width 32, but the profile says 24"),
        ({"batch": 4}, {"batch": BATCH}, "takes batches of exactly 4, but the profile requests 1 to 8"),
        ({"batch": 1}, {"batch": BATCH}, "takes batches of exactly 1, but the profile requests 1 to 8"),
    ],
    ids=["fits", "fits-fixed", "height", "width", "batch-4", "batch-1"],
)
def test_check_fits(
    tiny_model: Make, tiny_profile: Make, tmp_path: Path, variant: dict[str, Any], override: dict[str, Any],
    what: str | None,
) -> None:  # fmt: skip
    found = onnx_model.load(tiny_model(**variant))
    settings = profiles.read_profile(tiny_profile(tmp_path, input=override))
    if what is None:
        onnx_model.check_fits(found, settings)
        return
    with pytest.raises(ModelError) as caught:
        onnx_model.check_fits(found, settings)
    assert caught.value.what == what
    assert caught.value.hint is not None
    assert "input." in caught.value.hint


def test_open_height_and_width_fit_any_profile(tiny_model: Make, tiny_profile: Make, tmp_path: Path) -> None:
    def change(proto: Any) -> None:
        for axis in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
            axis.Clear()

    found = onnx_model.load(edited(tiny_model(), change))
    onnx_model.check_fits(found, profiles.read_profile(tiny_profile(tmp_path, input={"height": 36, "width": 20})))
