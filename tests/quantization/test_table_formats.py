from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge.errors import ArtifactError
from edge.events import Note
from edge.quantization import table_formats
from edge.quantization.calibration_table import Table, TableHeader, TrtVersion, from_ranges, parse, to_bits, write

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "calibration_tables"
REAL_TABLES = sorted(REAL.glob("*.cache"))
V10 = TrtVersion(10, 3, 0)
TABLE = parse(
    "TRT-100300-MinMaxCalibration\nimages: 3c008912\ninput_tensor:0: 3f955011\n"
    "(Unnamed Layer* 3) [Constant]_output: 3b6e5611\n卷积: 3c123457\nzero: 00000000\ntiny: 00000123\n".encode()
)


# onnxruntime's files


def test_json_and_back_is_the_same_table() -> None:
    assert table_formats.from_ort_json(table_formats.to_ort_json(TABLE)) == TABLE


@pytest.mark.skipif(not REAL_TABLES, reason="the real tables are not next to this repository")
@pytest.mark.parametrize("path", REAL_TABLES, ids=lambda path: path.stem)
def test_real_tables_through_json(path: Path) -> None:
    table = parse(path.read_bytes())
    assert write(table_formats.from_ort_json(table_formats.to_ort_json(table))) == write(table)


def test_onnxruntime_loads_our_json(tmp_path: Path) -> None:
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    path = tmp_path / "calibration.json"
    path.write_bytes(table_formats.to_ort_json(TABLE))
    loaded = calibrate.load_tensors_data(path)
    assert loaded.calibration_method is calibrate.CalibrationMethod.MinMax
    assert list(loaded.keys()) == TABLE.names
    for name in TABLE.names:
        low, high = loaded[name].range_value
        assert high == np.float32(TABLE.range(name))
        assert low == -high


@pytest.fixture
def ort_files(tmp_path: Path) -> Path:
    """Folder with the files that onnxruntime itself writes."""
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    from onnxruntime.quantization.quant_utils import write_calibration_table

    def tensor(low: float, high: float) -> object:
        return calibrate.TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))

    tensors = {"b/relu": tensor(0.0, 6.0), "a:0": tensor(-2.5, 2.0), "c d": tensor(-0.5, 0.25)}
    write_calibration_table(tensors, str(tmp_path))
    data = calibrate.TensorsData(calibrate.CalibrationMethod.Percentile, tensors)
    calibrate.save_tensors_data(data, tmp_path / "saved.json")
    return tmp_path


@pytest.mark.parametrize("name", ["calibration.json", "saved.json"])
def test_onnxruntimes_own_json_gives_the_largest_magnitudes(ort_files: Path, name: str) -> None:
    table = table_formats.from_ort_json((ort_files / name).read_bytes(), version=V10)
    assert table == from_ranges({"b/relu": 6.0, "a:0": 2.5, "c d": 0.5}, algorithm="entropy2", trt_version=V10)


def test_onnxruntimes_own_cache_is_refused_with_the_reason(ort_files: Path) -> None:
    with pytest.raises(ArtifactError, match=r"onnxruntime's calibration\.cache"):
        parse((ort_files / "calibration.cache").read_bytes())


def test_the_older_json_of_pairs() -> None:
    data = json.dumps({"x": [-1.0, 0.5], "y": [-0.5, 3.0, [1, 2], 2]}).encode()
    table = table_formats.from_ort_json(data, version=V10, algorithm="minmax")
    assert table == from_ranges({"x": 1.0, "y": 3.0}, algorithm="minmax", trt_version=V10)


@pytest.mark.parametrize(
    ("version", "algorithm", "header"),
    [
        (None, None, "TRT-100300-MinMaxCalibration"),
        ("8.6.2", None, "TRT-8602-MinMaxCalibration"),
        (None, "entropy2", "TRT-100300-EntropyCalibration2"),
    ],
)
def test_the_header_in_our_json(version: str | None, algorithm: str | None, header: str) -> None:
    wanted = TrtVersion.parse(version) if version else None
    table = table_formats.from_ort_json(table_formats.to_ort_json(TABLE), version=wanted, algorithm=algorithm)  # type: ignore[arg-type]
    assert table.header == TableHeader.parse(header)


