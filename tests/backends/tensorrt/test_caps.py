"""What each binding offers, and what happens when there is none, a broken one, or one that is too old."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.backends.tensorrt.environment import Caps, binding_module, load
from edge.errors import MissingDependencyError
from tests.support.tensorrt.double import VERSIONS
from tests.support.tensorrt.installed import NAMES

# implicit INT8, strongly typed possible, only, editable cache, error on miss, monitor, weight streaming, plan check
EXPECTED = {
    "8.6.1": (True, False, False, False, False, False, False, False),
    "10.0.1": (True, True, False, False, True, True, True, False),
    "10.3.0": (True, True, False, False, True, True, True, False),
    "10.7.0": (True, True, False, False, True, True, True, False),
    "10.13.3.9": (True, True, False, True, True, True, True, False),
    "10.16.1.11": (True, True, False, True, True, True, True, False),
    "11.4.0.106": (False, True, True, True, True, True, True, False),
    "rtx": (False, True, True, False, False, True, True, True),
}


def test_what_each_version_offers(version: str, binding: Callable[..., Caps]) -> None:
    caps = binding(version)
    seen = (
        caps.implicit_int8, caps.strongly_typed, caps.strongly_typed_only, caps.editable_timing_cache,
        caps.error_on_timing_cache_miss, caps.progress_monitor, caps.weight_streaming, caps.plan_check,
    )  # fmt: skip
    assert seen == EXPECTED[version]
    assert caps.calibrators == (("entropy2", "minmax", "entropy", "legacy") if caps.implicit_int8 else ())
    assert caps.rtx == (version == "rtx")
    assert caps.timing_cache == caps.dla == (not caps.rtx)
    assert caps.parser_names == (version != "8.6.1")
    assert caps.explicit_batch == (version.startswith(("8.", "10.")))
    assert "AMPERE_PLUS" in caps.hardware_compatibility
    assert "NONE" not in caps.hardware_compatibility
    assert bool(caps.compute_capabilities) == caps.rtx


@pytest.mark.parametrize(
    ("version", "header"),
    [("8.6.1", 8601), ("10.0.1", 100001), ("10.13.3.9", 101303), ("10.16.1.11", 101601), ("11.4.0.106", None)],
)
def test_the_version_in_a_tables_header(version: str, header: int | None, binding: Callable[..., Caps]) -> None:
    found = binding(version).table_version
    assert (found.code if found else None) == header


def test_the_module_is_the_one_that_was_loaded(binding: Callable[..., Caps]) -> None:
    caps = binding("10.3.0")
    assert binding_module(caps) is sys.modules["tensorrt"]
    assert load() is caps, "worked out once"
    assert caps.title == "TensorRT 10.3.0"
    assert binding("rtx").title == "TensorRT for RTX 1.7.1.116"


def test_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="TensorRT is not installed") as caught:
        load()
    assert "apt install python3-libnvinfer" in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(("rtx", "wanted"), [(True, "tensorrt_rtx"), (False, "tensorrt")])
def test_the_other_product_is_not_what_was_asked_for(
    rtx: bool, wanted: str, binding: Callable[..., Caps], monkeypatch: pytest.MonkeyPatch
) -> None:
    binding("10.3.0" if rtx else "rtx")
    with pytest.raises(MissingDependencyError, match=f"looked for {wanted}"):
        load(rtx=rtx)


def test_rtx_by_the_name_of_its_wheel(binding: Callable[..., Caps], monkeypatch: pytest.MonkeyPatch) -> None:
    binding("rtx")
    module = sys.modules["tensorrt_rtx"]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", module)
    caps = load()
    assert (caps.module, caps.rtx) == ("tensorrt_rtx_bindings", True)


def test_a_broken_installation_is_seen_and_not_passed_over(
    binding: Callable[..., Caps], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    binding("rtx")
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"cannot be imported: libnvinfer\.so\.10"):
        load()


@pytest.mark.parametrize("version", ["8.5.2", ""])
def test_too_old_or_no_tensorrt_at_all(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("tensorrt")
    module.__version__ = version
    module.IBuilderConfig = type("IBuilderConfig", (), {})
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(MissingDependencyError, match=r"is not TensorRT 8\.6 or newer"):
        load()


def test_eight_versions_are_there() -> None:
    assert len(VERSIONS) == len(EXPECTED) == 8
