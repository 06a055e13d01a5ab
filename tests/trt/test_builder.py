"""The builder against doubles of all eight bindings: what is asked of TensorRT, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import table_for, with_build, world

from edge.backends.base import BuildRequest
from edge.backends.trt import builder
from edge.backends.trt.caps import Caps

Ask = Callable[..., BuildRequest]
Bind = Callable[..., Caps]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_version_builds_every_precision(precision: str, version: str, binding: Bind, asked: Ask) -> None:
    caps = binding(version)
    built = builder.build(asked(precision), caps)
    assert built is not None
    assert built.plan.startswith(b"double of a plan")
    print(built.flags, built.layers, built.notes, built.info, built.decision)
