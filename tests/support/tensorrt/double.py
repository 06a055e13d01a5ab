"""A module that looks exactly like one released binding of TensorRT, generated from ``api/*.json`` next to it.

An attribute that the version lacks raises AttributeError, also when it is assigned; a call is checked against the
signature that NVIDIA's binding prints; an object that the binding does not let Python make cannot be made. What the
classes *do* is in :mod:`double_machine`: enough to parse, build, calibrate and run a small classifier on a CPU.

Calls from "C++" into our subclasses go through :func:`call_override`, which does what NVIDIA's trampolines do with an
exception: print it, and go on with a default.
"""

from __future__ import annotations

import json
import re
import types
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

API = Path(__file__).resolve().parent / "api"
VERSIONS = ("8.6.1", "10.0.1", "10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11", "11.4.0.106", "rtx")
# Classes that Python code may subclass: instances of a subclass take any attribute.
_OWN = "_d"
_NO_CONSTRUCTOR = "Initialize self."
_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
_CONSTANTS = {
    "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int8": "INT8", "int32": "INT32", "int64": "INT64",
    "bool": "BOOL", "uint8": "UINT8", "fp8": "FP8", "int4": "INT4", "fp4": "FP4", "e8m0": "E8M0",
}  # fmt: skip


def api_path(version: str) -> Path:
    pattern = "tensorrt_rtx-*.json" if version == "rtx" else f"tensorrt-{version}.json"
    return next(iter(sorted(API.glob(pattern))))


def make(version: str, behaviour: dict[str, Callable[..., Any]], world: Any) -> types.ModuleType:
    """The double of one version. ``behaviour`` maps ``Class.method`` and ``Class.property`` to functions."""
    api = json.loads(api_path(version).read_text())
    module = types.ModuleType(api["module"])
    module.__spec__ = ModuleSpec(api["module"], loader=None)
    module.__version__ = api["version"].removeprefix("rtx-")
    module.world = world
    for name, content in api["classes"].items():
        if content["values"] is not None:
            setattr(module, name, _enumeration(name, content["values"]))
    for name in sorted(api["classes"], key=lambda item: _depth(item, api["classes"])):
        if api["classes"][name]["values"] is None:
            setattr(module, name, _class(name, api["classes"][name], module, behaviour))
    severity = _enumeration("Severity", _SEVERITIES)
    for holder in ("ILogger", "Logger"):
        kind = getattr(module, holder)
        kind.Severity = severity
        for item in _SEVERITIES:
            setattr(kind, item, getattr(severity, item))
    for name in api["constants"]:
        setattr(module, name, getattr(module.DataType, _CONSTANTS[name]))
    for name, signature in api["functions"].items():
        setattr(module, name, _checked(name, signature, module, behaviour.get(name, _nothing(name)), bound=False))
    world.module = module
    return module


def create(module: Any, kind_name: str, /, **data: Any) -> Any:
    """An object that only the library makes: a network, a config, a tensor."""
    made = object.__new__(getattr(module, kind_name))
    object.__setattr__(made, _OWN, types.SimpleNamespace(properties={}, **data))
    return made


def call_override(item: Any, name: str, *arguments: Any, default: Any = None, deprecated: str | None = None) -> Any:
    """Call a method of a Python subclass the way NVIDIA's trampolines do; what it raises is printed and lost."""
    world = item._d.world
    try:
        if deprecated:
            warnings.warn(deprecated, DeprecationWarning, stacklevel=2)
        return getattr(item, name)(*arguments)
    except BaseException as exc:  # noqa: BLE001
        world.leaks.append(f"{name}: {type(exc).__name__}: {exc}")
        return default


class _Enumeration(type):
    @property
    def __members__(cls) -> dict[str, Any]:
        return dict(cls._members)


def _enumeration(name: str, values: Any) -> type:
    made = _Enumeration(name, (), {"_members": {}})

    def text(self: Any) -> str:
        return f"{name}.{self.name}"

    made.__int__ = lambda self: self.value
    made.__index__ = lambda self: self.value
    made.__repr__ = made.__str__ = text
    for number, item in enumerate(values):
        member = object.__new__(made)
        member.name, member.value = item, number
        made._members[item] = member
        setattr(made, item, member)
    return made


def _class(name: str, content: dict[str, Any], module: Any, behaviour: dict[str, Callable[..., Any]]) -> type:
    bases = tuple(getattr(module, base) for base in content["bases"]) or (object,)
    body: dict[str, Any] = {"__module__": module.__name__}
    for method, signature in content["methods"].items():
        if signature is None or method == "__init__":
            continue
        does = behaviour.get(f"{name}.{method}") or next(
            (behaviour[f"{base}.{method}"] for base in content["bases"] if f"{base}.{method}" in behaviour),
            _nothing(f"{name}.{method}"),
        )
        body[method] = _checked(f"{name}.{method}", signature, module, does, bound=True)
    for item in content["properties"]:
        body[item] = _property(name, item, module, behaviour)
    body["__init__"] = _constructor(name, content["methods"].get("__init__"), module, behaviour)
    body["__setattr__"] = _guard(name)
    return type(name, bases, body)