def test_a_file_without_header_needs_a_version() -> None:
    with pytest.raises(ArtifactError, match="the TensorRT version") as caught:
        table_formats.from_ort_json(b'{"x": [-1.0, 0.5]}', version=None)
    assert "--trt" in (caught.value.hint or "")


@pytest.mark.parametrize("bits", [0x7F800000, 0x7FC00000, 0xBC010204, 0x80000000])
def test_a_scale_that_is_no_range_stays_where_it_is(bits: int) -> None:
    with pytest.raises(ArtifactError, match="mask"):
        table_formats.to_ort_json(Table(TABLE.header, {"a": 0x3C010204, "mask": bits}))


BAD_JSON = {
    "empty": (b"", "not JSON"),
    "truncated": (b'{"x": [1.0', "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "not-utf-8": (b'{"\xff": [0, 1]}', "not JSON"),
    "list": (b"[1, 2]", "no tensors"),
    "no-tensors": (b"{}", "no tensors"),
    "number": (b'{"x": 1.0}', "no single lowest and highest"),
    "one-end": (b'{"x": {"highest": 1.0}}', "no single lowest and highest"),
    "text": (b'{"x": ["0", "1"]}', "no single lowest and highest"),
    "true": (b'{"x": [false, true]}', "no single lowest and highest"),
    "per-channel": (b'{"x": {"lowest": {"data": [-1, -2]}, "highest": {"data": [1, 2]}}}', "no single"),
    "nan": (b'{"x": [NaN, 1.0]}', "finite"),
    "nan-behind": (b'{"x": [1.0, NaN]}', "finite"),
    "infinity": (b'{"x": [-Infinity, 1.0]}', "finite"),
    "huge": (b'{"x": [0, 1' + b"0" * 400 + b"]}", "finite"),
    "twice": (b'{"x": [0, 1], "x": [0, 2]}', "x: duplicate key"),
    "newline-in-name": (b'{"x\\ny": [0, 1]}', "control character"),
    "no-name": (b'{"": [0, 1]}', "has no name"),
    "surrogate": (b'{"\\ud800": [0, 1]}', "not valid Unicode"),
    "bad-header": (b'{"CLS": "TensorsData", "data": {"x": [0, 1]}, "tensorrt_header": "hello"}', "not the header"),
}


@pytest.mark.parametrize(("data", "words"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_bad_json(data: bytes, words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        table_formats.from_ort_json(data, version=None if words == "not the header" else V10, where="c.json")
    assert words in caught.value.what
    assert str(caught.value.where).startswith("c.json")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=3),
        lambda x: (
            st.lists(x) | st.dictionaries(st.sampled_from(["CLS", "data", "lowest", "highest", "TensorsData", "x"]), x)
        ),
    )
)
def test_any_json_is_a_table_or_an_error(content: object) -> None:
    for value in (content, {"x": content}, {"CLS": "TensorsData", "data": content, "calibration_method": content}):
        try:
            table_formats.from_ort_json(json.dumps(value).encode(), version=V10)
        except ArtifactError:
            continue


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@given(st.dictionaries(names, st.integers(0, 0x7F7FFFFF), min_size=1, max_size=10))
def test_every_finite_scale_survives_json(bits: dict[str, int]) -> None:
    table = Table(TableHeader.make("entropy2", V10), bits)
    assert write(table_formats.from_ort_json(table_formats.to_ort_json(table))) == write(table)


# Q/DQ ONNX


def quantizer(
    name: str, source: str, *, scale: object = 0.5, zero: object = None, scale_name: str | None = None
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Q and DQ nodes around ``source``; the DQ output is ``<name>_dq``."""
    zero = np.int8(0) if zero is None else zero
    tensors = [
        numpy_helper.from_array(np.asarray(scale, np.float32), f"{name}_scale"),
        numpy_helper.from_array(np.asarray(zero), f"{name}_zero"),
    ]
    inputs = [scale_name or f"{name}_scale", f"{name}_zero"]
    nodes = [
        helper.make_node("QuantizeLinear", [source, *inputs], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", *inputs], [f"{name}_dq"]),
    ]
    return nodes, tensors


def model_of(nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], output: str) -> onnx.ModelProto:
    shape = ["n", 3, 8, 8]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_scales_of_activations_are_read_and_those_of_weights_are_not() -> None:
    nodes, tensors = quantizer("x1", "x", scale=0.25)
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    w_nodes, w_tensors = quantizer("w", "w", scale=[0.1] * 4, zero=np.zeros(4, np.int8))
    again, more = quantizer("again", "x", scale=0.25)
    y_nodes, y_tensors = quantizer("y", "relu", scale=[0.75], zero=np.uint8(128))
    body = [
        helper.make_node("Conv", ["x1_dq", "w_dq"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Add", ["y_dq", "again_dq"], ["out"]),
    ]
    model = model_of(
        [*nodes, *w_nodes, *again, *body[:2], *y_nodes, body[2]],
        [weight, *tensors, *w_tensors, *more, *y_tensors],
        "out",
    )
    table = table_formats.from_qdq(model, version=V10)
    assert table.bits == {"x": to_bits(0.25), "relu": to_bits(0.75)}
    assert table.header.text == "TRT-100300-EntropyCalibration2"
    assert table_formats.from_qdq(model, version=V10, algorithm="minmax").header.algorithm == "minmax"


def test_scale_in_a_constant_node_and_weights_behind_a_transpose() -> None:
    nodes, tensors = quantizer("x1", "x", scale_name="k")
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.array(0.5, np.float32), "v"))
    weight = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    w_nodes, w_tensors = quantizer("w", "wt", scale=[0.1] * 4, zero=np.zeros(4, np.int8))
    turned = helper.make_node("Transpose", ["w"], ["wt"])
    out = helper.make_node("MatMul", ["x1_dq", "w_dq"], ["out"])
    model = model_of([constant, turned, *nodes, *w_nodes, out], [weight, *tensors, *w_tensors], "out")
    assert table_formats.from_qdq(model, version=V10).bits == {"x": to_bits(0.5)}


def test_a_quantized_graph_output_has_the_outputs_name() -> None:
    nodes, tensors = quantizer("y", "y_renamed", scale=0.5)
    nodes[1].output[0] = "y"
    model = model_of([helper.make_node("Relu", ["x"], ["y_renamed"]), *nodes], tensors, "y")
    assert table_formats.from_qdq(model, version=V10).bits == {"y": to_bits(0.5)}


def test_a_tensor_quantized_again_behind_its_dq_is_the_same_tensor() -> None:
    first, tensors = quantizer("a", "x", scale=0.5)
    second, more = quantizer("b", "a_dq", scale=0.5)
    model = model_of([*first, *second, helper.make_node("Relu", ["b_dq"], ["out"])], [*tensors, *more], "out")
    assert table_formats.from_qdq(model, version=V10).bits == {"x": to_bits(0.5)}


BAD_QDQ: dict[str, tuple[dict[str, object], str]] = {
    "per-channel": ({"scale": [0.1, 0.2, 0.3], "zero": np.zeros(3, np.int8)}, "3 scales"),
    "asymmetric": ({"zero": np.int8(5)}, "symmetric"),
    "unsigned": ({"zero": np.uint8(0)}, "symmetric"),
    "int16": ({"zero": np.int16(0)}, "symmetric"),
    "computed-scale": ({"scale_name": "x"}, "not a constant"),
    "zero": ({"scale": 0.0}, "zero"),
    "negative": ({"scale": -1.0}, "negative"),
    "infinite": ({"scale": float("inf")}, "infinite"),
    "nan": ({"scale": float("nan")}, "nan"),
}


@pytest.mark.parametrize(("options", "words"), BAD_QDQ.values(), ids=BAD_QDQ.keys())
def test_bad_qdq(options: dict[str, object], words: str) -> None:
    nodes, tensors = quantizer("x1", "x", **options)  # type: ignore[arg-type]
    model = model_of([*nodes, helper.make_node("Relu", ["x1_dq"], ["out"])], tensors, "out")
    with pytest.raises(ArtifactError, match=words) as caught:
        table_formats.from_qdq(model, version=V10, where="m.onnx")
    assert caught.value.where == "m.onnx"


def test_two_scales_for_one_tensor() -> None:
    first, tensors = quantizer("a", "x", scale=0.5)
    second, more = quantizer("b", "x", scale=0.25)
    out = helper.make_node("Add", ["a_dq", "b_dq"], ["out"])
    with pytest.raises(ArtifactError, match=r"x: quantized with two scales, 0\.5 and 0\.25"):
        table_formats.from_qdq(model_of([*first, *second, out], [*tensors, *more], "out"), version=V10)


def test_a_model_without_qdq() -> None:
    with pytest.raises(ArtifactError, match="not a Q/DQ model"):
        table_formats.from_qdq(model_of([helper.make_node("Relu", ["x"], ["out"])], [], "out"), version=V10)


def float_model() -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    tensors = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in (("w1", (4, 3, 3, 3)), ("b1", (4,)), ("w2", (5, 4, 1, 1)), ("b2", (5,)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["out"], name="conv2"),
    ]
    return model_of(nodes, tensors, "out")


QDQ_TABLE = from_ranges(
    {"x": 2.5, "c1": 9.0, "r1": 8.5, "out": 11.0, "w1_output": 3.0}, algorithm="minmax", trt_version=TrtVersion(8, 6, 2)
)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_qdq_and_back_is_the_same_table(target: str) -> None:
    pytest.importorskip("onnxruntime")
    heard: list[object] = []
    data = table_formats.to_qdq(QDQ_TABLE, float_model(), target=target, listen=heard.append)  # type: ignore[arg-type]
    made = onnx.load_model_from_string(data)
    assert any(node.op_type == "QuantizeLinear" for node in made.graph.node)
    assert heard == [Note("2 of 2 layers with weights are quantized")]
    assert write(table_formats.from_qdq(made)) == write(QDQ_TABLE)


def test_a_changed_qdq_graph_is_read_and_not_its_metadata() -> None:
    pytest.importorskip("onnxruntime")
    made = onnx.load_model_from_string(table_formats.to_qdq(QDQ_TABLE, float_model(), target="tensorrt"))
    first = next(node for node in made.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    scale = next(item for item in made.graph.initializer if item.name == first.input[1])
    assert numpy_helper.to_array(scale) == np.float32(QDQ_TABLE.scale("x"))
    scale.CopyFrom(numpy_helper.from_array(np.array(0.125, np.float32), scale.name))
    with pytest.raises(ArtifactError, match="the TensorRT version"):
        table_formats.from_qdq(made)
    table = table_formats.from_qdq(made, version=V10)
    assert table.bits == {"x": to_bits(0.125), "r1": QDQ_TABLE.bits["r1"]}


def test_the_nodes_of_a_qdq_model_carry_the_tables_scales_to_the_bit() -> None:
    pytest.importorskip("onnxruntime")
    made = onnx.load_model_from_string(table_formats.to_qdq(QDQ_TABLE, float_model(), target="tensorrt"))
    del made.metadata_props[:]
    table = table_formats.from_qdq(made, version=V10)
    assert table.bits == {name: QDQ_TABLE.bits[name] for name in ("x", "r1")}


def test_a_table_for_another_model_makes_no_qdq() -> None:
    pytest.importorskip("onnxruntime")
    other = from_ranges({"y": 1.0}, algorithm="entropy2", trt_version=V10)
    with pytest.raises(ArtifactError, match="no scales for any layer of the model"):
        table_formats.to_qdq(other, float_model(), target="tensorrt")
