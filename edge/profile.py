"""YAML device profiles: read, merged along ``extends``, checked, and frozen.

A profile that is wrong gives ``file:line: key.path: what is wrong``. Paths in a profile are relative to the file that
names them. Nothing outside this module sees YAML or a raw dict.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edge.errors import ProfileError
from edge.store import digest

Family = Literal["host", "agx-orin", "orin-nx", "orin-nano", "thor", "rtx"]
BackendName = Literal["onnxruntime", "tensorrt", "fake"]
Precision = Literal["fp32", "fp16", "int8"]
Int8Route = Literal["auto", "implicit", "explicit"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Triple = tuple[float, float, float]

# Keys whose value is a path, relative to the file that holds them.
_PATHS = {("model",), ("labels",), ("calibration", "images")}
_MAX_EXTENDS = 8


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: frozen, keyword-only, unknown keys are errors."""


class Batch(_Section, frozen=True):
    """Batch sizes that the engine must take, and the one that it is optimized for."""

    min: Positive = 1
    opt: Positive = 1
    max: Positive = 1


class Input(_Section, frozen=True):
    """What the network takes: height and width in pixels."""

    height: Positive = 224
    width: Positive = 224
    batch: Batch = Batch()


class Preprocess(_Section, frozen=True):
    """From a decoded uint8 picture to the network's float input (see :mod:`edge.preprocess`).

    ``mean`` and ``std`` are per channel in the order of ``color``, in units of 8-bit pixel values (0 to 255).
    """

    fit: Literal["crop", "letterbox", "squash"] = "crop"
    resize: Positive = 256
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    color: Literal["rgb", "bgr"] = "rgb"
    mean: Triple = (123.675, 116.28, 103.53)
    std: Triple = (58.395, 57.12, 57.375)
    pad: Annotated[int, msgspec.Meta(ge=0, le=255)] = 114


class Calibration(_Section, frozen=True):
    """How the calibration table is made."""

    algorithm: str = "entropy2"
    parameters: dict[str, float] = {}
    images: str | None = None
    batch: Positive = 8


class Build(_Section, frozen=True):
    """How the engine is built; what a backend has no use for, it ignores and its manifest says so.

    ``min_int8_share`` is the share of convolution and matrix-product layers that must really run in INT8.
    """

    workspace_mib: Positive | None = None
    timing_cache: bool = True
    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    dla_core: Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    gpu_fallback: bool = True
    strict: bool = True
    min_int8_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.9


class Run(_Section, frozen=True):
    """How the loop runs. ``threads`` is for the CPU backend; None means all cores."""

    warmup: Annotated[int, msgspec.Meta(ge=0)] = 10
    topk: Positive = 5
    threads: Positive | None = None


class Profile(_Section, frozen=True):
    """Everything about one device, resolved: ``extends`` merged, paths absolute."""

    name: str
    family: Family
    backend: BackendName
    model: str
    labels: str
    input: Input = Input()
    preprocess: Preprocess = Preprocess()
    precision: Precision = "int8"
    int8_route: Int8Route = "auto"
    calibration: Calibration = Calibration()
    build: Build = Build()
    power_mode: str | None = None
    run: Run = Run()

    @property
    def digest(self) -> str:
        """Sha256 of the settings that an engine depends on; paths and run settings are not among them."""
        content = msgspec.to_builtins(self)
        for name in ("name", "model", "labels", "run", "power_mode", "calibration"):
            del content[name]
        return digest(content)


def load(path: Path) -> Profile:
    """Read the profile at ``path`` and everything that it extends.

    Raises:
        ProfileError: with ``file:line: key.path`` and, for a misspelt name, the nearest right one.
    """
    document = _Document.read(path, seen=())
    document.reject_unknown(Profile, document.tree, ())
    try:
        profile = msgspec.convert(document.tree, Profile)
    except msgspec.ValidationError as exc:
        raise document.error_from(exc) from exc
    _check_together(profile, document)
    return profile


def find(name: str, folders: list[Path]) -> Path:
    """Path of the profile called ``name``: itself a path to a YAML file, or a file in one of ``folders``.

    Raises:
        ProfileError: there is none; the nearest name is suggested.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return Path(name)
    known = {path.stem: path for path in available(folders)}
    if name in known:
        return known[name]
    raise ProfileError(
        f"there is no profile {name!r}{_did_you_mean(name, known)}",
        where=", ".join(str(folder) for folder in folders) or None,
        hint="edge profile list",
    )


def available(folders: list[Path]) -> list[Path]:
    """Profile files in ``folders``, by name; the first folder wins where two hold the same name."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return [found[name] for name in sorted(found)]


