"""Precision that was asked for and not delivered is an error or a warning, by every route of every version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from edge.artifacts import store
from edge.backends.tensorrt.backend import TensorRT
from edge.backends.tensorrt.environment import Caps
from edge.calibration import cache_keys
from edge.config.profiles import Profile
from edge.engines import building, engine_report
from edge.errors import ArtifactError, QualityError
from edge.events import Event, Note
from edge.model import inspection, onnx_model
from edge.quantization import FloatLayer, Recipe, apply, calibration_table
from edge.system.device import Device
from tests.support.tensorrt.installed import table_for

ORIN = Device(is_jetson=True, family="agx-orin", module="p3701-0005", sm="8.7", machine="aarch64")
Bind = Callable[..., Caps]
Tiny = Callable[..., Profile]
# The input of the second convolution, which TensorRT needs a scale for by either route.
LOST = "r1"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., building.BuildOutcome]:
    """``run(profile, leave_out=("r1",))``: the operation, with a table that lacks some tensors."""

    def call(
        profile: Profile, *, leave_out: tuple[str, ...] = (), zero: tuple[str, ...] = (), **options: Any
    ) -> building.BuildOutcome:
        path = cache_keys.table_path(profile, tmp_path / "cache")
        made = table_for(Path(profile.model), leave_out=leave_out)
        made = calibration_table.Table(made.header, {**made.bits, **dict.fromkeys(zero, 0)})
        store.save(
            cache_keys.manifest_path(path), kind=cache_keys.TABLE, files={path.name: calibration_table.write(made)},
            key=cache_keys.table_key(profile), info={"zero_tensors": list(zero)},
        )  # fmt: skip
        backend = TensorRT(machine=ORIN, isolate=False)
        return building.build(profile, backend, cache=tmp_path / "cache", engines=tmp_path / "engines", **options)

    return call


def routes(caps: Caps) -> list[str]:
    return ["implicit", "explicit"] if caps.implicit_int8 else ["explicit"]


def keep_in_float(profile: Profile, layer: str) -> None:
    """Make the profile's model a prepared one whose recipe keeps ``layer`` in float."""
    recipe = Recipe(float_layers=(FloatLayer(layer, "noisy"),))
    onnx.save(apply(onnx_model.folded(Path(profile.model)), recipe), profile.model)


def test_a_layer_that_the_recipe_keeps_in_float_runs_in_fp16(version: str, binding: Bind, tiny: Tiny, run: Any) -> None:
    for route in routes(binding(version)):
        profile = tiny(int8_route=route)
        keep_in_float(profile, "conv_2")
        outcome = run(profile, force=True)
        assert outcome.warnings == []
        assert (outcome.layers.weighted_int8, outcome.layers.weighted_float, outcome.layers.int8_share) == (3, 1, 1.0)
        card = engine_report.load(outcome.manifest)
        assert [(item.node, item.asked, item.runs_in) for item in card.in_float] == [("conv_2", "fp16", "fp16")]


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_int8_in_a_layer_that_the_recipe_keeps_in_float(strict: bool, binding: Bind, tiny: Tiny, run: Any) -> None:
    binding("10.3.0", ignores_wishes=True)
    profile = tiny(int8_route="implicit", build={"strict": strict})
    keep_in_float(profile, "conv_2")
    words = "the recipe keeps 1 layers in float that the engine runs in INT8: conv_2"
    if strict:
        with pytest.raises(QualityError, match=words):
            run(profile)
    else:
        assert run(profile).warnings == [words]


def test_int8_that_fell_out_is_an_error_when_strict(version: str, binding: Bind, tiny: Tiny, run: Any) -> None:
    for route in routes(binding(version)):
        with pytest.raises(
            QualityError, match=r"INT8 was requested, but only [123] of 4 weighted layers run in it"
        ) as caught:
            run(tiny(int8_route=route), zero=(LOST,), force=True)
        assert "build.strict: false" in str(caught.value.hint)


