"""The doubles are strict: what a version does not have, they do not have either."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.tensorrt.double import bind, parse
from tests.support.tensorrt.machine import machine


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("8.6.1", "IProgressMonitor"),
        ("8.6.1", "DataType.INT64"),
        ("8.6.1", "IBuilderConfig.progress_monitor"),
        ("8.6.1", "NetworkDefinitionCreationFlag.STRONGLY_TYPED"),
        ("10.3.0", "BuilderFlag.EDITABLE_TIMING_CACHE"),
        ("10.7.0", "ITimingCache.queryKeys"),
        ("11.4.0.106", "IInt8EntropyCalibrator2"),
        ("11.4.0.106", "BuilderFlag.INT8"),
        ("11.4.0.106", "Builder.platform_has_fast_int8"),
        ("11.4.0.106", "IBuilderConfig.int8_calibrator"),
        ("rtx", "QuantizationFlag"),
    ],
)
def test_what_a_version_lacks(version: str, name: str) -> None:
    item: Any = machine(version)
    *path, last = name.split(".")
    for part in path:
        item = getattr(item, part)
    with pytest.raises(AttributeError):
        getattr(item, last)


def made(version: str, **settings: Any) -> Any:
    module = machine(version, **settings)
    return module, module.Builder(module.Logger())


def test_unknown_attributes_cannot_be_set() -> None:
    _, builder = made("11.4.0.106")
    config = builder.create_builder_config()
    config.builder_optimization_level = 5
    assert config.builder_optimization_level == 5
    with pytest.raises(AttributeError, match="int8_calibrator"):
        config.int8_calibrator = None


def test_only_the_library_makes_some_objects() -> None:
    module, _ = made("10.3.0")
    with pytest.raises(TypeError, match="No constructor defined"):
        module.IBuilderConfig()


def test_calls_are_checked_against_the_signature() -> None:
    module, builder = made("10.3.0")
    config = builder.create_builder_config()
    with pytest.raises(TypeError, match="incompatible function arguments"):
        config.set_flag("INT8")
    with pytest.raises(TypeError, match="incompatible function arguments"):
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, 1.5)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        config.set_timing_cache(config.create_timing_cache(b""))
    with pytest.raises(TypeError, match="incompatible function arguments"):
        builder.create_network(flags=0, more=1)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        builder.create_network(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_a_subclass_without_its_base_is_no_object_of_the_library() -> None:
    module = machine("10.3.0")

    class Forgetful(module.ILogger):
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match="incompatible function arguments"):
        module.Builder(Forgetful())


def test_signatures_are_read_as_pybind_prints_them() -> None:
    text = "f(self: tensorrt.X, a: List[Tuple[int, str]], b: tensorrt.S = <S.W: 2>, c: int = 0) -> Tuple[bool, int]"
    assert parse(text) == [
        ("self", "tensorrt.X", ""),
        ("a", "List[Tuple[int, str]]", ""),
        ("b", "tensorrt.S", "<S.W: 2>"),
        ("c", "int", "0"),
    ]
    assert parse("__init__(*args, **kwargs)") is None
    assert bind("g(x: int, y: int = 7) -> int", (1,), {}, None) == [1, 7]