def _check_together(profile: Profile, document: _Document) -> None:
    """Checks that need more than one key."""
    batch, pre = profile.input.batch, profile.preprocess
    if not batch.min <= batch.opt <= batch.max:
        raise document.error(("input", "batch"), f"needs min <= opt <= max, got {batch.min}, {batch.opt}, {batch.max}")
    if pre.fit == "crop" and pre.resize < max(profile.input.height, profile.input.width):
        size = f"{profile.input.height}x{profile.input.width}"
        raise document.error(("preprocess", "resize"), f"{pre.resize} is smaller than the {size} crop taken from it")
    for name, values in (("mean", pre.mean), ("std", pre.std)):
        if not all(math.isfinite(value) for value in values):
            raise document.error(("preprocess", name), f"must be finite for every channel, got {list(values)}")
    if min(pre.std) <= 0:
        raise document.error(("preprocess", "std"), f"must be above 0 for every channel, got {list(pre.std)}")
    for name, value in profile.calibration.parameters.items():
        if not math.isfinite(value):
            raise document.error(("calibration", "parameters", name), f"must be finite, got {value}")
    # The name becomes a folder of engines.
    if profile.name in {"", ".", ".."} or any(sign in profile.name for sign in "/\\\0"):
        raise document.error(("name",), f"{profile.name!r} cannot be the name of a folder")
    if profile.build.dla_core is not None and profile.family not in {"agx-orin", "orin-nx"}:
        raise document.error(("build", "dla_core"), f"{profile.family} has no DLA")
    if profile.build.dla_core is not None and profile.backend != "tensorrt":
        raise document.error(("build", "dla_core"), f"backend {profile.backend} has no DLA")
    if profile.backend == "onnxruntime" and profile.precision == "fp16":
        raise document.error(("precision",), "ONNX Runtime on a CPU runs fp32 or int8, not fp16")


