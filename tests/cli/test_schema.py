"""``edge schema``: the schemas describe the files that edge really reads and writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Edge = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_profiles_of_the_repository_fit_their_schema(path: Path, edge: Edge) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="a JSON schema checker")
    schema = json.loads(edge("schema", "profile").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


@pytest.mark.parametrize(
    "wrong",
    [{"modell": "m.onnx"}, {"precision": "int4"}, {"preprocess": {"fit": "stretch"}}, {"input": {"height": 0}}],
)
def test_what_edge_refuses_does_not_fit(wrong: dict[str, Any], edge: Edge) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="a JSON schema checker")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json.loads(edge("schema", "profile").out))


def test_units_may_be_given_as_in_a_file(edge: Edge) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="a JSON schema checker")
    schema = json.loads(edge("schema", "profile").out)
    jsonschema.validate({"extends": "host", "preprocess": {"mean": 0.5, "std": 0.5, "scale": "1/255"}}, schema)


@pytest.mark.parametrize("name", ["manifest", "record", "bundle"])
def test_each_kind_has_a_schema(name: str, edge: Edge) -> None:
    found = json.loads(edge("schema", name).out)
    assert found["$schema"].startswith("https://json-schema.org/")
    assert found["$defs"]


def test_the_manifest_of_the_sample_table_fits(edge: Edge) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="a JSON schema checker")
    schema = json.loads(edge("schema", "manifest").out)
    for path in (ROOT / "calib_cache").rglob("*.json"):
        content = json.loads(path.read_text())
        if "files" in content:
            jsonschema.validate(content, schema)


def test_another_kind_is_refused(edge: Edge) -> None:
    assert edge("schema", "picture").code == 2