def _constructor(name: str, signature: str | None, module: Any, behaviour: dict[str, Callable[..., Any]]) -> Any:
    does = behaviour.get(f"{name}.__init__", lambda self, *_: None)

    def init(self: Any, *arguments: Any, **named: Any) -> None:
        if signature is None or signature.startswith(_NO_CONSTRUCTOR):
            raise TypeError(f"{module.__name__}.{name}: No constructor defined!")
        object.__setattr__(self, _OWN, types.SimpleNamespace(properties={}, world=module.world))
        bind(signature, (self, *arguments), named, module)
        does(self, *arguments, **named)

    return init


def _guard(name: str) -> Any:
    def setter(self: Any, attribute: str, value: Any) -> None:
        kind = type(self)
        is_generated = "__init__" in vars(kind) and vars(kind).get("__setattr__") is not None
        if is_generated and attribute != "__class__" and not hasattr(kind, attribute):
            raise AttributeError(f"{kind.__name__!r} object has no attribute {attribute!r}")
        object.__setattr__(self, attribute, value)

    return setter


def _property(owner: str, name: str, module: Any, behaviour: dict[str, Callable[..., Any]]) -> property:
    # Property of a base class may be asked through a subclass: layers all look alike to the network.
    get = behaviour.get(f"{owner}.{name}") or behaviour.get(f"ILayer.{name}" if "Layer" in owner else "")

    def getter(self: Any) -> Any:
        if get is not None:
            return get(self)
        return self._d.properties.get(name)

    def setter(self: Any, value: Any) -> None:
        check = behaviour.get(f"{owner}.{name}=")
        if check is not None:
            check(self, value)
        self._d.properties[name] = value

    return property(getter, setter)


def _nothing(name: str) -> Callable[..., Any]:
    def missing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"the double of TensorRT does not do {name}")

    return missing


def _checked(name: str, signature: str, module: Any, does: Callable[..., Any], *, bound: bool) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        values = bind(signature, arguments, named, module)
        return does(*values)

    call.__name__ = name.rsplit(".", 1)[-1]
    call.__doc__ = signature
    return call


# signatures, as pybind11 prints them


def bind(signature: str, arguments: tuple[Any, ...], named: dict[str, Any], module: Any) -> list[Any]:
    """Arguments in the order of the signature.

    Raises:
        TypeError: as pybind11 does, when they do not fit.
    """
    parameters = parse(signature)
    if parameters is None:  # an overloaded function prints no types
        return [*arguments, *named.values()]
    values = list(arguments)
    for position, (name, kind, default) in enumerate(parameters):
        if position < len(arguments):
            value = arguments[position]
        elif name in named:
            value = named.pop(name)
            values.append(value)
        elif default:
            values.append(_default(default))
            continue
        else:
            raise TypeError(f"{signature}: incompatible function arguments: {name} is missing")
        if not _fits(value, kind, module, optional=default == "None"):
            raise TypeError(f"{signature}: incompatible function arguments: {name}={value!r}")
    if named or len(arguments) > len(parameters):
        raise TypeError(f"{signature}: incompatible function arguments: {arguments[len(parameters) :]} {named}")
    return values


def parse(signature: str) -> list[tuple[str, str, str]] | None:
    """Name, type and default ('' for none) of each parameter; None when the signature says nothing."""
    inside = signature[signature.index("(") + 1 : signature.rindex(")")] if "(" in signature else "*args"
    if inside.startswith("*args"):
        return None
    found, depth, start = [], 0, 0
    for index, sign in enumerate(f"{inside},"):
        depth += (sign in "[(<") - (sign in "])>")
        if sign == "," and depth == 0:
            part = inside[start:index].strip()
            start = index + 1
            if part:
                declared, _, default = part.partition(" = ")
                name, _, kind = declared.partition(": ")
                found.append((name, kind, default))
    return found


def _default(text: str) -> Any:
    return {"None": None, "True": True, "False": False}.get(text, int(text) if re.fullmatch(r"-?\d+", text) else text)


def _fits(value: Any, kind: str, module: Any, *, optional: bool) -> bool:
    kind = kind.replace("tensorrt_rtx_bindings.", "")
    if value is None:
        return optional or kind.startswith(("tensorrt", "nvinfer1", "nvonnxparser", "object", "str"))
    if kind in {"int", "typing.SupportsInt"}:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in {"float", "typing.SupportsFloat"}:
        return isinstance(value, int | float)
    if kind in {"bool", "str"}:
        return isinstance(value, bool if kind == "bool" else str)
    if "uffer" in kind:
        return isinstance(value, bytes | bytearray | memoryview) or hasattr(value, "_d")
    if kind.startswith(("List", "collections.abc.Sequence", "list", "Tuple", "tuple")):
        return isinstance(value, list | tuple)
    if kind.startswith("tensorrt") or "::" in kind:
        name = re.split(r"\.|::", kind)[-1]
        if name.startswith("Dims"):
            return isinstance(value, list | tuple)
        wanted = getattr(module, name, None)
        if wanted is None or isinstance(wanted, _Enumeration):
            return wanted is None or isinstance(value, wanted)
        # A Python subclass that forgot its base's __init__ has no C++ object behind it.
        return isinstance(value, wanted) and _OWN in vars(value)
    return True


def _depth(name: str, classes: dict[str, Any]) -> int:
    bases = classes.get(name, {"bases": []})["bases"]
    return 1 + max((_depth(base, classes) for base in bases), default=0)
