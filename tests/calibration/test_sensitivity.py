"""Layers are ranked by the noise that each of them makes alone, and the noise of several adds up."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.backends.onnxruntime import OrtSession
from edge.calibration import collection
from edge.calibration.scoring import LayerNoise, Scorer, predicted_sqnr, rank_layers
from edge.model.graph import weighted_layers
from edge.quantization import calibration_table, qdq
from edge.quantization.calibration_table import TrtVersion

RNG = np.random.default_rng(5)


def network() -> onnx.ModelProto:
    """Three 1×1 convolutions; the values between the second and the third have one outlier channel."""
    weights = {f"w{i}": RNG.normal(0, 0.4, (8, 8 if i else 3, 1, 1)) for i in range(3)}
    weights["w1"][5] *= 200.0
    weights["w2"][:, 5] /= 200.0
    nodes = [
        helper.make_node("Conv", ["input", "w0"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu0"),
        helper.make_node("Conv", ["b", "w1"], ["c"], "second"),
        helper.make_node("Conv", ["c", "w2"], ["d"], "third"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["logits"], "flat"),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def subject() -> tuple[onnx.ModelProto, calibration_table.Table, Scorer]:
    model = network()
    pictures = [RNG.normal(0, 1, (3, 8, 8)).astype(np.float32) for _ in range(12)]
    scorer = Scorer(model, pictures, threads=1)
    session = OrtSession(collection.with_outputs(model, list("abcd")), precision="fp32", threads=1)
    outputs = session.outputs(np.stack(pictures))
    ranges = {"input": 5.0} | {name: float(np.abs(values).max()) for name, values in zip("abcd", outputs, strict=True)}
    return model, calibration_table.from_ranges(ranges, algorithm="minmax", trt_version=TrtVersion(10, 3, 0)), scorer


def test_the_layer_behind_an_outlier_channel_is_the_noisiest(
    subject: tuple[onnx.ModelProto, calibration_table.Table, Scorer],
) -> None:
    model, table, scorer = subject
    heard: list[LayerNoise] = []
    found = rank_layers(
        weighted_layers(model), lambda name: qdq.insert(model, table, target="tensorrt", only=[name]).model, scorer,
        on_layer=heard.append,
    )  # fmt: skip
    assert found[0].layer == "third"
    assert found[0].noise > 10 * found[1].noise
    assert {item.layer for item in heard} == {"first", "second", "third"}


def test_noise_powers_add_up_to_the_measured_noise(
    subject: tuple[onnx.ModelProto, calibration_table.Table, Scorer],
) -> None:
    model, table, scorer = subject
    found = rank_layers(
        weighted_layers(model), lambda name: qdq.insert(model, table, target="tensorrt", only=[name]).model, scorer
    )
    base = scorer.score(qdq.insert(model, table, target="tensorrt").model).db
    without = scorer.score(qdq.insert(model, table, target="tensorrt", float_layers=[found[0].layer]).model).db
    assert predicted_sqnr(found, 0, measured_db=base) == pytest.approx(base)
    assert predicted_sqnr(found, 1, measured_db=base) == pytest.approx(without, abs=3.0)
    assert without > base + 6


def test_known_noise_is_not_measured_again(subject: tuple[onnx.ModelProto, calibration_table.Table, Scorer]) -> None:
    model, _table, scorer = subject

    def refuse(name: str) -> onnx.ModelProto:
        raise AssertionError(name)

    known = {"first": 0.1, "second": 0.3, "third": 0.2}
    found = rank_layers(weighted_layers(model), refuse, scorer, known=known)
    assert [(item.layer, item.noise) for item in found] == [("second", 0.3), ("third", 0.2), ("first", 0.1)]


def test_predictions_by_hand() -> None:
    noises = [LayerNoise(layer=name, op_type="Conv", noise=noise) for name, noise in (("a", 0.009), ("b", 0.001))]
    assert predicted_sqnr(noises, 0, measured_db=20.0) == pytest.approx(20.0)
    assert predicted_sqnr(noises, 1, measured_db=20.0) == pytest.approx(30.0)
    # Of twice the noise of the layers, what is more than 1.25 times it belongs to no layer and stays.
    rest = 0.02 - 1.25 * 0.01
    assert predicted_sqnr(noises, 2, measured_db=10 * np.log10(1 / 0.02)) == pytest.approx(10 * np.log10(1 / rest))
    # Correlated noise that measures half of its sum is scaled.
    assert predicted_sqnr(noises, 1, measured_db=10 * np.log10(1 / 0.005)) == pytest.approx(10 * np.log10(1 / 0.0005))
    # On other pictures the same share of the noise is left.
    assert predicted_sqnr(noises, 1, measured_db=26.0, ranked_db=20.0) == pytest.approx(36.0)
    assert predicted_sqnr([], 0, measured_db=12.0) == 12.0