class _Document:
    """One YAML file merged over what it extends: plain values, and where each key stands."""

    def __init__(self, path: Path, tree: dict[str, Any], places: dict[tuple[str, ...], tuple[Path, int]]) -> None:
        self.path = path
        self.tree = tree
        self.places = places

    @classmethod
    def read(cls, path: Path, *, seen: tuple[Path, ...]) -> _Document:
        """Read ``path``, then merge it over the profile that it extends."""
        document = cls._read_one(path)
        parent_name = document.tree.pop("extends", None)
        document.tree.setdefault("name", path.stem)
        if parent_name is None:
            return document
        if not isinstance(parent_name, str):
            raise document.error(("extends",), "must be the name of another profile")
        parent_path = path.parent / (parent_name if parent_name.endswith((".yaml", ".yml")) else f"{parent_name}.yaml")
        if not parent_path.is_file():
            known = [p.stem for p in available([path.parent])]
            raise document.error(("extends",), f"there is no {parent_path.name}{_did_you_mean(parent_name, known)}")
        chain = (*seen, path)
        if parent_path.resolve() in {known.resolve() for known in chain}:
            names = " -> ".join(known.name for known in (*chain, parent_path))
            raise document.error(("extends",), f"goes round in a circle: {names}")
        if len(chain) > _MAX_EXTENDS:
            raise document.error(("extends",), f"more than {_MAX_EXTENDS} profiles deep")
        parent = cls.read(parent_path, seen=chain)
        return cls(path, _merge(parent.tree, document.tree), {**parent.places, **document.places})

    @classmethod
    def _read_one(cls, path: Path) -> _Document:
        import yaml

        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except FileNotFoundError as exc:
            raise ProfileError("there is no such profile", where=path, hint="edge profile list") from exc
        except (OSError, UnicodeDecodeError) as exc:
            raise ProfileError(f"cannot read: {exc}", where=path) from exc
        except yaml.YAMLError as exc:
            mark = getattr(exc, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            raise ProfileError(f"not YAML: {getattr(exc, 'problem', exc)}", where=f"{path}{line}") from exc
        except RecursionError as exc:
            raise ProfileError("not YAML that edge can read: nested too deeply", where=path) from exc
        if root is None:
            raise ProfileError("the file is empty", where=path)
        places: dict[tuple[str, ...], tuple[Path, int]] = {(): (path, root.start_mark.line + 1)}
        if not isinstance(root, yaml.MappingNode):
            raise ProfileError("must be a mapping of keys to values", where=f"{path}:1")
        # A second SafeLoader turns nodes into values, so that YAML's own rules for types hold.
        try:
            value = _to_value(root, (), path, places, yaml.SafeLoader(""))
        except RecursionError as exc:
            raise ProfileError("an alias that stands inside of what it names", where=path) from exc
        return cls(path, value, places)

    def error(self, key: tuple[str, ...], what: str) -> ProfileError:
        """A ProfileError that points at ``key``, or at its nearest parent that is in a file."""
        at = key
        while at and at not in self.places:
            at = at[:-1]
        path, line = self.places.get(at, (self.path, 1))
        return ProfileError(f"{'.'.join(key)}: {what}" if key else what, where=f"{path}:{line}")

    def error_from(self, exc: msgspec.ValidationError) -> ProfileError:
        """Translate msgspec's `` - at `$.a.b[0]` `` into file, line and key."""
        text = str(exc)
        match = re.search(r" - at `\$([^`]*)`$", text)
        raw = match.group(1) if match else ""
        key = tuple(part for part in re.sub(r"\[[^\]]*\]", "", raw).split(".") if part)
        what = text[: match.start()] if match else text
        missing = re.match(r"Object missing required field `(\w+)`", what)
        if missing:
            return self.error((*key, missing.group(1)), "is missing")
        choice = re.match(r"Invalid enum value '(.*)'", what)
        if choice:
            allowed = _choices(Profile, key)
            what = f"{choice.group(1)!r} is not one of {', '.join(allowed)}{_did_you_mean(choice.group(1), allowed)}"
        return self.error(key, what[0].lower() + what[1:])

    def reject_unknown(self, struct: type[msgspec.Struct], tree: dict[str, Any], at: tuple[str, ...]) -> None:
        """Raise for the first key that no section knows, with the nearest right one."""
        fields = {field.name: field.type for field in msgspec.structs.fields(struct)}
        for name, value in tree.items():
            if name not in fields:
                raise self.error((*at, name), f"unknown key{_did_you_mean(name, fields)}")
            section = fields[name]
            if isinstance(section, type) and issubclass(section, msgspec.Struct) and isinstance(value, dict):
                self.reject_unknown(section, value, (*at, name))


def _to_value(node: Any, at: tuple[str, ...], path: Path, places: dict[Any, Any], loader: Any) -> Any:  # noqa: ANN401
    """Plain value of a YAML node; notes the line of each key, refuses duplicates, resolves paths."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        try:
            value = loader.construct_object(node, deep=True)
            if at in _PATHS and isinstance(value, str):
                return str((path.parent / Path(value).expanduser()).resolve())
        except (yaml.YAMLError, ValueError, OverflowError, RuntimeError) as exc:
            # An unknown tag, a date or number that is none, ~somebody who is not there, a path with NUL.
            what = f"{'.'.join(at)}: {getattr(exc, 'problem', exc)}"
            raise ProfileError(what, where=f"{path}:{node.start_mark.line + 1}") from exc
        return value
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise ProfileError("a key must be a word", where=f"{path}:{key_node.start_mark.line + 1}")
        name = str(key_node.value)
        key = (*at, name)
        if name in result:
            raise ProfileError(f"{'.'.join(key)}: given twice", where=f"{path}:{key_node.start_mark.line + 1}")
        places[key] = (path, key_node.start_mark.line + 1)
        result[name] = _to_value(value_node, key, path, places, loader)
    return result


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _choices(struct: type[msgspec.Struct], key: tuple[str, ...]) -> list[str]:
    """Allowed words at ``key``: the Literal in the field's type."""
    kind: Any = struct
    for name in key:
        kind = next((field.type for field in msgspec.structs.fields(kind) if field.name == name), None)
    return [str(word) for word in _literals(kind)]


def _literals(kind: Any) -> Iterator[Any]:  # noqa: ANN401
    if typing.get_origin(kind) is Literal:
        yield from typing.get_args(kind)
    elif typing.get_origin(kind) in {typing.Union, types.UnionType}:
        for member in typing.get_args(kind):
            yield from _literals(member)


def _did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