def test_and_a_loud_warning_otherwise(version: str, binding: Bind, tiny: Tiny, run: Any) -> None:
    for route in routes(binding(version)):
        heard: list[Event] = []
        profile = tiny(int8_route=route, build={"strict": False})
        outcome = run(profile, zero=(LOST,), force=True, listen=heard.append)
        assert any("INT8 was requested" in text for text in outcome.warnings)
        assert any(isinstance(event, Note) and event.level == "warning" and "INT8 was requested" in event.text
                   for event in heard)  # fmt: skip
        manifest = store.load(outcome.manifest, kind=cache_keys.ENGINE)
        assert any("INT8 was requested" in text for text in manifest.info["warnings"])


def test_a_table_that_lacks_every_tensor_is_never_an_fp32_engine(
    version: str, binding: Bind, tiny: Tiny, run: Any
) -> None:
    for route in routes(binding(version)):
        profile = tiny(int8_route=route, build={"strict": False})
        names = onnx_model.load(Path(profile.model)).activations
        with pytest.raises((QualityError, ArtifactError)):
            run(profile, zero=tuple(names), force=True)


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1", "10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11"])
def test_fp16_that_became_fp32(version: str, binding: Bind, tiny: Tiny, run: Any) -> None:
    binding(version, prefers_fp32=True)
    with pytest.raises(QualityError, match="FP16 was requested, but only 0 of 4 weighted layers run in it"):
        run(tiny(build={"strict": False}), precision="fp16")


def test_fp16_that_is_fp16(version: str, binding: Bind, tiny: Tiny, run: Any) -> None:
    binding(version)
    outcome = run(tiny(), precision="fp16")
    assert outcome.layers is not None
    assert (outcome.layers.weighted_fp16, outcome.layers.weighted_unknown) == (4, 0)


def test_fp16_whose_layers_are_hidden_is_said_and_not_claimed(binding: Bind, tiny: Tiny, run: Any) -> None:
    binding("10.3.0", fuses=("CONVOLUTION", "MATRIX_MULTIPLY"))
    outcome = run(tiny(), precision="fp16")
    assert outcome.layers is not None
    assert outcome.layers.weighted_fp16 == 0
    assert any("does not show which of its layers run in FP16" in text for text in outcome.warnings)


def test_fp16_of_an_engine_that_cannot_be_loaded_here(binding: Bind, tiny: Tiny, run: Any) -> None:
    binding("10.3.0", can_load=False)
    outcome = run(tiny(), precision="fp16")
    assert any("does not show which of its layers run in FP16" in text for text in outcome.warnings)


def test_the_layer_that_fell_out_names_its_tensor(binding: Bind, tiny: Tiny, run: Any, tmp_path: Path) -> None:
    binding("10.3.0")
    outcome = run(tiny(build={"strict": False}), zero=(LOST,), force=True)
    path = outcome.manifest.with_name(f"{outcome.manifest.stem}{inspection.SUFFIX}")
    looked = inspection.decode_inspection(path.read_bytes(), where=path)
    short = [layer for layer in looked.layers if layer.role == "weighted" and layer.precision != "int8"]
    assert short
    assert LOST in {str(layer.why).removeprefix("no scale for ") for layer in short}
    raw = path.with_name(f"{outcome.manifest.stem}{inspection.RAW_SUFFIX}")
    assert raw.read_bytes().startswith(b'{"Layers"')


def test_before_and_after_are_kept(version: str, binding: Bind, tiny: Tiny, run: Any) -> None:
    binding(version)
    outcome = run(tiny(), precision="fp32")
    path = outcome.manifest.with_name(f"{outcome.manifest.stem}{inspection.SUFFIX}")
    looked = inspection.decode_inspection(path.read_bytes(), where=path)
    assert [node.kind for node in looked.nodes if node.weighted] == ["Conv", "Conv", "Conv", "Gemm"]
    assert looked.counts().weighted == {"fp32": 4}
    assert looked.source.startswith("engine inspector of TensorRT")
