"""Print the JSON schema of a profile, record or manifest.

For editors and validators. The schema describes a profile's file, so keys that come from `extends` may be missing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import typer

from edge.artifacts import Secret
from edge.ui.terminal import Terminal

Kind = Literal["profile", "record", "manifest", "bundle"]


def command(
    kind: Annotated[
        Kind, typer.Argument(metavar="KIND", help="profile, record, manifest (of a table or engine) or bundle.")
    ],
) -> None:
    """Print the schema."""
    Terminal().data(msgspec.json.format(msgspec.json.encode(schema(kind)), indent=2).decode())


def schema(kind: Kind) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of one kind of file."""
    from edge.artifacts import Manifest, RunRecord
    from edge.config import Profile
    from edge.deploy.bundle import BundleManifest

    types = {"profile": Profile, "record": RunRecord, "manifest": Manifest, "bundle": BundleManifest}
    found = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **msgspec.json.schema(types[kind], schema_hook=_schema_of),
    }
    if kind == "profile":
        _as_written(found["$defs"])
    return found


def _schema_of(kind: type) -> dict[str, Any]:
    if kind is not Secret:
        raise NotImplementedError(kind)
    return {"type": "string"}


def _as_written(sections: dict[str, Any]) -> None:
    """Describe a profile's file instead of the profile: keys that come from `extends` may be missing."""
    profile = sections["Profile"]
    profile["properties"] |= {"extends": {"type": "string", "description": "Name or file of another profile."}}
    profile["required"] = []
    notify = sections["NotifyRule"]["properties"]
    notify["to"] = {"anyOf": [{"type": "string"}, notify["to"]]}
    preprocess = sections["PreprocessConfig"]["properties"]
    preprocess["scale"] = {"type": ["number", "string"], "description": "Unit of mean and std, such as 1/255."}
    for name in ("mean", "std"):
        preprocess[name] = {"anyOf": [{"type": "number"}, preprocess[name]]}
